"""Adapters of features: what they compute, when they get their weights, and how they are copied and moved."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser

from monai_kd.networks import (
    AdapterChain,
    AutoAdapter,
    PointwiseAdapter,
    ResizeAdapter,
    StandardizeAdapter,
    TokensToMap,
)

STUDENT = torch.tensor([[[[1.0, 2.0], [0.0, -1.0]], [[0.5, -0.5], [1.5, 1.0]]]])
TEACHER = torch.tensor([[[[2.0, 1.0], [0.5, 0.0]], [[-1.0, 0.0], [1.0, 2.0]], [[0.0, 3.0], [-0.5, 1.0]]]])
GRIDS = [(8,), (6, 7), (4, 5, 6)]


def built(adapter, student, target):
    if isinstance(student, list):
        adapter.build([value.shape for value in student], [value.shape for value in target])
    else:
        adapter.build(student.shape, target.shape)
    return adapter


def lazy_adapters():
    return [PointwiseAdapter(), PointwiseAdapter("batch", "relu", kernel_size=3), AutoAdapter()]


@pytest.mark.parametrize("number", range(3))
class TestLazyAdapters:
    def test_unbuilt_use_says_what_is_missing(self, number):
        adapter = lazy_adapters()[number]
        with pytest.raises(RuntimeError, match=r"no weights yet: give the Distiller input_shape, e.g. \[1, C, "):
            adapter(STUDENT, TEACHER) if isinstance(adapter, AutoAdapter) else adapter(STUDENT)

    def test_building_again_keeps_the_weights_or_raises(self, number):
        adapter = built(lazy_adapters()[number], STUDENT, TEACHER)
        before = copy.deepcopy(adapter.state_dict())
        adapter.build((5, 2, 2, 2), (5, 3, 2, 2))  # another batch only
        assert all(torch.equal(value, before[name]) for name, value in adapter.state_dict().items())
        with pytest.raises(ValueError, match=r"built for features \[\(2, 2, 2\)\].*now got \[\(4, 2, 2\)\]"):
            adapter.build((1, 4, 2, 2), TEACHER.shape)

    def test_weights_survive_copies_and_files(self, number):
        adapter = built(lazy_adapters()[number], STUDENT, TEACHER)
        fresh = built(lazy_adapters()[number], STUDENT, TEACHER)
        fresh.load_state_dict(adapter.state_dict())
        weights = list(adapter.state_dict().values())
        assert len(weights) >= 2
        for other in (fresh, copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
            assert all(map(torch.equal, other.state_dict().values(), weights))
            other.build(STUDENT.shape, TEACHER.shape)  # still known
        assert next(adapter.to(torch.float64).parameters()).dtype == torch.float64

    @pytest.mark.parametrize("grid", GRIDS)
    def test_a_list_gets_an_adapter_for_each_entry(self, number, grid):
        student, target = [torch.randn(2, 3, *grid), torch.randn(2, 5, *grid)], [torch.randn(2, 4, *grid)] * 2
        adapter = built(lazy_adapters()[number], student, target)
        results = adapter(student, target) if isinstance(adapter, AutoAdapter) else adapter(student)
        assert [result.shape for result in results] == [value.shape for value in target]

    def test_features_other_than_built_for_are_named(self, number):
        adapter = built(lazy_adapters()[number], STUDENT, TEACHER)
        for wrong in (TEACHER, STUDENT.unsqueeze(-1), [STUDENT, STUDENT]):
            extra = (TEACHER,) if isinstance(adapter, AutoAdapter) else ()
            with pytest.raises(ValueError, match=r"built for features \[\(2, 2, 2\)\] .*got \[\(1,"):
                adapter(wrong, *extra)

    def test_shapes_that_do_not_pair_are_named(self, number):
        with pytest.raises(ValueError, match=r"\(1, 2, 2, 2\).*\(1, 9, 768\).*tokens need TokensToMap"):
            lazy_adapters()[number].build(STUDENT.shape, (1, 9, 768))
        with pytest.raises(ValueError, match="one target for each"):
            lazy_adapters()[number].build([STUDENT.shape], [TEACHER.shape] * 2)

    def test_training_brings_the_student_to_the_teacher(self, number):
        torch.manual_seed(0)
        student = torch.randn(2, 4, 6, 6)
        target = F.conv2d(student, torch.randn(3, 4, 1, 1)).relu()
        adapter = built(lazy_adapters()[number], student, target)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=5e-2)
        values = []
        for _ in range(40):
            optimizer.zero_grad()
            result = adapter(student, target) if isinstance(adapter, AutoAdapter) else adapter(student)
            value = F.mse_loss(result, target)
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < 0.5 * values[0]


class TestPointwiseAdapter:
    @pytest.mark.parametrize(("temperature", "expected"), [(None, 2.09890625), (1.0, 0.74434601)])
    def test_aligned_features_meet_the_vectors_of_fitnets_and_cwd(self, temperature, expected):
        adapter = built(PointwiseAdapter(), STUDENT, TEACHER)
        weight = torch.tensor([[0.5, -0.25], [0.1, 0.3], [-0.4, 0.2]])
        adapter.load_state_dict(
            {"maps.0.conv.weight": weight[..., None, None], "maps.0.conv.bias": torch.tensor([0.1, -0.2, 0.0])}
        )
        aligned = adapter(STUDENT)
        if temperature is None:
            value = F.mse_loss(aligned, TEACHER)
        else:  # the divergence of softmaxes over space, mean over channels
            own, other = aligned.flatten(2).log_softmax(-1), TEACHER.flatten(2).log_softmax(-1)
            value = (other.exp() * (other - own)).sum(-1).mean()
        assert value.item() == pytest.approx(expected, abs=1e-6)

    def test_settings_change_the_layers(self):
        count = lambda *args, **settings: sum(  # noqa: E731
            parameter.numel() for parameter in built(PointwiseAdapter(*args, **settings), STUDENT, TEACHER).parameters()
        )
        assert count() == 2 * 3 + 3
        assert count(bias=False) == 2 * 3
        assert count(kernel_size=3) == 9 * 2 * 3 + 3
        assert count("batch") == 2 * 3 + 3 + 2 * 3
        assert count(["instance", {"affine": True}]) == 2 * 3 + 3 + 2 * 3
        assert (built(PointwiseAdapter(act="relu"), STUDENT, TEACHER)(STUDENT) >= 0).all()

    def test_norm_comes_before_act(self):
        student = torch.randn(4, 2, 8, 8)
        adapter = built(PointwiseAdapter("batch", "relu"), student, torch.zeros(4, 3, 8, 8))
        share = (adapter(student) == 0).float().mean()  # zero mean first, so about half is cut
        assert 0.3 < share < 0.7

    def test_the_grid_stays(self):
        adapter = built(PointwiseAdapter(kernel_size=3), torch.zeros(1, 2, 5, 6, 7), torch.zeros(1, 4, 2, 2, 2))
        assert adapter(torch.zeros(1, 2, 9, 4, 3)).shape == (1, 4, 9, 4, 3)

    @pytest.mark.parametrize(
        "settings",
        [
            {"norm": "nope"},
            {"act": ["relu", 1, 2]},
            {"act": 3},
            {"act": torch.nn.ReLU},
            {"kernel_size": 2},
            {"kernel_size": 0},
        ],
    )
    def test_settings_out_of_range_are_named(self, settings):
        with pytest.raises(ValueError, match=f"^{next(iter(settings))} is"):
            PointwiseAdapter(**settings)

    def test_settings_that_do_not_fit_the_shapes_are_named(self):
        with pytest.raises(ValueError, match=r"norm=\('group', \{'num_groups': 2\}\).*\(1, 3, 2, 2\)"):
            built(PointwiseAdapter(("group", {"num_groups": 2})), STUDENT, TEACHER)
        with pytest.raises(ValueError, match="single voxel"):
            built(PointwiseAdapter("batch"), torch.zeros(1, 2, 1, 1), torch.zeros(1, 3, 1, 1))


class TestAutoAdapter:
    def test_nothing_is_learned_where_channels_agree(self):
        adapter = built(AutoAdapter(), STUDENT, STUDENT)
        assert list(adapter.parameters()) == []
        assert adapter(STUDENT, STUDENT) is STUDENT

    def test_a_finer_student_is_averaged_and_a_coarser_one_interpolated(self):
        fine = torch.arange(16.0).reshape(1, 1, 4, 4)
        adapter = built(AutoAdapter(), fine, torch.zeros(1, 1, 2, 2))
        assert torch.equal(adapter(fine, torch.zeros(1, 1, 2, 2)), F.avg_pool2d(fine, 2))
        finer = adapter(fine, torch.zeros(1, 1, 8, 8))
        assert torch.equal(finer, F.interpolate(fine, size=(8, 8), mode="bilinear", align_corners=False))
        # finer along the first axis, coarser along the second
        mixed = adapter(fine, torch.zeros(1, 1, 2, 8))
        assert torch.allclose(mixed[0, 0, :, 0], torch.tensor([2.0, 10.0]))
        assert mixed.shape == (1, 1, 2, 8)

    @pytest.mark.parametrize("size", [(3, 4), (9, 8), (3, 9)])
    def test_the_convolution_commutes_with_the_resizing(self, size):
        student, target = torch.randn(2, 3, 6, 6), torch.zeros(2, 4, *size)
        adapter = built(AutoAdapter(), student, target)
        resized = built(AutoAdapter(), student, torch.zeros(2, 3, *size))(student, target)
        assert torch.allclose(adapter(student, target), adapter.maps[0](resized), atol=1e-5)

    @pytest.mark.parametrize("grid", GRIDS)
    def test_bfloat16_autocast_and_channels_last(self, grid):
        student, target = torch.randn(2, 3, *grid), torch.randn(2, 4, *[size + 3 for size in grid])
        adapter = built(AutoAdapter(), student, target)
        expected = adapter(student, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.allclose(adapter(student, target).float(), expected, atol=0.1)
        if len(grid) > 1:
            layout = torch.channels_last if len(grid) == 2 else torch.channels_last_3d
            assert torch.allclose(adapter(student.to(memory_format=layout), target), expected, atol=1e-5)

    def test_gradient_reaches_student_and_adapter_and_not_the_teacher(self):
        student, target = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(1, 3, 8, 8, requires_grad=True)
        adapter = built(AutoAdapter(), student, target)
        adapter(student, target).sum().backward()
        assert student.grad.abs().sum() > 0
        assert all(parameter.grad is not None for parameter in adapter.parameters())
        assert target.grad is None


class TestResizeAdapter:
    @pytest.mark.parametrize("grid", GRIDS)
    @pytest.mark.parametrize("mode", ["linear", "area", "nearest"])
    def test_to_the_targets_grid_whatever_it_is(self, grid, mode):
        adapter, student = ResizeAdapter(mode), torch.randn(1, 2, *grid)
        assert list(adapter.parameters()) == []
        for change in (-3, 0, 5):
            target = torch.zeros(1, 7, *[size + change for size in grid])
            results = adapter([student, student], [target, student])
            assert results[0].shape == (1, 2, *target.shape[2:])
            assert results[1] is student

    def test_modes_by_hand(self):
        student, target = torch.tensor([[[0.0, 2.0, 8.0, 4.0]]]), torch.zeros(1, 1, 2)
        assert ResizeAdapter("area")(student, target).tolist() == [[[1.0, 6.0]]]
        assert ResizeAdapter("linear")(student, torch.zeros(1, 1, 8))[0, 0, :3].tolist() == [0.0, 0.5, 1.5]
        assert ResizeAdapter("nearest")(student, torch.zeros(1, 1, 8))[0, 0, :3].tolist() == [0.0, 0.0, 2.0]

    def test_unknown_modes_and_other_axes_are_named(self):
        with pytest.raises(ValueError, match="mode is 'cubic'; known: nearest, linear, area"):
            ResizeAdapter("cubic")
        with pytest.raises(ValueError, match=r"\(1, 2, 2, 2\).*\(1, 2, 4\)"):
            ResizeAdapter()(STUDENT, torch.zeros(1, 2, 4))


class TestStandardizeAdapter:
    @pytest.mark.parametrize("grid", GRIDS)
    def test_zero_mean_and_unit_variance_per_channel(self, grid):
        result = StandardizeAdapter()(5 + 3 * torch.randn(4, 3, *grid)).transpose(0, 1).flatten(1)
        assert torch.allclose(result.mean(1), torch.zeros(3), atol=1e-5)
        assert torch.allclose(result.var(1), torch.ones(3), atol=1e-4)

    def test_scale_and_shift_of_a_channel_do_not_count(self):
        feature, scale = torch.randn(2, 3, 5, 5), torch.tensor([1e-3, 1.0, 1e4]).view(1, 3, 1, 1)
        adapter = StandardizeAdapter()
        assert torch.allclose(adapter(feature * scale + scale), adapter(feature), atol=1e-3)

    def test_half_the_squared_difference_meets_the_vector_of_pkd(self):
        second = torch.tensor([[[[0.2, -1.0], [0.7, 0.4]], [[1.1, 0.3], [-0.8, 0.9]]]])
        target = torch.tensor([[[[1.0, -2.0], [0.5, 1.5]], [[0.4, 0.8], [-1.2, 0.3]]]])
        own, other = torch.cat([STUDENT, second]), torch.cat([TEACHER[:, :2], target])
        half = F.mse_loss(StandardizeAdapter()(own), StandardizeAdapter()(other)) / 2
        assert half.item() == pytest.approx(0.29265903, abs=1e-6)

    def test_half_the_squared_difference_is_one_minus_the_correlation(self):
        own, other = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6)
        half = F.mse_loss(StandardizeAdapter()(own), StandardizeAdapter()(other)) / 2
        correlation = torch.corrcoef(torch.stack([own.flatten(), other.flatten()]))[0, 1]
        assert half.item() == pytest.approx((1 - correlation.item()) * 71 / 72, abs=1e-6)

    @pytest.mark.parametrize("feature", [torch.full((2, 3, 4), 1e4), torch.zeros(1, 2, 1), torch.ones(1, 2, 1, 1, 1)])
    def test_constant_channels_become_zero_with_a_finite_gradient(self, feature):
        feature = feature.clone().requires_grad_()
        result = StandardizeAdapter()(feature)
        (result * torch.randn_like(result)).sum().backward()
        assert (result == 0).all()
        assert (feature.grad == 0).all()

    def test_float32_inside_autocast(self):
        feature = torch.randn(2, 3, 8, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = StandardizeAdapter()(feature.bfloat16())
        assert result.dtype == torch.float32
        assert torch.allclose(result, StandardizeAdapter()(feature), atol=0.05)

    def test_gradients_are_those_of_the_value(self):
        feature = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(StandardizeAdapter(), (feature,))

    def test_features_without_space_are_refused(self):
        with pytest.raises(ValueError, match=r"\(4, 3\)"):
            StandardizeAdapter()(torch.zeros(4, 3))


class TestAdapterChain:
    def test_each_link_is_built_for_what_the_one_before_gives(self):
        tokens, target = torch.randn(2, 65, 6), torch.randn(2, 3, 8, 8)
        chain = AdapterChain(TokensToMap(), PointwiseAdapter("batch", "relu"), AutoAdapter(), StandardizeAdapter())
        built(chain, tokens, target)
        assert chain.links[1].maps[0].conv.weight.shape == (3, 6, 1, 1)
        assert list(chain.links[2].parameters()) == []  # channels agree by then
        assert chain(tokens, target).shape == target.shape

    def test_lists_pass_through(self):
        student, target = [torch.randn(2, 3, 4), torch.randn(2, 5, 8)], [torch.randn(2, 6, 8), torch.randn(2, 7, 2)]
        chain = built(AdapterChain(PointwiseAdapter(), ResizeAdapter("area")), student, target)
        assert [result.shape for result in chain(student, target)] == [value.shape for value in target]

    def test_building_leaves_batch_statistics_modes_and_random_numbers_alone(self):
        norm, frozen = torch.nn.BatchNorm2d(2), torch.nn.Dropout(0.5).eval()
        before = copy.deepcopy(norm.state_dict())
        chain = AdapterChain(norm, frozen, PointwiseAdapter("batch"), torch.nn.Dropout(0.5))
        torch.manual_seed(3)
        built(PointwiseAdapter("batch"), STUDENT, TEACHER)
        expected = torch.rand(1)
        torch.manual_seed(3)
        built(chain, STUDENT, TEACHER)
        assert torch.equal(torch.rand(1), expected)
        assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
        assert chain.links[2].state_dict()["maps.0.adn.N.running_var"].tolist() == [1.0, 1.0, 1.0]
        assert [link.training for link in chain.links] == [True, False, True, True]

    def test_a_list_of_adapters_serves_configurations(self):
        config = {
            "adapter": {
                "_target_": "monai_kd.networks.AdapterChain",
                "adapters": [
                    {"_target_": "monai_kd.networks.PointwiseAdapter", "norm": ["instance", {"affine": True}]},
                    {"_target_": "monai_kd.networks.ResizeAdapter", "mode": "area"},
                ],
            }
        }
        chain = ConfigParser(config).get_parsed_content("adapter")
        assert [type(link) for link in chain.links] == [PointwiseAdapter, ResizeAdapter]

    def test_state_survives_copies_and_building_again(self):
        chain = built(AdapterChain(PointwiseAdapter(), ResizeAdapter()), STUDENT, TEACHER)
        expected = chain(STUDENT, TEACHER)
        built(chain, STUDENT, TEACHER)
        fresh = built(AdapterChain(PointwiseAdapter(), ResizeAdapter()), STUDENT, TEACHER)
        fresh.load_state_dict(chain.state_dict())
        for other in (chain, fresh, copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
            assert torch.equal(other(STUDENT, TEACHER), expected)

    def test_a_link_that_cannot_take_its_shapes_is_named(self):
        chain = AdapterChain(PointwiseAdapter(), torch.nn.Conv2d(7, 1, 1))
        with pytest.raises(ValueError, match=r"link 1 of AdapterChain, Conv2d, cannot take \(1, 3, 2, 2\)"):
            built(chain, STUDENT, TEACHER)
        with pytest.raises(RuntimeError, match="no weights yet"):
            AdapterChain(PointwiseAdapter())(STUDENT, TEACHER)

    def test_links_are_modules_given_in_one_form(self):
        with pytest.raises(ValueError, match="0 links and 0 adapters"):
            AdapterChain()
        with pytest.raises(ValueError, match="1 links and 1 adapters"):
            AdapterChain(ResizeAdapter(), adapters=[ResizeAdapter()])
        with pytest.raises(TypeError, match=r"link 1 .* got 'relu'"):
            AdapterChain(ResizeAdapter(), "relu")
