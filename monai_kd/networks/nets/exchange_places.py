"""Where slices may exchange features in a 2-D network: known blocks, named modules, and a dry run that sees them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets.basic_unet import TwoConv
from monai.networks.nets.efficientnet import MBConvBlock
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

__all__ = ["Call", "Place", "dry_run", "features_in_front", "known_places", "listed", "named_places", "run", "usable"]


class Place(NamedTuple):
    """Where an exchange goes.

    Attributes:
        module: in front of which.
        private: nobody else reads the features there, so that they may be overwritten without gradients.
    """

    module: nn.Module
    private: bool


class Call(NamedTuple):
    """What a module got.

    Attributes:
        got: in words.
        features: shape of the features, None if it got anything but one tensor ``(N, C, H, W)``.
        keeps_shape: it returned as many features of the same size.
    """

    got: str
    features: tuple[int, ...] | None
    keeps_shape: bool


def _unet_places(network: UNet) -> list[tuple[str, bool]]:
    """Return where the levels of a UNet exchange: its units stand in the order of execution."""
    kind = ResidualUnit if network.num_res_units > 0 else Convolution
    units = [path for path, module in network.named_modules() if isinstance(module, kind)]
    units = units[:-1]  # the last makes the logits
    if network.num_res_units < 2:
        units = units[1:]  # the only convolution of the first reads the input
    if network.num_res_units == 0:
        return [(path, False) for path in units]
    return [
        (f"{path}.{inner}", private) for path in units for inner, private in _unit_places(network.get_submodule(path))
    ]


def _unit_places(unit: Any) -> list[tuple[str, bool]]:
    """Return the place on the branch of a residual unit; one convolution reads what the identity path reads."""
    return [("conv.unit1", True)] if len(unit.conv) > 1 else [("conv.unit0", False)]


def _inverted_places(block: MBConvBlock) -> list[tuple[str, bool]]:
    """Return the narrow place of an inverted residual block: in front of its expansion, or of its projection."""
    return [("_expand_conv", False)] if block.expand_ratio != 1 else [("_project_conv", True)]


# block -> paths of its modules that get an exchange in front, and whether the features there are theirs alone
KNOWN: tuple[tuple[type[nn.Module], Callable[[Any], list[tuple[str, bool]]]], ...] = (
    (UNet, _unet_places),
    (TwoConv, lambda block: [("conv_1", True)]),
    (ResidualUnit, lambda unit: _unit_places(unit) if len(unit.conv) > 1 else []),
    *(
        (kind, lambda block: [("conv2", True)])
        for kind in (UnetBasicBlock, UnetResBlock, ResNetBlock, ResNetBottleneck, ResBlock)
    ),
    (MBConvBlock, _inverted_places),
)


def known_places(network: nn.Module) -> dict[str, Place]:
    """Return the places in all blocks that are known, by path."""
    places: dict[str, Place] = {}
    inside: list[str] = []  # blocks whose parts are settled
    for path, module in network.named_modules():
        if any(path.startswith(prefix) for prefix in inside):
            continue
        for kind, rule in KNOWN:
            if isinstance(module, kind):
                prefix = f"{path}." if path else ""
                inside.append(prefix)
                places.update({prefix + part: Place(module.get_submodule(part), own) for part, own in rule(module)})
                break
    if not places:
        paths = [path for path, module in network.named_modules() if isinstance(module, nn.Conv2d)]
        raise ValueError(
            f"{type(network).__name__} has no block that is known; name modules in before=[...], in front of which "
            f"slices exchange features, for example of its 2-D convolutions: {listed(paths)}"
        )
    return places


def named_places(network: nn.Module, before: Sequence[str]) -> dict[str, Place]:
    """Return the places in front of modules that the user names, by path."""
    if isinstance(before, str) or len(before) == 0:
        raise ValueError(f"before is {before!r}; it must be a list of module paths, or None for the known blocks")
    modules = dict(network.named_modules(remove_duplicate=False))
    del modules[""]
    places: dict[str, Place] = {}
    for path in before:
        if path not in modules:
            near = difflib.get_close_matches(str(path), modules, n=5, cutoff=0.4) or list(modules)
            raise ValueError(f"before names {path!r}, no module of {type(network).__name__}; near: {listed(near)}")
        same = [other for other, place in places.items() if place.module is modules[path]]
        if same:
            raise ValueError(f"before names one module twice, as {same[0]!r} and {path!r}; name it once")
        places[path] = Place(modules[path], private=False)
    return places


def listed(paths: Sequence[str], most: int = 12) -> str:
    """Return the first paths in one line, and how many more there are."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return (", ".join(paths[:most]) or "none") + more


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluate without gradients; each module gets its own mode back, also a frozen one within a training network."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            network.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training


def run(network: nn.Module, values: Tensor, watched: dict[str, nn.Module]) -> tuple[Any, dict[str, list[Call]]]:
    """Run the network; return its output and the calls of the modules that are watched, in the order of execution."""
    calls: dict[str, list[Call]] = {}

    def note(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = (*args, *kwargs.values())
        got = ", ".join(str(tuple(item.shape)) if isinstance(item, Tensor) else type(item).__name__ for item in inputs)
        single = len(inputs) == 1 and not kwargs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 4
        features = tuple(inputs[0].shape) if single else None
        same = isinstance(output, Tensor) and tuple(output.shape) == features
        calls.setdefault(path, []).append(Call(got, features, same))

    handles = [module.register_forward_hook(partial(note, path), with_kwargs=True) for path, module in watched.items()]
    try:
        with _evaluating(network):
            output = network(values)
    finally:
        for handle in handles:
            handle.remove()
    return output, calls


def dry_run(network: nn.Module, slices: Tensor, places: dict[str, Place]) -> dict[str, list[Call]]:
    """Return the calls of the places' modules, in the order of execution, those that never run last."""
    name = type(network).__name__
    try:
        output, calls = run(network, slices, {path: place.module for path, place in places.items()})
    except Exception as error:
        raise ValueError(
            f"{name} cannot run on slices {tuple(slices.shape)}: {' '.join(str(error).split())}; give input_shape=(N, "
            "C, H, W) of slices that it takes"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 4 or len(output) != len(slices):
        got = str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"{name} returns {got} for {len(slices)} slices; it must be one tensor ({len(slices)}, K, H, W)"
        )
    return calls | {path: [] for path in places if path not in calls}


def usable(calls: dict[str, list[Call]], slices: Tensor, skip_first: bool) -> dict[str, list[Call]]:
    """Leave out known blocks that never run, such as unused ends of an encoder, and the first if asked."""
    ran = {path: seen for path, seen in calls.items() if seen}
    if not ran:
        raise ValueError(f"none of the known blocks runs: {listed(list(calls))}; give before=[...]")
    first = next(iter(ran))
    features = ran[first][0].features
    if skip_first and features is not None and features[2:] == tuple(slices.shape[2:]):
        del ran[first]
    if not ran:
        raise ValueError(f"the only known block is the first, at {first!r}; give skip_first=False or before=[...]")
    return ran


def features_in_front(path: str, seen: list[Call], count: int) -> tuple[tuple[int, ...], bool]:
    """Return the shape of the features in front of a module that runs once, and whether it keeps it."""
    if len(seen) != 1:
        raise ValueError(
            f"{path!r} runs {len(seen)} times in a forward pass; an exchange needs a module that runs once"
        )
    features = seen[0].features
    if features is None or features[0] != count:
        raise ValueError(
            f"{path!r} gets ({seen[0].got}) for {count} slices; an exchange needs one tensor of features ({count}, C, "
            "H, W) in front"
        )
    return features, seen[0].keeps_shape
