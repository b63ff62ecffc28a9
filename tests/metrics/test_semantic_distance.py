"""frechet_semantic_distance: closed forms, symmetry, and covariances of too few samples."""

from __future__ import annotations

import pytest
import torch
from monai.metrics.fid import get_fid_score

from monai_kd.metrics import frechet_semantic_distance


def samples(count=400, dims=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dims, generator=generator, dtype=torch.float64)


def whitened(count=400, dims=6, seed=0):
    """Return samples whose mean is 0 and whose covariance is the unit matrix, to rounding."""
    values = samples(count, dims, seed)
    values = values - values.mean(dim=0)
    root = torch.linalg.cholesky(values.T @ values / (count - 1))
    return torch.linalg.solve_triangular(root, values.T, upper=False).T


def test_zero_for_identical_sets_in_any_order():
    values = samples()
    assert frechet_semantic_distance(values, values) == pytest.approx(0, abs=1e-12)
    assert frechet_semantic_distance(values, values.flip(0)) == pytest.approx(0, abs=1e-12)
    few = samples(5, 300)
    assert frechet_semantic_distance(few, few.flip(0)) == pytest.approx(0, abs=1e-10)


def test_diagonal_gaussians_have_the_closed_form():
    scale_a, scale_b = torch.tensor([1.0, 2, 3, 4, 5, 6]).double(), torch.tensor([2.0, 2, 1, 4, 9, 0]).double()
    mean_a, mean_b = torch.zeros(6).double(), torch.tensor([1.0, -2, 0, 0, 3, 0]).double()
    one = mean_a + scale_a * whitened()
    other = mean_b + scale_b * whitened(seed=1)
    # |difference of means|^2 + sum of (difference of standard deviations)^2
    expected = 14 + (1 + 0 + 4 + 0 + 16 + 36)
    assert frechet_semantic_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_a_shift_alone_is_its_squared_length():
    values = samples()
    assert frechet_semantic_distance(values, values + 3) == pytest.approx(6 * 9)


def test_full_rank_is_what_monai_gives():
    one, other = samples(), samples(seed=1) @ samples(6, 6, seed=2) + 1
    expected = float(get_fid_score(one, other))
    assert frechet_semantic_distance(one, other) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("one", "other"), [((400, 6), (300, 6)), ((5, 200), (9, 200)), ((700, 100), (700, 100))])
def test_symmetric(one, other):
    a, b = samples(*one), 2 * samples(*other, seed=1) + 1
    there, back = frechet_semantic_distance(a, b), frechet_semantic_distance(b, a)
    assert there == pytest.approx(back, rel=1e-9)
    assert there > 1


@pytest.mark.parametrize("shrinkage", [0.0, 0.1])
def test_covariances_without_full_rank_are_finite_and_exact(shrinkage):
    # all samples on one line, or all at one place
    direction = torch.zeros(8).double()
    direction[0] = 1
    line = samples(20, 1) * direction
    assert frechet_semantic_distance(line, line + 2 * direction, shrinkage=shrinkage) == pytest.approx(4, abs=1e-9)
    place = torch.ones(4, 8).double()
    assert frechet_semantic_distance(place, place + 1, shrinkage=shrinkage) == pytest.approx(8)
    # orthogonal lines share nothing, shrunk or not
    if not shrinkage:
        other = samples(20, 1) * direction.roll(1)
        means = line.mean(dim=0).square().sum() + other.mean(dim=0).square().sum()
        spread = 2 * samples(20, 1).var().item()
        assert frechet_semantic_distance(line, other, shrinkage=0.0) == pytest.approx(means.item() + spread)


def test_rotations_do_not_matter():
    one, other = samples(50, 100), 2 * samples(50, 100, seed=1)
    rotation, _ = torch.linalg.qr(samples(100, 100, seed=2))
    expected = frechet_semantic_distance(one, other)
    assert frechet_semantic_distance(one @ rotation, other @ rotation) == pytest.approx(expected)


def test_further_axes_are_flattened_and_any_precision_will_do():
    one, other = samples(30, 32), samples(30, 32, seed=1) + 1
    expected = frechet_semantic_distance(one, other)
    assert frechet_semantic_distance(one.view(30, 8, 4), other.view(30, 8, 4)) == expected
    assert frechet_semantic_distance(one.float(), other.float()) == pytest.approx(expected, rel=1e-4)
    half = frechet_semantic_distance(one.bfloat16().requires_grad_(), other.bfloat16())
    assert half == pytest.approx(expected, rel=0.05)


def test_the_largest_components_are_kept():
    one = samples(2000, 10) * torch.tensor([5.0, 4, 3, 2, 1, 0.1, 0.1, 0.1, 0.1, 0.1]).double()
    shift = torch.zeros(10).double()
    shift[0] = 2
    full, five, one_dimension = (frechet_semantic_distance(one, one + shift, max_dims=n) for n in (10, 5, 1))
    assert full == pytest.approx(4)
    assert five == pytest.approx(4, rel=0.01)
    assert one_dimension == pytest.approx(4, rel=0.05)
    # what is left out does not count
    small = 5 * (samples(2000, 10, seed=1) * torch.tensor([0.0] * 5 + [0.1] * 5).double())
    assert frechet_semantic_distance(one, one + small, max_dims=10) > 0.2
    assert frechet_semantic_distance(one, one + small, max_dims=5) < 0.05


def test_few_samples_are_drawn_towards_the_unit_matrix():
    one, other = samples(59), 3 * samples(59, seed=1) * torch.tensor([1.0, 2, 3, 4, 5, 6]).double()
    values = [frechet_semantic_distance(one, other, shrinkage=s) for s in (0.0, 0.1, 0.5)]
    assert len({round(value, 6) for value in values}) == 3
    # wholly drawn there, only the traces count
    traces = [value.var(dim=0).mean().item() for value in (one, other)]
    means = (one.mean(dim=0) - other.mean(dim=0)).square().sum().item()
    expected = means + 6 * (traces[0] ** 0.5 - traces[1] ** 0.5) ** 2
    assert frechet_semantic_distance(one, other, shrinkage=1.0) == pytest.approx(expected)


def test_enough_samples_are_not_shrunk_unless_the_other_set_is_short():
    one, other = samples(60), 2 * samples(60, seed=1)
    assert frechet_semantic_distance(one, other, shrinkage=0.5) == frechet_semantic_distance(one, other, shrinkage=0.0)
    short = other[:59]
    assert frechet_semantic_distance(one, short, shrinkage=0.5) != frechet_semantic_distance(one, short, shrinkage=0.0)


def test_what_does_not_fit_is_named():
    good = samples(10, 4)
    with pytest.raises(ValueError, match=r"latents_a \(10, 4\) and latents_b \(10, 5\) differ in more than the number"):
        frechet_semantic_distance(good, samples(10, 5))
    with pytest.raises(ValueError, match=r"latents_b has the shape \(1, 4\); give \(n, ...\) with at least 2 samples"):
        frechet_semantic_distance(good, good[:1])
    bad = good.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match="latents_a: 1 of 10 latents hold numbers that are not finite"):
        frechet_semantic_distance(bad, good)
    with pytest.raises(ValueError, match="max_dims is 0; it must be a whole number above 0"):
        frechet_semantic_distance(good, good, max_dims=0)
    with pytest.raises(ValueError, match=r"shrinkage is 1.5; it must lie between 0 and 1"):
        frechet_semantic_distance(good, good, shrinkage=1.5)
