"""GridPool and ProjectionHead: means over cells, fixed reductions, trained projections, and what is refused."""

from __future__ import annotations

import pytest
import torch

from monai_kd.networks import GridPool, ProjectionHead


def test_cells_are_means_and_maps_of_any_axes_are_pooled():
    value = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(GridPool(2)(value), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert torch.equal(GridPool((1, 2))(value), torch.tensor([[[[6.5, 8.5]]]]))
    assert GridPool(None)(value) is value
    line, volume = GridPool(2)(torch.rand(2, 3, 8)), GridPool((2, 4, 4))(torch.rand(2, 3, 4, 8, 8))
    assert line.shape == (2, 3, 2)
    assert volume.shape == (2, 3, 2, 4, 4)
    several = GridPool(2)([value, torch.rand(2, 3, 8)])
    assert [tuple(v.shape) for v in several] == [(1, 1, 2, 2), (2, 3, 2)]


def test_a_reduction_is_fixed_by_its_seed_and_keeps_lengths_and_angles_about():
    torch.manual_seed(0)
    value = torch.randn(64, 512, 1)
    pool = GridPool(width=256)
    small = pool(value)
    assert small.shape == (64, 256, 1)
    assert torch.equal(small, GridPool(width=256)(value))
    assert not torch.equal(small, GridPool(width=256, seed=1)(value))
    assert (small.norm(dim=1) / value.norm(dim=1)).mean().item() == pytest.approx(1.0, abs=0.02)
    cosines = [torch.corrcoef(v[..., 0]) for v in (value, small)]
    assert (cosines[0] - cosines[1]).abs().max() < 0.2
    matrix = pool._matrix(512)
    torch.testing.assert_close(matrix @ matrix.T, 2 * torch.eye(256), atol=1e-5, rtol=0)
    assert GridPool(width=512)(value) is value
    assert pool.state_dict() == {}
    assert list(pool.parameters()) == []


def test_a_head_projects_the_mean_of_each_cell_to_the_targets_width():
    torch.manual_seed(0)
    value = torch.randn(2, 3, 8, 8)
    head = ProjectionHead(grid=2)
    head.build(value.shape, (2, 5, 2, 2))
    assert head(value).shape == (2, 5, 2, 2)
    cell = value[1, :, :4, 4:].mean(dim=(1, 2))
    torch.testing.assert_close(head(value)[1, :, 0, 1], head.maps[0](cell))
    # one linear map and the mean commute
    whole = ProjectionHead()
    whole.build(value.shape, (2, 5, 8, 8))
    whole.load_state_dict(head.state_dict())
    torch.testing.assert_close(GridPool(2)(whole(value)), head(value))


def test_a_hidden_layer_bends():
    value = torch.randn(2, 3, 4, 4)
    head = ProjectionHead(hidden=16)
    head.build(value.shape, (2, 5, 4, 4))
    assert sum(p.numel() for p in head.parameters()) == 3 * 16 + 16 + 16 * 5 + 5
    bent = head(2 * value) - head(torch.zeros_like(value))
    straight = 2 * (head(value) - head(torch.zeros_like(value)))
    assert not torch.allclose(bent, straight, atol=1e-3)


@pytest.mark.parametrize("kind", [GridPool, ProjectionHead])
@pytest.mark.parametrize("grid", [0, (2, 0), 1.5, True, ()])
def test_a_grid_out_of_range_is_refused(kind, grid):
    with pytest.raises(ValueError, match=r"grid is .*; give a whole number above 0, one for each axis, or None"):
        kind(grid=grid)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="width is 0; it must be a whole number above 0, or None"):
        GridPool(width=0)
    with pytest.raises(ValueError, match="hidden is -1; it must be a whole number above 0, or None"):
        ProjectionHead(hidden=-1)
    with pytest.raises(ValueError, match=r"a map \(1, 1, 4, 4\) does not go with the grid \(2, 2, 2\)"):
        GridPool((2, 2, 2))(torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"a map \(1, 1, 4, 4\) has fewer voxels than the grid \(8, 8\) has cells"):
        GridPool(8)(torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match="give one target of as many axes for each"):
        ProjectionHead().build((1, 3, 8, 8), (1, 3, 8))
    with pytest.raises(RuntimeError, match="no weights yet: give the Distiller input_shape"):
        ProjectionHead()(torch.rand(1, 3, 8, 8))
