"""TokensToMap and SelectClasses: places and classes by hand, what they infer, and what they refuse."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from monai_kd.networks import SelectClasses, TokensToMap


def tokens(length, channels=2, batch=1):
    """Return tokens whose first channel is their number."""
    numbers = torch.arange(float(length)).view(1, length, 1)
    return torch.cat([numbers, torch.zeros(1, length, channels - 1)], dim=2).repeat(batch, 1, 1)


class TestTokensToMap:
    @pytest.mark.parametrize("grid", [(6,), (2, 3), (2, 3, 4)])
    def test_the_last_axis_runs_fastest(self, grid):
        value = tokens(torch.Size(grid).numel())
        result = TokensToMap(grid)(value)
        assert result.shape == (1, 2, *grid)
        assert torch.equal(result[0, 0].flatten(), value[0, :, 0])

    @pytest.mark.parametrize(
        ("length", "other", "expected", "first"),
        [
            (196, (1, 5, 224, 224), (14, 14), 0),
            (197, (1, 5, 224, 224), (14, 14), 1),
            (108, (1, 5, 48, 48, 24), (6, 6, 3), 0),
            (109, (1, 5, 48, 48, 24), (6, 6, 3), 1),
            (64, (1, 5, 96, 96, 95), (4, 4, 4), 0),
            (196, (1, 5, 20, 24), (14, 14), 0),
            (32, (1, 5, 16, 8), (8, 4), 0),
            (10, (1, 5, 40), (10,), 0),
            (1, (1, 5, 16, 16), (1, 1), 0),
        ],
    )
    def test_the_grid_follows_the_other_sides(self, length, other, expected, first):
        adapter = TokensToMap()
        adapter.build((1, length, 2), other)
        result = adapter(tokens(length))
        assert result.shape[2:] == expected
        assert result[0, 0].flatten()[0].item() == first

    def test_sizes_change_at_run_time(self):
        adapter = TokensToMap()
        adapter.build((1, 32, 2), (1, 5, 16, 8))
        assert adapter(tokens(18, batch=3)).shape == (3, 2, 6, 3)

    def test_other_leading_tokens_are_dropped_where_told(self):
        assert TokensToMap((2, 2), class_tokens=5)(tokens(9))[0, 0].flatten().tolist() == [5.0, 6.0, 7.0, 8.0]
        adapter = TokensToMap(class_tokens=5)
        adapter.build((1, 201, 2), (1, 3, 7, 7))
        assert adapter(tokens(201)).shape == (1, 2, 14, 14)

    def test_lists_have_a_grid_for_each_entry(self):
        adapter = TokensToMap()
        adapter.build([(1, 16, 2), (1, 8, 3)], [(1, 5, 8, 8), (1, 5, 32, 16)])
        results = adapter([tokens(16), tokens(8, 3)])
        assert [result.shape for result in results] == [(1, 2, 4, 4), (1, 3, 4, 2)]

    def test_nothing_is_learned_and_the_gradient_passes(self):
        adapter = TokensToMap((2, 2))
        assert list(adapter.parameters()) == []
        value = tokens(5).requires_grad_()
        adapter(value).sum().backward()
        assert value.grad[0, :, 0].tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]

    def test_copies_know_their_grid(self):
        adapter = TokensToMap()
        adapter.build((1, 32, 2), (1, 5, 16, 8))
        for other in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
            assert other(tokens(32)).shape == (1, 2, 8, 4)

    def test_tokens_that_fill_no_grid_are_named(self):
        with pytest.raises(ValueError, match=r"7 tokens, .*one class token do not fill the grid \(2, 2\)"):
            TokensToMap((2, 2))(tokens(7))
        with pytest.raises(ValueError, match=r"197 tokens, which without 0 do not fill .*\(7, 7\)"):
            TokensToMap(class_tokens=0).build((1, 197, 2), (1, 3, 7, 7))
        with pytest.raises(ValueError, match=r"5 tokens, .* do not fill the grid \(2, 3\)"):
            TokensToMap((2, 3)).build((1, 5, 2), (1, 3, 7, 7))
        with pytest.raises(ValueError, match=r"3 tokens, which without 4"):
            TokensToMap(class_tokens=4).build((1, 3, 2), (1, 3, 7, 7))

    def test_what_is_no_tokens_is_named(self):
        with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\); tokens are"):
            TokensToMap((4, 4))(torch.zeros(1, 2, 4, 4))
        with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\); tokens are"):
            TokensToMap().build((1, 2, 4, 4), (1, 2, 4, 4))
        with pytest.raises(ValueError, match="one grid for each"):
            TokensToMap().build([(1, 4, 2), (1, 4, 2)], [(1, 2, 4, 4)])

    def test_unbuilt_use_without_a_grid_says_what_is_missing(self):
        with pytest.raises(RuntimeError, match="no grid yet: give the Distiller input_shape"):
            TokensToMap()(tokens(4))

    @pytest.mark.parametrize("grid", [[], [0, 2], [2.0, 2], [1, 1, 1, 1], [True]])
    def test_grids_out_of_range_are_named(self, grid):
        with pytest.raises(ValueError, match="grid is"):
            TokensToMap(grid)

    @pytest.mark.parametrize("number", [-1, 1.0, True])
    def test_class_tokens_out_of_range_are_named(self, number):
        with pytest.raises(ValueError, match="class_tokens is"):
            TokensToMap(class_tokens=number)


class TestSelectClasses:
    def test_channels_are_reordered(self):
        logits = torch.randn(2, 4, 3, 3)
        assert torch.equal(SelectClasses([2, 0])(logits), logits[:, [2, 0]])

    @pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 4)])
    def test_probabilities_of_a_group_are_added(self, spatial):
        logits = torch.randn(2, 5, *spatial)
        probability = logits.softmax(1)
        merged = SelectClasses([[0, 3], 1, [4, 2]])(logits).softmax(1)
        expected = torch.stack([probability[:, [0, 3]].sum(1), probability[:, 1], probability[:, [2, 4]].sum(1)], dim=1)
        assert torch.allclose(merged, expected, atol=1e-6)

    def test_finite_on_large_logits_with_a_gradient(self):
        logits = (1e4 * torch.randn(1, 4, 5)).requires_grad_()
        result = SelectClasses([[0, 3], [1, 2]])(logits)
        result.sum().backward()
        assert torch.isfinite(result).all()
        assert torch.isfinite(logits.grad).all()

    def test_groups_are_merged_in_float32(self):
        logits = torch.randn(1, 3, 8).bfloat16()
        assert SelectClasses([[0, 1], 2])(logits).dtype == torch.float32
        assert SelectClasses([1, 2])(logits).dtype == torch.bfloat16

    def test_lists_and_channels_last(self):
        logits = torch.randn(2, 3, 4, 4)
        adapter = SelectClasses([[0, 1], 2])
        first, second = adapter([logits, logits.to(memory_format=torch.channels_last)])
        assert torch.equal(first, second)

    def test_nothing_is_learned_or_kept(self):
        adapter = SelectClasses([[0, 1], 2])
        assert list(adapter.parameters()) == []
        assert adapter.state_dict() == {}
        for other in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
            assert other(torch.zeros(1, 3, 2)).shape == (1, 2, 2)

    def test_a_missing_channel_is_named_as_soon_as_the_shape_is_known(self):
        with pytest.raises(ValueError, match=r"channel 3, but the logits are \(1, 3, 8, 8\)"):
            SelectClasses([0, 3]).build((1, 3, 8, 8), (1, 2, 8, 8))
        with pytest.raises(ValueError, match=r"channel 3, but the logits are \(1, 3, 8\)"):
            SelectClasses([0, 3])(torch.zeros(1, 3, 8))

    @pytest.mark.parametrize("channels", [[], [[]], [0, 0], [[0, 1], 1], [-1], [1.0], [True], ["0"], 3])
    def test_channels_out_of_range_are_named(self, channels):
        with pytest.raises(ValueError, match="channels is"):
            SelectClasses(channels)
