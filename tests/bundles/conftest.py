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
from picture_sets import make


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
        if of_a_set := [Path(file).stem for file in files if file.startswith("pictures/")]:
            place = root / of_a_set[0]
            return place if place.exists() else make(place, of_a_set[0])
        if {"pictures.yaml", "inference_pictures.yaml"} & set(files):
            return data_for("gkd", images=files[0] == "inference.yaml")
        if bundle in ("mtcm-kd", "gkd", "mtms-kd") and not {"liver.yaml", "hippocampus.yaml"} & set(files):
            return data_for(bundle, images=files[0] == "inference.yaml" and "inference_brats.yaml" not in files)
        return next((forms[name] for name in files if name in forms), phantoms)

    return folder


# what some files define and take the weights of, by the id that names the weights
WEIGHTS = {
    "mtms-kd": {"teacher_path": "teacher_def"},
    "mtcm-kd": {"teachers_path": "teachers_def"},
    "gkd": {
        "scratch_path": "network_def",
        "teacher_path": "teacher_def",
        "autoencoder_path": "autoencoder_def",
        "alignment_path": "aligned_def",
    },
}


def random_weights(bundle: Path, files: Sequence[str], overrides: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write random weights for the networks that some files define; return the ids that name them."""
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in files])
    for key, value in overrides.items():
        parser[key] = value
    found = {}
    for number, (name, definition) in enumerate(WEIGHTS[bundle.name].items()):
        torch.manual_seed(number)
        found[name] = str(folder / f"{definition}.pt")
        torch.save(parser.get_parsed_content(definition).state_dict(), found[name])
    return found


@pytest.fixture
def workflow(
    data_of: Callable[..., Path],
    tiny_teacher: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., ConfigWorkflow]]:
    """Build and initialize a bundle's workflow on the phantoms, with a tiny network: ``workflow(bundle, files)``."""
    monkeypatch.chdir(tmp_path)  # a configuration that writes into the current folder must not find the repository
    made = []
    weights = tmp_path_factory.mktemp("weights")

    def build(bundle: Path, files: Sequence[str], workflow_type: str = "train", **overrides: Any) -> ConfigWorkflow:
        name = bundle.name
        defaults: dict[str, Any] = {
            "bundle_root": str(bundle),
            "dataset_dir": str(data_of(files, name)),
            **(TINY_UNET3D if "unet3d.yaml" in files else TINY[name]),
        }
        if workflow_type == "train":
            defaults.update({"split_file": "", "run_dir": str(tmp_path / "run"), "ckpt_dir": str(tmp_path / "models")})
            defaults["cpu_bfloat16"] = False
            if any("\nteacher_root:" in (bundle / "configs" / file).read_text() for file in files):
                defaults["teacher_root"] = str(tiny_teacher)
        if "pretrained.yaml" in files or (name in ("gkd", "mtms-kd") and workflow_type == "train"):
            defaults |= random_weights(bundle, files, {**defaults, **overrides}, weights)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="parsing config_file")  # MONAI's hint to trust the source
            flow = create_workflow(
                config_file=[str(bundle / "configs" / file) for file in files],
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
