"""The application of docs/how_to/deploy_sdk.md on the real MONAI Deploy App SDK, on a CPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from integration.consumer_venv import code_block, run_in, venv_bin

pytestmark = pytest.mark.integration
FORMS = ["folder with model.pt", "folder with model.ts", "single model.ts"]


@pytest.fixture(scope="module")
def deploy() -> Path:
    return venv_bin("deploy")


@pytest.fixture(scope="module")
def student(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's folder as a download leaves it."""
    ignore = shutil.ignore_patterns("runs", "eval", "previous", "exported", "*.onnx", "*.ts")
    target = tmp_path_factory.mktemp("download") / "student"
    return shutil.copytree(repository / "bundles" / "student", target, ignore=ignore)


@pytest.fixture(scope="module")
def image(phantoms: Path) -> Path:
    return min((phantoms / "imagesTs").iterdir())


@pytest.fixture(scope="module")
def expected(deploy: Path, student: Path, image: Path, tmp_path_factory: pytest.TempPathFactory) -> nibabel.Nifti1Image:
    """The label that `monai.bundle run` writes, with the same packages."""
    folder = tmp_path_factory.mktemp("expected")
    (folder / "images").mkdir()
    shutil.copyfile(image, folder / "images" / image.name)
    config = str(student / "configs" / "inference.yaml")
    command = ["python", "-m", "monai.bundle", "run", "--config_file", config, "--bundle_root", str(student)]
    run_in(deploy, [*command, "--dataset_dir", str(folder / "images"), "--output_dir", str(folder / "out")], folder)
    (label,) = (folder / "out").iterdir()
    return nibabel.load(label)


@pytest.fixture(scope="module")
def script(deploy: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.ts, as the page makes it."""
    path = tmp_path_factory.mktemp("export") / "model.ts"
    options = {
        "--filepath": path,
        "--ckpt_file": student / "models" / "model.pt",
        "--meta_file": student / "configs" / "metadata.json",
        "--config_file": student / "configs" / "inference.yaml",
    }
    command = ["python", "-m", "monai.bundle", "ckpt_export", "network_def"]
    run_in(deploy, [*command, *(str(word) for pair in options.items() for word in pair)], path.parent)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_the_application_writes_the_label_of_bundle_run(form, deploy, student, image, expected, script, tmp_path):
    (tmp_path / "app.py").write_text(code_block("how_to/deploy_sdk.md", "app.py"))
    (tmp_path / "out").mkdir()
    arguments, environment = ["-i", str(image), "-o", "out"], {}
    if form == "single model.ts":
        arguments += ["-m", str(script)]
    else:
        bundle = shutil.copytree(student, tmp_path / "student")
        if form == "folder with model.ts":
            shutil.copyfile(script, bundle / "models" / "model.ts")
            (bundle / "models" / "model.pt").unlink()  # so that no other file can have been used
        environment["BUNDLE"] = str(bundle)
    stack = ["bash", "-c", 'ulimit -s 32768; exec python app.py "$@"', "app.py"]
    run_in(deploy, [*stack, *arguments], tmp_path, **environment)

    (path,) = (tmp_path / "out").iterdir()
    found = nibabel.load(path)
    assert path.name == image.name.split(".nii")[0] + "_seg.nii.gz"
    labels, wanted = np.asanyarray(found.dataobj), np.asanyarray(expected.dataobj)
    assert set(np.unique(wanted)) >= {0, 1}, "a label without foreground would compare nothing"
    assert found.shape == nibabel.load(image).shape
    np.testing.assert_allclose(found.affine, nibabel.load(image).affine, atol=1e-5)
    assert np.count_nonzero(labels != wanted) == 0
