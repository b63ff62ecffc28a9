"""Stored outputs of the teacher: what the distiller computes itself, and a step that is the same."""

from __future__ import annotations

import pytest
import torch
from test_generalizable import gradients, make
from torch import nn
from two_halves import TwoHalves, alignment, batch

from monai_kd.distillers import TeacherOutputs

CACHED = {"teacher_latents": "teacher/latents", "teacher_logits": "teacher/logits"}
TERMS = ("intra", "inter", "cross_encoder", "cross_decoder")


def outputs_of(distiller) -> dict[str, torch.Tensor]:
    frozen = distiller.frozen_teachers
    return TeacherOutputs(frozen["teacher"], frozen["teacher_alignment"])(batch())


def test_they_are_the_teachers_views():
    distiller = make("intra", "kd")
    views = distiller.views(**batch())
    found = outputs_of(distiller)
    torch.testing.assert_close(found["teacher_latents"], views["teacher/latents"])
    torch.testing.assert_close(found["teacher_logits"], views["teacher/logits"])
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("name", TERMS)
def test_every_term_and_its_gradient_are_the_same_with_stored_outputs(name):
    live, stored = make(*TERMS), make(*TERMS, cached=CACHED)
    given = outputs_of(live)
    expected = live.term_values(live.views(**batch()))
    got = stored.term_values(stored.views(**batch(), **given))
    torch.testing.assert_close(got, expected)
    found, wanted = gradients(stored, name, **given), gradients(live, name)
    assert found == pytest.approx(wanted, rel=1e-4)
    assert wanted["encoder"] + wanted["decoder"] > 0


@pytest.mark.parametrize(("terms", "calls"), [(("intra", "inter", "cross_decoder"), 0), (TERMS, 1)])
def test_a_step_asks_the_teacher_only_where_the_student_changes_its_input(terms, calls):
    distiller = make(*terms, cached=CACHED)
    given = outputs_of(distiller)
    encoded = []
    teacher = distiller.frozen_teachers["teacher"]
    teacher.low.register_forward_hook(lambda *_: encoded.append(1))
    distiller(**batch(), **given)
    assert len(encoded) == calls


def test_kinds_choose_what_is_computed():
    teacher = TwoHalves(5)
    assert set(TeacherOutputs(teacher, kinds=["logits"])({"image": batch()["image"]})) == {"teacher_logits"}
    assert set(TeacherOutputs(teacher, alignment(10), kinds=["latents"])(batch())) == {"teacher_latents"}


def test_a_teacher_in_training_mode_is_put_into_evaluation_mode():
    teacher = TwoHalves(5).train()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    TeacherOutputs(teacher, alignment(10))(batch())
    assert not teacher.training
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kinds": ["latents"]}, "give alignment"),
        ({"kinds": ["logits", "taps"]}, r"unknown kinds \['taps'\]"),
        ({"kinds": []}, "kinds is empty"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        TeacherOutputs(TwoHalves(5), **settings)


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(TypeError, match="'teacher' is a Linear without encode and decode"):
        TeacherOutputs(nn.Linear(1, 1), kinds=["logits"])
    with pytest.raises(ValueError, match="teacher_latents needs photometric views"):
        TeacherOutputs(TwoHalves(5), alignment(10))({"image": batch()["image"]})
