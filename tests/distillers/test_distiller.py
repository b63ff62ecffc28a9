"""The Distiller: what it computes, what it hides, what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet, UNet
from torch import nn

from monai_kd.distillers import Distiller, DistillOutput, Stage, Term, network_stages, pair_stages
from monai_kd.losses import AttentionTransfer, ChannelWiseKL, FeatureMimic, SoftLogitKL
from monai_kd.networks import PointwiseAdapter, SelectClasses, TokensToMap


def tiny_net(channels: int = 4, out: int = 3) -> UNet:
    return UNet(3, 1, out, channels=(channels, 2 * channels), strides=(2,), num_res_units=1, norm="batch")


def seg_term(weight: float = 1.0) -> Term:
    return Term(DiceCELoss(softmax=True, to_onehot_y=True), "student/logits", "label", weight=weight)


def soft_term(weight: float = 1.0) -> Term:
    return Term(SoftLogitKL(2.0), "student/logits", "teacher/logits", weight=weight)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(2, 1, 8, 8, 8), torch.randint(0, 3, (2, 1, 8, 8, 8)).float()


@pytest.fixture
def distiller():
    torch.manual_seed(0)
    return Distiller(tiny_net(), {"teacher": tiny_net(8)}, {"seg": seg_term(), "soft": soft_term(0.5)})


def test_loss_is_the_weighted_sum_of_the_terms(distiller, batch):
    output = distiller(*batch)
    assert isinstance(output, DistillOutput)
    assert output.pred.shape == (2, 3, 8, 8, 8)
    assert output.loss.item() == pytest.approx((output.terms["seg"] + 0.5 * output.terms["soft"]).item(), rel=1e-6)
    assert not any(value.requires_grad for value in output.terms.values())


def test_terms_equal_the_losses_computed_by_hand(distiller, batch):
    distiller.eval()
    output = distiller(*batch)
    with torch.no_grad():
        student, teacher = distiller.student(batch[0]), distiller.frozen_teachers["teacher"](batch[0])
        assert output.terms["seg"].item() == DiceCELoss(softmax=True, to_onehot_y=True)(student, batch[1]).item()
        assert output.terms["soft"].item() == SoftLogitKL(2.0)(student, teacher).item()


def test_without_teachers_it_is_the_student_alone(batch):
    torch.manual_seed(0)
    network = tiny_net()
    alone = copy.deepcopy(network)
    Distiller(network, terms={"seg": seg_term()})(*batch).loss.backward()
    DiceCELoss(softmax=True, to_onehot_y=True)(alone(batch[0]), batch[1]).backward()
    for ours, theirs in zip(network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_zero_distillation_loss_when_the_student_is_the_teacher(batch):
    network = tiny_net()
    distiller = Distiller(network, {"teacher": copy.deepcopy(network)}, {"soft": soft_term()}).eval()
    assert distiller(*batch).loss.item() == 0.0


def test_weight_zero_removes_the_gradient_and_keeps_the_log(batch):
    torch.manual_seed(0)
    network = tiny_net()
    teacher = tiny_net(8)
    grads = []
    for terms in ({"seg": seg_term()}, {"seg": seg_term(), "soft": soft_term(0.0)}):
        network.zero_grad()
        output = Distiller(network, {"teacher": teacher}, terms)(*batch)
        output.loss.backward()
        grads.append([p.grad.clone() for p in network.parameters()])
    assert output.terms["soft"] > 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_teacher_is_untouched_by_training(distiller, batch):
    teacher = distiller.frozen_teachers["teacher"]
    before = copy.deepcopy(teacher.state_dict())  # batch norm statistics are part of it
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    for _ in range(3):
        distiller.train()
        optimizer.zero_grad()
        distiller(*batch).loss.backward()
        optimizer.step()
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_frozen_teacher_is_hidden_but_follows_moves(distiller):
    student_keys = list(distiller.student.state_dict())
    assert list(distiller.state_dict()) == student_keys
    assert len(list(distiller.parameters())) == len(list(distiller.student.parameters()))
    assert len(list(distiller.buffers())) == len(list(distiller.student.buffers()))
    distiller.to(torch.float64)
    assert next(distiller.frozen_teachers["teacher"].parameters()).dtype == torch.float64
    distiller.train()
    assert distiller.student.training


def test_state_dict_has_bare_student_keys_plus_adapters_and_loads_back(batch):
    terms = {
        "seg": seg_term(),
        "deep": Term(nn.MSELoss(), "student/bottleneck", "teacher/bottleneck", adapter=nn.Conv3d(8, 16, 1)),
    }
    distiller = Distiller(tiny_net(), {"teacher": tiny_net(8)}, terms)
    state = distiller.state_dict()
    expected = [*distiller.student.state_dict(), "adapters.deep.weight", "adapters.deep.bias"]
    assert list(state) == expected
    other = Distiller(
        tiny_net(),
        {"teacher": tiny_net(8)},
        {
            "seg": seg_term(),
            "deep": Term(nn.MSELoss(), "student/bottleneck", "teacher/bottleneck", adapter=nn.Conv3d(8, 16, 1)),
        },
    )
    assert other.load_state_dict(state).missing_keys == []
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key])
    # nested, as below DDP
    nested = nn.ModuleDict({"module": distiller})
    assert list(nested.state_dict()) == [f"module.{key}" for key in expected]
    nn.ModuleDict({"module": other}).load_state_dict(nested.state_dict())
    # the student's own file fits, strictly
    tiny_net().load_state_dict({key: value for key, value in state.items() if not key.startswith("adapters.")})


def test_adapter_is_trained_and_features_are_those_of_the_stages(batch):
    adapter = nn.Conv3d(8, 16, 1)
    term = Term(nn.MSELoss(), "student/bottleneck", "teacher/bottleneck", adapter=adapter)
    distiller = Distiller(tiny_net(), {"teacher": tiny_net(8)}, {"deep": term})
    distiller(*batch).loss.backward()
    assert adapter.weight.grad.abs().sum() > 0
    assert any(p is adapter.weight for p in distiller.parameters())


def test_co_training_gives_each_network_only_its_own_gradient(batch):
    torch.manual_seed(0)
    student, teacher = tiny_net(), tiny_net(8)
    alone = copy.deepcopy(teacher)
    terms = {
        "seg": seg_term(),
        "soft": soft_term(),
        "teacher_seg": Term(DiceCELoss(softmax=True, to_onehot_y=True), "teacher/logits", "label"),
    }
    distiller = Distiller(student, {"teacher": teacher}, terms, freeze=False)
    distiller(*batch).loss.backward()
    DiceCELoss(softmax=True, to_onehot_y=True)(alone(batch[0]), batch[1]).backward()
    for ours, theirs in zip(teacher.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert {key for key in distiller.state_dict() if key.startswith("teachers.teacher.")} == {
        f"teachers.teacher.{key}" for key in teacher.state_dict()
    }
    distiller.load_state_dict(distiller.state_dict())


def test_term_passes_the_label_only_to_losses_that_declare_it(batch):
    seen = {}

    def labelled(student, target, label):
        seen["label"] = label
        return (student - target).pow(2).mean()

    distiller = Distiller(
        tiny_net(), {"teacher": tiny_net(8)}, {"x": Term(labelled, "student/logits", "teacher/logits")}
    )
    distiller(*batch)
    assert torch.equal(seen["label"], batch[1])


def test_a_loss_that_calls_its_second_argument_label_gets_it_once(batch):
    term = Term(lambda student, label: (student.mean() - label.mean()).pow(2), "student/logits", "label")
    assert not term.wants_label
    assert Distiller(tiny_net(), terms={"x": term})(*batch).loss > 0


def test_losses_get_plain_float32_tensors_under_autocast(batch):
    seen = {}

    def loss(student, target):
        seen["types"] = (type(student), type(target), student.dtype, torch.is_autocast_enabled("cpu"))
        return student.mean()

    distiller = Distiller(tiny_net(), {"teacher": tiny_net(8)}, {"x": Term(loss, "student/logits", "teacher/logits")})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = distiller(MetaTensor(batch[0]), MetaTensor(batch[1]))
    assert seen["types"] == (torch.Tensor, torch.Tensor, torch.float32, False)
    assert output.pred.dtype == torch.bfloat16


def test_cached_teacher_logits_replace_a_live_teacher(batch):
    torch.manual_seed(0)
    network, teacher = tiny_net(), tiny_net(8).eval()
    live = Distiller(network, {"teacher": teacher}, {"soft": soft_term()}).eval()
    cached = Distiller(network, {}, {"soft": soft_term()}, cached={"teacher_logits": "teacher/logits"}).eval()
    with torch.no_grad():
        logits = teacher(batch[0])
    assert cached(*batch, teacher_logits=logits).loss.item() == live(*batch).loss.item()
    with pytest.raises(ValueError, match="teacher_logits"):
        cached(*batch)
    with pytest.raises(ValueError, match="both from a live network and from the batch"):
        Distiller(network, {"teacher": teacher}, {"soft": soft_term()}, cached={"teacher_logits": "teacher/logits"})


def test_teacher_that_no_term_reads_is_not_run_and_named(batch):
    class Counted(nn.Module):
        calls = 0

        def forward(self, x):
            Counted.calls += 1
            return x.repeat(1, 3, 1, 1, 1)

    with pytest.warns(UserWarning, match=r"no term reads the teachers \['teacher'\]"):
        distiller = Distiller(tiny_net(), {"teacher": Counted()}, {"seg": seg_term()})
    distiller(*batch)
    assert Counted.calls == 0


def test_torchscript_teacher_is_frozen_and_used(batch):
    torch.manual_seed(0)
    network = tiny_net(8).eval()
    script = torch.jit.trace(network, batch[0])
    student = tiny_net()
    losses = [
        Distiller(student, {"teacher": teacher}, {"soft": soft_term()}).eval()(*batch).loss.item()
        for teacher in (network, script)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert not any(p.requires_grad for p in script.parameters())


def test_taps_add_views_under_their_alias(batch):
    term = Term(nn.MSELoss(), "student/deep", "teacher/deep")
    taps = {"student": {"deep": "bottleneck"}, "teacher": {"deep": "encoder_1"}}
    student, teacher = tiny_net(8), tiny_net(8)
    distiller = Distiller(student, {"teacher": teacher}, {"x": term}, taps=taps)
    views = distiller.views(*batch)
    assert views["student/deep"].shape == (2, 16, 4, 4, 4)
    assert views["teacher/deep"].shape[:2] == (2, 8)
    assert not views["teacher/deep"].requires_grad


def test_forward_without_label_serves_terms_that_need_none(batch):
    distiller = Distiller(tiny_net(), {"teacher": tiny_net(8)}, {"soft": soft_term()})
    assert distiller(batch[0]).loss > 0
    with pytest.raises(ValueError, match=r"term 'seg' reads \['label'\]"):
        Distiller(tiny_net(), terms={"seg": seg_term()})(batch[0])


def test_deep_copy_and_pickle_survive(distiller, batch, tmp_path):
    distiller.eval()
    expected = distiller(*batch).loss
    assert torch.equal(copy.deepcopy(distiller)(*batch).loss, expected)
    torch.save(distiller, tmp_path / "distiller.pt")
    assert torch.equal(torch.load(tmp_path / "distiller.pt", weights_only=False)(*batch).loss, expected)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("teacher/logit", "term 'soft' reads 'teacher/logit'; known: label, student/logits, teacher/logits"),
        ("techer/logits", "term 'soft' reads 'techer/logits'; known: label, student/logits, teacher/logits"),
        ("student/bottlneck", "student/bottleneck"),
    ],
)
def test_unknown_address_names_term_and_known_views(address, message):
    with pytest.raises(ValueError, match=message):
        Distiller(tiny_net(), {"teacher": tiny_net(8)}, {"soft": Term(SoftLogitKL(), target=address)})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"terms": {}}, ValueError, "at least one term"),
        ({"terms": {"loss": seg_term()}}, ValueError, "'loss' cannot name a term"),
        ({"terms": {"seg": nn.MSELoss()}}, TypeError, "term 'seg' must be"),
        ({"teachers": {"student": tiny_net()}, "terms": {"seg": seg_term()}}, ValueError, "'student' cannot name"),
        ({"teachers": {"t": "model.pt"}, "terms": {"seg": seg_term()}}, TypeError, "network 't' must be"),
        ({"taps": {"other": ["bottleneck"]}, "terms": {"seg": seg_term()}}, ValueError, "taps name"),
    ],
)
def test_bad_parts_are_refused_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        Distiller(tiny_net(), **arguments)


def test_teacher_with_other_classes_is_refused_by_the_loss(batch):
    distiller = Distiller(tiny_net(), {"teacher": tiny_net(8, out=2)}, {"soft": soft_term()})
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8, 8\) and teacher logits \(2, 2, 8, 8, 8\)"):
        distiller(*batch)


@pytest.mark.parametrize("weight", ["1.0", True, float("nan"), None])
def test_bad_weight_is_refused(weight):
    with pytest.raises(ValueError, match="weight must be a finite number"):
        Term(SoftLogitKL(), weight=weight)


def test_student_of_another_family_works_in_two_dimensions():
    student = BasicUNet(2, 1, 3, features=(4, 4, 8, 8, 8, 4))
    teacher = UNet(2, 1, 3, channels=(8, 16), strides=(2,))
    output = Distiller(student, {"teacher": teacher}, {"soft": soft_term()})(torch.randn(1, 1, 32, 32))
    assert output.pred.shape == (1, 3, 32, 32)


# ---- deep supervision -----------------------------------------------------------------------------------------------


class TwoHeads(torch.nn.Module):
    """Full-resolution logits first, then those at half the resolution; a stack or a list."""

    def __init__(self, stack: bool) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 3, 1)
        self.stack = stack

    def forward(self, image):
        full = self.conv(image)
        if self.stack:
            return torch.stack([full, 2 * full], dim=1)
        return [full, torch.nn.functional.avg_pool3d(full, 2)]


@pytest.mark.parametrize("stack", [False, True])
def test_heads_of_deep_supervision_are_views(batch, stack):
    network, teacher = TwoHeads(stack), TwoHeads(stack)
    terms = {
        "soft": Term(SoftLogitKL(), "student/logits", "teacher/logits"),
        "head": Term(SoftLogitKL(), "student/logits_1", "teacher/logits", weight=0.5),
    }
    output = Distiller(network, {"teacher": teacher}, terms)(*batch)
    with torch.no_grad():
        (full, half), target = (network(batch[0]).unbind(1) if stack else network(batch[0])), teacher.conv(batch[0])
    assert torch.equal(output.pred, full)
    assert output.terms["head"].item() == pytest.approx(SoftLogitKL()(half, target).item())
    assert output.loss.item() == pytest.approx(output.terms["soft"].item() + 0.5 * output.terms["head"].item())


def test_a_head_that_is_not_there_is_named_with_the_first_batch(batch):
    distiller = Distiller(TwoHeads(False), {}, {"x": Term(torch.nn.MSELoss(), "student/logits_7", "student/logits")})
    with pytest.raises(ValueError, match=r"term 'x' reads \['student/logits_7'\], which this batch does not hold"):
        distiller(*batch)


class StageAndHeads(torch.nn.Module):
    """A body, its logits, and a head of deep supervision that no term reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fine, self.coarse = (torch.nn.Conv3d(*ends, 1) for ends in ((1, 4), (4, 3), (4, 3)))

    def forward(self, image):
        features = self.body(image)
        return [self.fine(features), self.coarse(features)]


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_every_weight_gets_a_gradient_where_ddp_waits_for_it(weight, batch, process_group):
    torch.manual_seed(0)
    student = StageAndHeads()
    terms = {"seg": seg_term(weight), "stage": Term(lambda own, _: own.square().mean(), "student/body", "label")}
    found = Distiller(student, terms=terms, taps={"student": ["body"]})(*batch)
    found.loss.backward()
    assert [name for name, value in student.named_parameters() if value.grad is None] == []
    assert not student.coarse.weight.grad.any()
    assert bool(student.fine.weight.grad.any()) == bool(weight)
    assert found.loss.item() == pytest.approx(sum(value.item() for value in found.weighted.values()))


# ---- several stages, adapters, schedules ----------------------------------------------------------------------------

STAGES = {"student": "student/*", "target": "teacher/*"}
SHAPE = (1, 1, 16, 16, 16)


def unets() -> tuple[torch.nn.Module, torch.nn.Module]:
    return UNet(3, 1, 3, (4, 8, 8), (2, 2)), UNet(3, 1, 3, (6, 8, 16), (2, 2))


def test_stages_are_paired_by_stride():
    student, teacher = unets()
    term = Term(AttentionTransfer(), **STAGES)
    Distiller(student, {"teacher": teacher}, {"at": term}, input_shape=SHAPE)
    assert term.student == [f"student/{name}" for name in ("encoder_1", "encoder_2", "bottleneck", "decoder_1")]
    assert term.target == [f"teacher/{name}" for name in ("encoder_1", "encoder_2", "bottleneck", "decoder_1")]


def test_pairs_follow_the_nearest_stride_and_then_the_side():
    shape = torch.Size((1, 1, 1))
    own = [Stage("bottleneck", "", shape, (4.0,)), Stage("encoder_1", "", shape, (2.0,))]
    other = [
        Stage("encoder_1", "", shape, (1.0,)),
        Stage("encoder_2", "", shape, (2.0,)),
        Stage("encoder_3", "", shape, (4.0,)),
        Stage("decoder_3", "", shape, (4.0,)),
        Stage("decoder_2", "", shape, (2.0,)),
    ]
    assert pair_stages(own, other) == [(0, 3), (1, 1)]


def test_lazy_adapters_get_their_weights_and_leave_random_numbers_alone():
    student, teacher = unets()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    modes = {name: module.training for name, module in student.named_modules()}
    terms = {"hint": Term(FeatureMimic(), "student/encoder_1", "teacher/encoder_1", adapter=PointwiseAdapter())}
    distiller = Distiller(student, {"teacher": teacher}, terms, input_shape=SHAPE)
    assert torch.equal(torch.rand(1), expected)
    assert {name: module.training for name, module in student.named_modules()} == modes
    shapes = [tuple(value.shape) for key, value in distiller.state_dict().items() if key.startswith("adapters.hint.")]
    assert (6, 4, 1, 1, 1) in shapes
    distiller(torch.rand(2, 1, 16, 16, 16)).loss.backward()
    assert all(parameter.grad is not None for parameter in distiller.terms["hint"].adapter.parameters())


def test_a_number_behind_a_colon_picks_one_of_the_stages_in_the_order_of_the_network():
    student, teacher = unets()
    sides = ["student/encoder_*:0", "student/encoder_*:-1", "student/decoder_*:-1"]
    distiller = Distiller(
        student, {"teacher": teacher}, {"x": Term(AttentionTransfer(), sides, "teacher/*")}, input_shape=SHAPE
    )
    names = [stage.name for stage in network_stages(student, SHAPE)]
    encoders, decoders = ([name for name in names if name.startswith(kind)] for kind in ("encoder", "decoder"))
    assert len(encoders) > 1
    wanted = [encoders[0], encoders[-1], decoders[-1]]
    assert distiller.terms["x"].student == [f"student/{name}" for name in wanted]


def test_an_adapter_meets_what_the_target_adapter_makes_of_the_target():
    student, teacher = unets()
    term = Term(
        FeatureMimic(),
        "student/encoder_1",
        "teacher/logits",
        adapter=PointwiseAdapter(),
        target_adapter=SelectClasses([[0, 2], 1]),
    )
    distiller = Distiller(student, {"teacher": teacher}, {"x": term}, input_shape=SHAPE)
    assert distiller(torch.rand(2, 1, 16, 16, 16)).loss.isfinite()


@pytest.mark.parametrize(
    ("term", "shape", "message"),
    [
        (lambda: Term(AttentionTransfer(), **STAGES), None, r"terms \['x'\] read stages by '\*': give input_shape"),
        (
            lambda: Term(AttentionTransfer(), "student/*", "teacher/bottleneck"),
            SHAPE,
            r"term 'x' has a '\*' on the student's side only",
        ),
        (
            lambda: Term(AttentionTransfer(), "student/*", "teacher/decoder_7*"),
            SHAPE,
            r"'teacher/decoder_7\*' matches no stage; stages: teacher/encoder_1",
        ),
        (
            lambda: Term(AttentionTransfer(), "student/encoder_*:last", "teacher/*"),
            SHAPE,
            "'student/encoder_\\*:last' has 'last' behind the colon; give a number, -1 for the last stage",
        ),
        (
            lambda: Term(AttentionTransfer(), "student/encoder_*:9", "teacher/*"),
            SHAPE,
            r"'student/encoder_\*:9' asks for stage 9 of \d; they count from 0, or backwards from -1",
        ),
        (
            lambda: Term(FeatureMimic(), "student/encoder_1", "teacher/encoder_1", adapter=PointwiseAdapter()),
            None,
            r"adapters of the terms \['x'\] .* give input_shape",
        ),
        (
            lambda: Term(FeatureMimic(), "student/logits", "label", adapter=PointwiseAdapter()),
            SHAPE,
            r"term 'x' has an adapter, but no network gives \['label'\]",
        ),
    ],
)
def test_wiring_that_cannot_be_is_named(term, shape, message):
    student, teacher = unets()
    with pytest.raises(ValueError, match=message):
        Distiller(student, {"teacher": teacher}, {"x": term()}, input_shape=shape)


def test_a_view_of_the_batch_weighs_the_voxels_of_a_term(batch):
    student, teacher = tiny_net(), tiny_net(8)
    term = Term(SoftLogitKL(), target="teacher/logits", weight_map="roi")
    distiller = Distiller(student, {"teacher": teacher}, {"soft": term}, cached={"organ": "roi"})
    image, label = batch
    roi = (torch.rand(label.shape) > 0.5).float()
    found = distiller(image, label, organ=roi)
    with torch.no_grad():
        logits = student(image), teacher(image)
    assert found.terms["soft"].item() == pytest.approx(SoftLogitKL()(*logits, label, roi).item(), rel=1e-5)
    assert found.terms["soft"].item() != pytest.approx(SoftLogitKL()(*logits, label).item(), rel=1e-4)


def test_a_weight_map_that_is_not_there_or_not_taken_is_named():
    term = Term(SoftLogitKL(), target="teacher/logits", weight_map="roi")
    with pytest.raises(ValueError, match=r"term 'soft' reads 'roi'; known: label, student/logits"):
        Distiller(tiny_net(), {"teacher": tiny_net(8)}, {"soft": term})
    with pytest.raises(TypeError, match="weight_map 'roi', and its loss AttentionTransfer takes no argument 'weight'"):
        Term(AttentionTransfer(), "student/bottleneck", "teacher/bottleneck", weight_map="roi")
    with pytest.raises(TypeError, match=r"weight_map must be an address such as 'roi', got \['roi'\]"):
        Term(SoftLogitKL(), target="teacher/logits", weight_map=["roi"])


@pytest.mark.parametrize("loss", [AttentionTransfer(), ChannelWiseKL(), FeatureMimic(standardize=True)])
@pytest.mark.parametrize("side", ["student", "target"])
def test_tokens_never_pass_for_a_map(loss, side):
    tokens, fit = torch.randn(2, 8, 6), torch.randn(2, 6, 2, 2, 2)
    term = Term(loss, ["student/a"], ["teacher/a"])
    views = {"student/logits": torch.randn(2, 3, 8, 8, 8), "student/a": tokens, "teacher/a": tokens}
    with pytest.raises(ValueError, match=r"compares maps with 5 axes, and 'student/a' has the shape \(2, 8, 6\)"):
        term(views)
    role = {"student": "adapter", "target": "target_adapter"}[side]
    half = Term(loss, "student/a", "teacher/a", **{role: TokensToMap(grid=[2, 2, 2])})
    both = Term(
        loss, "student/a", "teacher/a", adapter=TokensToMap(grid=[2, 2, 2]), target_adapter=TokensToMap(grid=[2, 2, 2])
    )
    other = {"student": "teacher", "target": "student"}[side]
    with pytest.raises(ValueError, match=f"'{other}/a' has the shape"):
        half(views)
    assert half({**views, f"{other}/a": fit}) > 0
    assert both(views).item() == pytest.approx(0.0, abs=1e-6)


def test_factor_scales_a_term_and_its_gradient(batch):
    student, teacher = tiny_net(), tiny_net(8)
    term = Term(SoftLogitKL(), weight=2.0, target="teacher/logits")
    distiller = Distiller(student, {"teacher": teacher}, {"soft": term})
    whole = distiller(*batch)
    term.factor = 0.25
    part = distiller(*batch)
    assert part.terms == whole.terms
    assert part.weighted["soft"].item() == pytest.approx(0.5 * part.terms["soft"].item())
    assert part.loss.item() == pytest.approx(whole.loss.item() / 4)


def test_a_target_adapter_with_weights_is_refused():
    with pytest.raises(ValueError, match="target_adapter must have no weights"):
        Term(SoftLogitKL(), target="teacher/logits", target_adapter=torch.nn.Conv3d(3, 3, 1))


@pytest.mark.parametrize("address", [[], [3], 5])
def test_a_bad_list_of_addresses_is_refused(address):
    with pytest.raises((ValueError, TypeError), match="a term's student"):
        Term(SoftLogitKL(), student=address)


def test_a_term_that_is_multiplied_by_zero_costs_no_backward_pass_and_spoils_nothing(batch):
    def broken(student, target):
        return (student - target).mean() * float("nan")

    terms = {"soft": Term(SoftLogitKL(), target="teacher/logits"), "x": Term(broken, target="teacher/logits", weight=0)}
    output = Distiller(tiny_net(), {"teacher": tiny_net(8)}, terms)(*batch)
    assert output.terms["x"].isnan()
    assert output.loss.item() == pytest.approx(output.terms["soft"].item())


def test_the_dry_forward_takes_the_networks_precision():
    student, teacher = unets()
    teacher = teacher.to(torch.bfloat16)
    term = Term(AttentionTransfer(), "student/encoder_1", "teacher/*")
    Distiller(student, {"teacher": teacher}, {"at": term}, input_shape=SHAPE)
    assert term.target == ["teacher/encoder_1"]
