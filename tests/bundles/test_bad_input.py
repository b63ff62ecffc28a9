"""Every kind of bad input on the documented command line: a clear error, before any training, and nothing lost.

Prints a table of inputs and messages (``-s`` shows it); the how-to page lists the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import TINY
from monai.bundle import create_workflow

CASE = "phantom_001"


class Place(NamedTuple):
    """A student's folder, a teacher's and a data set, all to be spoiled."""

    data: Path
    teacher: Path
    run_dir: Path


def edit(path: Path, change: Callable[[np.ndarray], np.ndarray], shift_mm: float = 0.0) -> None:
    volume = nib.load(path)
    affine = volume.affine.copy()
    affine[0, 3] += shift_mm
    nib.save(nib.Nifti1Image(change(np.asarray(volume.dataobj)), affine), path)


def image(place: Place) -> Path:
    return place.data / "imagesTr" / f"{CASE}.nii.gz"


def label(place: Place) -> Path:
    return place.data / "labelsTr" / f"{CASE}.nii.gz"


def set_voxel(value: float, kind: type = np.float32) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(kind)
        array[0, 0, 0] = value
        return array

    return change


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def teacher_of(place: Place, **arguments: Any) -> None:
    """Give the teacher's folder a network with other arguments and weights that fit it."""
    from monai.bundle import ConfigParser

    path = place.teacher / "configs" / "infer.json"
    rewrite_json(path, lambda content: content["network_def"].update(arguments))
    network = ConfigParser(json.loads(path.read_text())).get_parsed_content("network_def")
    torch.save(network.state_dict(), place.teacher / "models" / "model.pt")


def swap_classes(place: Place) -> None:
    channel_def = {"0": "background", "1": "posterior", "2": "anterior"}
    formats = {"network_data_format": {"outputs": {"pred": {"channel_def": channel_def}}}}
    (place.teacher / "configs" / "metadata.json").write_text(json.dumps(formats))


def nothing(_place: Place) -> None:
    """Only the overrides are wrong."""


# what is wrong: how to spoil the place, the overrides, what the message must hold
BAD: dict[str, tuple[Callable[[Place], Any], dict[str, Any], str]] = {
    "dataset_dir missing": (nothing, {"dataset_dir": "nowhere"}, "dataset_dir 'nowhere' is not a folder"),
    "dataset_dir empty": (
        lambda place: (shutil.rmtree(place.data), place.data.mkdir()),
        {},
        "has no labelled case in dataset.json or imagesTr and labelsTr",
    ),
    "file of dataset.json absent": (lambda place: label(place).unlink(), {}, "lacks 1 listed files, the first is"),
    "shape mismatch": (lambda place: edit(label(place), lambda a: a[1:]), {}, "not the same grid"),
    "affine mismatch": (
        lambda place: edit(label(place), lambda a: a, 3.0),
        {},
        "the affines of image and label differ",
    ),
    "label value outside": (
        lambda place: edit(label(place), set_voxel(9, np.uint8)),
        {},
        "label has the values 9; the classes are 0 to 2",
    ),
    "truncated NIfTI": (
        lambda place: image(place).write_bytes(image(place).read_bytes()[:2000]),
        {},
        "image cannot be read, it is damaged or truncated",
    ),
    "NaN": (lambda place: edit(image(place), set_voxel(np.nan)), {}, "image has 1 voxels that are NaN or infinite"),
    "Inf": (lambda place: edit(image(place), set_voxel(np.inf)), {}, "image has 1 voxels that are NaN or infinite"),
    "channels": (
        lambda place: edit(image(place), lambda a: np.stack([a, a], -1)),
        {},
        "image has 2 channels, the network takes 1",
    ),
    "class order of the data": (
        lambda place: rewrite_json(
            place.data / "dataset.json",
            lambda content: content.update({"labels": {"0": "background", "1": "posterior", "2": "anterior"}}),
        ),
        {},
        "the same names in another order",
    ),
    "teacher's channels": (lambda place: teacher_of(place, in_channels=4), {}, "cannot take the student's patches"),
    "teacher's classes": (
        lambda place: teacher_of(place, out_channels=2),
        {},
        "gives 2 channels, the student has 3 classes",
    ),
    "teacher's class order": (swap_classes, {}, "has its classes in the order ['background', 'posterior', 'anterior']"),
    "teacher missing": (nothing, {"teacher_root": "nowhere"}, "nowhere' does not exist; give a bundle, nnU-Net"),
    "teacher's weights missing": (
        lambda place: (place.teacher / "models" / "model.pt").unlink(),
        {},
        "no weights",
    ),
    "term's address": (
        nothing,
        {"terms::soft::target": "teacher/bottelneck"},
        "term 'soft' reads 'teacher/bottelneck'; known: label, student/logits, teacher/logits",
    ),
    "tap's path": (
        nothing,
        {"distiller_def::taps": {"student": {"deep": "model.9"}}},
        "model.9",
    ),
    "skip_bad_cases as a word": (
        nothing,
        {"skip_bad_cases": "yes"},
        "skip_bad_cases is 'yes'; it must be True or False",
    ),
    "no epochs": (nothing, {"epochs": 0}, "epochs is 0; a training has 1 or more"),
    "resume as a word": (nothing, {"resume": "yes"}, "resume is 'yes'; it must be True or False"),
    "nothing to resume": (nothing, {"resume": True}, "holds no run (no run.json); start without --resume"),
}


@pytest.fixture
def place(phantoms: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("MONAI_KD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = shutil.copytree(phantoms, tmp_path / "data")
    teacher = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    return Place(Path(data), Path(teacher), tmp_path / "run")


def run(repository: Path, place: Place, **overrides: Any) -> None:
    given: dict[str, Any] = {
        **TINY["student"],
        **{"dataset_dir": str(place.data), "teacher_root": str(place.teacher), "run_dir": str(place.run_dir)},
        **{"ckpt_dir": str(place.run_dir.with_name("models")), "split_file": "", "cpu_bfloat16": False},
        **{"patch_size": [16, 16, 16], "epochs": 1},
        **overrides,
    }
    bundle = repository / "bundles" / "student"
    flow = create_workflow(
        config_file=str(bundle / "configs" / "train.yaml"), logging_file=False, bundle_root=str(bundle), **given
    )
    flow.run()


def whole_message(error: BaseException) -> str:
    lines = []
    cause: BaseException | None = error
    while cause is not None:
        lines.append(str(cause))
        cause = cause.__cause__
    return "\n".join(lines)


@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named_before_training(repository, place, name):
    spoil, overrides, message = BAD[name]
    spoil(place)
    if name != "nothing to resume":
        place.run_dir.mkdir()
        (place.run_dir / "run.json").write_text('{"kind": "training", "status": "finished"}')
        (place.run_dir / "model.pt").write_bytes(b"earlier")
    with pytest.raises((RuntimeError, ValueError, TypeError, OSError)) as caught:
        run(repository, place, **overrides)
    text = whole_message(caught.value)
    assert message in text, text
    line = next(line for line in text.splitlines() if message in line)
    print(f"\n{name}: {line.strip()[:240]}")
    kept = [path.read_bytes() for path in place.run_dir.glob("*.pt")]
    assert kept == ([] if name == "nothing to resume" else [b"earlier"]), "it trained, or an earlier result is gone"
    assert not (place.run_dir / "previous").exists()


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_skipping_goes_on_and_the_record_lists_what_was_skipped(repository, place):
    edit(image(place), set_voxel(np.nan))
    run(repository, place, skip_bad_cases=True)
    record = json.loads((place.run_dir / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["skipped_cases"] == {CASE: ["image has 1 voxels that are NaN or infinite"]}
    split = json.loads((place.run_dir / "split.json").read_text())
    assert CASE not in {name for names in split.values() for name in names}


@pytest.mark.slow
def test_the_command_line_refuses_unknown_keys_and_words(repository, place, tmp_path):
    from commands import bundle_run

    overrides = {"dataset_dir": place.data, "split_file": "''", "epoch": 3, "amp": "false", "learning_rate": "fast"}
    bundle = repository / "bundles" / "student"
    done = bundle_run(bundle, ["train.yaml"], tmp_path / "cwd", run_dir=place.run_dir, succeed=False, **overrides)
    for message in (
        "--epoch: no such key in",
        "did you mean --epochs?",
        "--amp: 'false' is a text here, and any text counts as true",
        "--learning_rate: 'fast' is a text, the files have the number 0.005",
    ):
        assert message in done.stderr
    last = done.stderr.strip().splitlines()[-4:]
    assert last[0] == "Cause: ValueError: wrong on the command line:", "the cause ends the output"
    assert not place.run_dir.exists()
