"""What the bundle tests share: a tiny network for every arm, a tiny teacher, and one way to build a workflow."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from commands import TINY, TINY_UNET3D
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from other_data import as_brats, with_one_class


@pytest.fixture(scope="session")
def tiny() -> dict[str, dict[str, Any]]:
    """The overrides that make each bundle's network tiny."""
    return TINY


@pytest.fixture(scope="session")
def tiny_teacher(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher folder as a student keeps it, with random weights."""
    folder = tmp_path_factory.mktemp("teacher")
    for name in ("configs", "models"):
        (folder / name).mkdir()
    definition = json.loads((repository / "bundles" / "teacher" / "configs" / "infer.json").read_text())
    definition["network_def"]["filters"] = TINY["teacher"]["network_def::filters"]
    torch.manual_seed(0)
    network = ConfigParser(definition).get_parsed_content("network_def")
    (folder / "configs" / "infer.json").write_text(json.dumps(definition))
    (folder / "configs" / "metadata.json").write_text("{}")
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="session")
def data_of(
    phantoms: Path, data_for: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return the phantoms in the form that a bundle, or the overlays among some of its files, ask for."""
    root = tmp_path_factory.mktemp("other_data")
    one_class, brats = with_one_class(phantoms, root / "one_class"), as_brats(phantoms, root / "brats")
    forms = {"left_atrium.yaml": one_class, "prostate.yaml": one_class}
    forms |= {"brats.yaml": brats, "inference_brats.yaml": brats}

    def folder(files: Sequence[str], bundle: str = "") -> Path:
        if bundle == "mtcm-kd":
            return data_for(bundle, images=files[0] == "inference.yaml" and "inference_brats.yaml" not in files)
        return next((forms[name] for name in files if name in forms), phantoms)

    return folder


def random_teachers(bundle: Path, files: Sequence[str], overrides: dict[str, Any], path: Path) -> str:
    """Write random weights for the teachers that some files define."""
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in files])
    for key, value in overrides.items():
        parser[key] = value
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("teachers_def").state_dict(), path)
    return str(path)


@pytest.fixture
def workflow(
    data_of: Callable[..., Path], tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ConfigWorkflow]]:
    """Build and initialize a bundle's workflow on the phantoms, with a tiny network: ``workflow(bundle, files)``."""
    monkeypatch.chdir(tmp_path)  # a configuration that writes into the current folder must not find the repository
    made = []

    def build(bundle: Path, files: Sequence[str], workflow_type: str = "train", **overrides: Any) -> ConfigWorkflow:
        defaults: dict[str, Any] = {
            "bundle_root": str(bundle),
            "dataset_dir": str(data_of(files, bundle.name)),
            **(TINY_UNET3D if "unet3d.yaml" in files else TINY[bundle.name]),
        }
        if workflow_type == "train":
            defaults.update({"split_file": "", "run_dir": str(tmp_path / "run"), "ckpt_dir": str(tmp_path / "models")})
            defaults["cpu_bfloat16"] = False
            if any("\nteacher_root:" in (bundle / "configs" / name).read_text() for name in files):
                defaults["teacher_root"] = str(tiny_teacher)
        if "pretrained.yaml" in files:
            defaults["teachers_path"] = random_teachers(bundle, files, defaults, tmp_path / "teachers.pt")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="parsing config_file")  # MONAI's hint to trust the source
            flow = create_workflow(
                config_file=[str(bundle / "configs" / name) for name in files],
                workflow_type=workflow_type,
                logging_file=False,
                **{**defaults, **overrides},
            )
        made.append(flow)
        return flow

    yield build
    for flow in made:
        flow.finalize()
    idist.sync()  # ignite remembers a process group that is gone
