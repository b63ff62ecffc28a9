"""MultiScaleContrastive: values by hand and by loops, wrong keys that are left out, the queue, several processes."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from two_processes import in_two_processes

from monai_kd.distillers import Term
from monai_kd.losses import ContrastQueues, MultiScaleContrastive
from monai_kd.networks import GridPool, ProjectionHead

MODES = ("instance", "dense", "supervised")


def maps(batch=4, channels=6, size=(3, 2), seed=0, dtype=torch.float64):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(batch=4, size=(6, 4), classes=3, seed=5):
    return torch.randint(classes, (batch, 1, *size), generator=torch.Generator().manual_seed(seed))


def given(mode, batch=4):
    return {"label": labels(batch)} if mode == "supervised" else {}


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["instance", "dense"])
def test_equal_vectors_are_at_chance(mode):
    same = torch.ones(5, 4, 2, 2)
    keys = 5 if mode == "instance" else 5 * 4
    assert MultiScaleContrastive(mode)(same, same).item() == pytest.approx(math.log(keys), abs=1e-5)


def test_orthogonal_vectors_that_agree_cost_nothing_at_a_small_temperature():
    eye = torch.eye(4).view(4, 4, 1, 1)
    by_tau = {tau: MultiScaleContrastive(tau=tau)(eye, 3 * eye).item() for tau in (1.0, 0.1, 0.01)}
    assert by_tau[1.0] == pytest.approx(math.log(math.e + 3) - 1, abs=1e-6)
    assert by_tau[0.1] == pytest.approx(math.log1p(3 * math.exp(-10)), rel=0.01)
    assert by_tau[0.01] < 1e-6


def test_two_images_by_hand():
    # cosines: 1 and 0 for the first query, 0.6 and 0.8 for the second, whose right key is the second
    student = torch.tensor([[1.0, 0.0], [3.0, 4.0]]).view(2, 2, 1, 1)
    teacher = torch.tensor([[2.0, 0.0], [0.0, 5.0]]).view(2, 2, 1, 1)
    first, second = (math.log1p(math.exp(-gap / 0.5)) for gap in (1.0, 0.2))
    assert MultiScaleContrastive(tau=0.5)(student, teacher).item() == pytest.approx((first + second) / 2, abs=1e-6)


def literal(mode, student, teacher, tau, label=None):
    """Loops over queries and keys."""
    rows: list[list[tuple[Any, torch.Tensor]]] = []
    for features in (student, teacher):
        own: list[tuple[Any, torch.Tensor]] = []
        for b, feature in enumerate(features):
            if mode == "instance":
                own.append((b, feature.flatten()))
            elif mode == "dense":
                own += [((b, y, x), feature[:, y, x]) for y, x in itertools.product(*map(range, feature.shape[1:]))]
            else:
                for k in range(int(label.max()) + 1):
                    share = F.interpolate((label[b : b + 1] == k).to(feature), size=feature.shape[1:], mode="area")[
                        0, 0
                    ]
                    if share.sum() >= 1:
                        own.append((k, (feature * share).sum(dim=(1, 2)) / share.sum()))
        rows.append(own)
    losses = []
    for name, query in rows[0]:
        scores = [F.cosine_similarity(query, key, dim=0) / tau for _, key in rows[1]]
        total = torch.stack(scores).logsumexp(0)
        losses.append(
            torch.stack([total - s for s, (other, _) in zip(scores, rows[1], strict=True) if other == name]).mean()
        )
    return torch.stack(losses).mean()


@pytest.mark.parametrize("mode", MODES)
def test_value_is_that_of_loops(mode):
    student, teacher = maps(seed=1), maps(seed=2)
    extra = given(mode)
    found = MultiScaleContrastive(mode, tau=0.3)(student, teacher, **extra)
    torch.testing.assert_close(found, literal(mode, student, teacher, 0.3, **extra))


def test_classes_may_be_compared_on_two_grids():
    student, teacher, label = maps(size=(6, 4), seed=1), maps(seed=2), labels()
    found = MultiScaleContrastive("supervised")(student, teacher, label=label)
    assert torch.isfinite(found)
    with pytest.raises(ValueError, match="mode 'supervised' needs the label"):
        MultiScaleContrastive("supervised")(student, teacher)


@pytest.mark.filterwarnings("ignore:.*the loss is 0")
def test_small_structures_keep_their_share_of_a_coarse_voxel_and_are_left_out_below_the_least():
    label = torch.zeros(2, 1, 8, 8, dtype=torch.int64)
    label[:, :, 0, 0] = 1  # 1 of 16 pixels of a voxel
    student, teacher = maps(2, size=(2, 2), seed=1), maps(2, size=(2, 2), seed=2)
    value = {
        least: MultiScaleContrastive("supervised", min_voxels=least)(student, teacher, label=label).item()
        for least in (0.05, 1 / 16, 0.0626)
    }
    assert value[0.05] == value[1 / 16] > 0
    assert value[0.0626] == 0


def test_ignored_voxels_count_for_no_class():
    label = labels()
    label[:, :, :2] = 255
    student, teacher = maps(seed=1), maps(seed=2)
    loss = MultiScaleContrastive("supervised")
    before = loss(student, teacher, label=label)
    changed = teacher.clone()
    changed[:, :, 0] += 10
    assert loss(student, changed, label=label) == before
    assert loss(student, teacher, label=labels()) != before
    with pytest.raises(ValueError, match="label holds -1; classes start at 0"):
        loss(student, teacher, label=torch.full_like(label, -1))


def test_scales_are_added():
    pairs = [
        (maps(seed=1), maps(seed=2)),
        (maps(channels=4, size=(5, 5), seed=3), maps(channels=4, size=(5, 5), seed=4)),
    ]
    loss = MultiScaleContrastive()
    both = loss([a for a, _ in pairs], [b for _, b in pairs])
    torch.testing.assert_close(both, sum(loss(*pair) for pair in pairs))


def test_symmetric_is_the_mean_of_both_directions():
    student, teacher = maps(seed=1), maps(seed=2)
    one, other = MultiScaleContrastive()(student, teacher), MultiScaleContrastive()(teacher, student)
    torch.testing.assert_close(MultiScaleContrastive(symmetric=True)(student, teacher), (one + other) / 2)
    assert one != other


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_the_images_does_not_matter(mode):
    order, extra = torch.tensor([2, 0, 3, 1]), given(mode)
    moved = {name: value[order] for name, value in extra.items()}
    loss = MultiScaleContrastive(mode)
    torch.testing.assert_close(
        loss(maps(seed=1)[order], maps(seed=2)[order], **moved), loss(maps(seed=1), maps(seed=2), **extra)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_gradient_is_that_of_differences_and_the_teacher_gets_none(mode, symmetric):
    student, teacher = maps(3, 2, (2, 2), seed=1).requires_grad_(), maps(3, 2, (2, 2), seed=2).requires_grad_()
    loss = MultiScaleContrastive(mode, tau=0.5, symmetric=symmetric)
    extra = {"label": labels(3, (4, 4))} if mode == "supervised" else {}
    assert gradcheck(lambda value: loss(value, teacher, **extra), (student,))
    loss(student, teacher, **extra).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_compared_in_full(mode, dtype):
    student, teacher = maps(seed=1).to(dtype) * 100, maps(seed=2).to(dtype) * 100
    loss, extra = MultiScaleContrastive(mode, tau=0.01), given(mode)
    found = loss(student, teacher, **extra)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student.float(), teacher.float(), **extra))


def test_volumes_and_zero_maps():
    volume = maps(3, 4, (2, 3, 2))
    assert torch.isfinite(MultiScaleContrastive("dense")(volume, volume + 1))
    zero = torch.zeros(3, 4, 2, 2, requires_grad=True)
    MultiScaleContrastive()(zero, maps(3, 4, (2, 2), dtype=torch.float32)).backward()
    assert not zero.grad.any()


# ---- keys that are left out -----------------------------------------------------------------------------------------


def pull_on_the_first(mode, moved: int | None = None, **facts: torch.Tensor) -> torch.Tensor:
    """The gradient at the first image's student, whose keys are in question, where another teacher map is changed."""
    teacher, own = maps(seed=2), maps(seed=1).requires_grad_()
    if moved is not None:
        teacher[moved] += 1
    MultiScaleContrastive(mode, neighbors=2)(own, teacher, **facts).backward()
    return own.grad[0]


@pytest.mark.parametrize("mode", ["instance", "dense"])
def test_near_slices_of_one_patient_are_no_wrong_keys(mode):
    group, position = torch.tensor([7, 7, 7, 3]), torch.tensor([10, 12, 13, 11])
    near, far, other = 1, 2, 3  # two slices away, three, and another patient
    for facts, left_out in (
        ({}, ()),
        ({"group": group, "position": position}, (near,)),
        ({"group": group}, (near, far)),
        ({"position": position}, ()),
    ):
        plain = pull_on_the_first(mode, **facts)
        for moved in (near, far, other):
            assert torch.equal(pull_on_the_first(mode, moved, **facts), plain) == (moved in left_out), (facts, moved)


def test_other_cells_of_the_own_image_stay_wrong_keys():
    student, teacher = maps(2, seed=1), maps(2, seed=2)
    group = torch.tensor([1, 1])
    loss = MultiScaleContrastive("dense")
    alone = loss(student[:1], teacher[:1])
    other = loss(student[1:], teacher[1:])
    torch.testing.assert_close(loss(student, teacher, group=group), (alone + other) / 2)


def test_numbers_that_do_not_go_together_are_refused():
    student = maps()
    loss = MultiScaleContrastive()
    with pytest.raises(ValueError, match="group has 3 numbers for 4 images; give one each"):
        loss(student, student, group=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="group holds -2; give whole numbers from 0 on"):
        loss(student, student, group=torch.tensor([1, 2, -2, 3]))
    with pytest.raises(ValueError, match=r"position holds 0\.5; give whole numbers from 0 on"):
        loss(student, student, position=torch.tensor([1, 2, 0.5, 3]))
    for mode in ("instance", "dense"):
        with pytest.raises(
            ValueError, match=rf"mode '{mode}' compares maps of one grid, got the student's \(4, 6, 3, 2\)"
        ):
            MultiScaleContrastive(mode)(student, maps(size=(2, 3)))
    with pytest.raises(ValueError, match="differ in their channels"):
        loss(student, student[:, :2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "pixel"}, "mode is 'pixel'; known: instance, dense, supervised"),
        ({"tau": 0.0}, "tau is 0.0; it must be a finite number above 0"),
        ({"queue_size": -1}, "queue_size is -1; it must be a whole number of at least 0"),
        ({"neighbors": 1.5}, "neighbors is 1.5; it must be a whole number of at least 0"),
        ({"min_voxels": 0}, "min_voxels is 0; it must be a finite number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleContrastive(**settings)


def test_nothing_to_tell_apart_costs_nothing_and_is_said_once():
    student = maps(1).requires_grad_()
    loss = MultiScaleContrastive()
    with pytest.warns(UserWarning, match="no query with a right and a wrong key: the loss is 0; give larger batches"):
        value = loss(student, maps(1, seed=2))
    value.backward()
    assert value.item() == 0
    assert not student.grad.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss(student, maps(1, seed=2)).item() == 0


# ---- the queue ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_queue_and_a_split_batch_have_the_keys_of_the_whole(mode):
    student, teacher, extra = maps(6, seed=1), maps(6, seed=2), given(mode, 6)
    whole = student.clone().requires_grad_()
    MultiScaleContrastive(mode)(whole, teacher, **extra).backward()
    part = student[4:].clone().requires_grad_()
    loss = MultiScaleContrastive(mode, queue_size=1000)
    loss(student[:4], teacher[:4], **{name: value[:4] for name, value in extra.items()})
    loss(part, teacher[4:], **{name: value[4:] for name, value in extra.items()}).backward()
    scale = part.grad.abs().sum() / whole.grad[4:].abs().sum()  # a mean over fewer queries
    torch.testing.assert_close(part.grad, whole.grad[4:] * scale)
    assert scale > 1


def test_the_queue_holds_the_newest_and_only_in_training():
    loss = MultiScaleContrastive(queue_size=5)
    for seed in range(3):
        loss(maps(seed=seed), maps(seed=seed + 10))
    assert loss.vectors_0.shape == (5, 36)
    newest = F.normalize(maps(seed=12).flatten(1), dim=1)
    torch.testing.assert_close(loss.vectors_0[:4], newest)
    kept = loss.vectors_0.clone()
    loss.eval()(maps(seed=7), maps(seed=8))
    assert torch.equal(loss.vectors_0, kept)
    fewer = MultiScaleContrastive(queue_size=3)
    for seed in range(3):
        fewer(maps(seed=seed), maps(seed=seed + 10))
    assert fewer(maps(seed=7), maps(seed=8)) != loss(maps(seed=7), maps(seed=8))


def test_a_single_image_meets_the_queue_and_its_own_past_is_left_out_by_its_group():
    loss = MultiScaleContrastive(queue_size=8)
    facts = {"group": torch.tensor([1, 1, 2, 3]), "position": torch.tensor([4, 40, 4, 4])}
    teacher = maps(seed=2)
    loss(maps(seed=1), teacher, **facts)
    again = {"group": torch.tensor([1]), "position": torch.tensor([4])}
    value = loss(maps(1, seed=3), teacher[:1] * 2, **again)
    query = F.normalize(maps(1, seed=3).flatten(1), dim=1)
    keys = F.normalize(teacher.flatten(1), dim=1)
    torch.testing.assert_close(value, F.cross_entropy(query @ keys.T / 0.1, torch.tensor([0])))  # its past counts once


def test_queues_are_no_part_of_a_state_and_a_resumed_training_goes_on_with_them():
    loss, other = MultiScaleContrastive(queue_size=6), MultiScaleContrastive(queue_size=6)
    modules = [torch.nn.ModuleDict({"term": value}) for value in (loss, other)]
    loss(maps(seed=1), maps(seed=2))
    assert modules[0].state_dict() == {}
    ContrastQueues(modules[1]).load_state_dict(ContrastQueues(modules[0]).state_dict())
    assert torch.equal(other(maps(seed=3), maps(seed=4)), loss(maps(seed=3), maps(seed=4)))
    with pytest.raises(ValueError, match=r"the queues are of the losses \['term'\], here are \[\]"):
        ContrastQueues(torch.nn.Identity()).load_state_dict(ContrastQueues(modules[0]).state_dict())
    with pytest.raises(ValueError, match="the queue of scale 0 holds vectors of 36 numbers, now got 54"):
        loss(maps(size=(3, 3)), maps(size=(3, 3)))


# ---- with heads -----------------------------------------------------------------------------------------------------


def test_a_linear_image_of_the_teacher_is_found_by_training_the_head_alone():
    torch.manual_seed(0)
    teacher = torch.randn(16, 8, 8, 8)
    mixed = torch.einsum("cd,bdhw->bchw", torch.linalg.qr(torch.randn(8, 8))[0], teacher)
    term = Term(MultiScaleContrastive(), "s", "t", adapter=ProjectionHead(grid=2), target_adapter=GridPool(grid=2))
    term.build({"s": mixed.shape, "t": teacher.shape})
    optimizer = torch.optim.Adam(term.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        loss = term({"s": mixed, "t": teacher})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5  # near chance, 2.8
    assert losses[-1] < 0.02


def test_images_of_two_sizes_and_a_small_last_batch_meet_on_one_grid():
    term = Term(MultiScaleContrastive(queue_size=16), "s", "t", adapter=ProjectionHead(2), target_adapter=GridPool(2))
    term.build({"s": (2, 3, 16, 16), "t": (2, 5, 8, 8)})
    values = []
    for batch, size in ((4, 16), (4, 24), (1, 16)):
        student, teacher = torch.randn(batch, 3, size, size), torch.randn(batch, 5, size // 2, size // 2)
        values.append(term({"s": student, "t": teacher}).item())
    assert all(math.isfinite(value) and value > 0 for value in values)


# ---- several processes ----------------------------------------------------------------------------------------------

SHARES = (slice(0, 3), slice(3, 5))
QUEUE = 7  # fewer than two batches have
GROUPS, POSITIONS = torch.tensor([0, 0, 1, 0, 2]), torch.tensor([1, 9, 3, 2, 2])


def projection() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Conv2d(6, 6, 1).double()


def one_batch(mode: str, share: slice) -> dict[str, torch.Tensor]:
    facts = {"group": GROUPS[share], "position": POSITIONS[share]}
    return {**facts, **({"label": labels(5)[share]} if mode == "supervised" else {})}


def one_share(rank: int) -> dict[str, Any]:
    """What a process finds on its images; DDP ends with this function, before the group does."""
    found, share = {}, SHARES[rank]
    for mode in MODES:
        network = torch.nn.parallel.DistributedDataParallel(projection())
        loss = MultiScaleContrastive(mode, queue_size=QUEUE)
        loss(network(maps(5, seed=1)[share]), maps(5, seed=2)[share], **one_batch(mode, share)).backward()
        second = loss(network.module(maps(5, seed=3)[share]), maps(5, seed=4)[share], **one_batch(mode, share))
        found[mode] = [p.grad for p in network.parameters()], second.item(), loss.queue_state()
    return found


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return in_two_processes(one_share, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_have_the_gradient_and_the_queue_of_one_with_all_images(two_processes, mode):
    network, loss = projection(), MultiScaleContrastive(mode, queue_size=QUEUE)
    facts = one_batch(mode, slice(None))
    loss(network(maps(5, seed=1)), maps(5, seed=2), **facts).backward()
    for found in two_processes:
        for own, parameter in zip(found[mode][0], network.parameters(), strict=True):
            torch.testing.assert_close(own, parameter.grad)
    second = loss(network(maps(5, seed=3)), maps(5, seed=4), **facts).item()
    assert sum(found[mode][1] for found in two_processes) / 2 == pytest.approx(second)
    for found in two_processes:
        torch.testing.assert_close(found[mode][2], loss.queue_state())
