"""SemanticAutoencoder: labels in any form and size, what a Distiller trains, and 16 masks learned by heart."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from monai.networks import one_hot
from torch import nn

from monai_kd.distillers import Distiller, Term
from monai_kd.losses import RelativeSquaredError
from monai_kd.networks.nets import SemanticAutoencoder


def make(dims=2, classes=3, seed=0, **settings):
    torch.manual_seed(seed)
    small = {"channels": (4, 6, 8, 10), "latent_channels": 7, "latent_length": 5, "grid": 2, "hidden": 9}
    return SemanticAutoencoder(dims, classes, **{**small, **settings})


def labels(size=(32, 32), classes=3, batch=2, seed=0):
    return torch.randint(0, classes, (batch, 1, *size), generator=torch.Generator().manual_seed(seed))


def blobs(count=16, size=32):
    """Return labels of an ellipse (class 1) with a core (class 2), each at another place and of another shape."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    made = []
    for _ in range(count):
        center = size * (0.3 + 0.4 * torch.rand(2, generator=generator))
        radius = size * (0.12 + 0.15 * torch.rand(2, generator=generator))
        distance = ((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2
        made.append((distance < 1).long() + (distance < 0.3).long())
    return torch.stack(made).unsqueeze(1)


def least_dice(logits, label):
    """Return the lower of the two foreground classes' mean Dice over the samples."""
    pred = logits.argmax(dim=1, keepdim=True)
    scores = []
    for number in (1, 2):
        one, other = (pred == number).flatten(1), (label == number).flatten(1)
        scores.append((2 * (one & other).sum(1) / (one.sum(1) + other.sum(1))).mean().item())
    return min(scores)


# ---- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "size", "code"),
    [(2, (32, 32), (4, 4)), (2, (33, 17), (5, 3)), (2, (5, 70), (1, 9)), (3, (16, 24, 9), (2, 3, 2))],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_any_size_and_batch(dims, size, code, batch):
    network, label = make(dims), labels(size, batch=batch)
    heads = network(label)
    assert {name: tuple(value.shape) for name, value in heads.items()} == {
        "logits": (batch, 3, *size),
        "direct": (batch, 3, *size),
    }
    assert network.encode(label).shape == (batch, 10, *code)
    assert network.latent(label).shape == (batch, 7, 5)
    assert network.eval()(label).shape == (batch, 3, *size)


def test_a_code_is_decoded_on_its_own_grid_or_cut():
    network = make().eval()
    code = network.encode(labels((20, 12)))
    whole = network.decode(code)
    assert whole.shape == (2, 3, 24, 16)
    assert torch.equal(network.decode(code, (20, 12)), whole[..., :20, :12])


@pytest.mark.parametrize(("channels", "stride"), [((4, 6), 2), ((4, 6, 8), 4), ((4, 6, 8, 10), 8)])
def test_each_level_halves_the_resolution(channels, stride):
    network = make(channels=channels)
    assert network.stride == stride
    assert network.encode(labels((32, 16))).shape[2:] == (32 // stride, 16 // stride)


def test_default_sizes():
    assert sum(p.numel() for p in SemanticAutoencoder(2, 2).parameters()) == 380_450
    assert SemanticAutoencoder(2, 2).latent(labels((16, 16), 2)).shape == (2, 128, 16)


# ---- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float32, torch.bfloat16, torch.float64])
def test_indices_of_any_type_and_one_hot_are_the_same(kind):
    network, label = make().eval(), labels()
    expected = network(label)
    assert torch.equal(network(label.to(kind)), expected)
    assert torch.equal(network(MetaTensor(label.to(kind))), expected)
    assert torch.equal(network(one_hot(label, 3)), expected)
    assert not isinstance(network(MetaTensor(label)), MetaTensor)


def test_a_binary_label_may_be_boolean():
    network, label = make(classes=2).eval(), labels(classes=2)
    assert torch.equal(network(label.bool()), network(label))


def test_ignored_voxels_count_as_background():
    network, label = make().eval(), labels()
    ignored = label.clone()
    ignored[label == 0] = 255
    assert torch.equal(network(ignored), network(label))
    ignored[label == 1] = 255
    assert not torch.equal(network(ignored), network(label))


def test_the_latent_depends_on_the_label_and_each_of_its_classes():
    network, label = make().eval(), labels()
    assert torch.equal(network.latent(label), network.latent(label.clone()))
    swapped = torch.where(label > 0, 3 - label, label)
    assert not torch.equal(network.latent(swapped), network.latent(label))


# ---- what it is made of ---------------------------------------------------------------------------------------------


def test_evaluation_decodes_from_the_latent():
    network, label = make().eval(), labels()
    code = network.encode(label)
    latent = network.latent(label)
    torch.testing.assert_close(network.alignment.encode(code), latent)
    through = network.decode(network.alignment.decode(latent, code.shape[2:]), label.shape[2:])
    torch.testing.assert_close(network(label), through)
    assert not torch.allclose(network.decode(code, label.shape[2:]), through)


def test_the_decoder_is_not_linear():
    network = make().eval()
    one, other = torch.randn(2, 10, 4, 4), torch.randn(2, 10, 4, 4)
    mean = (network.decode(one) + network.decode(other)) / 2
    assert not torch.allclose(network.decode((one + other) / 2), mean, atol=1e-4)


def test_every_weight_gets_a_gradient():
    network = make()
    heads = network(labels())
    (heads["logits"].square().sum() + heads["direct"].square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("classes", 4),
        ("channels", (4, 6, 8, 12)),
        ("latent_channels", 6),
        ("latent_length", 4),
        ("grid", 3),
        ("hidden", 8),
        ("norm", "instance"),
        ("act", "elu"),
    ],
)
def test_every_setting_changes_what_comes_out(setting, value):
    label = labels((24, 24))
    expected, changed = make()(label)["logits"], make(**{setting: value})(label)["logits"]
    assert expected.shape != changed.shape or not torch.allclose(expected, changed, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_finite_under_autocast(dims):
    network, label = make(dims), labels((16,) * dims)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.isfinite(head).all() for head in network(label).values())


# ---- training -------------------------------------------------------------------------------------------------------


def make_distiller(network):
    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    terms = {
        "latent": Term(loss, "student/logits", "label"),
        "direct": Term(loss, "student/direct", "label"),
        "code": Term(RelativeSquaredError(), "student/decoded_code", "student/code", weight=0.1),
    }
    return Distiller(network, terms=terms)


def test_a_distiller_reads_both_heads_and_both_codes():
    network, label = make(), labels()
    distiller = make_distiller(network)
    views = distiller.views(label.float(), label)
    torch.testing.assert_close(views["student/code"], network.encode(label))
    torch.testing.assert_close(views["student/decoded_code"], network.alignment(network.encode(label)))
    output = distiller(label.float(), label)
    output.loss.backward()
    assert sorted(output.terms) == ["code", "direct", "latent"]
    assert all(p.grad.any() for p in network.parameters())
    assert list(distiller.state_dict()) == list(network.state_dict())


def test_the_head_without_the_latent_must_have_a_term():
    with pytest.raises(ValueError, match=r"no term trains the heads \['direct'\] of the student"):
        Distiller(make(), terms={"latent": Term(nn.MSELoss(), "student/logits", "label")})


@pytest.mark.parametrize("dims", [2, 3])
def test_a_frozen_one_is_bit_identical_after_use_and_after_train(dims):
    network, label = make(dims), labels((16,) * dims)
    student = nn.Conv2d(1, 3, 1) if dims == 2 else nn.Conv3d(1, 3, 1)
    term = Term(nn.MSELoss(), "student/logits", "semantic/logits")
    distiller = Distiller(student, {"semantic": network}, {"same": term})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    distiller.train()
    distiller(label.float(), label).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())


def test_sixteen_masks_are_learned_by_heart():
    label = blobs()
    network = make(channels=(8, 16, 24, 32), latent_channels=24, latent_length=16, grid=4, hidden=32)
    distiller = make_distiller(network)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=200)
    for step in range(1, 201):
        optimizer.zero_grad()
        distiller.train()(label, label).loss.backward()
        optimizer.step()
        schedule.step()
        if step >= 100 and step % 20 == 0:
            network.eval()
            with torch.no_grad():
                direct = least_dice(network.decode(network.encode(label), label.shape[2:]), label)
                through = least_dice(network(label), label)
            if direct > 0.985 and through > 0.96:
                break
    assert direct > 0.98
    assert through > 0.95


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    network = make()
    with pytest.raises(ValueError, match=r"got a label \(2, 4, 8, 8\); it takes class indices \(batch, 1, \*spatial\)"):
        network(torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"or one-hot \(batch, 3, \*spatial\) with 2 spatial axes"):
        network(torch.zeros(2, 1, 8, 8, 8))
    with pytest.raises(ValueError, match=r"a code \(2, 10, 2, 2\) gives logits of at most \(16, 16\), not \(17, 16\)"):
        network.decode(torch.zeros(2, 10, 2, 2), (17, 16))
    with pytest.raises(ValueError, match="classes is 1; it must be at least 2"):
        make(classes=1)
    with pytest.raises(ValueError, match=r"channels is \(4,\); give a whole number above 0 for each of at least 2"):
        make(channels=(4,))
    with pytest.raises(ValueError, match="spatial_dims is 1; known: 2, 3"):
        make(1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(labels((8, 8), batch=1))
