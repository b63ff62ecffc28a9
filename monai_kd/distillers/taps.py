"""Named feature maps of a network: where the stages of known MONAI networks are, and how to record them.

``stage_paths(network)`` gives readable names to the stages of eight MONAI networks, also within wrappers and ensembles,
and ``FeatureTaps`` records chosen stages (or any other module's output) during one forward pass::

    taps = FeatureTaps(network, ["encoder_2", "bottleneck"])
    with taps as features:
        logits = network(image)
    features["bottleneck"]  # (B, C, *spatial), part of the autograd graph
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from monai.data import MetaTensor
from monai.networks.blocks.activation_checkpointing import ActivationCheckpointWrapper
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets import (
    AttentionUnet,
    BasicUNet,
    DynUNet,
    EfficientNetBNFeatures,
    FlexibleUNet,
    MedNeXt,
    ResNetFeatures,
    SegResNet,
    SwinUNETR,
    UNet,
)
from torch import nn

__all__ = ["FeatureTaps", "stage_paths"]


@dataclass(frozen=True)
class _Stages:
    """Module paths of a network's stages, each side from the highest resolution to the lowest.

    ``bottleneck`` is None where only the decoder is known. ``first_decoder`` is the number of the finest decoder stage:
    0 where the decoder goes one resolution above the finest encoder stage.
    """

    encoders: Sequence[str]
    bottleneck: str | None
    decoders: Sequence[str]
    first_decoder: int = 1

    def named(self) -> dict[str, str]:
        encoders = {f"encoder_{k}": path for k, path in enumerate(self.encoders, start=1)}
        bottleneck = {} if self.bottleneck is None else {"bottleneck": self.bottleneck}
        decoders = {f"decoder_{k}": path for k, path in enumerate(self.decoders, start=self.first_decoder)}
        return encoders | bottleneck | dict(reversed(decoders.items()))


def stage_paths(network: nn.Module) -> dict[str, str]:
    """Readable stage names of a network and the module path behind each, in the order of the U.

    Known are MONAI's UNet, BasicUNet, SegResNet, DynUNet, SwinUNETR, MedNeXt, AttentionUnet and FlexibleUNet, with
    their subclasses; depths are read from the instance. ``encoder_1`` has the highest resolution, ``decoder_k`` the
    resolution of ``encoder_k``. The output head is not a stage, and what a stage outputs is not overwritten later.

    - UNet: its outermost up layer is the output head, so n encoder stages meet n - 1 decoder stages.
    - SwinUNETR: ``encoder_5`` is the third transformer stage, before the parameter-free layer norm that its skip
      connection passes with ``normalize=True``.
    - FlexibleUNet: the encoder starts at half resolution; ``decoder_0`` is the decoder stage above it, at full
      resolution. A backbone other than ResNet or EfficientNet shows its decoder stages only.
    - A network that names its stages itself by an attribute ``tap_stages``, name to path, such as our own networks.
    - A wrapper, a module whose only child is called ``network``: the stages inside, under the same names. They lie on
      the grid of the wrapped network.
    - An ensemble, a module whose only child is a ``ModuleList`` called ``networks``: the stages of every member, as
      ``member_0.bottleneck``. Both nest.

    Returns:
        Stage name to path as in ``named_modules()``: ``encoder_1``..``encoder_n``, ``bottleneck``,
        ``decoder_n``..``decoder_1``. Empty for any other network; its module paths remain usable in ``FeatureTaps``.
    """
    if isinstance(own := getattr(network, "tap_stages", None), Mapping):
        return dict(own)
    for network_class, find_stages in _FINDERS.items():
        if isinstance(network, network_class):
            return find_stages(network).named()
    return {
        f"{prefix}{name}": f"{inner}.{path}"
        for prefix, inner in _inner_networks(network)
        for name, path in stage_paths(network.get_submodule(inner)).items()
    }


def _inner_networks(network: nn.Module) -> list[tuple[str, str]]:
    """For each network in a wrapper or an ensemble what precedes its stage names, and its path.

    By the names of the children: teachers and distillers do not import each other.
    """
    children = dict(network.named_children())
    if list(children) == ["network"]:
        return [("", "network")]
    if list(children) == ["networks"] and isinstance(children["networks"], nn.ModuleList):
        return [(f"member_{i}.", f"networks.{i}") for i in range(len(children["networks"]))]
    return []


def _unet_stages(network: Any) -> _Stages:
    """Follow ``Sequential(down, SkipConnection(next level), up)`` down to the bottom layer."""
    encoders, ups = [], []
    path, level = "model", network.model
    while isinstance(level, nn.Sequential) and len(level) == 3 and isinstance(level[1], SkipConnection):
        encoders.append(f"{path}.0")
        ups.append(f"{path}.2")
        path, level = f"{path}.1.submodule", level[1].submodule
        if isinstance(level, ActivationCheckpointWrapper):  # CheckpointUNet
            path, level = f"{path}.module", level.module
    return _Stages(encoders, path, ups[1:])  # ups[0] makes the logits


def _basic_unet_stages(network: Any) -> _Stages:
    return _Stages(
        encoders=["conv_0", "down_1", "down_2", "down_3"],
        bottleneck="down_4",
        decoders=["upcat_1", "upcat_2", "upcat_3", "upcat_4"],
    )


def _segresnet_stages(network: Any) -> _Stages:
    *encoders, bottleneck = _indexed("down_layers", network.down_layers)
    return _Stages(encoders, bottleneck, _indexed("up_layers", network.up_layers)[::-1])


def _dynunet_stages(network: Any) -> _Stages:
    """The lists, not the recursive ``skip_layers`` that hold the same modules under longer paths."""
    encoders = ["input_block", *_indexed("downsamples", network.downsamples)]
    return _Stages(encoders, "bottleneck", _indexed("upsamples", network.upsamples)[::-1])


def _swin_unetr_stages(network: Any) -> _Stages:
    return _Stages(
        encoders=["encoder1", "encoder2", "encoder3", "encoder4", "swinViT.layers3.0"],
        bottleneck="encoder10",
        decoders=["decoder1", "decoder2", "decoder3", "decoder4", "decoder5"],
    )


def _mednext_stages(network: Any) -> _Stages:
    encoders = _indexed("enc_stages", network.enc_stages)
    return _Stages(encoders, "bottleneck", _indexed("dec_stages", network.dec_stages)[::-1])


def _attention_unet_stages(network: Any) -> _Stages:
    """Follow ``AttentionLayer(submodule=Sequential(convolutions, next AttentionLayer))`` down to the bottom block."""
    encoders, decoders = ["model.0"], ["model.1"]
    path, below = "model.1.submodule", network.model[1].submodule
    while isinstance(below, nn.Sequential):
        encoders.append(f"{path}.0")
        decoders.append(f"{path}.1")
        path, below = f"{path}.1.submodule", below[1].submodule
    return _Stages(encoders, path, decoders)


def _flexible_unet_stages(network: Any) -> _Stages:
    features = _backbone_features(network.encoder)
    decoders = _indexed("decoder.blocks", network.decoder.blocks)[::-1]
    if not features:
        return _Stages([], None, decoders, first_decoder=0)
    *encoders, bottleneck = [f"encoder.{path}" for path in features]
    return _Stages(encoders, bottleneck, decoders, first_decoder=0)


def _backbone_features(backbone: Any) -> list[str]:
    """Paths within a FlexibleUNet backbone of the modules whose outputs it lists as features; [] if unknown."""
    if isinstance(backbone, ResNetFeatures):
        return ["act", "layer1", "layer2", "layer3", "layer4"]
    if isinstance(backbone, EfficientNetBNFeatures):  # stack 0 would be the stem, whose last module is the activation
        return ["_swish" if stack == 0 else f"_blocks.{stack - 1}" for stack in backbone.extract_stacks]
    return []


def _indexed(path: str, modules: Sequence[nn.Module]) -> list[str]:
    return [f"{path}.{i}" for i in range(len(modules))]


_FINDERS: dict[type[nn.Module], Callable[[Any], _Stages]] = {
    UNet: _unet_stages,
    BasicUNet: _basic_unet_stages,
    SegResNet: _segresnet_stages,
    DynUNet: _dynunet_stages,
    SwinUNETR: _swin_unetr_stages,
    MedNeXt: _mednext_stages,
    AttentionUnet: _attention_unet_stages,
    FlexibleUNet: _flexible_unet_stages,
}


class FeatureTaps:
    """Records the outputs of chosen modules while it is used as a context manager, for one forward pass.

    ``with taps as features: network(image)`` fills ``features`` (alias to tensor) in forward order. Outside the context
    the network carries no hook and this object holds no tensor, so copies, pickles and state dicts are unaffected.

    Args:
        network: the network to record from.
        taps: alias to stage name or module path, or a list of them that serve as their own aliases. Stages are those of
            ``stage_paths(network)``; paths are those of ``named_modules()``.

    Attributes:
        network: as given.
        paths: alias to module path.
        names: the aliases, in the order given.

    Shape:
        every feature: as the module returns it, ``(B, C, *spatial)`` for stages, as a plain tensor of the graph. What a
        network that folds its volumes into slices (one with ``as_volume``) returns inside is unfolded, as a view.

    Raises:
        ValueError: an unknown stage or path, an alias given twice, or taps in TorchScript (hooks inside do not run).
        RuntimeError: on use, when a tapped module ran twice or not at all, a stage was overwritten in place after all,
            or the context is entered twice.
        TypeError: on use, when a tapped module returned something else than one tensor (alone or in a list or tuple).

    A stage's output is recorded as it is. Any other module's output is cloned, with a warning here, because in-place
    layers may overwrite it before it is read (measured in BasicUNet, SegResNet and DynUNet). Backward belongs after the
    context: activation checkpointing runs modules again there.
    """

    def __init__(self, network: nn.Module, taps: Mapping[str, str] | Sequence[str]) -> None:
        if taps:
            _refuse_torchscript(network, _name(network))
        self.network = network
        self.paths: dict[str, str] = _resolve_paths(network, _as_mapping(taps))
        for alias, path in self.paths.items():
            _refuse_torchscript(network.get_submodule(path), f"tap '{alias}' ({path}) of {_name(network)}")
        self._folding = {alias: _folding(network, path) for alias, path in self.paths.items()}
        self._inner = _inner_aliases(network, self.paths)
        self._features: dict[str, torch.Tensor] | None = None
        self._versions: dict[str, int] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        if self._inner:
            listed = ", ".join(f"'{alias}' ({self.paths[alias]})" for alias in self._inner)
            warnings.warn(
                f"taps {listed} of {_name(network)} are not stage outputs: each is cloned, which costs memory, since a "
                "later in-place layer may overwrite it; prefer a stage where one fits",
                stacklevel=2,
            )

    @property
    def names(self) -> list[str]:
        return list(self.paths)

    def __enter__(self) -> dict[str, torch.Tensor]:
        if self._features is not None:
            raise RuntimeError(f"taps of {_name(self.network)} are already recording: leave the first context first")
        self._features = {}
        for alias, path in self.paths.items():
            hook = self._recorder(alias, path, self._features)
            self._handles.append(self.network.get_submodule(path).register_forward_hook(hook))
        return self._features

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        recorded, self._features = self._features, None
        versions, self._versions = self._versions, {}
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if exc_type is None and recorded is not None:
            self._check_complete(recorded)
            self._check_untouched(recorded, versions)

    def _recorder(
        self, alias: str, path: str, features: dict[str, torch.Tensor]
    ) -> Callable[[nn.Module, Any, Any], None]:
        """A forward hook that stores one output under ``alias``."""

        def record(module: nn.Module, args: Any, output: Any) -> None:
            if alias in features:
                raise RuntimeError(
                    f"tap '{alias}' ({path}) of {_name(self.network)} ran twice while recording: "
                    "use one context per forward pass, or tap a module that runs once"
                )
            tensor = _single_tensor(output, alias, path, self.network)
            # an in-place layer may follow
            tensor = tensor.clone() if alias in self._inner else tensor
            folding = self._folding[alias]
            features[alias] = tensor if folding is None else _unfolded(self.network.get_submodule(folding), tensor)
            if not tensor.is_inference():  # inference tensors carry no version
                self._versions[alias] = features[alias]._version

        return record

    def _check_complete(self, recorded: Mapping[str, torch.Tensor]) -> None:
        silent = [f"'{alias}' ({path})" for alias, path in self.paths.items() if alias not in recorded]
        if silent:
            raise RuntimeError(
                f"tap {', '.join(silent)} of {_name(self.network)} did not run while recording: "
                "call the network inside the context, and tap modules that its forward pass uses"
            )

    def _check_untouched(self, recorded: Mapping[str, torch.Tensor], versions: Mapping[str, int]) -> None:
        """torch counts in-place writes per storage: a stage whose count moved no longer holds what it returned."""
        for alias, version in versions.items():
            if recorded[alias]._version != version:
                raise RuntimeError(
                    f"tap '{alias}' ({self.paths[alias]}) of {_name(self.network)} was overwritten in place by a later "
                    "layer: build the network with inplace=False there, or tap another stage"
                )


def _unfolded(folding: Any, slices: torch.Tensor) -> torch.Tensor:
    volume: torch.Tensor = folding.as_volume(slices)
    return volume


def _folding(network: nn.Module, path: str) -> str | None:
    """Return the path of the network round a module that folds volumes into slices, if one does."""
    steps = path.split(".")
    around = (".".join(steps[:length]) for length in range(len(steps)))
    return next((prefix for prefix in around if hasattr(network.get_submodule(prefix), "as_volume")), None)


def _refuse_torchscript(module: nn.Module, name: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{name} is TorchScript: the modules inside cannot be tapped, only its output can be used; "
            "load the network from its bundle's config instead"
        )


def _as_mapping(taps: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    if isinstance(taps, str):
        raise ValueError(f"taps is the string '{taps}'; give a list ['{taps}'] or a mapping of alias to stage or path")
    if isinstance(taps, Mapping):
        return dict(taps)
    repeated = sorted({tap for tap in taps if list(taps).count(tap) > 1})
    if repeated:
        raise ValueError(f"taps {repeated} are listed more than once; give each once, or a mapping with aliases")
    return {tap: tap for tap in taps}


def _resolve_paths(network: nn.Module, taps: Mapping[str, str]) -> dict[str, str]:
    """Alias to module path; stage names win over module paths of the same spelling."""
    stages = stage_paths(network)
    modules = {path for path, _ in network.named_modules(remove_duplicate=False) if path}
    paths = {}
    for alias, place in taps.items():
        path = stages.get(place, place)
        if path not in modules:
            raise ValueError(_unknown_tap(network, alias, place, stages))
        paths[alias] = path
    return paths


def _unknown_tap(network: nn.Module, alias: str, place: str, stages: Mapping[str, str]) -> str:
    tap = f"'{alias}'" if alias == place else f"'{alias}' reads '{place}', which"
    known = ", ".join(stages) if stages else "none known for this class"
    leaf = next((path for path, module in network.named_modules() if path and not list(module.children())), "")
    return (
        f"tap {tap} is not a stage or module of {_name(network)}; "
        f"stages: {known}; or a module path such as '{leaf}' (see named_modules())"
    )


def _inner_aliases(network: nn.Module, paths: Mapping[str, str]) -> frozenset[str]:
    """Aliases whose module is no stage. By identity: DynUNet holds each stage under two paths."""
    stages = {id(network.get_submodule(path)) for path in stage_paths(network).values()}
    return frozenset(alias for alias, path in paths.items() if id(network.get_submodule(path)) not in stages)


def _single_tensor(output: Any, alias: str, path: str, network: nn.Module) -> torch.Tensor:
    found = output
    if isinstance(output, (list, tuple)):
        tensors = [item for item in output if isinstance(item, torch.Tensor)]
        found = tensors[0] if len(tensors) == 1 else None
    if isinstance(found, MetaTensor):
        return found.as_tensor()
    if isinstance(found, torch.Tensor):
        return found
    got = type(output).__name__
    if isinstance(output, (list, tuple)):
        got += f" ({', '.join(type(item).__name__ for item in output)})"
    raise TypeError(f"tap '{alias}' ({path}) of {_name(network)} returned {got}; tap a module that returns one tensor")


def _name(network: nn.Module) -> str:
    return type(network).__name__
