"""ReviewFusion: values of the dossier, its order, sizes at run time, and what it does to student and teacher."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from monai_kd.losses.review import KnowledgeReview
from monai_kd.networks import ReviewFusion

DEEP = torch.tensor([[[[1.0, 2.0], [0.0, -1.0]], [[0.5, -0.5], [1.5, 1.0]]]])
DEEP_TARGET = torch.tensor([[[[2.0, 1.0], [0.5, 0.0]], [[-1.0, 0.0], [1.0, 2.0]], [[0.0, 3.0], [-0.5, 1.0]]]])
SHALLOW = torch.tensor([[[[-5, -2, 1, 4], [2, 5, -3, 0], [-2, 1, 4, -4], [5, -3, 0, 3]]]]) / 10
SHALLOW_TARGET = (
    torch.tensor(
        [
            [
                [[-6, 3, -1, -5], [-4, 5, 1, -3], [-2, -6, 3, -1], [0, -4, 5, 1]],
                [[-2, -6, 3, -1], [0, -4, 5, 1], [2, -2, -6, 3], [4, 0, -4, 5]],
            ]
        ]
    )
    / 10
)


def built(student, target, **settings):
    adapter = ReviewFusion(**settings)
    adapter.build([value.shape for value in student], [value.shape for value in target])
    return adapter


def fill(weight, number):
    with torch.no_grad():
        weight.copy_(((3 * torch.arange(weight.numel()) + number) % 7 - 3).reshape(weight.shape) / 10)


def with_the_vectors_weights(student, target):
    adapter = built(student, target, mid_channels=2)
    for stage in adapter.stages:
        fill(stage.reduce.conv.weight, 0)
        fill(stage.restore.conv.weight, 1)
        if stage.attention is not None:
            fill(stage.attention.weight, 2)
            stage.attention.bias.data = torch.tensor([0.1, -0.1])
    return adapter


def pyramid(dims=3, channels=(4, 8, 16), sizes=(8, 4, 2), batch=2, seed=0):
    """Return features, shallow first, with a graph."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, width, *[size] * dims) for width, size in zip(channels, sizes, strict=True)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


class TestVectors:
    def test_chain_in_evaluation(self):
        student, target = [DEEP, SHALLOW], [DEEP_TARGET, SHALLOW_TARGET]
        deep, shallow = with_the_vectors_weights(student, target).eval()(student, target)
        assert deep.sum().item() == pytest.approx(0.4399956, abs=1e-6)
        assert shallow.sum().item() == pytest.approx(0.1402933, abs=1e-6)
        assert KnowledgeReview()([deep, shallow], target).item() == pytest.approx(1.54047475, abs=1e-6)

    def test_chain_in_training(self):
        student, target = [DEEP, SHALLOW], [DEEP_TARGET, SHALLOW_TARGET]
        adapter = with_the_vectors_weights(student, target).train()
        assert KnowledgeReview()(adapter(student, target), target).item() == pytest.approx(2.97523778, abs=1e-6)

    def test_chain_given_shallow_first(self):
        student, target = [SHALLOW, DEEP], [SHALLOW_TARGET, DEEP_TARGET]
        adapter = with_the_vectors_weights(student, target).eval()
        assert KnowledgeReview()(adapter(student, target), target).item() == pytest.approx(1.54047475, abs=1e-6)


class TestOrder:
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
    def test_the_order_of_the_list_changes_neither_values_nor_weights(self, order):
        student, target = pyramid(), pyramid(channels=(3, 5, 7), seed=1)
        torch.manual_seed(0)
        reference = built(student, target)
        torch.manual_seed(0)
        permuted = built([student[i] for i in order], [target[i] for i in order])
        for name, value in reference.state_dict().items():
            assert torch.equal(value, permuted.state_dict()[name])
        expected = reference(student, target)
        for result, i in zip(permuted([student[i] for i in order], [target[i] for i in order]), order, strict=True):
            assert torch.equal(result, expected[i])

    def test_the_fewest_voxels_are_the_deepest(self):
        # 1 x 8 x 8 has more voxels than 4 x 4 x 2
        student = [torch.zeros(2, 4, 1, 8, 8), torch.zeros(2, 4, 4, 4, 2), torch.zeros(2, 4, 8, 8, 8)]
        assert built(student, student).order == [1, 0, 2]

    def test_on_equal_grids_more_channels_are_deeper_then_the_later(self):
        # as the dilated stages of a segmentation ResNet
        student = [torch.zeros(2, width, 4, 4) for width in (8, 32, 16, 16)]
        assert built(student, student).order == [1, 3, 2, 0]

    def test_a_deep_stage_reaches_shallower_results_and_no_other_way(self):
        student, target = pyramid(), pyramid(channels=(3, 5, 7), seed=1)
        adapter = built(student, target).eval()
        shallow, _, deep = adapter(student, target)
        shallow.sum().backward(retain_graph=True)
        assert all(feature.grad.abs().sum() > 0 for feature in student)
        for feature in student:
            feature.grad = None
        deep.sum().backward()
        assert student[2].grad.abs().sum() > 0
        assert student[0].grad is None
        assert student[1].grad is None


class TestShapes:
    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_results_have_the_shapes_of_the_targets(self, dims):
        student, target = pyramid(dims), pyramid(dims, channels=(6, 5, 9), sizes=(16, 4, 3), seed=1)
        results = built(student, target)(student, target)
        assert [result.shape for result in results] == [value.shape for value in target]

    def test_sizes_change_at_run_time(self):
        student, target = pyramid(), pyramid(channels=(3, 5, 7), seed=1)
        adapter = built(student, target)
        other = [torch.randn(1, *value.shape[1:2], 6, 10, 7) for value in student]
        goal = [torch.randn(1, *value.shape[1:2], 5, 5, 9) for value in target]
        assert [result.shape for result in adapter(other, goal)] == [value.shape for value in goal]

    def test_one_tensor_comes_back_as_one_tensor(self):
        adapter = ReviewFusion()
        adapter.build(torch.Size([2, 4, 8, 8]), torch.Size([2, 6, 8, 8]))
        assert adapter(torch.randn(2, 4, 8, 8), torch.randn(2, 6, 8, 8)).shape == (2, 6, 8, 8)
        assert adapter.stages[0].attention is None

    def test_mid_channels_are_those_of_the_deepest_stage_up_to_512(self):
        student = pyramid(1)
        assert built(student, student).stages[0].reduce.conv.out_channels == 16
        wide = [torch.zeros(2, 600, 2)]
        assert built(wide, wide).stages[0].reduce.conv.out_channels == 512
        assert built(wide, wide, mid_channels=3).stages[0].reduce.conv.out_channels == 3

    def test_parameters_are_those_of_the_method(self):
        # per stage: 1x1, 3x3, two norms with scale and shift; attention with bias for all but the deepest
        student, target = pyramid(2), pyramid(2, channels=(3, 5, 7))
        count = sum(parameter.numel() for parameter in built(student, target, mid_channels=2).parameters())
        convs = sum(s * 2 + 2 * t * 9 + 2 * (2 + t) for s, t in zip((4, 8, 16), (3, 5, 7), strict=True))
        assert count == convs + 2 * (4 * 2 + 2)

    def test_both_ways_of_upsampling_differ(self):
        student, target = pyramid(), pyramid(channels=(3, 5, 7), seed=1)
        torch.manual_seed(0)
        nearest = built(student, target)
        linear = built(student, target, upsample="linear")
        linear.load_state_dict(nearest.state_dict())
        assert not torch.allclose(nearest(student, target)[0], linear(student, target)[0])
        assert torch.equal(nearest(student, target)[2], linear(student, target)[2])  # the deepest is not resized


class TestGradients:
    def test_reach_student_and_adapter_and_not_the_teacher(self):
        student, target = pyramid(), pyramid(channels=(3, 5, 7), seed=1)
        adapter = built(student, target)
        KnowledgeReview()(adapter(student, target), target).backward()
        assert all(feature.grad.abs().sum() > 0 for feature in student)
        assert all(parameter.grad is not None for parameter in adapter.parameters())
        assert sum(parameter.grad.abs().sum() > 0 for parameter in adapter.parameters()) > 10
        assert all(value.grad is None for value in target)

    def test_a_little_training_brings_the_student_to_the_teacher(self):
        torch.manual_seed(0)
        image = torch.randn(4, 1, 8, 8, 8)
        teacher = torch.nn.Sequential(torch.nn.Conv3d(1, 6, 3, 2, 1), torch.nn.Conv3d(6, 12, 3, 2, 1))
        student = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, 2, 1), torch.nn.Conv3d(4, 8, 3, 2, 1))

        def features(network):
            shallow = network[0](image)
            return [shallow, network[1](shallow)]

        with torch.no_grad():
            target = features(teacher)
        adapter, loss = built(features(student), target), KnowledgeReview()
        optimizer = torch.optim.AdamW([*student.parameters(), *adapter.parameters()], lr=1e-2)
        values = []
        for _ in range(60):
            optimizer.zero_grad()
            value = loss(adapter(features(student), target), target)
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < 0.25 * values[0]


class TestBatchOfOne:
    @pytest.mark.parametrize("norm", ["batch", "instance"])
    def test_small_grids_train(self, norm):
        student, target = pyramid(batch=1), pyramid(batch=1, channels=(3, 5, 7), seed=1)
        results = built(student, target, norm=norm)(student, target)
        assert all(torch.isfinite(result).all() for result in results)

    def test_instance_norm_keeps_the_samples_apart(self):
        student, target = pyramid(), pyramid(channels=(3, 5, 7), seed=1)
        adapter = built(student, target, norm="instance")
        both = adapter(student, target)
        alone = adapter([value[:1] for value in student], [value[:1] for value in target])
        assert all(torch.allclose(two[:1], one, atol=1e-5) for two, one in zip(both, alone, strict=True))

    def test_instance_norm_can_take_the_teachers_scale(self):
        student, target = pyramid(), pyramid(channels=(3, 5, 7), seed=1)
        names = [name for name, _ in built(student, target, norm="instance").named_parameters()]
        assert sum("restore.adn.N" in name for name in names) == 2 * 3

    def test_a_single_voxel_is_refused_when_it_is_built(self):
        voxel, map_ = torch.zeros(1, 4, 1, 1, 1), torch.zeros(1, 4, 2, 2, 2)
        for pair in ((voxel, map_), (map_, voxel)):
            with pytest.raises(ValueError, match=r"\(1, 4, 1, 1, 1\).*single voxel.*input_shape"):
                built([pair[0]], [pair[1]])
        with pytest.raises(ValueError, match=r"single voxel.*batch norm"):
            built([voxel.repeat(2, 1, 1, 1, 1)], [map_], norm="instance")
        two = voxel.repeat(2, 1, 1, 1, 1)
        adapter = built([two], [two])
        assert adapter([torch.randn_like(two)], [two])[0].shape == two.shape

    def test_a_single_voxel_at_run_time_is_refused_in_training_only(self):
        two = torch.randn(2, 4, 1, 1)
        adapter = built([two], [two])
        with pytest.raises(ValueError, match="single voxel"):
            adapter([two[:1]], [two[:1]])
        assert adapter.eval()([two[:1]], [two[:1]])[0].shape == (1, 4, 1, 1)


class TestState:
    def test_unbuilt_use_says_what_is_missing(self):
        with pytest.raises(RuntimeError, match=r"no weights yet: give the Distiller input_shape, e.g. \[1, C, "):
            ReviewFusion()([DEEP], [DEEP_TARGET])
        assert list(ReviewFusion().parameters()) == []

    def test_building_again_keeps_the_weights_or_raises(self):
        student, target = [DEEP], [DEEP_TARGET]
        adapter = built(student, target)
        before = copy.deepcopy(adapter.state_dict())
        adapter.build([(4, *DEEP.shape[1:])], [DEEP_TARGET.shape])
        assert all(torch.equal(value, before[name]) for name, value in adapter.state_dict().items())
        with pytest.raises(ValueError, match=r"built for features .*\(2, 2, 2\).*now got .*\(5, 2, 2\)"):
            adapter.build([(1, 5, 2, 2)], [DEEP_TARGET.shape])

    def test_weights_survive_copies_and_files(self):
        student, target = pyramid(), pyramid(channels=(3, 5, 7), seed=1)
        adapter = built(student, target).eval()
        expected = adapter(student, target)[0]
        fresh = built(student, target).eval()
        file = io.BytesIO()
        torch.save(adapter.state_dict(), file)
        file.seek(0)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        for other in (fresh, copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
            assert torch.equal(other(student, target)[0], expected)
        assert adapter.to(torch.float64)([value.double() for value in student], target)[0].dtype == torch.float64

    def test_autocast_and_channels_last(self):
        student, target = pyramid(), pyramid(channels=(3, 5, 7), seed=1)
        adapter = built(student, target).eval()
        expected = adapter(student, target)
        last = [value.detach().to(memory_format=torch.channels_last_3d) for value in student]
        for result, value in zip(adapter(last, target), expected, strict=True):
            assert torch.allclose(result, value, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for result, value in zip(adapter(student, target), expected, strict=True):
                assert torch.allclose(result.float(), value, atol=0.1)


class TestErrors:
    def test_shapes_that_do_not_pair_are_named(self):
        with pytest.raises(ValueError, match=r"\(1, 2, 2, 2\).*one target for each"):
            built([DEEP, SHALLOW], [DEEP_TARGET])
        with pytest.raises(ValueError, match=r"\(1, 2, 2, 2\).*\(1, 2, 2, 2, 2\).*spatial axes"):
            built([DEEP], [torch.zeros(1, 2, 2, 2, 2)])
        with pytest.raises(ValueError, match="differ in their spatial axes"):
            built([DEEP, torch.zeros(1, 2, 4)], [DEEP_TARGET, torch.zeros(1, 2, 4)])

    def test_features_other_than_built_for_are_named(self):
        adapter = built([DEEP, SHALLOW], [DEEP_TARGET, SHALLOW_TARGET])
        with pytest.raises(ValueError, match=r"built for features .*got \[\(1, 2, 2, 2\)\]"):
            adapter([DEEP], [DEEP_TARGET])
        with pytest.raises(ValueError, match=r"got \[\(1, 1, 4, 4\), \(1, 2, 2, 2\)\]"):
            adapter([SHALLOW, DEEP], [SHALLOW_TARGET, DEEP_TARGET])
        with pytest.raises(ValueError, match="one target of as many axes for each"):
            adapter([DEEP, SHALLOW], [DEEP_TARGET])

    @pytest.mark.parametrize(
        "settings", [{"mid_channels": 0}, {"mid_channels": 2.0}, {"upsample": "cubic"}, {"norm": "group"}]
    )
    def test_settings_out_of_range_are_named(self, settings):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
            ReviewFusion(**settings)
