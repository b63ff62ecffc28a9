"""Checked copies: drift is found and repaired, and the repository's own bundles are in step."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from monai_kd.hub import sync_bundles
from monai_kd.hub.shared_blocks import infer_json, shared_sections

SOURCE = """# words around the sections are no part of them
# >>> section: knobs
epochs: 3 # a comment travels too
spacing_mm: [1.0, 1.0, 1.0]
# <<< section

# >>> section: data
  dataset: {_target_: Dataset}
# <<< section
"""
TRAIN = """method: distilled
# >>> shared: task/knobs
{knobs}# <<< shared

train:
  # >>> shared: task/data
{data}  # <<< shared
  handlers: []
"""
INFERENCE = """bundle_root: .
device: cpu
network_def: {_target_: UNet, spatial_dims: 3, channels: [4, 8]}
evaluator: {_target_: SupervisedEvaluator}
"""
KNOBS = "epochs: 3 # a comment travels too\nspacing_mm: [1.0, 1.0, 1.0]\n"
DATA = "  dataset: {_target_: Dataset}\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of bundles in step: one bundle, one source with two sections."""
    (tmp_path / "_shared").mkdir()
    (tmp_path / "_shared" / "task.yaml").write_text(SOURCE)
    configs = tmp_path / "student" / "configs"
    configs.mkdir(parents=True)
    (configs / "train.yaml").write_text(TRAIN.format(knobs=KNOBS, data=DATA))
    (configs / "inference.yaml").write_text(INFERENCE)
    (configs / "infer.json").write_text(infer_json(tmp_path / "student"))
    assert sync_bundles(tmp_path, check=True) == []
    return tmp_path


def test_the_repositorys_bundles_are_in_step(repository, bundles):
    assert sync_bundles(repository / "bundles", check=True) == []
    copies = [
        path for bundle in bundles for path in bundle.glob("configs/*.yaml") if "# >>> shared:" in path.read_text()
    ]
    assert len(copies) >= len(bundles)


def test_sections_are_the_text_between_their_markers(folder):
    assert shared_sections(folder / "_shared" / "task.yaml") == {"knobs": KNOBS, "data": DATA}


def test_an_edited_copy_is_found_by_the_check_and_repaired_without_it(folder):
    path = folder / "student" / "configs" / "train.yaml"
    text = path.read_text()
    drifted = text.replace("epochs: 3", "epochs: 4")
    path.write_text(drifted)
    assert sync_bundles(folder, check=True) == [str(path)]
    assert path.read_text() == drifted
    assert sync_bundles(folder) == [str(path)]
    assert path.read_text() == text
    assert sync_bundles(folder, check=True) == []


def test_an_edited_source_reaches_every_copy_and_what_is_not_shared_stays(folder):
    shutil.copytree(folder / "student", folder / "teacher")
    own = folder / "teacher" / "configs" / "train.yaml"
    own.write_text(own.read_text().replace("method: distilled", "method: teacher"))
    source = folder / "_shared" / "task.yaml"
    source.write_text(source.read_text().replace("[1.0, 1.0, 1.0]", "[0.8, 0.8, 0.8]"))
    changed = sync_bundles(folder)
    assert changed == [str(folder / name / "configs" / "train.yaml") for name in ("student", "teacher")]
    expected = TRAIN.format(knobs=KNOBS.replace("[1.0, 1.0, 1.0]", "[0.8, 0.8, 0.8]"), data=DATA)
    assert own.read_text() == expected.replace("method: distilled", "method: teacher")


def test_infer_json_follows_the_network_of_inference_yaml(folder):
    configs = folder / "student" / "configs"
    inference = configs / "inference.yaml"
    inference.write_text(inference.read_text().replace("[4, 8]", "[8, 16]"))
    assert sync_bundles(folder, check=True) == [str(configs / "infer.json")]
    sync_bundles(folder)
    content = json.loads((configs / "infer.json").read_text())
    assert list(content) == ["bundle_root", "device", "network_def"]
    assert content["network_def"] == {"_target_": "UNet", "spatial_dims": 3, "channels": [8, 16]}


def test_a_missing_infer_json_is_written(folder):
    path = folder / "student" / "configs" / "infer.json"
    text = path.read_text()
    path.unlink()
    assert sync_bundles(folder, check=True) == [str(path)]
    assert not path.exists()
    assert sync_bundles(folder) == [str(path)]
    assert path.read_text() == text


def test_a_copy_in_a_subfolder_of_configs_is_kept_in_step_too(folder):
    path = folder / "student" / "configs" / "distillers" / "deep" / "kd.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(TRAIN.format(knobs=KNOBS.replace("3", "4"), data=DATA))
    assert sync_bundles(folder) == [str(path)]
    assert path.read_text() == TRAIN.format(knobs=KNOBS, data=DATA)


@pytest.mark.parametrize("named", ["task/nobs", "tusk/knobs"])
def test_an_unknown_section_is_named_with_the_known_ones_and_nothing_is_written(folder, named):
    path = folder / "student" / "configs" / "train.yaml"
    path.write_text(path.read_text().replace("task/knobs", named).replace("epochs: 3", "epochs: 4"))
    before = path.read_text()
    with pytest.raises(ValueError, match=rf"train.yaml' copies '{named}'; known: task/knobs, task/data"):
        sync_bundles(folder)
    assert path.read_text() == before


def test_a_source_without_sections_is_refused(folder):
    (folder / "_shared" / "empty.yaml").write_text("epochs: 3\n")
    with pytest.raises(ValueError, match=r"empty\.yaml' holds no '# >>> section: NAME'"):
        sync_bundles(folder, check=True)


def test_drift_in_a_copy_of_the_repositorys_bundles_is_repaired_to_the_byte(repository, bundles, tmp_path):
    for name in ("_shared", *(bundle.name for bundle in bundles)):
        source = repository / "bundles" / name
        ignore = shutil.ignore_patterns("runs", "models", "eval", "docs")
        shutil.copytree(source, tmp_path / name, ignore=ignore)
    path = tmp_path / "student" / "configs" / "train.yaml"
    text = path.read_text()
    assert text.count("overlap: 0.25") == 1
    path.write_text(text.replace("overlap: 0.25", "overlap: 0.5"))
    assert sync_bundles(tmp_path) == [str(path)]
    assert path.read_text() == text


def test_checksums_follow_the_weights(tmp_path):
    models = tmp_path / "tiny" / "models"
    models.mkdir(parents=True)
    (models.parent / "configs").mkdir()
    (models / "model.pt").write_bytes(b"weights")
    (models / "previous").mkdir()
    (models / "previous" / "model.pt").write_bytes(b"before")
    listed = models / "checksums.sha256"
    assert sync_bundles(tmp_path, check=True) == [str(listed)]
    assert not listed.exists()
    assert sync_bundles(tmp_path) == [str(listed)]
    # sha256sum of the seven letters
    assert listed.read_text() == f"{hashlib.sha256(b'weights').hexdigest()}  model.pt\n"
    assert sync_bundles(tmp_path) == []


def test_one_bundle_far_from_the_others_is_synced_without_its_shared_blocks(tmp_path, repository):
    bundle = tmp_path / "elsewhere" / "student"
    shutil.copytree(repository / "bundles" / "student" / "configs", bundle / "configs")
    assert sync_bundles(bundle) == []
    (bundle / "configs" / "infer.json").write_text("{}")
    assert sync_bundles(bundle, check=True) == [str(bundle / "configs" / "infer.json")]
    (bundle / "configs" / "inference.yaml").write_text("network_def: {_target_: UNet}\n")
    with pytest.raises(ValueError, match=r"inference.yaml' lacks bundle_root, device"):
        sync_bundles(bundle)
    with pytest.raises(FileNotFoundError, match="is no bundle and holds none"):
        sync_bundles(tmp_path / "nothing")
