"""Put a depth shift into the blocks of any 2-D network, so that it sees across the slices of a volume."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_kd.networks.layers.depth_shift import ResidualDepthShift, SliceExchange
from monai_kd.networks.layers.exchange_settings import ExchangeSettings, Norm
from monai_kd.networks.layers.slice_count import unfold_slices
from monai_kd.networks.nets.exchange_places import (
    dry_run,
    features_in_front,
    known_places,
    listed,
    named_places,
    run,
    usable,
)
from monai_kd.networks.nets.slice_stack import SliceStack

__all__ = ["insert_depth_shift"]


def insert_depth_shift(
    network: nn.Module,
    exchange: str = "distill",
    alpha: float = 0.5,
    before: Sequence[str] | None = None,
    skip_first: bool = True,
    start_as_plain_shift: bool = False,
    depth_axis: int | None = None,
    spacing: Sequence[float] | None = None,
    ends: str = "zero",
    causal: bool = False,
    fraction: float = 0.25,
    kernel_size: int = 3,
    exchange_norm: Norm | None = None,
    exchange_act: Norm | None = None,
    layout: str = "auto",
    input_shape: Sequence[int] | None = None,
) -> SliceStack:
    """Return a copy of a 2-D network that takes volumes and exchanges features between slices in its blocks.

    The exchange stands between the first convolution of a block, with its normalization and activation, and the second;
    in a residual block on the branch, never on the identity path. Known are the blocks of BasicUNet, DynUNet (both
    kinds), SegResNet, FlexibleUNet with ResNet and EfficientNet encoders, and UNet: there a level of one convolution
    exchanges in front of the next level's, and the decoder in front of its residual unit's. In an EfficientNet block
    with an expansion it stands in front of that, on the narrow features: behind it, it would have 36 times the
    parameters (16.9 against 0.5 million in all of efficientnet-b0). Layers that make logits never get one.

    The network that is given stays as it is; the copy has its weights, a module behind an exchange under
    ``<path>.body``. A dry run on random slices, in evaluation mode, finds channels and the order of execution.

    Args:
        network: maps slices ``(N, C, H, W)`` to ``(N, K, H, W)``; its weights may be trained already.
        exchange: ``distill`` (learned), ``plain`` (shifted channels, no parameters) or ``residual`` (the same, with an
            identity path round the shift and the module behind it where that keeps the shape of its features, else
            plain; a network trained before meets a new sum there, also on single slices).
        alpha: see :class:`monai_kd.networks.layers.DistillDepthShift`.
        before: paths of modules, as in ``network.named_modules()``, in front of which exchanges go, and nowhere else:
            for a network of other blocks, or to choose. ``skip_first`` has no say then.
        skip_first: leave out the first block, in the order of execution, if it works at the size of the input.
        start_as_plain_shift: set the learned exchange to shift its channels at first. With ``ends="replicate"`` a
            volume of one slice, or of equal slices, then has the logits of the 2-D network.
        depth_axis, spacing, layout: see :class:`SliceStack`.
        ends: what end slices receive: ``zero``, ``replicate`` or ``circular``.
        causal: no slice waits for a later one.
        fraction: channels that move in each direction with ``plain`` and ``residual``.
        kernel_size: of the learned exchange, in plane.
        exchange_norm, exchange_act: optional normalization and activation behind the learned exchange.
        input_shape: of the slices of the dry run; None takes 2 slices of 64 x 64 with the channels of the first
            convolution.

    Returns:
        A :class:`SliceStack` that takes ``(B, C, *spatial)``.

    Raises:
        ValueError: a setting out of range; a network that is 3-D, already exchanges, has no known block, or cannot
            run on ``input_shape``; a path of ``before`` that is unknown, or whose
            module does not get features ``(N, C, H, W)`` exactly once; too few channels, with their place.

    Source: Maheshwari et al. 2021 for the place between two convolutions, and its "Residual DSM"; Lin et al. 2019 for
    the residual branch and for the narrow end of inverted residual blocks.
    """
    settings = ExchangeSettings(
        *(exchange, alpha, ends, causal, fraction, kernel_size),
        norm=exchange_norm,
        act=exchange_act,
        start_as_plain_shift=start_as_plain_shift,
    )
    _check(network, settings)

    def make(channels: int, private: bool) -> SliceExchange:
        layer = settings.make(channels, inplace=private)
        assert layer is not None
        return layer

    network = copy.deepcopy(network)
    slices = _example(network, input_shape)
    places = known_places(network) if before is None else named_places(network, before)
    calls = dry_run(network, slices, places)
    if before is None:
        calls = usable(calls, slices, skip_first)
    shifts: dict[str, SliceExchange] = {}
    for path, seen in calls.items():
        features, keeps_shape = features_in_front(path, seen, len(slices))
        module, private = places[path]
        try:
            shifts[path] = make(features[1], private).to(slices.device, slices.dtype)
        except ValueError as error:
            raise ValueError(f"exchange in front of {path!r}: {error}") from error
        _replace(network, module, _behind(shifts[path], module, settings.residual and keeps_shape))
    stack = SliceStack(network, depth_axis, spacing, layout)
    stack.training = network.training
    _check_runs(stack, slices, shifts)
    return stack


def _check(network: nn.Module, settings: ExchangeSettings) -> None:
    if settings.exchange == "none":
        raise ValueError("exchange is 'none': nothing to insert; known: distill, plain, residual")
    name = type(network).__name__
    for path, module in network.named_modules():
        if isinstance(module, SliceExchange):
            raise ValueError(f"{name} exchanges between slices already, at {path!r}; give the 2-D network")
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            raise ValueError(
                f"{name} is a 3-D network: {path!r} is {type(module).__name__}; give one of spatial_dims=2"
            )


def _example(network: nn.Module, input_shape: Sequence[int] | None) -> Tensor:
    """Return random slices on the device and in the type of the network."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f"{type(network).__name__} has no 2-D convolution; give a 2-D network")
    shape = (2, first.in_channels, 64, 64) if input_shape is None else tuple(input_shape)
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"input_shape is {shape}; it must be that of slices (N, C, H, W), e.g. (2, 1, 64, 64)")
    # a generator of its own leaves the user's random numbers as they are
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return values.to(first.weight.device, first.weight.dtype)


def _behind(shift: SliceExchange, module: nn.Module, identity_path: bool) -> nn.Module:
    """Return the module behind its exchange."""
    wrapper = (
        ResidualDepthShift(module, shift) if identity_path else nn.Sequential(OrderedDict(shift=shift, body=module))
    )
    shift.train(module.training)
    wrapper.training = module.training  # not train(): parts of the module may be frozen
    return wrapper


def _replace(network: nn.Module, module: nn.Module, wrapper: nn.Module) -> None:
    """Put the wrapper in the module's place, wherever the network has it registered."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is module:
                setattr(parent, name, wrapper)


def _check_runs(stack: SliceStack, slices: Tensor, shifts: dict[str, SliceExchange]) -> None:
    """Run through the exchanges: a network may hold its modules elsewhere too, or read their settings."""
    name = type(stack.network).__name__
    try:
        _, calls = run(stack, unfold_slices(slices, len(slices), stack.depth_axis), dict(shifts))
    except Exception as error:
        raise ValueError(
            f"{name} does not run with exchanges in front of {listed(list(shifts))}: {' '.join(str(error).split())}"
        ) from error
    unused = [path for path in shifts if path not in calls]
    if unused:
        raise ValueError(
            f"{name} holds {listed(unused)} elsewhere than as a submodule and passes by the exchange there"
        )
