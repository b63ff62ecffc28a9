"""CorrelationDistillation: values and gradients of independent implementations, its properties, several processes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F
from torch.autograd import gradcheck
from two_processes import in_two_processes

from monai_kd.losses.dist import CorrelationDistillation

STUDENT = torch.tensor([[[[2.0, 0.5], [-1.0, 0.3]], [[0.1, 1.5], [0.4, -0.6]], [[-0.7, 0.2], [1.2, 0.9]]]])
TEACHER = torch.tensor([[[[3.0, 0.2], [-1.5, -0.4]], [[-0.5, 2.5], [0.1, -1.0]], [[-1.2, 0.6], [2.4, 1.8]]]])
STUDENT_BATCH = torch.cat(
    [STUDENT, torch.tensor([[[[0.6, -0.2], [1.1, 0.0]], [[-0.9, 0.8], [0.2, 1.4]], [[0.3, 0.7], [-1.3, 0.5]]]])]
)
TEACHER_BATCH = torch.cat(
    [TEACHER, torch.tensor([[[[1.6, -1.0], [2.0, -0.3]], [[-1.4, 1.3], [0.5, 2.2]], [[0.2, 0.4], [-2.1, 0.1]]]])]
)
STUDENT_ONE = torch.tensor([[[[1.2, -0.4], [0.3, -2.0]]]])
TEACHER_ONE = torch.tensor([[[[2.5, -1.0], [-0.2, -3.0]]]])
STUDENT_TWO = torch.tensor([[[[0.5, -0.3], [1.0, 0.2]], [[-0.5, 0.9], [0.4, -1.1]]]])
TEACHER_TWO = torch.tensor([[[[1.5, -1.3], [0.2, 0.6]], [[-1.0, 1.9], [0.9, -2.1]]]])
GRADIENT = torch.tensor(
    [
        [
            [[-0.00011827, 0.03283597], [-0.01784549, 0.10700803]],
            [[0.00037264, -0.03045676], [0.08211388, -0.02753566]],
            [[-0.00025437, -0.00237921], [-0.06426839, -0.07947237]],
        ]
    ]
)
SPATIAL = [(7,), (4, 5), (3, 4, 5)]


def rows(logits: torch.Tensor, temperature: float = 1.0, sigmoid: bool = False) -> torch.Tensor:
    probability = (logits / temperature).sigmoid() if sigmoid else (logits / temperature).softmax(dim=1)
    return probability.movedim(1, -1).flatten(0, -2)  # (B * voxels, C)


def pearson(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    ours, theirs = (value - value.mean(dim=1, keepdim=True) for value in (ours, theirs))
    return (ours * theirs).sum(dim=1) / (ours.norm(dim=1) * theirs.norm(dim=1) + 1e-8)


def textbook(student, teacher, beta=1.0, gamma=1.0, temperature=1.0):
    ours, theirs = rows(student, temperature), rows(teacher, temperature)
    inter, intra = 1 - pearson(ours, theirs).mean(), 1 - pearson(ours.T, theirs.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def gradient(loss, *tensors: torch.Tensor) -> torch.Tensor:
    student = tensors[0].clone().requires_grad_()
    loss(student, *tensors[1:]).backward()
    return student.grad


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "expected"),
    [
        (STUDENT, TEACHER, {}, 0.05848755),
        (STUDENT_BATCH, TEACHER_BATCH, {}, 0.10793995),
        (STUDENT, TEACHER, {"gamma": 0}, 0.03443201),
        (STUDENT, TEACHER, {"beta": 0}, 0.02405554),
        (STUDENT, TEACHER, {"temperature": 4.0}, 1.23547137),
        (STUDENT_TWO, TEACHER_TWO, {"beta": 0}, 0.11118137),
        (STUDENT_ONE, TEACHER_ONE, {"sigmoid": True, "beta": 0}, 0.04309414),
    ],
)
def test_value_meets_the_published_vectors(student, teacher, settings, expected):
    assert CorrelationDistillation(**settings)(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_gradient_meets_the_published_vector():
    torch.testing.assert_close(gradient(CorrelationDistillation(), STUDENT, TEACHER), GRADIENT, atol=1e-6, rtol=0)


def test_one_voxel_by_hand():
    # probabilities (1/2, 1/4, 1/4) and (1/4, 1/2, 1/4): deviations (2, -1, -1) / 12 and (-1, 2, -1) / 12
    student, teacher = torch.tensor([[[4.0], [2.0], [2.0]]]).log(), torch.tensor([[[2.0], [4.0], [2.0]]]).log()
    loss = CorrelationDistillation(gamma=0)
    assert loss(student, teacher).item() == pytest.approx(1 + 3 / 6, abs=1e-6)


def test_three_sigmoid_voxels_by_hand():
    # probabilities (1/4, 1/2, 3/4) and (1/4, 3/4, 1/2): deviations (-1, 0, 1) / 4 and (-1, 1, 0) / 4
    student, teacher = torch.tensor([[[0.25, 0.5, 0.75]]]).logit(), torch.tensor([[[0.25, 0.75, 0.5]]]).logit()
    loss = CorrelationDistillation(beta=0, sigmoid=True)
    assert loss(student, teacher).item() == pytest.approx(1 - 1 / 2, abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"beta": 0}, {"gamma": 0}, {"beta": 2.0, "gamma": 0.5, "temperature": 3.0}])
@pytest.mark.parametrize("spatial", SPATIAL)
def test_value_and_gradient_are_the_textbook_formula_s(spatial, settings):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, *spatial), torch.randn(2, 4, *spatial)
    loss = CorrelationDistillation(**settings)
    expected = textbook(student.double(), teacher.double(), **settings).item()
    assert loss(student, teacher).item() == pytest.approx(expected, rel=2e-6)
    own = gradient(lambda s, t: textbook(s, t, **settings), student.double(), teacher.double())
    torch.testing.assert_close(gradient(loss, student, teacher).double(), own, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_pieces_of_a_large_map_give_the_value_and_gradient_of_the_whole(beta):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 40, 41, 43), torch.randn(2, 5, 40, 41, 43)
    loss = CorrelationDistillation(beta)
    expected = textbook(student.double(), teacher.double(), beta)
    assert loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-6)
    own = gradient(lambda s, t: textbook(s, t, beta), student.double(), teacher.double())
    torch.testing.assert_close(gradient(loss, student, teacher).double(), own, atol=1e-10, rtol=1e-4)


def test_float32_holds_at_two_million_voxels_with_a_rare_class():
    torch.manual_seed(0)
    teacher = torch.randn(1, 3, 2**21)
    teacher[:, 0] += 6  # the background is nearly certain
    teacher[:, 2] -= torch.where(torch.arange(2**21) < 200, -12.0, 6.0)  # 1 voxel in 10,000
    student = teacher + 0.1 * torch.randn_like(teacher)
    loss = CorrelationDistillation(beta=0)
    expected = textbook(student.double(), teacher.double(), beta=0).item()
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.filterwarnings("ignore:CorrelationDistillation")
def test_zero_when_student_equals_teacher(spatial, scale, classes):
    logits = scale * torch.randn(2, classes, *spatial)
    for temperature in (1.0, 4.0):
        assert CorrelationDistillation(temperature=temperature)(logits, logits.clone()).item() == 0.0


@pytest.mark.parametrize("level", [0.0, 3.0, 1e4])
def test_identical_constant_maps_cost_nothing_and_give_a_finite_gradient(level):
    constant = torch.zeros(2, 3, 4, 4)
    constant[:, 1] = level
    student = constant.clone().requires_grad_()
    value = CorrelationDistillation()(student, constant)
    value.backward()
    assert value.item() == 0.0
    assert torch.isfinite(student.grad).all()


def test_a_constant_student_has_no_correlation_and_a_bounded_gradient():
    torch.manual_seed(0)
    student, teacher = torch.zeros(1, 3, 8, 8, requires_grad=True), 5 * torch.randn(1, 3, 8, 8)
    value = CorrelationDistillation()(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(2.0, abs=1e-3)
    assert student.grad.abs().max() < 1e4
    assert (student.grad * teacher).sum() < 0  # downhill is towards the teacher


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 4, 5), (1, 3, 4, 5, 6)])
@pytest.mark.parametrize("sigmoid", [True, False])
def test_finite_at_extreme_logits(shape, sigmoid):
    loss = CorrelationDistillation(beta=0 if sigmoid else 1, sigmoid=sigmoid)
    for student, teacher in [
        (1e4 * torch.randn(shape), -1e4 * torch.randn(shape)),
        (torch.zeros(shape), 1e4 * torch.randn(shape)),
        (1e4 * torch.randn(shape), torch.zeros(shape)),
        (torch.full(shape, 1e4), torch.full(shape, -1e4)),
    ]:
        assert torch.isfinite(loss(student, teacher))
        assert torch.isfinite(gradient(loss, student, teacher)).all()


@pytest.mark.parametrize(
    "settings", [{}, {"beta": 0}, {"gamma": 0}, {"temperature": 2.0}, {"sigmoid": True, "beta": 0}]
)
@pytest.mark.parametrize("spatial", [(5,), (2, 3), (2, 2, 2)])
def test_gradient_is_exact(spatial, settings):
    torch.manual_seed(0)
    student = torch.randn(2, 3, *spatial, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, *spatial, dtype=torch.float64)
    assert gradcheck(CorrelationDistillation(**settings), (student, teacher))


def test_gradient_is_exact_with_ignored_voxels_and_another_grid():
    torch.manual_seed(0)
    student = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    label = torch.tensor([0, 1, 255]).repeat(2, 1, 4, 1)
    assert gradcheck(CorrelationDistillation(), (student, teacher, label))


def test_common_order_of_voxels_and_of_classes_does_not_matter():
    order = torch.randperm(8)
    student, teacher = (t.movedim(0, 1).flatten(1)[:, order].unsqueeze(0) for t in (STUDENT_BATCH, TEACHER_BATCH))
    assert CorrelationDistillation()(student, teacher).item() == pytest.approx(0.10793995, abs=1e-6)
    assert CorrelationDistillation()(STUDENT.flip(1), TEACHER.flip(1)).item() == pytest.approx(0.05848755, abs=1e-6)


def test_repeating_samples_changes_nothing():
    repeated = [logits.repeat(3, 1, 1, 1) for logits in (STUDENT_BATCH, TEACHER_BATCH)]
    assert CorrelationDistillation()(*repeated).item() == pytest.approx(0.10793995, abs=1e-6)


def test_a_constant_per_voxel_changes_nothing():
    value = CorrelationDistillation()(STUDENT + 3 * torch.randn(1, 1, 2, 2), TEACHER - torch.randn(1, 1, 2, 2))
    assert value.item() == pytest.approx(0.05848755, abs=1e-6)


def test_three_axes_with_a_singleton_equal_two():
    for axis in (2, 3, 4):
        value = CorrelationDistillation()(STUDENT.unsqueeze(axis), TEACHER.unsqueeze(axis))
        assert value.item() == pytest.approx(0.05848755, abs=1e-6)


def test_teacher_receives_no_gradient():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    CorrelationDistillation()(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_without_a_gradient_the_value_is_the_same():
    assert (
        CorrelationDistillation()(STUDENT, TEACHER).item()
        == CorrelationDistillation()(STUDENT.clone().requires_grad_(), TEACHER).item()
    )


def test_a_student_on_another_grid_is_interpolated():
    teacher = torch.randn(1, 3, 5, 4)
    finer = F.interpolate(STUDENT, size=(5, 4), mode="bilinear", align_corners=False)
    loss = CorrelationDistillation()
    assert loss(STUDENT, teacher).item() == loss(finer, teacher).item()


def test_classes_that_the_teacher_does_not_see_do_not_count_in_intra():
    absent = torch.full((1, 1, 2, 2), -20.0)
    noise = torch.tensor([[[[0.1, -0.2], [0.3, 0.0]]]])
    student, teacher = torch.cat([STUDENT, absent - noise], dim=1), torch.cat([TEACHER, absent + noise], dim=1)
    assert CorrelationDistillation(beta=0)(student, teacher).item() == pytest.approx(0.02405554, abs=1e-6)
    assert textbook(student.double(), teacher.double(), beta=0).item() > 0.2


def test_float32_inside_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = CorrelationDistillation()(STUDENT, TEACHER)
    assert value.dtype == torch.float32
    assert value.item() == CorrelationDistillation()(STUDENT, TEACHER).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    student, teacher = STUDENT.to(dtype), TEACHER.to(dtype)
    loss = CorrelationDistillation()
    assert loss(student, teacher).item() == loss(student.float(), teacher.float()).item()


@pytest.mark.parametrize(
    ("shape", "form"), [((2, 4, 6, 5), torch.channels_last), ((2, 4, 3, 6, 5), torch.channels_last_3d)]
)
def test_memory_format_changes_nothing(shape, form):
    student, teacher = torch.randn(shape), torch.randn(shape)
    other = [logits.contiguous(memory_format=form) for logits in (student, teacher)]
    loss = CorrelationDistillation()
    assert loss(*other).item() == pytest.approx(loss(student, teacher).item(), rel=1e-5)
    torch.testing.assert_close(gradient(loss, *other), gradient(loss, student, teacher))


class TestTwoClasses:
    def test_inter_meets_the_published_vector_with_a_warning_once(self):
        loss = CorrelationDistillation(gamma=0)
        with pytest.warns(UserWarning, match="inter has no gradient$"):
            assert loss(STUDENT_TWO, TEACHER_TWO).item() == pytest.approx(0.49999998, abs=1e-6)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(STUDENT_TWO, TEACHER_TWO)

    @pytest.mark.filterwarnings("ignore:CorrelationDistillation")
    def test_inter_has_no_gradient(self):
        assert gradient(CorrelationDistillation(gamma=0), STUDENT_TWO, TEACHER_TWO).abs().sum() == 0

    def test_beside_intra_it_is_left_out_with_a_warning(self):
        both, intra = CorrelationDistillation(), CorrelationDistillation(beta=0)
        with pytest.warns(UserWarning, match="inter has no gradient, it is left out"):
            assert both(STUDENT_TWO, TEACHER_TWO).item() == intra(STUDENT_TWO, TEACHER_TWO).item()
        torch.testing.assert_close(gradient(both, STUDENT_TWO, TEACHER_TWO), gradient(intra, STUDENT_TWO, TEACHER_TWO))

    def test_nothing_warns_without_beta(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            CorrelationDistillation(beta=0)(STUDENT_TWO, TEACHER_TWO)
            CorrelationDistillation()(STUDENT, TEACHER)


class TestSigmoid:
    def test_beta_is_inert_and_warns_once(self):
        loss = CorrelationDistillation(beta=7, sigmoid=True)
        with pytest.warns(UserWarning, match="beta has no effect"):
            assert loss(STUDENT_ONE, TEACHER_ONE).item() == pytest.approx(0.04309414, abs=1e-6)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(STUDENT_ONE, TEACHER_ONE)

    def test_channels_are_compared_one_by_one(self):
        loss = CorrelationDistillation(beta=0, temperature=2.0, sigmoid=True)
        single = [loss(STUDENT[:, [c]], TEACHER[:, [c]]).item() for c in range(3)]
        assert loss(STUDENT, TEACHER).item() == pytest.approx(sum(single) / 3, abs=1e-6)

    def test_one_channel_needs_sigmoid(self):
        with pytest.raises(ValueError, match="set sigmoid=True"):
            CorrelationDistillation()(STUDENT_ONE, TEACHER_ONE)

    def test_a_multi_label_map_is_ignored_where_any_channel_is(self):
        loss = CorrelationDistillation(beta=0, sigmoid=True)
        several, one = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
        several[0, 1, 0, 0] = one[0, 0, 0, 0] = 255
        expected = loss(STUDENT, TEACHER, one).item()
        assert loss(STUDENT, TEACHER, several).item() == expected
        assert loss(STUDENT, TEACHER).item() != expected


class TestIgnored:
    label = torch.tensor([[[[0, 1], [2, 255]]]])

    @pytest.mark.parametrize("settings", [{}, {"beta": 0}, {"gamma": 0}, {"sigmoid": True, "beta": 0}])
    def test_ignored_voxels_count_in_neither_term(self, settings):
        loss = CorrelationDistillation(**settings)
        kept = [logits.flatten(2)[:, :, :3] for logits in (STUDENT, TEACHER)]
        assert loss(STUDENT, TEACHER, self.label).item() == pytest.approx(loss(*kept).item(), abs=1e-6)
        own = gradient(loss, STUDENT, TEACHER, self.label).flatten(2)
        torch.testing.assert_close(own[:, :, :3], gradient(loss, *kept), atol=1e-6, rtol=1e-5)
        assert own[:, :, 3].abs().sum() == 0

    def test_label_may_lack_the_channel_axis_and_be_on_another_grid(self):
        loss = CorrelationDistillation()
        expected = loss(STUDENT, TEACHER, self.label).item()
        assert loss(STUDENT, TEACHER, self.label[:, 0]).item() == expected
        finer = self.label.repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert loss(STUDENT, TEACHER, finer).item() == expected

    def test_a_nan_where_the_label_is_ignored_does_not_spread(self):
        student = STUDENT.clone()
        student[..., 1, 1] = torch.nan
        assert torch.isfinite(gradient(CorrelationDistillation(), student, TEACHER, self.label)).all()

    def test_no_valid_voxel_is_zero_with_a_gradient(self):
        student = STUDENT.clone().requires_grad_()
        value = CorrelationDistillation()(student, TEACHER, torch.full((1, 1, 2, 2), 255))
        value.backward()
        assert value.item() == 0.0
        assert student.grad.abs().sum() == 0

    def test_none_looks_at_no_label(self):
        value = CorrelationDistillation(ignore_index=None)(STUDENT, TEACHER, self.label)
        assert value.item() == pytest.approx(0.05848755, abs=1e-6)

    def test_a_one_hot_label_is_refused(self):
        with pytest.raises(ValueError, match="class indices"):
            CorrelationDistillation()(STUDENT, TEACHER, torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("name", ["beta", "gamma", "temperature"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), "2", True])
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} is"):
        CorrelationDistillation(**{name: value})


@pytest.mark.parametrize("settings", [{"beta": 0, "gamma": 0}, {"gamma": 0, "sigmoid": True}])
def test_settings_that_compare_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="nothing is left to compare"):
        CorrelationDistillation(**settings)


def test_settings_change_the_value():
    settings = [{}, {"beta": 2}, {"gamma": 2}, {"temperature": 2}, {"beta": 0, "sigmoid": True}]
    assert len({CorrelationDistillation(**setting)(STUDENT, TEACHER).item() for setting in settings}) == 5


def test_shape_mismatch_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 2\) and teacher logits \(1, 2, 2, 2\)"):
        CorrelationDistillation()(STUDENT, TEACHER_TWO)


# -- several processes ----------------------------------------------------------------------------------------------

IMAGES = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
LOGITS = 2 * torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(2))
LABELS = torch.tensor([[0, 1, 2, 3, 255, 255]]).repeat(3, 1, 6, 1)
SHARES = (slice(0, 1), slice(1, 3))  # unequal batches
CASES = {"both": {}, "warm": {"temperature": 2.0, "beta": 0.5}, "sigmoid": {"sigmoid": True, "beta": 0}}


def small_network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Conv2d(2, 4, 3, padding=1)


def one_share(rank: int) -> dict[str, Any]:
    """What a process finds on its images; DDP ends with this function, before the group does."""
    found, share = {}, SHARES[rank]
    for name, settings in CASES.items():
        network = torch.nn.parallel.DistributedDataParallel(small_network())
        loss = CorrelationDistillation(**settings)
        value = loss(network(IMAGES[share]), LOGITS[share], LABELS[share])
        value.backward()
        alone = [
            other(network(IMAGES[share]), LOGITS[share], LABELS[share]).item()
            for other in (CorrelationDistillation(**settings, sync=False), CorrelationDistillation(**settings).eval())
        ]
        found[name] = value.item(), [p.grad for p in network.parameters()], alone
    return found


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return in_two_processes(one_share, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("case", CASES)
class TestTwoProcesses:
    def test_value_is_that_of_one_process_with_the_joint_batch(self, two_processes, case):
        expected = CorrelationDistillation(**CASES[case])(small_network()(IMAGES), LOGITS, LABELS).item()
        assert two_processes[0][case][0] == two_processes[1][case][0]
        assert two_processes[0][case][0] == pytest.approx(expected, abs=1e-6)

    def test_gradient_is_that_of_one_process_with_the_joint_batch(self, two_processes, case):
        network = small_network()
        CorrelationDistillation(**CASES[case])(network(IMAGES), LOGITS, LABELS).backward()
        for found in two_processes:
            for own, parameter in zip(found[case][1], network.parameters(), strict=True):
                torch.testing.assert_close(own, parameter.grad, atol=1e-6, rtol=1e-5)

    def test_without_sync_or_in_evaluation_each_process_is_on_its_own(self, two_processes, case):
        for share, found in zip(SHARES, two_processes, strict=True):
            loss = CorrelationDistillation(**CASES[case])
            expected = loss(small_network()(IMAGES[share]), LOGITS[share], LABELS[share]).item()
            assert found[case][2] == pytest.approx([expected, expected], abs=1e-6)
