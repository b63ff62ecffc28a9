"""The overlays of configs/distillers: each moves the student towards the teacher, and every number in them counts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from commands import TINY, bundle_run
from ignite.engine import Engine
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import DataLoader, Dataset
from monai.engines import IterationEvents
from monai.losses import DiceCELoss
from monai.utils import set_determinism
from torch import Tensor, nn

from monai_kd.data import CaseSplit
from monai_kd.distillers import Distiller
from monai_kd.hub.bundle_folder import leaves
from monai_kd.losses import SoftLogitKL

STUDENT = Path(__file__).resolve().parents[2] / "bundles" / "student"
FOLDER = STUDENT / "configs" / "distillers"


class Expected(NamedTuple):
    """What a training on the distillation alone must reach."""

    falls_to: float  # the weighted sum of the method's terms, relative to before the training
    logits_fall_to: float | None = None  # SoftLogitKL, of methods that pin the probabilities of each voxel


# `self`, whose teacher is the student's own average, moves towards no other network and has a test of its own
METHODS: dict[str, Expected] = {
    "at": Expected(0.7),
    "cwd": Expected(0.7),  # a class's map may shift as a whole
    "cwd_features": Expected(0.7),
    "dist": Expected(0.5, 0.5),
    "dkd": Expected(0.5, 0.5),
    "emkd": Expected(0.8, 0.6),
    "fitnet": Expected(0.6),
    "ifvd": Expected(0.6),
    "kd": Expected(0.5, 0.5),
    "kd_boundary": Expected(0.6, 0.5),
    "kd_foreground": Expected(0.6, 0.5),
    "kd_gated": Expected(0.6, 0.6),
    "lskd": Expected(0.5),  # the logits of a voxel may shift and scale
    "pkd": Expected(0.7),
    "review": Expected(0.6),
}
EPOCHS, PATCH = 12, [16, 24, 16]
QUICK: dict[str, Any] = {
    "split_file": "",
    "epochs": EPOCHS,
    "val_interval": EPOCHS,
    "patch_size": PATCH,
    "roi_size": PATCH,
    "learning_rate": 0.01,
    "cpu_bfloat16": False,
}


def overlay(name: str) -> dict[str, Any]:
    return dict(ConfigParser.load_config_file(str(FOLDER / f"{name}.yaml")))


def terms_of(name: str) -> dict[str, dict[str, Any]]:
    """The terms that an overlay adds, by name."""
    content = overlay(name)
    return {key.removeprefix("terms::"): content[key] for key in content if key.count("::") == 1 and "terms::" in key}


ADAPTED = [name for name in METHODS if any("adapter" in term for term in terms_of(name).values())]


def files(*methods: str) -> list[str]:
    return ["train.yaml", *(f"distillers/{name}.yaml" for name in methods)]


def test_every_overlay_is_tested_here():
    assert {path.stem for path in FOLDER.iterdir()} - {"self"} == set(METHODS)
    assert ADAPTED == ["cwd_features", "fitnet", "pkd", "review"]


# ---- a teacher that knows something, and fixed cases ----------------------------------------------------------------


@pytest.fixture(scope="module")
def batch(phantoms: Path) -> dict[str, Tensor]:
    """Image and label of all labelled phantoms in the student's own working grid, cropped to one size."""
    config = ConfigParser.load_config_file(str(STUDENT / "configs" / "train.yaml"))
    known = {"spacing_mm": config["spacing_mm"], "patch_size": PATCH}
    steps = config["train"]["preprocessing"]["transforms"][:7]  # what follows is random
    steps.append({"_target_": "CenterSpatialCropd", "keys": ["image", "label"], "roi_size": PATCH})
    transform = ConfigParser({**known, "x": {"_target_": "Compose", "transforms": steps}}).get_parsed_content("x")
    split = CaseSplit(str(phantoms), seed=0)
    cases = [*split.cases("train"), *split.cases("validation"), *split.cases("test")]
    whole = next(iter(DataLoader(Dataset(cases, transform), batch_size=len(cases))))
    found = {key: whole[key].as_tensor() for key in ("image", "label")}
    assert found["image"].shape == (6, 1, *PATCH)
    assert found["label"].unique().tolist() == [0, 1, 2]
    return found


@pytest.fixture(scope="module")
def teacher_root(tiny_teacher: Path, batch: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher after a few steps on the phantoms: its logits are not flat any more."""
    root = Path(shutil.copytree(tiny_teacher, tmp_path_factory.mktemp("taught") / "teacher"))
    network: Any = ConfigParser(read(root / "configs" / "infer.json")).get_parsed_content("network_def")
    weights = root / "models" / "model.pt"
    network.load_state_dict(torch.load(weights, weights_only=True))
    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    network.train()
    for _ in range(40):
        optimizer.zero_grad()
        loss(network(batch["image"]), batch["label"]).backward()
        optimizer.step()
    with torch.no_grad():
        assert loss(network.eval()(batch["image"]), batch["label"]) < 0.9
    torch.save(network.state_dict(), weights)
    return root


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


# ---- as users type it -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(phantoms: Path, teacher_root: Path) -> dict[str, Any]:
    return {**QUICK, **TINY["student"], "dataset_dir": str(phantoms), "teacher_root": str(teacher_root)}


def trained(root: Path, given: dict[str, Any], names: list[str], launcher: tuple[str, ...] = (), **more: Any) -> Path:
    """Train by the command line; return the run's folder."""
    places = {"run_dir": root / "run", "ckpt_dir": root / "models"}
    words = {**given, **places, "split_file": "''", **more}
    root.mkdir(parents=True, exist_ok=True)
    bundle_run(STUDENT, names, root / "elsewhere", launcher, **words)
    return root / "run"


def newest_state(run: Path) -> dict[str, Any]:
    """All that is needed to go on after the last epoch but one."""
    newest = sorted((run / "state").glob("epoch*.pt"))[-1]
    return dict(torch.load(newest, weights_only=True))


def built(workflow: Callable[..., ConfigWorkflow], names: list[str], given: dict[str, Any]) -> Distiller:
    """The distiller as a training with the seed 0 begins with it."""
    flow = workflow(STUDENT, names, **given)
    set_determinism(0)
    flow.parser.get_parsed_content("network")  # first, as in `run`
    distiller = flow.parser.get_parsed_content("distiller")
    assert isinstance(distiller, Distiller)
    return distiller


def values(distiller: Distiller, batch: dict[str, Tensor]) -> dict[str, float]:
    """Each term, and SoftLogitKL, on fixed cases."""
    with torch.no_grad():
        views = distiller.views(batch["image"], batch["label"])
        found = {name: value.item() for name, value in distiller.term_values(views).items()}
        teacher = views.get("teacher/logits")
        if teacher is None:
            teacher = distiller.networks["teacher"](batch["image"])
        return {**found, "logits": SoftLogitKL(temperature=1.0)(views["student/logits"], teacher).item()}


def adapters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.startswith("adapters.")}


@pytest.mark.slow
@pytest.mark.parametrize("methods", [*((name,) for name in METHODS), ("kd", "at")], ids="+".join)
def test_without_the_label_the_student_moves_towards_the_teacher(methods, workflow, given, batch, tmp_path):
    names = files(*methods)
    distiller = built(workflow, names, given)
    own = [term for method in methods for term in terms_of(method)]
    assert list(distiller.terms) == ["seg", *own]
    before, start = values(distiller, batch), {key: value.clone() for key, value in distiller.state_dict().items()}
    run = trained(tmp_path, given, names, **{"terms::seg::weight": 0})
    state = newest_state(run)["objects"]["network"]
    assert state.keys() == start.keys()
    distiller.load_state_dict(state)
    after = values(distiller, batch)
    print(methods, {name: f"{before[name]:.4g} -> {after[name]:.4g}" for name in (*own, "logits", "seg")})
    for method in methods:
        expected, weights = METHODS[method], {name: term["weight"] for name, term in terms_of(method).items()}
        totals = [sum(weights[name] * found[name] for name in weights) for found in (before, after)]
        assert totals[1] < expected.falls_to * totals[0]
        if expected.logits_fall_to is not None:
            assert after["logits"] < expected.logits_fall_to * before["logits"]
    record = read(run / "run.json")
    assert (record["status"], record["method"]) == ("finished", methods[-1])
    # adapters learn and belong to the state of a training, not to the student
    assert bool(adapters(start)) == any(method in ADAPTED for method in methods)
    assert [key for key, value in adapters(start).items() if torch.equal(state[key], value)] == []
    baseline = workflow(STUDENT, ["train.yaml", "baseline.yaml"], **given).parser.get_parsed_content("network")
    published = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert {key: value.shape for key, value in published.items()} == shapes(baseline)
    assert record["network"]["parameters"] == sum(parameter.numel() for parameter in baseline.parameters())


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


@pytest.mark.slow
def test_a_killed_and_resumed_training_with_an_adapter_is_bit_equal_to_an_uninterrupted_one(given, tmp_path):
    longer = {**given, "epochs": 8, "val_interval": 8}
    whole = trained(tmp_path / "whole", longer, files("review"))
    words = {**longer, "split_file": "''", "run_dir": tmp_path / "killed/run", "ckpt_dir": tmp_path / "killed/models"}
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(STUDENT)]
    command += ["--config_file", str([str(STUDENT / "configs" / name) for name in files("review")])]
    command += [word for key, value in words.items() for word in (f"--{key}", str(value))]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
        while not list((tmp_path / "killed/run/state").glob("epoch000002*.pt")):
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.01)
        process.kill()
    assert process.wait() == -9, "it was faster than the kill"
    resumed = trained(tmp_path / "killed", longer, files("review"), resume=True)
    (note,) = read(resumed / "run.json")["resumed"]
    assert 2 <= note["after_epoch"] < 8
    first, second = (newest_state(run) for run in (whole, resumed))
    assert first["trainer"]["iteration"] == second["trainer"]["iteration"] == 7 * 4
    for name in ("network", "optimizer"):
        ours, theirs = (dict(leaves(flat(state["objects"][name]))) for state in (first, second))
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not same(ours[key], theirs[key])] == []
    assert adapters(first["objects"]["network"])
    ends = [torch.load(path / "model.pt", weights_only=True) for path in (whole, resumed)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert read(whole / "run.json")["curves"] == read(resumed / "run.json")["curves"]


TWO_PROCESSES = ("torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2", "-m")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_self_distillation_trains_and_keeps_its_own_average(processes, given, tmp_path):
    names = files("self") if processes == 1 else [*files("self"), "multi_gpu_train.yaml"]
    launcher = TWO_PROCESSES if processes == 2 else ()
    run = trained(tmp_path, {**given, "teacher_root": "nowhere"}, names, launcher, epochs=4, val_interval=4)
    record, state = read(run / "run.json"), newest_state(run)["objects"]["network"]
    state = {key.removeprefix("module."): value for key, value in state.items()}  # as DDP names them
    assert (record["status"], record["method"], record["processes"]) == ("finished", "self", processes)
    assert record["teacher"]["networks"].keys() == {"ema"}
    assert set(record["curves"]["terms"]) == {"seg", "self"}
    assert min(record["curves"]["terms"]["self"]) > 0
    average = {key.removeprefix("teachers.ema."): value for key, value in state.items() if "teachers.ema." in key}
    student = {key: value for key, value in state.items() if "teachers.ema." not in key}
    assert average.keys() == student.keys()
    moved = [key for key, value in student.items() if not torch.equal(value, average[key])]
    assert moved
    for key in moved:  # it lags behind by a little
        assert (student[key] - average[key]).abs().max() < 1.0
    assert torch.load(tmp_path / "models" / "model.pt", weights_only=True).keys() == student.keys()


def flat(state: Any) -> Any:
    """A state with texts for keys, so that its leaves have ids."""
    if isinstance(state, dict):
        return {str(key): flat(value) for key, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, list) else state


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


@pytest.mark.slow
def test_two_processes_train_an_adapter_on_its_schedule(workflow, given, tmp_path):
    names = [*files("review"), "multi_gpu_train.yaml"]
    start = {key: value.clone() for key, value in built(workflow, files("review"), given).state_dict().items()}
    whole_ramp = {"terms::seg::weight": 0, "schedules::review::ramp": 1.0, "epochs": 3, "val_interval": 3}
    run = trained(tmp_path, given, names, TWO_PROCESSES, **whole_ramp)
    record, state = read(run / "run.json"), newest_state(run)["objects"]["network"]
    assert (record["status"], record["processes"]) == ("finished", 2)
    state = {key.removeprefix("module."): value for key, value in state.items()}  # as DDP names them
    # DDP refuses a second iteration if a parameter got no gradient in the first
    assert [key for key, value in adapters(start).items() if torch.equal(state[key], value)] == []
    # 6 iterations, 2 an epoch: the factors are 1/6 to 6/6, so that the mean of the loss lies in between
    for epoch, (loss, review) in enumerate(
        zip(record["curves"]["loss"], record["curves"]["terms"]["review"], strict=True)
    ):
        assert loss == pytest.approx((2 * epoch + 1.5) / 6 * review, rel=0.2)


# ---- every number counts --------------------------------------------------------------------------------------------

CUT: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 1,
    "patch_size": [16, 16, 16],
    "train::dataset::data": "$@split.cases('train')[:2]",
    "validate::handlers": [],
    "train::handlers": [
        {"_target_": "monai_kd.handlers.TermSchedules", "distiller": "@distiller", "schedules": "@schedules"}
    ],
}
# numbers that may stand in an overlay without a part in the loss, and why
NO_NUMBER: dict[str, str] = {
    "+train::handlers::0::momentum::0": "moves the average after a step: tests/handlers/test_ema_teacher.py",
    "+train::handlers::0::momentum::1": "the same",
}


def knobs(name: str) -> dict[str, float]:
    """Every number of an overlay, by its id."""
    return {key: value for key, value in leaves(overlay(name)) if type(value) in (int, float)}


def turned(value: float) -> float:
    """Another value of the same kind."""
    return value + 1 if isinstance(value, int) else 0.6 * value


@pytest.fixture
def losses(workflow: Callable[..., ConfigWorkflow], teacher_root: Path) -> Callable[..., list[float]]:
    """The losses of the first two iterations of a training."""

    def run(name: str, **overrides: Any) -> list[float]:
        given = {**QUICK, **CUT, "teacher_root": str(teacher_root), **overrides}
        flow = workflow(STUDENT, files(name), **given)
        *steps, last = flow.parser.get("run")
        assert last == "$@train::trainer.run()"
        for number in range(len(steps)):
            flow.parser.get_parsed_content(f"run::{number}")
        found: list[float] = []

        def keep(engine: Engine) -> None:
            found.append(engine.state.output["loss"].item())

        trainer = flow.parser.get_parsed_content("train::trainer")
        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, keep)
        trainer.run()
        assert len(found) == 2
        return found

    return run


@pytest.mark.parametrize("name", [*METHODS, "self"])
def test_every_number_of_an_overlay_changes_the_loss(losses, name):
    base, again = losses(name), losses(name)
    assert base == again
    asked = {key: value for key, value in knobs(name).items() if key not in NO_NUMBER}
    assert asked
    for key, value in asked.items():
        new = 0.9 if key.endswith("::ramp") else turned(value)  # two iterations: a ramp of a tenth is over in the first
        assert losses(name, **{key: new}) != base, f"--{key} {new} changes nothing"


def test_the_numbers_are_found_at_all():
    assert knobs("dkd") == {
        "terms::dkd::loss::alpha": 1.0,
        "terms::dkd::loss::beta": 2.0,
        "terms::dkd::loss::temperature": 4.0,
        "terms::dkd::weight": 0.5,
        "schedules::dkd::ramp": 0.1,
    }
    assert sum(len(knobs(name)) for name in METHODS) > 40
