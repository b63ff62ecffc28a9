"""MONAI's networks as an encoder and a decoder that meet at the bottleneck."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.blocks.activation_checkpointing import ActivationCheckpointWrapper
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets import AttentionUnet, BasicUNet, DynUNet, FlexibleUNet, SegResNet, UNet
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from torch import Tensor, nn

from monai_kd.networks.bare_keys import use_bare_keys
from monai_kd.networks.halves import Skips, check_bottleneck, grid_of, is_recorded

__all__ = ["EncodeDecode"]

Encoded = tuple[Tensor, list[Tensor]]


class EncodeDecode(nn.Module):
    """Give a MONAI network the two halves that our own networks have: ``encode`` and ``decode``.

    Known are MONAI's UNet, BasicUNet, SegResNet, DynUNet without deep supervision, AttentionUnet and FlexibleUNet, and
    their subclasses with the same ``forward``. The bottleneck is the lowest stage, as
    :func:`monai_kd.distillers.stage_paths` names it, and ``decode(*encode(image))`` is the network's output bit for
    bit, in the sizes that the network takes.

    Calling the wrapper calls the network, so stages are found and recorded as in the network alone; the two halves of
    an AttentionUnet run the parts of its decoder stages. The state dict's keys are the network's own.

    Args:
        network: one of those.

    Attributes:
        network: as given.
        feature_channels: of the bottleneck map.

    Shape:
        as the network.

    Raises:
        TypeError: another network, or a subclass with a ``forward`` of its own; names the known ones.
        ValueError: a DynUNet with deep supervision, which has several outputs in training; on use, features that do not
            go with the skips.
    """

    feature_channels: int

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        halves = _halves_of(network)
        if isinstance(network, DynUNet) and network.deep_supervision:
            raise ValueError(
                "EncodeDecode got a DynUNet with deep supervision, which has several outputs in training; build it "
                "with deep_supervision=False"
            )
        self.network = network
        self.feature_channels = halves.channels(network)
        use_bare_keys(self)

    def forward(self, image: Tensor) -> Any:
        return self.network(image)

    def encode(self, image: Tensor) -> tuple[Tensor, Skips]:
        """Run the first half.

        Returns:
            The bottleneck map ``(B, feature_channels, *grid)``, and what :meth:`decode` needs beside it: the skip maps,
            finest first, and an empty tensor ``(B, 0, *grid)``, by which it knows the size.
        """
        features, skips = _halves_of(self.network).encode(self.network, image)
        return features, (*skips, grid_of(features))

    def decode(self, features: Tensor, skips: Skips) -> Tensor:
        """Run the second half.

        Args:
            features: the bottleneck map, or another one of its shape.
            skips: as :meth:`encode` gave them. Neither is changed, so that both may be used again.

        Returns:
            The logits.
        """
        *maps, grid = skips
        if not is_recorded():
            name = type(self.network).__name__
            check_bottleneck(name, features, (grid.shape[0], self.feature_channels, *grid.shape[2:]))
        return _halves_of(self.network).decode(self.network, features, maps)


# ---- the networks ---------------------------------------------------------------------------------------------------


def _encode_unet(network: Any, image: Tensor) -> Encoded:
    features, skips = image, []
    for level in _unet_levels(network):
        features = level[0](features)
        skips.append(features)
    return _below(level)(features), skips


def _decode_unet(network: Any, features: Tensor, skips: list[Tensor]) -> Tensor:
    levels = list(_unet_levels(network))
    for level, skip in zip(reversed(levels), reversed(skips), strict=True):
        features = level[2](torch.cat([skip, features], dim=1))
    return features


def _unet_levels(network: Any) -> Iterator[Any]:
    """Walk down the levels ``Sequential(down, SkipConnection(next level), up)``."""
    level = network.model
    while isinstance(level, nn.Sequential) and len(level) == 3 and isinstance(level[1], SkipConnection):
        yield level
        level = _below(level)


def _below(level: Any) -> nn.Module:
    inner: nn.Module = level[1].submodule
    return inner.module if isinstance(inner, ActivationCheckpointWrapper) else inner  # of a CheckpointUNet


def _encode_basic_unet(network: Any, image: Tensor) -> Encoded:
    skips = [network.conv_0(image)]
    for down in (network.down_1, network.down_2, network.down_3):
        skips.append(down(skips[-1]))
    return network.down_4(skips[-1]), skips


def _decode_basic_unet(network: Any, features: Tensor, skips: list[Tensor]) -> Tensor:
    ups = (network.upcat_4, network.upcat_3, network.upcat_2, network.upcat_1)
    for up, skip in zip(ups, reversed(skips), strict=True):
        features = up(features, skip)
    return network.final_conv(features)


def _encode_segresnet(network: Any, image: Tensor) -> Encoded:
    features, maps = network.encode(image)
    return features, maps[:-1]


def _decode_segresnet(network: Any, features: Tensor, skips: list[Tensor]) -> Tensor:
    # MONAI's own method takes the maps from the lowest up, the bottleneck among them, which it does not read
    return network.decode(features, [features, *reversed(skips)])


def _encode_dynunet(network: Any, image: Tensor) -> Encoded:
    skips = [network.input_block(image)]
    for down in network.downsamples:
        skips.append(down(skips[-1]))
    return network.bottleneck(skips[-1]), skips


def _decode_dynunet(network: Any, features: Tensor, skips: list[Tensor]) -> Tensor:
    for up, skip in zip(network.upsamples, reversed(skips), strict=True):
        features = up(features, skip)
    return network.output_block(features)


def _encode_attention_unet(network: Any, image: Tensor) -> Encoded:
    features, skips = network.model[0](image), []
    for layer in _attention_layers(network):
        skips.append(features)
        below = layer.submodule
        features = below[0](features) if isinstance(below, nn.Sequential) else below(features)
    return features, skips


def _decode_attention_unet(network: Any, features: Tensor, skips: list[Tensor]) -> Tensor:
    layers = list(_attention_layers(network))
    for layer, skip in zip(reversed(layers), reversed(skips), strict=True):
        raised = layer.upconv(features)
        attended = layer.attention(g=raised, x=skip)
        features = layer.merge(torch.cat([attended, raised], dim=1))
    return network.model[2](features)


def _attention_layers(network: Any) -> Iterator[Any]:
    """Walk down the layers ``AttentionLayer(submodule=Sequential(convolutions, next layer))``."""
    layer = network.model[1]
    while isinstance(layer.submodule, nn.Sequential):
        yield layer
        layer = layer.submodule[1]
    yield layer


def _encode_flexible_unet(network: Any, image: Tensor) -> Encoded:
    *skips, features = network.encoder(image)
    return features, skips


def _decode_flexible_unet(network: Any, features: Tensor, skips: list[Tensor]) -> Tensor:
    raised = network.decoder([*skips, features], network.skip_connect)
    return network.segmentation_head(raised)


@dataclass(frozen=True)
class _Halves:
    """How a kind of network is taken apart."""

    encode: Callable[[Any, Tensor], Encoded]
    decode: Callable[[Any, Tensor, list[Tensor]], Tensor]
    channels: Callable[[Any], int]


_KNOWN: dict[type[nn.Module], _Halves] = {
    UNet: _Halves(_encode_unet, _decode_unet, lambda network: network.channels[-1]),
    BasicUNet: _Halves(
        _encode_basic_unet, _decode_basic_unet, lambda network: network.down_4.convs.conv_1.conv.out_channels
    ),
    SegResNet: _Halves(
        _encode_segresnet,
        _decode_segresnet,
        lambda network: network.init_filters * 2 ** (len(network.blocks_down) - 1),
    ),
    DynUNet: _Halves(_encode_dynunet, _decode_dynunet, lambda network: network.filters[-1]),
    AttentionUnet: _Halves(_encode_attention_unet, _decode_attention_unet, lambda network: network.channels[-1]),
    FlexibleUNet: _Halves(
        _encode_flexible_unet,
        _decode_flexible_unet,
        lambda network: FLEXUNET_BACKBONE.register_dict[network.backbone]["feature_channel"][-1],
    ),
}


def _halves_of(network: nn.Module) -> _Halves:
    for known, halves in _KNOWN.items():
        if isinstance(network, known) and type(network).forward is known.forward:
            return halves
    raise TypeError(
        f"EncodeDecode got {type(network).__name__}; known: {', '.join(known.__name__ for known in _KNOWN)}, and "
        "subclasses that keep their forward. A network with encode and decode of its own needs no wrapper"
    )
