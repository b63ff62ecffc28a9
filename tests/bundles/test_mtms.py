"""The bundle mtms-kd: every term teaches, unlabelled images are in their place, knobs count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY
from flows import checksum, first_batches, get, ready

SMALL: dict[str, Any] = {"epochs": 1, "batch_size": 2, "num_samples": 3, "pixel_size": 1.0}
SMALL |= {"patch_size": [32, 32], "teacher_def::channels": [4, 8, 8, 8]}
# whose deepest maps are smaller, of slices of 32 pixels
TINY_TEACHERS: dict[str, dict[str, Any]] = {
    "trans_teacher": {"teacher_def::channels": [16, 16, 16, 64], "grid": 2},
    "paper": {"teacher_def::channels": [4, 8, 8, 8, 8]},
}
CONTRASTS = ("encoder", "bottleneck", "decoder")
PARTS = tuple(f"{name}_only" for name in CONTRASTS)
ARMS = ("baseline", "logit_kd", *PARTS, "contrast_only", "mimic", "unlabelled", "supervised", "dense", "trans_teacher")


@pytest.fixture
def bundle(repository: Path) -> Path:
    return repository / "bundles" / "mtms-kd"


def files(*names: str) -> tuple[str, ...]:
    return ("train.yaml", *(f"{name}.yaml" for name in names))


def student_after(flow, iterations: int = 2) -> float:
    first_batches(ready(flow), iterations)
    return checksum(get(flow, "network").parameters())


WIDE: tuple[tuple[str, ...], ...] = (("wide_student",), ("baseline", "wide_student"))
WIDE += (("trans_teacher", "teacher"), ("paper", "teacher"), ("baseline", "one_component"))
WIDE += (("teacher", "segmentation_teacher"), ("teacher", "half_teacher"), ("supervised", "unlabelled"))


@pytest.mark.parametrize(
    "names", [(), ("teacher",), *((name,) for name in ARMS), *WIDE], ids=lambda names: "+".join(names) or "train"
)
def test_every_overlay_moves_every_weight_of_what_it_trains_and_scores_it(bundle, workflow, names):
    tiny = next((TINY_TEACHERS[name] for name in names if name in TINY_TEACHERS), {})
    flow = ready(workflow(bundle, files(*names), **{**SMALL, **tiny}))
    network = get(flow, "network")
    before = {key: value.clone() for key, value in network.named_parameters()}
    batches = first_batches(flow, 2)
    slices = 12 if "unlabelled" in names else 6
    assert all(batch["image"].shape == (slices, 1, 32, 32) for batch in batches)
    still = [key for key, value in network.named_parameters() if torch.equal(value, before[key])]
    # weight decay moves what has no gradient too, but not biases: a convolution before batch normalization has one
    # without effect; what a term pulls at is looked at below
    apart = ("reconstruction",) if "segmentation_teacher" in names else ()  # whose term has no weight
    assert [key for key in still if not key.endswith("bias") and not key.startswith(apart)] == []
    evaluator = get(flow, "validate::evaluator")
    evaluator.run()
    assert 0.0 <= evaluator.state.metrics["val_mean_dice"] <= 1.0


def pull(flow, name: str) -> float:
    """How long the gradient of a term at the student's own weights is, on the first batch."""
    ready(flow)
    (batch,) = first_batches(flow, 1)
    distiller, network = get(flow, "distiller"), get(flow, "network")
    given = {key: torch.as_tensor(batch[key]) for key in ("image", *get(flow, "extra_keys"))}
    values = distiller.term_values(distiller.views(given.pop("image"), given.pop("label"), **given))
    network.zero_grad()
    values[name].backward()
    return sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "form", [(), ("dense",), ("supervised",), ("mimic",)], ids=lambda form: form[0] if form else "instance"
)
@pytest.mark.parametrize("name", [*CONTRASTS, "maps", "seg"])
def test_every_term_has_a_gradient_at_the_student(bundle, workflow, name, form):
    assert pull(workflow(bundle, files(*form), **SMALL, neighbors=0), name) > 1e-6


def test_the_reconstruction_trains_the_encoder_and_sees_less_than_it_rebuilds(bundle, workflow):
    flow = workflow(bundle, files("teacher"), **SMALL, hidden_parts=4, hidden_size=8)
    assert pull(flow, "reconstruction") > 1e-6
    shown = [(batch["image"] != batch["original"]).any().item() for batch in first_batches(flow, 2)]
    assert any(shown)


def test_arms_start_from_one_student_and_see_the_same_slices(bundle, workflow):
    seen = {}
    for name in ("train", "baseline", "logit_kd", "mimic", "unlabelled"):
        flow = ready(workflow(bundle, files(*([] if name == "train" else [name])), **SMALL))
        start = {key: value.clone() for key, value in get(flow, "network").state_dict().items()}
        seen[name] = start, [set(batch["group"].tolist()) for batch in first_batches(flow, 2)]
    first, cases = seen.pop("train")
    for name, (start, others) in seen.items():
        assert all(torch.equal(value, first[key]) for key, value in start.items()), name
        assert all(own <= other for own, other in zip(cases, others, strict=True)), name


@pytest.mark.filterwarnings("ignore:.*unable to generate class balanced samples")
def test_no_hidden_label_reaches_a_batch(bundle, workflow):
    flow = ready(workflow(bundle, files("supervised", "unlabelled"), **SMALL))
    for batch in first_batches(flow, 2):
        hidden = batch["labelled"] == 0
        assert hidden.any()
        assert set(torch.as_tensor(batch["label"][hidden]).unique().tolist()) <= {0.0, 255.0}  # 0 beyond the border
        assert not (batch["label"][hidden] == 1).any()
        assert (batch["label"][~hidden] == 1).any()


def test_terms_without_supervision_bring_the_student_to_its_teacher(bundle, workflow):
    flow = ready(workflow(bundle, files(), **{**SMALL, "epochs": 30, "terms::seg::weight": 0.0, "learning_rate": 0.02}))
    network, teacher = get(flow, "network"), get(flow, "teacher").eval()
    image = torch.as_tensor(first_batches(flow, 1)[0]["image"])

    def gap() -> float:
        network.eval()
        with torch.no_grad():
            return (network(image).softmax(1) - teacher(image).softmax(1)).abs().mean().item()

    before = gap()
    first_batches(flow, 50)
    assert gap() < 0.7 * before


def test_the_student_has_half_of_the_labels_and_the_teacher_all(bundle, workflow):
    def cases(*names: str, **extra: Any) -> list[dict]:
        return get(workflow(bundle, files(*names), **SMALL, **extra), "train::dataset").data

    every = cases("teacher")
    assert all(case["labelled"] for case in every)
    half = cases()
    assert len(half) == -(-len(every) // 2)
    mixed = cases("unlabelled")
    assert [case["image"] for case in mixed] == [case["image"] for case in every]
    assert [case["image"] for case in mixed if case["labelled"]] == [case["image"] for case in half]
    assert len(cases(labelled_fraction=1.0)) == len(every)
    assert [c["image"] for c in cases(labelled_seed=1)] != [c["image"] for c in half]


def test_arms_share_schedule_and_number_of_steps(bundle, workflow):
    hashes, steps, records = {}, set(), {}
    for names in ((), *((name,) for name in ARMS)):
        tiny = TINY_TEACHERS.get(names[0], {}) if names else {}
        flow = ready(workflow(bundle, files(*names), **{**SMALL, **tiny}))
        (record,) = (h.content for h in get(flow, "train::handlers") if type(h).__name__ == "TrainingRecord")
        hashes[names], records[names] = record["schedule_hash"], record["protocol"]
        steps.add(len(get(flow, "train::dataloader")))
    assert len(set(hashes.values())) == 1, hashes
    assert len(records["unlabelled",].pop("unlabelled")) == records["unlabelled",].pop("n_unlabelled") > 0
    assert all(protocol == records[()] for protocol in records.values())
    assert steps == {TINY["mtms-kd"]["volumes_per_epoch"] // SMALL["batch_size"]}


@pytest.mark.parametrize(
    "changed",
    [
        {"contrast_tau": 0.5},
        {"grid": 2},
        {"head_hidden": 8},
        {"target_width": 4},
        {"queue_size": 0},
        {"neighbors": 0},
        {"temperature": 1.0},
        {"contrast_mode": "dense"},
        {"terms::encoder::weight": 1.0},
        {"pixel_size": 1.5},
        {"labelled_seed": 1},
        {"num_samples": 2},
    ],
    ids=lambda value: "-".join(value),
)
def test_a_knob_changes_what_is_learned(bundle, workflow, changed):
    base = student_after(workflow(bundle, files(), **{**SMALL, "epochs": 2}), 4)
    assert student_after(workflow(bundle, files(), **{**SMALL, "epochs": 2}), 4) == base
    assert student_after(workflow(bundle, files(), **{**SMALL, "epochs": 2, **changed}), 4) != base


def test_what_a_student_ships_has_no_head_and_no_queue(bundle, workflow):
    flow = ready(workflow(bundle, files(), **SMALL))
    first_batches(flow, 2)
    state = get(flow, "distiller").state_dict()
    extra = {key.split(".")[0] for key in state} - {key.split(".")[0] for key in get(flow, "network").state_dict()}
    assert extra == {"adapters"}
    assert all(get(flow, "queues").state_dict().values())
