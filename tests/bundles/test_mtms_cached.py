"""The bundle mtms-kd with a teacher that is asked before the training: the step of a live one, without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flows import causes, checksum, first_batches, get, ready
from monai.bundle import ConfigWorkflow
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 2, "num_samples": 3, "pixel_size": 1.0, "bank_draws": 2}
SMALL |= {"patch_size": [32, 32], "teacher_def::channels": [4, 8, 8, 8], "target_width": 6, "volumes_per_epoch": 4}
# a deepest map of 2 x 2; classes with little room on it
TINY: dict[str, dict[str, Any]] = {
    "trans_teacher": {"teacher_def::channels": [16, 16, 16, 64], "grid": 2},
    "supervised": {"min_voxels": 0.1},
}
FORMS = ((), ("unlabelled",), ("dense", "unlabelled"), ("supervised", "unlabelled"), ("mimic",))
FORMS += (("trans_teacher",), ("trans_teacher", "dense"))


@pytest.fixture
def bundle(repository: Path) -> Path:
    return repository / "bundles" / "mtms-kd"


@pytest.fixture
def build(bundle, workflow):
    """``build("dense", cached=True)``: a flow that is ready to train."""

    def flow(*names: str, cached: bool, **overrides: Any) -> ConfigWorkflow:
        files = ("train.yaml", *(f"{name}.yaml" for name in (*names, *(["cached_teacher"] if cached else []))))
        settings = {key: value for key, value in SMALL.items() if cached or key != "bank_draws"}
        for name in names:
            settings |= TINY.get(name, {})
        return ready(workflow(bundle, files, **{**settings, **overrides}))

    return flow


def step(flow: ConfigWorkflow, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of a step that trains, with the loss, and the gradient of all that learns."""
    distiller = get(flow, "distiller").train()
    given = {key: torch.as_tensor(batch[key]) for key in ("image", *get(flow, "extra_keys"))}
    output = distiller(**given)
    output.loss.backward()
    gradient = {name: p.grad for name, p in distiller.named_parameters() if p.requires_grad and p.grad is not None}
    return {**output.terms, "loss": output.loss.detach()}, gradient


@pytest.mark.parametrize("names", FORMS, ids=lambda names: "+".join(names) or "train")
@pytest.mark.filterwarnings("ignore:.*unable to generate class balanced samples")
def test_loss_and_gradient_are_those_of_a_live_teacher(build, names):
    stored, live = build(*names, cached=True), build(*names, cached=False)
    batch = next(iter(get(stored, "train::dataloader")))
    states = [get(flow, "distiller").state_dict() for flow in (stored, live)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items()), "heads start alike too"
    (values, gradient), (expected, wanted) = step(stored, batch), step(live, batch)
    assert all(value > 0 for value in expected.values())
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-7)
    assert len(gradient) > 5
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*unable to generate class balanced samples")
def test_batches_have_the_volumes_and_the_shares_that_they_have_without_a_bank(build):
    facts = []
    for cached in (True, False):
        batches = first_batches(build("unlabelled", cached=cached), 3)
        facts.append([(batch["group"].tolist(), batch["labelled"].tolist()) for batch in batches])
    assert facts[0] == facts[1]
    assert [flags for _, flags in facts[0]] == [[1, 1, 1, 0, 0, 0] * 2] * 3


def test_the_teacher_is_asked_once_for_each_slice_and_its_answers_are_small(build):
    flow = build(cached=True)
    asked: list[int] = []
    get(flow, "teacher").register_forward_pre_hook(lambda _module, inputs: asked.append(len(inputs[0])))
    batches = first_batches(flow, 4)  # two epochs
    bank = get(flow, "train::dataset")
    assert sum(asked) == len(bank.patches) == 2 * len(bank.data) * 3
    assert "original" not in batches[0]
    shapes = {key: tuple(value.shape) for key, value in bank.patches[0].items() if key.endswith("_target")}
    assert shapes == {
        "encoder_target": (6, 4, 4),
        "bottleneck_target": (6, 4, 4),
        "decoder_target": (4, 4, 4),
        "maps_target": (2, 32, 32),
    }


def test_the_live_teacher_runs_without_its_reconstruction_and_without_a_graph(build):
    flow = build(cached=False)
    teacher, ran = get(flow, "teacher"), []
    teacher.reconstruction.register_forward_hook(lambda *_: ran.append("reconstruction"))
    teacher.head.register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    (batch, _) = first_batches(flow, 2)  # stopped before the second step
    assert ran == [False]
    distiller = get(flow, "distiller")
    assert distiller.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    given = {key: torch.as_tensor(batch[key]) for key in get(flow, "facts")}
    image = torch.as_tensor(batch["image"])
    views = distiller.views(image, None, **given)
    assert not any(views[name].requires_grad for name in views if name.startswith("teacher/"))
    with FlopCounterMode(display=False) as both:
        teacher.train()(image)
    with FlopCounterMode(display=False) as alone:
        teacher.eval()(image)
    assert alone.get_total_flops() < 0.7 * both.get_total_flops()


@pytest.mark.parametrize("name", ["baseline", "teacher"])
def test_what_has_no_teacher_is_refused(build, name):
    with pytest.raises(Exception, match=r"\w") as caught:
        build(name, cached=True)
    assert "no term meets a teacher, so there is nothing to store" in causes(caught.value)


def test_the_number_of_draws_counts_and_a_run_repeats(build):
    def student(**overrides: Any) -> float:
        flow = build(cached=True, **overrides)
        first_batches(flow, 3)
        return checksum(get(flow, "network").state_dict().values())

    assert student() == (base := student())
    assert student(bank_draws=1) != base


def test_the_record_names_the_weights_that_were_asked(build):
    for cached, source in ((True, "cached"), (False, "live")):
        flow = build(cached=cached)
        (record,) = (h.content for h in get(flow, "train::handlers") if type(h).__name__ == "TrainingRecord")
        facts = record["teacher"]
        assert facts["source"] == source
        assert len(facts["helpers" if cached else "networks"]["teacher"]["weights_sha256"]) == 64
