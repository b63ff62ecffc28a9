"""GKD's distiller: what its views are, who gets a gradient, and that auxiliary passes leave no trace."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from monai.losses import DiceCELoss
from monai.networks.blocks.activation_checkpointing import ActivationCheckpointWrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_halves import TwoHalves, alignment, batch

from monai_kd.distillers import Distiller, GeneralizableDistiller, Term
from monai_kd.losses import CompleteGraph, SoftLogitKL, StarGraph

SEG = DiceCELoss(to_onehot_y=True, softmax=True)
ADDRESSES = {
    "intra": (StarGraph, "student/latents", "teacher/latents"),
    "inter": (CompleteGraph, "student/latents", "teacher/latents"),
    "cross_encoder": (lambda: SoftLogitKL(1.0), "teacher/cross_logits", "teacher/logits"),
    "cross_decoder": (lambda: SoftLogitKL(1.0), "student/cross_logits", "teacher/logits"),
    "kd": (lambda: SoftLogitKL(1.0), "student/logits", "teacher/logits"),
    "seg_views": (lambda: SEG, "student/all_logits", "all_labels"),
    "kd_views": (lambda: SoftLogitKL(1.0), "student/all_logits", "teacher/all_logits"),
}


def make(*names: str, dims: int = 2, seed: int = 0, **settings) -> GeneralizableDistiller:
    """Return a distiller with the term `seg` and those named."""
    torch.manual_seed(seed)
    student, teacher = TwoHalves(3, dims=dims), TwoHalves(5, dims=dims)
    settings.pop("prepare", lambda network: None)(student)
    for norm in (module for module in teacher.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)):
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2.0)
    alignments = {"student": alignment(6, dims), "teacher": alignment(10, dims)}
    terms = {"seg": Term(SEG)}
    for name in names:
        loss, own, target = ADDRESSES[name]
        inputs = {"label": "all_labels"} if name == "kd_views" else {}
        terms[name] = Term(loss(), own, target, inputs=inputs)
    given = {"teacher": teacher, "alignments": alignments, **settings}
    return GeneralizableDistiller(student, terms=terms, **given)


def gradients(distiller: GeneralizableDistiller, name: str, **given) -> dict[str, float]:
    """Return the size of the gradient of one term in each part of the student, and in all that is frozen."""
    distiller.zero_grad()
    data = {**batch(), **given}
    views = distiller.views(**data)
    distiller.term_values(views)[name].backward()
    student = distiller.student
    parts = {"encoder": [student.top, student.low], "decoder": [student.join, student.head]}
    found = {part: sum(_size(module) for module in modules) for part, modules in parts.items()}
    return {**found, "frozen": sum(_size(module) for module in distiller.frozen_teachers.values())}


def _size(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def states(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_views_are_what_their_names_say():
    distiller = make(*ADDRESSES).eval()
    data = batch(samples=2, views=3)
    views = distiller.views(**data)
    student, teacher = distiller.student, distiller.frozen_teachers["teacher"]
    own, other = distiller.frozen_teachers["student_alignment"], distiller.frozen_teachers["teacher_alignment"]
    images = [data["image"], *data["views"].unbind(1)]
    for name, network, bridge in (("student", student, own), ("teacher", teacher, other)):
        latents = torch.stack([bridge.encode(network.encode(image)[0]) for image in images], dim=1)
        torch.testing.assert_close(views[f"{name}/latents"], latents)
        assert latents.shape == (2, 4, 8, 4)
        torch.testing.assert_close(views[f"{name}/logits"], network(data["image"]))
        torch.testing.assert_close(views[f"{name}/all_logits"], torch.cat([network(image) for image in images]))
    assert torch.equal(views["all_labels"], data["label"].repeat(4, 1, 1, 1))
    features, skips = teacher.encode(data["image"])
    crossed = teacher.decode(other.decode(own.encode(student.encode(data["image"])[0]), features.shape[2:]), skips)
    torch.testing.assert_close(views["teacher/cross_logits"], crossed)
    features, skips = student.encode(data["image"])
    crossed = student.decode(own.decode(other.encode(teacher.encode(data["image"])[0]), features.shape[2:]), skips)
    torch.testing.assert_close(views["student/cross_logits"], crossed)


@pytest.mark.parametrize("name", ["intra", "inter", "cross_encoder"])
def test_these_terms_train_the_students_encoder_alone(name):
    found = gradients(make(name), name)
    assert found["encoder"] > 0
    assert found["decoder"] == found["frozen"] == 0


def test_the_exchanged_latent_of_the_teacher_trains_the_decoder_and_through_the_skips_the_shallow_encoder():
    distiller = make("cross_decoder")
    found = gradients(distiller, "cross_decoder")
    assert found["decoder"] > 0
    assert found["frozen"] == 0
    assert _size(distiller.student.top) > 0
    assert _size(distiller.student.low) == 0
    detached = gradients(make("cross_decoder", detach_skips=True), "cross_decoder")
    assert detached["decoder"] > 0
    assert detached["encoder"] == 0


def test_each_term_runs_alone_and_computes_nothing_else():
    for name, (_, own, target) in ADDRESSES.items():
        views = make(name).views(**batch())
        wide = {"student/latents", "student/all_logits", "student/cross_logits", "teacher/cross_logits"}
        assert wide & set(views) == {own} & wide, name
        assert target in views


def test_without_terms_that_read_the_teacher_it_is_not_run():
    distiller = make()
    distiller.frozen_teachers["teacher"].encode = None
    assert set(distiller.views(**batch())) == {"label", "student/logits"}


def test_the_loss_is_that_of_the_student_alone_without_other_terms():
    distiller = make()
    data = batch()
    alone = Distiller(copy.deepcopy(distiller.student), terms={"seg": Term(SEG)})
    expected = alone(data["image"], data["label"])
    output = distiller(**data)
    assert torch.equal(output.loss, expected.loss)
    assert torch.equal(output.pred, expected.pred)


@pytest.mark.parametrize("names", [("intra",), ("inter", "intra"), ("cross_encoder", "cross_decoder")])
def test_auxiliary_passes_leave_the_students_running_statistics_as_the_main_pass_makes_them(names):
    distiller, alone = make(*names), make()
    before = states(distiller.student)
    distiller(**batch())
    alone(**batch())
    found, expected = states(distiller.student), states(alone.student)
    assert not torch.equal(found["top.1.running_mean"], before["top.1.running_mean"])
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize(("names", "settings"), [(("intra",), {"guard": False}), (("seg_views",), {})])
def test_views_move_the_statistics_without_the_guard_and_where_they_are_training_data(names, settings):
    distiller, alone = make(*names, **settings), make()
    distiller(**batch())
    alone(**batch())
    assert not torch.equal(distiller.student.top[1].running_mean, alone.student.top[1].running_mean)


def test_nothing_frozen_changes_in_a_training_step_even_after_train_is_called():
    distiller = make(*ADDRESSES)
    before = {name: states(module) for name, module in distiller.frozen_teachers.items()}
    distiller.train()
    optimizer = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        distiller(**batch()).loss.backward()
        optimizer.step()
    for name, module in distiller.frozen_teachers.items():
        assert not module.training
        for key, value in states(module).items():
            assert torch.equal(value, before[name][key]), (name, key)
    assert set(distiller.state_dict()) == set(distiller.student.state_dict())


def test_identical_networks_with_perfect_alignment_have_nothing_to_teach_each_other():
    class Perfect(nn.Module):
        def encode(self, features):
            self.size = features.shape[1:]
            return features.flatten(1)

        def decode(self, latent, size):
            return latent.unflatten(1, self.size)

    torch.manual_seed(0)
    student = TwoHalves(3)
    terms = {name: Term(loss(), own, target) for name, (loss, own, target) in ADDRESSES.items() if "views" not in name}
    distiller = GeneralizableDistiller(
        student, copy.deepcopy(student), terms, {"student": Perfect(), "teacher": Perfect()}
    ).eval()
    for name, value in distiller(**batch()).terms.items():
        assert float(value) == pytest.approx(0.0, abs=1e-6), name


def test_cached_teacher_latents_give_the_same_gradients_without_running_the_teacher_on_views():
    live = make("intra", "inter")
    data = batch()
    latents = live.views(**data)["teacher/latents"]
    cached = make("intra", "inter", cached={"teacher_latents": "teacher/latents"})
    cached.frozen_teachers["teacher"].encode = None
    found = cached(**data, teacher_latents=latents)
    expected = live(**data)
    assert torch.equal(found.loss, expected.loss)


def test_a_trainable_alignment_learns_and_is_saved_apart_from_the_student():
    distiller = make("intra", freeze_alignment=False)
    distiller(**batch()).loss.backward()
    assert _size(distiller.parts["student_alignment"]) > 0
    extra = set(distiller.state_dict()) - set(distiller.student.state_dict())
    assert extra
    assert all(key.startswith("parts.student_alignment.") for key in extra)


def test_a_trainable_alignment_learns_also_where_it_came_frozen():
    alignments = {"student": alignment(6).requires_grad_(False), "teacher": alignment(10).requires_grad_(False)}
    distiller = make("intra", alignments=alignments, freeze_alignment=False)
    distiller(**batch()).loss.backward()
    assert _size(alignments["student"]) > 0
    assert _size(alignments["teacher"]) == 0
    with pytest.raises(ValueError, match="freeze_alignment is False, and no alignments are given"):
        make(alignments=None, freeze_alignment=False)


@pytest.mark.parametrize(
    ("names", "weight"), [((), 1.0), (("intra",), 1.0), (("intra",), 0.0), (("cross_decoder",), 1)]
)
def test_ddp_gets_a_gradient_for_each_weight_of_a_trainable_alignment(names, weight):
    distiller = make(*names, freeze_alignment=False)
    for name in names:
        distiller.terms[name].factor = weight
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(distiller)
        for _ in range(2):  # a gradient that is missing shows in the second step
            wrapped(**batch()).loss.backward()
    finally:
        dist.destroy_process_group()
    assert [name for name, value in distiller.named_parameters() if value.requires_grad and value.grad is None] == []
    assert (_size(distiller.parts["student_alignment"]) > 0) == bool(names and weight)


# ---- dropout and activation checkpoints -----------------------------------------------------------------------------


def forgetful(student: TwoHalves) -> None:
    student.low.append(nn.Dropout(0.5))
    student.join.append(nn.Dropout2d(0.5))


def test_auxiliary_passes_go_without_dropout_and_the_anchors_keeps_it():
    distiller, data = make("intra", "cross_decoder", prepare=forgetful), batch()
    data["views"] = data["image"].unsqueeze(1).repeat(1, 2, 1, 1, 1)
    views, again = distiller.views(**data), distiller.views(**data)
    anchor, first, second = views["student/latents"].unbind(1)
    torch.testing.assert_close(first, second)
    assert not torch.allclose(anchor, first)
    torch.testing.assert_close(views["student/cross_logits"], again["student/cross_logits"])
    assert not torch.allclose(views["student/logits"], again["student/logits"])
    assert all(module.training for module in distiller.student.modules())


def test_views_that_are_training_data_are_dropped_from():
    distiller, data = make("intra", "seg_views", prepare=forgetful), batch()
    data["views"] = data["image"].unsqueeze(1).repeat(1, 2, 1, 1, 1)
    _, first, second = distiller.views(**data)["student/all_logits"].chunk(3)
    assert not torch.allclose(first, second)


def checkpointed(student: TwoHalves) -> None:
    student.low = ActivationCheckpointWrapper(student.low)


def test_a_student_with_activation_checkpoints_is_refused_only_where_passes_are_auxiliary():
    for names in (("intra",), ("cross_decoder",), ("seg_views", "cross_decoder")):
        with pytest.raises(ValueError, match=r"the student's 'low' is an activation checkpoint: it runs again"):
            make(*names, prepare=checkpointed)
    for names in (("kd",), ("cross_encoder",), ("seg_views", "intra")):
        distiller = make(*names, prepare=checkpointed)
        distiller(**batch()).loss.backward()
        assert _size(distiller.student.low) > 0


# ---- what is known, and what is computed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "unknown"),
    [
        ({"teacher": None}, {"student/cross_logits", "teacher/logits", "teacher/latents", "teacher/cross_logits"}),
        ({"alignments": None}, {"student/cross_logits", "teacher/cross_logits", "teacher/latents", "student/latents"}),
        ({"teacher": None, "cached": {"latents": "teacher/latents"}}, {"teacher/logits", "teacher/cross_logits"}),
        ({}, set()),
    ],
)
def test_views_are_known_where_their_networks_are(settings, unknown):
    names = [f"{name}/{kind}" for name in ("student", "teacher") for kind in ("logits", "all_logits", "latents")]
    every = {"label", "all_labels", *names, "student/cross_logits", "teacher/cross_logits"}
    teacherless = {"teacher/all_logits"} if "teacher" in settings else set()
    assert set(make(**settings).known_views()) == every - unknown - teacherless


def test_terms_on_a_teacher_that_is_not_there_are_refused_at_once():
    with pytest.raises(
        ValueError, match=r"term 'cross_decoder' reads 'student/cross_logits'; known: label, all_labels"
    ):
        make("cross_decoder", teacher=None)
    with pytest.raises(
        ValueError, match=r"views \['student/logits'\] come both from a live network and from the batch"
    ):
        make(cached={"logits": "student/logits"})


def test_labels_of_views_need_views():
    distiller = make()
    distiller.terms["seg"] = Term(SEG, "student/logits", "all_labels")
    with pytest.raises(ValueError, match="all_labels needs photometric views and the batch has none"):
        distiller.views(**{**batch(), "views": None})


@pytest.mark.parametrize(
    ("names", "cached", "student", "teacher"),
    [
        (("kd",), {}, 0, 0),
        (("intra",), {}, 2, 2),  # the anchor, and all other views
        (("intra", "cross_encoder", "cross_decoder"), {}, 2, 2),
        (("cross_encoder",), {}, 1, 0),
        (("cross_decoder",), {}, 0, 1),
        (("cross_decoder",), {"latents": "teacher/latents"}, 0, 0),
        (("cross_encoder", "intra"), {"latents": "teacher/latents"}, 2, 0),
    ],
)
def test_a_latent_is_computed_where_it_is_read_or_decoded_by_the_other(names, cached, student, teacher):
    calls = []
    counted = {"student": alignment(6), "teacher": alignment(10)}
    for name, network in counted.items():
        encode = network.encode
        network.encode = lambda features, name=name, encode=encode: calls.append(name) or encode(features)
    given = {key: make("intra").views(**batch())["teacher/latents"] for key in cached}
    found = make(*names, alignments=counted, cached=cached).views(**batch(), **given)
    assert [calls.count(name) for name in ("student", "teacher")] == [student, teacher]
    assert {ADDRESSES[name][1] for name in names} <= set(found)


def test_helpers_are_the_alignments_that_run_and_a_cached_teacher_is_not_read():
    assert make("kd").helpers() == {}
    assert list(make("cross_encoder").helpers()) == ["student_alignment", "teacher_alignment"]
    cached = make("intra", cached={"latents": "teacher/latents"})
    assert list(cached.helpers()) == ["student_alignment"]
    assert cached.read_teachers == []
    assert make("cross_decoder", cached={"logits": "teacher/logits"}).read_teachers == ["teacher"]


def test_three_axes():
    output = make(*ADDRESSES, dims=3)(**batch(dims=3, size=8))
    assert torch.isfinite(output.loss)
    assert set(output.terms) == {"seg", *ADDRESSES}


def test_one_view_leaves_the_complete_graph_empty_and_a_batch_of_one_works():
    with pytest.warns(UserWarning, match="0 edges"):
        output = make("intra", "inter")(**batch(samples=1, views=1))
    assert float(output.terms["inter"]) == 0.0
    output.loss.backward()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"views": None}, r"student/latents, teacher/latents needs photometric views.*PhotometricViewsd"),
        ({"views": torch.zeros(2, 16, 16)}, r"views have the shape \(2, 16, 16\).*\(2, 1, 16, 16\)"),
        ({"views": torch.zeros(2, 0, 1, 16, 16)}, "N at least 1"),
        ({"views": torch.zeros(1, 3, 1, 16, 16)}, r"views have the shape \(1, 3, 1, 16, 16\)"),
    ],
)
def test_batches_without_fitting_views_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        make("intra").views(**{**batch(), **change})


def test_networks_that_cannot_be_cut_and_wrong_alignments_are_refused():
    torch.manual_seed(0)
    good, terms = TwoHalves(3), {"seg": Term(SEG)}
    with pytest.raises(TypeError, match=r"network 'teacher' is a Conv2d without encode and decode.*EncodeDecode"):
        GeneralizableDistiller(good, nn.Conv2d(1, 2, 1), terms)
    with pytest.raises(ValueError, match=r"alignments are for \['student'\]; give one for each of student, teacher"):
        GeneralizableDistiller(good, TwoHalves(3), terms, {"student": alignment(6)})
    with pytest.raises(TypeError, match="alignment 'teacher' is a Identity without encode and decode"):
        GeneralizableDistiller(good, TwoHalves(3), terms, {"student": alignment(6), "teacher": nn.Identity()})
    wrong = make("cross_decoder")
    wrong.frozen_teachers["student_alignment"].decode = lambda latent, size: torch.zeros(2, 10, *size)
    with pytest.raises(ValueError, match=r"features \(10, 8, 8\) where its network has \(6, 8, 8\)"):
        wrong.views(**batch())
    with pytest.raises(ValueError, match=r"term 'intra' reads 'student/latents'; known: label"):
        make("intra", alignments=None)
