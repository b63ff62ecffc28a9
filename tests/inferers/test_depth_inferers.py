"""Inference in chunks of slices and slice by slice: equal to the pass of the whole volume."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings
from collections.abc import Iterable, Iterator

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import UNet
from torch import Tensor, nn

from monai_kd.inferers import AutocastInferer, ChunkedDepthInferer, StreamingDepthInferer
from monai_kd.inferers.slice_stacks import as_slice_stack
from monai_kd.networks.layers import DepthShift, DistillDepthShift, ResidualDepthShift
from monai_kd.networks.nets import DSMUNet, SliceStack, insert_depth_shift

DEPTHS = [1, 2, 7, 20]
FORMS = [("zero", False, 0), ("zero", True, 1), ("replicate", False, 2), ("replicate", True, 0), ("zero", False, 1)]
EXCHANGES = ["distill", "plain", "residual", "none"]


def unet(dtype: torch.dtype = torch.float64, **settings) -> DSMUNet:
    """Four exchanges; in float64 and with norms by which a far slice still counts, so that rounding hides nothing."""
    torch.manual_seed(0)
    return DSMUNet(1, 2, channels=(8, 8, 16), **{"norm": "instance", **settings}).to(dtype).eval()


def sequence(ends: str = "zero", causal: bool = False, depth_axis: int = 2, kind: str = "distill") -> SliceStack:
    """Three exchanges in a network that is no generator."""

    def exchange() -> nn.Module:
        if kind == "distill":
            return DistillDepthShift(8, ends=ends, causal=causal)
        shift = DepthShift(ends=ends, causal=causal)
        return shift if kind == "plain" else ResidualDepthShift(nn.Conv2d(8, 8, 1), shift)

    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1)]
    for _ in range(3):
        layers += [nn.InstanceNorm2d(8), nn.ReLU(inplace=True), exchange(), nn.Conv2d(8, 8, 3, padding=1)]
    return SliceStack(nn.Sequential(*layers, nn.Conv2d(8, 2, 1)), depth_axis).double().eval()


def volume(depth: int, axis: int = 2, batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = [16, 12]
    shape.insert(axis, depth)
    return torch.randn(batch, 1, *shape, generator=torch.Generator().manual_seed(depth), dtype=dtype)


def whole(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return network(image)


def slices_of(image: Tensor, axis: int = 2) -> list[Tensor]:
    return list(image.unbind(2 + axis))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 if expected.dtype == torch.float64 else 1e-5)


def no_slice_thread() -> bool:
    return not [thread for thread in threading.enumerate() if "slice" in thread.name]


# ---- chunks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ends", "causal", "axis"), [*FORMS, ("circular", False, 2), ("circular", True, 1)])
def test_chunks_equal_the_whole_pass(ends, causal, axis):
    network = unet(ends=ends, causal=causal, depth_axis=axis)
    for depth in DEPTHS:
        image = volume(depth, axis, batch=2)
        expected = whole(network, image)
        for chunk in (1, 2, 5, 100):
            assert_equal(whole(lambda inputs, c=chunk: ChunkedDepthInferer(c)(inputs, network), image), expected)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_chunks_equal_the_whole_pass_with_every_exchange(exchange):
    network, image = unet(exchange=exchange), volume(20)
    assert_equal(whole(lambda inputs: ChunkedDepthInferer(3)(inputs, network), image), whole(network, image))


def test_chunks_carry_gradients_if_asked_to():
    network, image = unet(), volume(9).requires_grad_()
    (expected,) = torch.autograd.grad(network(image).square().sum(), image)
    (found,) = torch.autograd.grad(ChunkedDepthInferer(4)(image, network).square().sum(), image)
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "lengths"),
    # slices 0 to 2, 2 to 4 and so on of 8, and up to 4 more on each side, for 4 exchanges
    [({}, [6, 8, 8, 6]), ({"causal": True}, [2, 4, 6, 6]), ({"exchange": "none"}, [2, 2, 2, 2])],
)
def test_a_chunk_takes_what_can_reach_it_and_a_causal_one_no_later_slices(settings, lengths):
    network, seen = unet(**settings), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[4]))
    ChunkedDepthInferer(2)(volume(8), network)
    assert seen == lengths


def test_one_slice_of_halo_too_few_is_an_approximation_and_says_so_once():
    network, image = unet(), volume(20)
    expected = whole(network, image)
    inferer = ChunkedDepthInferer(5, halo=3)
    with pytest.warns(UserWarning, match=r"halo=3, but DSMUNet sees 4 slices away: its output is an approximation"):
        found = inferer(image, network)
    error = (found - expected).abs().amax(dim=(0, 1, 2, 3))
    borders = [4, 5, 9, 10, 14, 15]
    assert (error[borders] > 1e-6).all()
    assert (error[[number for number in range(20) if number not in borders]] < 1e-12).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inferer(image, network)
        for enough in (4, 9):
            assert_equal(
                whole(lambda inputs, h=enough: ChunkedDepthInferer(5, halo=h)(inputs, network), image), expected
            )


def test_another_inferer_runs_the_chunks():
    network, image = unet(), torch.randn(1, 1, 16, 12, 9, dtype=torch.float64)
    # gaussian weights that are flat in depth, but for the rounding of their float32
    flat = {"mode": "gaussian", "sigma_scale": (0.125, 0.125, 100.0)}
    for mode, tolerance in (({"mode": "constant"}, 1e-12), (flat, 1e-5)):
        windows = SlidingWindowInferer((8, 8, -1), overlap=0.25, **mode)
        found = ChunkedDepthInferer(2, inferer=windows, progress=True)(image, network)
        torch.testing.assert_close(found, windows(image, network), rtol=0, atol=tolerance)
    network, image = unet(torch.float32, norm="batch"), image.float()
    cast = ChunkedDepthInferer(2, inferer=AutocastInferer(SimpleInferer()))(image, network)
    assert cast.dtype == torch.float32
    assert not torch.equal(cast, network(image))
    torch.testing.assert_close(cast, network(image), rtol=0, atol=0.02)


def test_chunks_run_on_a_device_of_their_own_and_the_output_on_another():
    network, seen = unet(exchange="plain").to("meta"), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].device.type))
    output = ChunkedDepthInferer(3, sw_device="meta", device="meta")(volume(7), network)
    assert seen == ["meta"] * 3
    assert (output.device.type, output.shape) == ("meta", (1, 2, 16, 12, 7))


@pytest.mark.parametrize("inferer", [ChunkedDepthInferer(3), StreamingDepthInferer()])
def test_metadata_stay_with_the_output(inferer):
    image = MetaTensor(volume(7), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    output = inferer(image, unet())
    assert isinstance(output, MetaTensor)
    assert output.dtype == torch.float64
    assert torch.equal(output.affine, image.affine)
    assert_equal(output.as_tensor(), whole(unet(), image.as_tensor()))


@pytest.mark.parametrize("inferer", [ChunkedDepthInferer(3), StreamingDepthInferer()])
def test_wrapped_networks_are_looked_through(inferer):
    network, image = SliceStack(nn.Sequential(nn.Conv2d(1, 8, 1), DepthShift())).double().eval(), volume(3)
    expected = whole(network, image)
    for wrapper in (nn.DataParallel(network), torch.compile(network, backend="eager")):
        with torch.no_grad():
            assert_equal(inferer(image, wrapper), expected)


@pytest.mark.parametrize("target", ["ChunkedDepthInferer", "StreamingDepthInferer"])
def test_a_configuration_names_them(target):
    parser = ConfigParser({"inferer": {"_target_": f"monai_kd.inferers.{target}"}})
    image = volume(3)
    assert_equal(
        whole(lambda inputs: parser.get_parsed_content("inferer")(inputs, unet()), image), whole(unet(), image)
    )


# ---- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ends", "causal", "axis"), FORMS)
def test_a_stream_equals_the_whole_pass(ends, causal, axis):
    for network in (unet(ends=ends, causal=causal, depth_axis=axis), sequence(ends, causal, axis)):
        for depth in DEPTHS:
            image = volume(depth, axis, batch=2)
            assert_equal(StreamingDepthInferer()(image, network), whole(network, image))
    assert no_slice_thread()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_stream_equals_the_whole_pass_with_every_exchange(exchange):
    networks = [unet(exchange=exchange)] + ([] if exchange == "none" else [sequence(kind=exchange)])
    for network in networks:
        assert_equal(StreamingDepthInferer(progress=True)(volume(7), network), whole(network, volume(7)))


def test_a_network_of_monai_with_exchanges_put_in_streams_as_it_is():
    torch.manual_seed(0)
    flat = UNet(2, 1, 2, channels=(8, 8, 16), strides=(2, 2), num_res_units=2)
    network, image = insert_depth_shift(flat).double().eval(), volume(9)
    assert network.halo == 4
    assert_equal(StreamingDepthInferer()(image, network), whole(network, image))


def test_exchanges_that_wait_and_such_that_do_not_may_be_mixed():
    for pattern in ([True, False, True], [False, True, True, False], [False, False, True], [True, True, False]):
        torch.manual_seed(0)
        layers = [layer for causal in pattern for layer in (DistillDepthShift(8, causal=causal), nn.Conv2d(8, 8, 1))]
        network = SliceStack(nn.Sequential(nn.Conv2d(1, 8, 1), *layers)).double().eval()
        for depth in DEPTHS:
            image = volume(depth)
            expected = whole(network, image)
            assert_equal(StreamingDepthInferer()(image, network), expected)
            assert_equal(whole(lambda inputs, n=network: ChunkedDepthInferer(2)(inputs, n), image), expected)


def test_float32_differs_by_rounding_only():
    network, image = unet(torch.float32), volume(20, dtype=torch.float32)
    assert_equal(StreamingDepthInferer()(image, network), whole(network, image))
    assert_equal(whole(lambda inputs: ChunkedDepthInferer(5)(inputs, network), image), whole(network, image))


class Watched(DSMUNet):
    """Counts the slices in flight."""

    alive = most = 0

    def slice_steps(self, one):
        self.alive += 1
        self.most = max(self.most, self.alive)
        try:
            return (yield from super().slice_steps(one))
        finally:
            self.alive -= 1


@pytest.mark.parametrize(("causal", "halo"), [(False, 4), (True, 0)])
def test_an_output_comes_after_halo_more_slices_which_are_all_that_is_in_flight(causal, halo):
    torch.manual_seed(0)
    network, taken = Watched(1, 2, channels=(8, 8, 16), causal=causal).eval(), 0

    def source() -> Iterator[Tensor]:
        nonlocal taken
        for one in slices_of(volume(12, dtype=torch.float32)):
            taken += 1
            yield one

    came = [taken for _ in StreamingDepthInferer().stream(network, source())]
    assert came == [min(number + halo, 11) + 1 for number in range(12)]
    assert (network.most, network.alive) == (halo + 1, 0)


def test_threads_are_as_few_and_used_again():
    network, image = sequence(), volume(12)
    names: list[set[threading.Thread]] = []
    for _ in StreamingDepthInferer().stream(network, slices_of(image)):
        names.append({thread for thread in threading.enumerate() if "slice" in thread.name})
    assert {len(threads) for threads in names} == {4}  # 3 exchanges
    assert len(set().union(*names)) == 4
    assert no_slice_thread()


@pytest.mark.parametrize("make", [unet, sequence])
def test_every_slice_is_computed_once(make):
    network, calls = make(), {}

    def count(module: nn.Module, inputs: tuple[Tensor]) -> None:
        calls[module] = calls.get(module, 0) + len(inputs[0])

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for module in convolutions:
        module.register_forward_pre_hook(count)
    StreamingDepthInferer()(volume(9), network)
    assert calls == dict.fromkeys(convolutions, 9)


def test_the_memory_of_a_slice_may_be_used_again_at_once():
    class WithInput(nn.Module):
        """Needs the slice itself after the exchange."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.shift, self.last = nn.Conv2d(1, 8, 1), DepthShift(), nn.Conv2d(8, 2, 1)

        def forward(self, features: Tensor) -> Tensor:
            return self.last(self.shift(self.first(features))) + features

    torch.manual_seed(0)
    network, image = SliceStack(WithInput()).double().eval(), volume(9)

    def source() -> Iterator[Tensor]:
        memory = torch.empty(1, 1, 16, 12, dtype=torch.float64)
        for one in slices_of(image):
            yield memory.copy_(one)

    found = torch.stack(list(StreamingDepthInferer().stream(network, source())), dim=4)
    assert_equal(found, whole(network, image))


def test_a_network_may_write_over_the_features_that_it_exchanged():
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shift, self.last = nn.Conv2d(1, 8, 1), DepthShift(), nn.Conv2d(8, 2, 1)

        def forward(self, features: Tensor) -> Tensor:
            features = self.first(features)
            shifted = self.shift(features)
            return self.last(shifted.relu_() + features.mul_(0.5))

    torch.manual_seed(0)
    network = SliceStack(Overwriting()).double().eval()
    expected = whole(network, volume(7))
    assert_equal(StreamingDepthInferer()(volume(7), network), expected)
    with torch.inference_mode():  # whose tensors nothing outside it may write to, nor a thread that does not know of it
        assert_equal(StreamingDepthInferer()(volume(7), network), expected)


def test_grad_mode_of_the_consumer_is_its_own():
    for network in (unet(), sequence()):
        for result in StreamingDepthInferer().stream(network, slices_of(volume(6))):
            assert torch.is_grad_enabled()
            assert not result.requires_grad


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, contextlib.nullcontext])
def test_autocast_and_inference_mode_hold_in_the_threads(mode):
    network, image = sequence().float(), volume(7, dtype=torch.float32)
    with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = StreamingDepthInferer()(image, network)
        expected = network(image)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert not torch.equal(found.float(), whole(network, image))


# ---- streams that end early -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [unet, sequence])
@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_consumer_may_stop_early(make, how):
    network, image = make(), volume(12)
    forwards = [exchange.forward for exchange in network.exchanges]
    results = StreamingDepthInferer().stream(network, slices_of(image))
    next(results), next(results)
    if how == "close":
        results.close()
    else:
        del results
        gc.collect()
    assert no_slice_thread()
    assert [exchange.forward for exchange in network.exchanges] == forwards
    assert_equal(StreamingDepthInferer()(image, network), whole(network, image))


class Failing(nn.Module):
    """Raises at one slice."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.count = 0

    def forward(self, features: Tensor) -> Tensor:
        self.count += 1
        if self.count - 1 == self.at:
            raise ArithmeticError("no such slice")
        return features


@pytest.mark.parametrize("at", [0, 3, 7])
@pytest.mark.parametrize("place", [0, 5, -1])
def test_an_exception_in_a_thread_reaches_the_consumer_and_leaves_the_network_usable(at, place):
    network, image = sequence(), volume(8)
    failing = Failing(at)
    network.network.insert(place % len(network.network), failing)
    with pytest.raises(ArithmeticError, match="no such slice"):
        StreamingDepthInferer()(image, network)
    assert no_slice_thread()
    assert_equal(StreamingDepthInferer()(image, network), whole(network, image))


@pytest.mark.parametrize("make", [unet, sequence])
def test_an_exception_of_the_source_ends_the_stream(make):
    def source() -> Iterator[Tensor]:
        yield from slices_of(volume(6))
        raise OSError("disk is gone")

    network = make()
    with pytest.raises(OSError, match="disk is gone"):
        list(StreamingDepthInferer().stream(network, source()))
    assert no_slice_thread()
    assert_equal(StreamingDepthInferer()(volume(6), network), whole(network, volume(6)))


def test_a_network_that_swallows_everything_cannot_hold_a_thread():
    class Stubborn(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, features: Tensor) -> Tensor:
            try:
                return self.inner(features)
            except BaseException:
                return features

    torch.manual_seed(0)
    layers = [Stubborn(DistillDepthShift(8)) for _ in range(3)]
    network = SliceStack(nn.Sequential(nn.Conv2d(1, 8, 1), *layers)).double().eval()
    results = StreamingDepthInferer().stream(network, slices_of(volume(12)))
    next(results)
    results.close()
    assert no_slice_thread()


def test_a_network_in_threads_serves_one_stream_and_plain_passes_meanwhile():
    network, image, inferer = sequence(), volume(8), StreamingDepthInferer()
    expected = whole(network, image)
    first = inferer.stream(network, slices_of(image))
    found = [next(first)]
    with pytest.raises(RuntimeError, match="this SliceStack is in use by another stream of slices; let that one end"):
        next(inferer.stream(network, slices_of(image)))
    assert_equal(whole(network, image), expected)
    assert_equal(inferer(image, sequence()), expected)
    assert_equal(torch.stack([*found, *first], dim=4), expected)
    assert_equal(inferer(image, network), expected)


def test_generators_serve_several_streams_at_once():
    network, image = unet(), volume(8)
    streams = [StreamingDepthInferer().stream(network, slices_of(image)) for _ in range(2)]
    found = [torch.stack(results, dim=4) for results in zip(*zip(*streams, strict=True), strict=True)]
    for one in found:
        assert_equal(one, whole(network, image))


def test_a_stream_of_nothing_gives_nothing():
    assert list(StreamingDepthInferer().stream(unet(), [])) == []
    assert list(StreamingDepthInferer().stream(sequence(), [])) == []


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inferer", [ChunkedDepthInferer(), StreamingDepthInferer()])
def test_what_is_no_stack_of_slices_is_refused(inferer):
    name = type(inferer).__name__
    with pytest.raises(TypeError, match=rf"{name} takes a SliceStack .*; Conv3d lacks depth_axis, halo, exchanges"):
        inferer(volume(3), nn.Conv3d(1, 2, 1))
    with pytest.raises(ValueError, match=rf"{name} got \(1, 16, 12, 3\); it takes a volume \(B, C, \*spatial\)"):
        inferer(volume(3)[0], unet())
    network = unet()
    del network.network.up[0].exchange.ends
    with pytest.raises(TypeError, match=r"exchange 2 of DSMUNet, a DistillDepthShift, lacks ends"):
        inferer(volume(3), network)


@pytest.mark.parametrize("inferer", [ChunkedDepthInferer(), StreamingDepthInferer()])
def test_statistics_of_the_slices_that_come_together_are_refused(inferer):
    layers = nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8, track_running_stats=False), DistillDepthShift(8))
    with pytest.raises(ValueError, match=r"batch norm 'network.1' of SliceStack takes .* another norm"):
        inferer(volume(3), SliceStack(layers).double().eval())
    network = unet(norm="batch")
    assert_equal(whole(lambda inputs: inferer(inputs, network), volume(3)), whole(network, volume(3)))
    network.network.up[1].train()
    with pytest.raises(ValueError, match=r"batch norm 'network.up.1.first.1' of DSMUNet takes .* call network.eval"):
        inferer(volume(3), network)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk": 0}, "chunk is 0; it must be a whole number of at least 1"),
        ({"chunk": 2.5}, "chunk is 2.5"),
        ({"halo": -1}, "halo is -1; it must be a whole number of at least 0, or None"),
        ({"halo": True}, "halo is True"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ChunkedDepthInferer(**settings)


def test_chunks_refuse_what_they_cannot_put_together():
    mixed = SliceStack(nn.Sequential(DepthShift(ends="zero"), DepthShift(ends="circular")))
    image = torch.zeros(1, 4, 8, 6, 7)
    with pytest.raises(ValueError, match="a SliceStack with ends circular, zero: all must be circular or none"):
        ChunkedDepthInferer(2)(image, mixed)

    def answering(answer):
        return lambda inputs, network: answer(network(inputs))

    with pytest.raises(TypeError, match="networks that return one tensor; it got a list"):
        ChunkedDepthInferer(2, inferer=answering(lambda output: [output]))(volume(7), unet())
    with pytest.raises(ValueError, match=r"got \(1, 2, 16, 12, 3\) for a chunk of 6 slices"):
        ChunkedDepthInferer(2, inferer=answering(lambda output: output[..., ::2]))(volume(7), unet())


def test_streams_refuse_networks_that_they_cannot_run_at_once():
    inferer = StreamingDepthInferer()
    with pytest.raises(ValueError, match="exchange 0 of DSMUNet: with ends 'circular' the first slice needs the last"):
        inferer.stream(unet(ends="circular"), [])
    with pytest.raises(ValueError, match=r"runs networks in eval mode; call DSMUNet.eval\(\)"):
        inferer.stream(unet().train(), [])
    with pytest.raises(TypeError, match="has no use for further arguments; got int, label"):
        inferer(volume(3), unet(), 3, label=4)


def stream_of(*slices: object) -> Iterable[Tensor]:
    return StreamingDepthInferer().stream(unet(), slices)  # type: ignore[arg-type]


def test_streams_refuse_slices_that_do_not_belong_together():
    one = torch.zeros(1, 1, 16, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"slice 1 is \(1, 1, 12, 16\), but the first one is \(1, 1, 16, 12\)"):
        list(stream_of(one, one.mT))
    with pytest.raises(ValueError, match=r"slice 0 is \(1, 16, 12\); give slices \(1, C, H, W\)"):
        list(stream_of(one[0]))
    with pytest.raises(TypeError, match="slice 1 is a str; give tensors"):
        list(stream_of(one, "one"))


class Choosing(nn.Module):
    """Runs the layers that a function chooses by the number of the slice."""

    def __init__(self, choose) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DepthShift() for _ in range(2))
        self.choose = choose
        self.number = -1

    def forward(self, features: Tensor) -> Tensor:
        self.number += 1
        for layer in self.choose(self.number, list(self.layers)):
            features = layer(features)
        return features


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda number, layers: layers[:1], "slice 0 passed 1 exchanges, but SliceStack has 2 as its halo"),
        (lambda number, layers: layers[: 2 - number // 3], "slice 3 passed 1 exchanges"),
        (lambda number, layers: layers + layers[:1], "slice 0 passes more exchanges than the 2"),
        (lambda number, layers: layers[:: -1 if number == 3 else 1], "slice 3 met another exchange as number 0"),
    ],
)
def test_slices_that_do_not_pass_the_same_exchanges_are_refused(choose, message):
    network = SliceStack(Choosing(choose)).eval()
    with pytest.raises(ValueError, match=message):
        StreamingDepthInferer()(torch.zeros(1, 4, 8, 6, 7), network)
    assert no_slice_thread()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda output: [output], "returned a list for a slice"),
        (lambda output: output[:, 0], r"returned \(1, 16, 12\)"),
    ],
)
def test_outputs_that_are_no_slices_are_refused(change, message):
    class Odd(DSMUNet):
        def slice_steps(self, one):
            return change((yield from super().slice_steps(one)))

    with pytest.raises((TypeError, ValueError), match=message):
        StreamingDepthInferer()(volume(7), Odd(1, 2, channels=(8, 8)).double().eval())


# ---- windows in plane -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 2])
def test_windows_in_plane_are_the_same_in_chunks_slice_by_slice_and_through_the_whole_volume(axis):
    roi = [16, 12]
    roi.insert(axis, -1)
    windows = SlidingWindowInferer(roi, overlap=0.5, mode="constant", padding_mode="replicate")
    network, image = unet(depth_axis=axis), volume(20, axis)
    image = torch.nn.functional.pad(image, (0, 9 if axis == 0 else 0, 0, 9))  # several windows
    expected = whole(lambda inputs: windows(inputs, network), image)
    assert not torch.allclose(expected, whole(network, image), atol=1e-3), "windows change what a slice sees"
    for inferer in (ChunkedDepthInferer(4, inferer=windows), StreamingDepthInferer(windows=windows)):
        found = whole(lambda inputs, run=inferer: run(inputs, network), image)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # windows are summed in float32


def test_the_metadata_of_a_volume_stay_with_windows():
    image = MetaTensor(volume(5).float(), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    windows = SlidingWindowInferer([16, 12, -1], mode="constant")
    found = whole(lambda inputs: StreamingDepthInferer(windows=windows)(inputs, unet(torch.float32)), image)
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, image.affine)


def test_what_stands_in_for_a_stack_of_slices_is_asked_as_it_would_be():
    network, image = unet(torch.float32), volume(20, dtype=torch.float32)
    with torch.no_grad():
        traced = torch.jit.trace(network, image[..., :5])

    class Export(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return traced(inputs)

    with pytest.raises(TypeError, match="Export lacks depth_axis, halo, exchanges"):
        ChunkedDepthInferer(4)(image, Export())
    export = as_slice_stack(Export(), network)
    assert not list(export.parameters()), "the layers stay the network's own"
    assert_equal(whole(lambda inputs: ChunkedDepthInferer(4)(inputs, export), image), whole(network, image))
    other = UNet(3, 1, 2, (4, 8), (2,))
    assert not hasattr(as_slice_stack(Export(), other), "halo")


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: AutocastInferer(one)])
def test_windows_that_cut_or_weigh_the_depth_are_refused(wrap):
    network, image = unet(torch.float32), volume(20, dtype=torch.float32)
    cut = SlidingWindowInferer([16, 12, 8], mode="constant")
    weigh = SlidingWindowInferer([16, 12, -1], mode="gaussian")
    for inferer in (ChunkedDepthInferer(4, inferer=wrap(cut)), StreamingDepthInferer(windows=wrap(cut))):
        with pytest.raises(
            ValueError, match=r"windows of \[16, 12, 8\], and slices lie along axis 2: roi_size must be -1"
        ):
            inferer(image, network)
    with pytest.raises(
        ValueError, match="mode='gaussian', whose weights vary along the depth; give 'constant', or a sigma"
    ):
        ChunkedDepthInferer(4, inferer=wrap(weigh))(image, network)
