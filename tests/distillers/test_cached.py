"""Stored targets of frozen teachers: what a live Distiller computes, and a step without the teachers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from monai_kd.distillers import CachedDistiller, Distiller, Term
from monai_kd.losses import MultiScaleContrastive, SoftLogitKL
from monai_kd.networks import GridPool, ProjectionHead
from monai_kd.networks.nets import PlainUNet

IMAGE = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
LABEL = (IMAGE > 0).float()


def net(channels: int) -> PlainUNet:
    torch.manual_seed(channels)
    return PlainUNet(2, 1, 2, (channels, 2 * channels, 4 * channels))


class CrossEntropy(nn.Module):
    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, label[:, 0].long())


def contrast(student: Any, target: Any, **changed: Any) -> Term:
    adapters = {"adapter": ProjectionHead(2), "target_adapter": GridPool(2, width=6)}
    return Term(MultiScaleContrastive(queue_size=8), student, target, **{**adapters, **changed})


def terms() -> dict[str, Term]:
    return {
        "seg": Term(CrossEntropy(), "student/logits", "label"),
        "soft": Term(SoftLogitKL(2.0), "student/logits", "teacher/logits", weight=0.5),
        "deep": contrast("student/bottleneck", "teacher/bottleneck"),
        "many": contrast(["student/pooled_1", "student/decoder_1"], ["teacher/pooled_2", "other/decoder_1"]),
    }


def make(kind: type[Distiller], named: dict[str, Term] | None = None, **settings: Any) -> Distiller:
    teachers = {"teacher": net(8), "other": net(4)}
    given = {"input_shape": [1, 1, 16, 16], **settings}
    torch.manual_seed(0)
    return kind(net(2), teachers, terms() if named is None else named, **given).train()


def test_loss_gradient_and_state_are_those_of_live_teachers():
    live, stored = make(Distiller), make(CachedDistiller)
    assert live.state_dict().keys() == stored.state_dict().keys()
    stored.load_state_dict(live.state_dict())
    for _ in range(2):  # the second with a queue
        given = stored.targets({"image": MetaTensor(IMAGE)})
        outputs = [live(IMAGE, LABEL), stored(IMAGE, LABEL, **given)]
        torch.testing.assert_close(outputs[1].terms, outputs[0].terms)
        for output in outputs:
            output.loss.backward()
    wanted = {name: p.grad for name, p in live.named_parameters() if p.requires_grad}
    torch.testing.assert_close({name: p.grad for name, p in stored.named_parameters()}, wanted)


def test_a_step_runs_no_teacher_and_targets_have_no_graph():
    distiller, ran = make(CachedDistiller), []
    for teacher in distiller.frozen_teachers.values():
        teacher.register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    given = distiller.targets({"image": IMAGE})
    assert ran == [False, False]
    assert not any(value.requires_grad for value in given.values())
    distiller(IMAGE, LABEL, **given).loss.backward()
    assert len(ran) == 2


def test_targets_are_named_by_their_terms_and_are_as_small_as_their_adapters_make_them():
    distiller = make(CachedDistiller, cached={"group": "group"})
    shapes = {name: tuple(value.shape) for name, value in distiller.targets({"image": IMAGE}).items()}
    assert shapes == {
        "soft_target": (3, 2, 16, 16),
        "deep_target": (3, 6, 2, 2),
        "many_target_1": (3, 6, 2, 2),
        "many_target_2": (3, 4, 2, 2),
    }
    assert list(distiller.cached) == ["group", *shapes]
    with pytest.raises(ValueError, match="cached views"):
        distiller(IMAGE, LABEL)


def test_rows_of_a_batch_are_those_of_its_images():
    distiller = make(CachedDistiller)
    together = distiller.targets({"image": IMAGE})
    for row in range(len(IMAGE)):
        alone = distiller.targets({"image": IMAGE[row : row + 1]})
        torch.testing.assert_close({name: value[0] for name, value in alone.items()}, _row(together, row))


def _row(values: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    return {name: value[row] for name, value in values.items()}


def test_stages_that_an_asterisk_finds_are_stored():
    kind = {"maps": contrast("student/encoder_*", "teacher/encoder_*")}
    with pytest.warns(UserWarning, match="no term reads the teachers"):
        distiller = make(CachedDistiller, kind)
    assert list(distiller.targets({"image": IMAGE})) == ["maps_target_1", "maps_target_2"]
    assert list(distiller.helpers()) == ["teacher"]


class Follows(nn.Module):
    """A target adapter that looks at the student."""

    def forward(self, own: Tensor, target: Tensor) -> Tensor:
        return own * target.mean()


def weigh(student: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return (weight * (student - target)).mean()


@pytest.mark.filterwarnings("ignore:no term reads the teachers")
@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            Term(weigh, "student/logits", "teacher/logits", weight_map="other/logits"),
            r"term 'odd' reads \['other/logits'\] beside its target",
        ),
        (
            Term(nn.MSELoss(), "teacher/logits", "other/logits"),
            r"term 'odd' reads \['teacher/logits'\] beside its target \['other/logits'\]",
        ),
        (
            Term(lambda a, b: a[0].mean(), ["student/logits"], ["teacher/logits", "label"]),
            r"term 'odd' meets \['label'\] beside a teacher; give each a term of its own",
        ),
        (
            Term(nn.MSELoss(), "student/logits", "teacher/logits", target_adapter=Follows()),
            "the target_adapter of term 'odd', a Follows, looks at the student",
        ),
        (Term(CrossEntropy(), "student/logits", "label"), "no term meets a teacher, .* the terms are odd: use a Dist"),
    ],
    ids=["weight map", "student side", "mixed", "adapter", "none"],
)
def test_what_cannot_be_stored_is_refused(term, message):
    with pytest.raises(ValueError, match=message):
        make(CachedDistiller, {"odd": term})


@pytest.mark.parametrize("cached", [{"soft_target": "roi"}, {"roi": "soft_target"}])
def test_a_name_that_a_stored_target_takes_is_refused(cached):
    with pytest.raises(ValueError, match=r"cached names \['soft_target'\], which holds the stored target of term"):
        make(CachedDistiller, cached=cached)
