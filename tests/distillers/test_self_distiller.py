"""SelfDistiller: what the average is, where it is saved, and what never reaches it."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import nn

from monai_kd.distillers import Distiller, Term
from monai_kd.distillers.self_distiller import PhotometricNoise, SelfDistiller
from monai_kd.losses import SoftLogitKL


def tiny_net(norm: str = "batch") -> UNet:
    torch.manual_seed(0)
    return UNet(2, 1, 3, channels=(4, 8), strides=(2,), num_res_units=1, norm=norm)


def terms(weight: float = 1.0) -> dict[str, Term]:
    return {
        "seg": Term(DiceCELoss(softmax=True, to_onehot_y=True), "student/logits", "label"),
        "self": Term(SoftLogitKL(2.0), "student/logits", "ema/logits", weight=weight),
    }


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(2, 1, 8, 8), torch.randint(0, 3, (2, 1, 8, 8)).float()


def train_a_step(distiller: Distiller, batch: tuple[torch.Tensor, torch.Tensor], momentum: float | None = None) -> None:
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    optimizer.zero_grad()
    distiller.train()
    distiller(*batch).loss.backward()
    optimizer.step()
    if momentum is not None:
        distiller.update(momentum)


class OneNumber(nn.Module):
    """A network of one weight, one floating and one counting buffer."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.register_buffer("mean", torch.tensor(value))
        self.register_buffer("count", torch.tensor(int(value)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.weight * image


def one_number(value: float) -> SelfDistiller:
    return SelfDistiller(OneNumber(value), {"self": Term(nn.MSELoss(), "student/logits", "ema/logits")})


def test_the_average_by_hand():
    distiller = one_number(1.0)
    seen = []
    for value in (2.0, 3.0):
        distiller.student.weight.data.fill_(value)
        distiller.student.mean.fill_(value)
        distiller.student.count.fill_(int(value))
        distiller.update(0.75)
        seen.append([float(tensor) for tensor in distiller.ema.state_dict().values()])
    # 0.75 * 1 + 0.25 * 2 = 1.25, then 0.75 * 1.25 + 0.25 * 3 = 1.6875; counts are copied
    assert seen == [[1.25, 1.25, 2.0], [1.6875, 1.6875, 3.0]]
    assert distiller.student.weight.item() == 3.0


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, 2.0), (1.0, 1.0)])
def test_the_ends_of_the_momentum_copy_and_keep(momentum, expected):
    distiller = one_number(1.0)
    distiller.student.weight.data.fill_(2.0)
    distiller.update(momentum)
    assert distiller.ema.weight.item() == expected


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
def test_a_momentum_outside_0_to_1_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum is"):
        one_number(1.0).update(momentum)


def test_it_starts_as_the_student_and_follows_batch_statistics(batch):
    distiller = SelfDistiller(tiny_net(), terms())
    for key, value in distiller.ema.state_dict().items():
        assert torch.equal(value, distiller.student.state_dict()[key])
        assert value.data_ptr() != distiller.student.state_dict()[key].data_ptr()
    before = copy.deepcopy(distiller.ema.state_dict())
    train_a_step(distiller, batch, 0.9)
    student = distiller.student.state_dict()
    for key, value in distiller.ema.state_dict().items():
        expected = 0.9 * before[key] + 0.1 * student[key] if value.is_floating_point() else student[key]
        torch.testing.assert_close(value, expected)
    assert any("running_mean" in key and not torch.equal(student[key], before[key]) for key in student)


def test_no_gradient_and_no_optimizer_reaches_the_average(batch):
    distiller = SelfDistiller(tiny_net(), terms())
    before = copy.deepcopy(distiller.ema.state_dict())
    train_a_step(distiller, batch)  # without an update
    assert {id(p) for p in distiller.parameters()} == {id(p) for p in distiller.student.parameters()}
    assert len(list(distiller.buffers())) == len(list(distiller.student.buffers()))
    assert all(p.grad is None and not p.requires_grad for p in distiller.ema.parameters())
    assert not any(module.training for module in distiller.ema.modules())
    for key, value in distiller.ema.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_weight_zero_gives_the_gradient_of_the_plain_distiller(batch):
    gradients = []
    for make in (
        lambda: Distiller(tiny_net(), terms={"seg": terms()["seg"]}),
        lambda: SelfDistiller(tiny_net(), terms(weight=0.0)),
    ):
        distiller = make()
        distiller(*batch).loss.backward()
        gradients.append([p.grad for p in distiller.student.parameters()])
    for plain, own in zip(*gradients, strict=True):
        torch.testing.assert_close(own, plain, rtol=0, atol=0)


def test_the_term_compares_with_the_average_as_a_fixed_network(batch):
    distiller = SelfDistiller(tiny_net("instance"), terms())
    train_a_step(distiller, batch, 0.5)
    value = distiller(*batch).terms["self"].item()
    assert value > 0
    with torch.no_grad():
        expected = SoftLogitKL(2.0)(distiller.student(batch[0]), distiller.ema(batch[0])).item()
    assert value == pytest.approx(expected, rel=1e-6)


def test_taps_of_the_average_are_views(batch):
    term = Term(nn.MSELoss(), "student/bottleneck", "ema/bottleneck")
    distiller = SelfDistiller(tiny_net(), {"deep": term})
    views = distiller.views(*batch)
    assert views["ema/bottleneck"].shape == views["student/bottleneck"].shape
    assert not views["ema/bottleneck"].requires_grad


def test_the_state_holds_the_average_beside_the_bare_student_and_comes_back_to_the_last_bit(batch):
    distiller = SelfDistiller(tiny_net(), terms())
    for _ in range(3):
        train_a_step(distiller, batch, 0.7)
    student_keys = list(distiller.student.state_dict())
    state = copy.deepcopy(distiller.state_dict())
    assert list(state) == [*student_keys, *(f"teachers.ema.{key}" for key in student_keys)]
    other = SelfDistiller(tiny_net(), terms())
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key]), key
    train_a_step(distiller, batch, 0.7)
    train_a_step(other, batch, 0.7)
    for key, value in other.state_dict().items():
        assert torch.equal(value, distiller.state_dict()[key]), key
    # the student's own file fits, strictly, and holds nothing else
    tiny_net().load_state_dict(distiller.student.state_dict())


def test_the_state_of_a_wrapped_distiller_comes_back_too(batch):
    distiller, other = SelfDistiller(tiny_net(), terms()), SelfDistiller(tiny_net(), terms())
    train_a_step(distiller, batch, 0.7)
    state = nn.ModuleDict({"module": distiller}).state_dict()  # as below DDP
    assert all(key.startswith("module.") for key in state)
    nn.ModuleDict({"module": other}).load_state_dict(state)
    for key, value in other.state_dict().items():
        assert torch.equal(value, distiller.state_dict()[key]), key


def test_a_state_without_or_with_another_average_is_refused_by_key():
    distiller = SelfDistiller(tiny_net(), terms())
    with pytest.raises(RuntimeError, match=r"Missing.*teachers\.ema\.model"):
        distiller.load_state_dict(distiller.student.state_dict())
    state = distiller.state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected.*teachers\.ema\.more"):
        distiller.load_state_dict({**state, "teachers.ema.more": torch.zeros(1)})
    wrong = next(key for key in state if key.startswith("teachers.ema."))
    with pytest.raises(RuntimeError, match="size mismatch"):
        distiller.load_state_dict({**state, wrong: torch.zeros(7, 7)})


def test_it_follows_moves_and_survives_a_deep_copy(batch):
    distiller = SelfDistiller(tiny_net(), terms(), augment=PhotometricNoise())
    train_a_step(distiller, batch, 0.7)
    twin = copy.deepcopy(distiller).eval()
    assert twin(*batch).loss.item() == distiller.eval()(*batch).loss.item()
    assert twin.ema is not distiller.ema
    twin.load_state_dict(twin.state_dict())
    distiller.to(torch.float64)
    assert next(distiller.ema.parameters()).dtype == torch.float64
    distiller.update(0.5)


def test_without_a_term_that_reads_it_the_average_is_named():
    with pytest.warns(UserWarning, match=r"no term reads the teachers \['ema'\]"):
        SelfDistiller(tiny_net(), {"seg": terms()["seg"]})


class Recorder(nn.Module):
    """Adds 1 and counts its calls."""

    calls = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return image + 1


def test_only_the_student_sees_the_augmented_image_and_only_in_training():
    augment = Recorder()
    term = Term(nn.MSELoss(), "student/logits", "ema/logits")
    distiller = SelfDistiller(OneNumber(2.0), {"self": term}, augment=augment).train()
    image = torch.zeros(1, 1, 4)
    assert distiller(image).loss.item() == 4.0  # 2 * (0 + 1) against 2 * 0
    assert augment.calls == 1
    assert distiller.eval()(image).loss.item() == 0.0
    assert augment.calls == 1


@pytest.mark.parametrize(
    ("augment", "error", "message"),
    [
        (nn.Conv2d(1, 1, 1), ValueError, "augment Conv2d holds 'weight'"),
        (abs, TypeError, "augment must be a torch.nn.Module"),
    ],
)
def test_what_cannot_augment_is_refused(augment, error, message):
    with pytest.raises(error, match=message):
        SelfDistiller(tiny_net(), terms(), augment=augment)


class TestPhotometricNoise:
    image = torch.linspace(-1, 2, 2 * 2 * 64 * 64).view(2, 2, 64, 64)

    def test_zero_settings_leave_the_image(self):
        assert torch.equal(PhotometricNoise(0, 0, 0)(self.image), self.image)

    @pytest.mark.parametrize("setting", ["noise_std", "scale", "shift", "gamma"])
    def test_each_setting_changes_the_image_and_repeats_with_the_seed(self, setting):
        noise = PhotometricNoise(**{"noise_std": 0, "scale": 0, "shift": 0, "gamma": 0, setting: 0.5})
        seen = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            seen.append(noise(self.image))
        assert torch.equal(seen[0], seen[1])
        assert not torch.equal(seen[0], seen[2])
        assert not torch.allclose(seen[0], self.image)
        assert seen[0].shape == self.image.shape

    def test_each_channel_of_each_sample_has_its_own_shift_within_bounds(self):
        change = (PhotometricNoise(0, 0, 0.3)(self.image) - self.image).flatten(2)
        assert torch.allclose(change, change[..., :1].expand_as(change), atol=1e-6)
        assert len(change[..., 0].unique()) == 4
        assert change.abs().max() <= 0.3 + 1e-6

    def test_the_factor_is_within_bounds(self):
        factor = PhotometricNoise(0, 0.2, 0)(torch.ones(500, 1, 1))
        assert 0.8 <= factor.min() < 0.82
        assert 1.18 < factor.max() <= 1.2

    def test_the_noise_has_at_most_its_standard_deviation(self):
        spread = PhotometricNoise(0.5, 0, 0)(torch.zeros(200, 1, 500)).std(dim=2)
        assert 0.45 < spread.max() < 0.56
        assert spread.min() < 0.05

    def test_gamma_keeps_minimum_and_maximum_and_constant_images(self):
        changed = PhotometricNoise(0, 0, 0, 0.7)(self.image)
        torch.testing.assert_close(changed.amin((2, 3)), self.image.amin((2, 3)))
        torch.testing.assert_close(changed.amax((2, 3)), self.image.amax((2, 3)))
        assert torch.equal(PhotometricNoise(0, 0, 0, 0.7)(torch.ones(1, 1, 4)), torch.ones(1, 1, 4))

    @pytest.mark.parametrize("setting", [{"noise_std": -1}, {"scale": 1.5}, {"shift": "1"}, {"gamma": float("inf")}])
    def test_bad_settings_are_refused_by_name(self, setting):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} is"):
            PhotometricNoise(**setting)
