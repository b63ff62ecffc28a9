"""TeacherScores: each teacher and each fusion scored on validation cases, as the student is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import AsDiscreted, Compose
from reading_teachers import Reads, make_distiller, make_group
from torch import nn

from monai_kd.distillers import CooperativeTeachers
from monai_kd.handlers import CaseScores, PerformanceWeights, TeacherScores
from monai_kd.networks import RouteModalities

NAMES = ["background", "edema", "core"]
POSTPROCESSING = Compose([AsDiscreted("pred", argmax=True, to_onehot=3), AsDiscreted("label", to_onehot=3)])


class Halves(nn.Module):
    """A fusion on half the resolution of its features: of the first teacher's."""

    def forward(self, features: Any, available: Any = None) -> torch.Tensor:
        return F.avg_pool2d(features[0], 2)


def make_label(number: int = 0) -> torch.Tensor:
    label = torch.zeros(1, 8, 8)
    label[:, 2:6, 2:6] = 1
    label[:, 2:4, 2 : 4 + 2 * number] = 2
    return label


def make_cases(flair: Any = lambda label: label, t2: Any = torch.zeros_like) -> list[dict[str, torch.Tensor]]:
    labels = [make_label(0), make_label(1)]
    return [{"image": torch.cat([flair(label), t2(label), label]), "label": label} for label in labels]


def run(group: CooperativeTeachers, cases: list, validations: int = 1, **settings: Any) -> tuple[Any, list[dict]]:
    """Validate; return the evaluator and the metrics of each validation."""
    settings = {"inferer": SimpleInferer(), "postprocessing": POSTPROCESSING, **settings}
    handler = TeacherScores(group, NAMES, **settings)
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(cases), batch_size=1),
        network=RouteModalities(Reads(), [2]),
        inferer=settings["inferer"],
        postprocessing=POSTPROCESSING,
        val_handlers=[handler],
    )
    metrics = []
    for epoch in range(validations):
        evaluator.state.metrics = {}
        evaluator.run(global_epoch=epoch + 1)
        metrics.append(dict(evaluator.state.metrics))
    return evaluator, metrics


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_a_perfect_teacher_scores_one_and_an_empty_one_nothing():
    _, (metrics,) = run(make_group(), make_cases())
    assert metrics == {"dice_flair_edema": 1, "dice_flair_core": 1, "dice_t2_edema": 0, "dice_t2_core": 0}


def test_scores_are_means_over_cases_by_hand():
    def late(label):  # the rows 3 to 6 in place of 2 to 5
        return torch.roll(label, 1, dims=1)

    _, (metrics,) = run(make_group(), make_cases(late))
    values = []
    for label in (make_label(0), make_label(1)):
        pred = late(label)
        values.append(
            [2 * float(((pred == k) & (label == k)).sum() / ((pred == k).sum() + (label == k).sum())) for k in (1, 2)]
        )
    # the first case has no core
    assert metrics["dice_flair_edema"] == pytest.approx((values[0][0] + values[1][0]) / 2)
    assert metrics["dice_flair_core"] == pytest.approx((values[0][1] + values[1][1]) / 2)


def test_fused_logits_are_interpolated_to_full_resolution():
    _, (metrics,) = run(make_group(fusions={"fused": Halves()}), make_cases())
    assert metrics["dice_fused_core"] == pytest.approx(1.0)  # blocks of even size survive half the resolution
    assert metrics["dice_fused_edema"] == pytest.approx(1.0)
    assert set(metrics) == {f"dice_{head}_{name}" for head in ("flair", "t2", "fused") for name in NAMES[1:]}


def test_windows_give_what_the_whole_image_gives():
    windows = SlidingWindowInferer((4, 4), 2, 0.5)
    expected = run(make_group(), make_cases(lambda label: torch.roll(label, 1, 1)))[1]
    assert run(make_group(), make_cases(lambda label: torch.roll(label, 1, 1)), inferer=windows)[1] == expected


def test_a_class_that_nobody_has_counts_if_asked_for():
    label = torch.zeros(1, 8, 8)
    label[:, 2:6, 2:6] = 1
    cases = [{"image": torch.cat([label] * 3), "label": label}, make_cases(torch.zeros_like)[1]]
    _, (without,) = run(make_group(), cases)
    assert without["dice_flair_core"] == 0
    _, (counted,) = run(make_group(), cases, empty=1.0)
    assert counted["dice_flair_core"] == pytest.approx(0.5)
    _, (nowhere,) = run(make_group(), cases[:1])
    assert "dice_flair_core" not in nowhere


def test_they_are_the_scores_that_the_student_would_get():
    """The evaluator's network reads the third channel; a teacher that reads the same gets the same Dice."""
    cases = make_cases(lambda label: torch.roll(label, 1, 1), lambda label: torch.roll(label, 2, 2))
    for case in cases:
        case["image"][2] = case["image"][0]
    from monai.data import MetaTensor

    cases = [
        {key: MetaTensor(value[..., None], meta={"filename_or_obj": f"{n}.nii.gz"}) for key, value in case.items()}
        for n, case in enumerate(cases)
    ]
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(cases), batch_size=1),
        network=RouteModalities(Reads(), [2]),
        postprocessing=POSTPROCESSING,
        val_handlers=[TeacherScores(make_group(), NAMES, SimpleInferer(), POSTPROCESSING), CaseScores(NAMES)],
    )
    evaluator.run()
    summary = evaluator.state.case_summary["dice"]
    for name in NAMES[1:]:
        assert evaluator.state.metrics[f"dice_flair_{name}"] == pytest.approx(summary[name])
        assert evaluator.state.metrics[f"dice_t2_{name}"] < summary[name]


def test_no_graph_is_built():
    group = make_group()
    seen = []
    group.networks["t2"].register_forward_hook(lambda _module, _input, output: seen.append(output.requires_grad))
    run(group, make_cases()[:1])
    assert seen == [False]


# ---- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "scored"), [(1, [1, 1, 1, 1, 1]), (2, [1, 0, 1, 0, 1]), (3, [1, 0, 0, 1, 0]), (0, [0] * 5)]
)
def test_the_interval_counts_validations(interval, scored):
    _, metrics = run(make_group(), make_cases()[:1], validations=5, interval=interval)
    assert [int("dice_flair_edema" in found) for found in metrics] == scored


@pytest.mark.parametrize("mode", [True, False])
def test_the_teachers_mode_is_restored(mode):
    group = make_group().train(mode)
    seen = []
    group.networks["t2"].register_forward_hook(lambda module, *_: seen.append(module.training))
    run(group, make_cases())
    assert seen == [False, False]
    assert group.training is mode
    assert all(module.training is mode for module in group.modules())


def test_the_mode_is_restored_after_a_failure():
    group = make_group().train()

    def fail(*_: Any) -> None:
        raise ConnectionError("power cut")

    group.networks["t2"].register_forward_hook(fail)
    with pytest.raises(ConnectionError):
        run(group, make_cases())
    assert group.training


# ---- weights --------------------------------------------------------------------------------------------------------


def test_they_set_the_weights_that_come_from_validation():
    distiller = make_distiller(regions={"edema": [1], "core": [2]})
    loss = distiller.terms["kd"].loss
    for source, expected in (("training", [[0.0, 0.0], [0.0, 0.0]]), ("validation", [[1.0, 1.0], [0.0, 0.0]])):
        run(distiller.group, make_cases(), weights=PerformanceWeights(distiller, source=source))
        assert loss.dice.tolist() == expected


def test_fusions_have_no_weight():
    distiller = make_distiller(regions={"edema": [1], "core": [2]})
    group = make_group(fusions={"fused": Halves()})
    run(group, make_cases(), weights=PerformanceWeights(distiller, source="validation"))
    assert distiller.terms["kd"].loss.dice.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_weights_that_wait_for_scores_that_never_come_are_refused():
    distiller = make_distiller(regions={"edema": [1], "core": [2]})
    weights = PerformanceWeights(distiller, source="validation")
    with pytest.raises(ValueError, match="come from validation, and interval is 0: make it 1"):
        run(distiller.group, make_cases(), interval=0, weights=weights)
    other = make_distiller(regions={"core": [2], "edema": [1]})
    with pytest.raises(
        ValueError, match=r"weighed by the regions \['core', 'edema'\] and scored on \['edema', 'core'\]"
    ):
        run(distiller.group, make_cases(), weights=PerformanceWeights(other, source="validation"))
    run(distiller.group, make_cases(), interval=0, weights=PerformanceWeights(other, source="training"))


@pytest.mark.parametrize("interval", [-1, 1.5, True, "1"])
def test_a_bad_interval_is_refused(interval):
    with pytest.raises(ValueError, match="it must be a number of validations, 0 for none"):
        TeacherScores(make_group(), NAMES, SimpleInferer(), POSTPROCESSING, interval)
