"""An autoencoder of label maps, whose latent says what is where and nothing of the scanner (the P-SAE of GKD)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import Tensor, nn

from monai_kd.networks.halves import check_widths
from monai_kd.networks.nets.alignment_network import AlignmentNetwork
from monai_kd.networks.shapes import plain_tensor

__all__ = ["SemanticAutoencoder"]


class SemanticAutoencoder(nn.Module):
    """From a label map to a code map, through a latent and back, and to the label map again.

    Labels hold no contrast and no noise, so that the latent is the same for all images with the same label. Networks
    for images are aligned to it (:class:`AlignmentNetwork`) by ``latent(label)``.

    In evaluation the output is the logits, decoded from the latent. In training it is a mapping: ``logits``, and
    ``direct``, decoded from the code without the latent. The stages ``code`` and ``decoded_code`` let a term bring what
    comes out of the latent to what went in::

        latent: Term(RelativeSquaredError(), "student/decoded_code", "student/code", weight=0.1)

    Args:
        spatial_dims: 2 or 3.
        classes: K >= 2, the background among them.
        channels: of the levels, at least 2; each after the first halves the resolution, by default to 1/8.
        latent_channels, latent_length, grid, hidden: see :class:`AlignmentNetwork`; the first two must be those of the
            networks to be aligned.
        norm, act: after each convolution but the last, in MONAI's terms. The code is what ``act`` gives, and so is what
            the latent's header gives.

    Attributes:
        head_names: what a Distiller must have a term for.
        stride: of the code.

    Shape:
        Class indices ``(B, 1, *spatial)``, any number type, or one-hot (or probabilities) ``(B, K, *spatial)``; to
        logits ``(B, K, *spatial)`` of a softmax. Any size. Indices that are no class, such as 255 to ignore, count as
        background. Code: ``(B, channels[-1], *ceil(spatial / stride))``; latent: ``(B, latent_channels,
        latent_length)``.

    Raises:
        ValueError: a setting out of range, or on use a label of other axes or channels; from batch normalization, one
            sample in training whose code is a single voxel.

    Source: Qi et al. 2024, doi:10.1109/jbhi.2024.3385098; layers from the published network. That labels are encoded
    and not images is this project's reading of "semantic". There the decoder is linear, three transposed convolutions
    in a row; here normalization and activation follow each. It is binary, with one logit for the foreground; here it is
    K with the background. Its encoder is the teacher's, and the whole has 33.6 million parameters, a fifth of them
    unused; here it is two convolutions a level and 0.4 million. Both decodings are one batch, so that batch
    normalization remembers what it will meet in evaluation.
    """

    head_names = ("direct",)
    tap_stages = {"code": "encoder", "decoded_code": "alignment"}

    def __init__(
        self,
        spatial_dims: int,
        classes: int,
        channels: Sequence[int] = (16, 32, 64, 128),
        latent_channels: int = 128,
        latent_length: int = 16,
        grid: int | Sequence[int] = 8,
        hidden: int = 64,
        norm: str | tuple = "batch",
        act: str | tuple = "relu",
    ) -> None:
        super().__init__()
        _check_settings(spatial_dims, classes, channels)
        self.spatial_dims, self.classes = spatial_dims, classes
        self.stride = 2 ** (len(channels) - 1)

        def conv(before: int, after: int, stride: int = 1) -> nn.Module:
            return Convolution(spatial_dims, before, after, stride, adn_ordering="NA", norm=norm, act=act, bias=False)

        def up(before: int, after: int) -> list[nn.Module]:
            double = Conv[Conv.CONVTRANS, spatial_dims](before, after, 2, stride=2, bias=False)
            return [double, get_norm_layer(norm, spatial_dims, after), get_act_layer(act)]

        first = channels[0]
        down = [layer for before, after in pairwise(channels) for layer in (conv(before, after, 2), conv(after, after))]
        self.encoder = nn.Sequential(conv(classes - 1, first), conv(first, first), *down)
        self.alignment = AlignmentNetwork(
            spatial_dims, channels[-1], latent_channels, latent_length, grid, hidden, act=act
        )
        self.decoder = nn.Sequential(*(layer for pair in pairwise(channels[::-1]) for layer in up(*pair)))
        self.head = Conv[Conv.CONV, spatial_dims](first, classes, 1)

    def forward(self, label: Tensor) -> Tensor | dict[str, Tensor]:
        code = self.encode(label)
        decoded = self.alignment(code)
        size = label.shape[2:]
        if not self.training:
            return self.decode(decoded, size)
        logits, direct = self.decode(torch.cat([decoded, code]), size).chunk(2)
        return {"logits": logits, "direct": direct}

    def encode(self, label: Tensor) -> Tensor:
        """Return the code map of a label."""
        code: Tensor = self.encoder(self._foreground(label))
        return code

    def latent(self, label: Tensor) -> Tensor:
        """Return the latent ``(B, latent_channels, latent_length)`` of a label."""
        return self.alignment.encode(self.encode(label))

    def decode(self, code: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Return the logits of a code map, cut to ``size`` at the far ends, or on ``stride`` times the code's grid."""
        logits: Tensor = self.head(self.decoder(code))
        if size is None:
            return logits
        if len(size) != self.spatial_dims or any(n > most for n, most in zip(size, logits.shape[2:], strict=True)):
            raise ValueError(
                f"a code {tuple(code.shape)} gives logits of at most {tuple(logits.shape[2:])}, not {tuple(size)}"
            )
        for axis, length in enumerate(size, start=2):
            logits = logits.narrow(axis, 0, length)
        return logits

    def _foreground(self, label: Tensor) -> Tensor:
        """Return the foreground of a label as one-hot channels, ``(B, K - 1, *spatial)``."""
        label = plain_tensor(label)
        if label.ndim != self.spatial_dims + 2 or label.shape[1] not in (1, self.classes):
            raise ValueError(
                f"SemanticAutoencoder got a label {tuple(label.shape)}; it takes class indices (batch, 1, *spatial) or "
                f"one-hot (batch, {self.classes}, *spatial) with {self.spatial_dims} spatial axes"
            )
        if label.shape[1] == 1:
            number = torch.arange(1, self.classes, device=label.device).view(1, -1, *[1] * self.spatial_dims)
            label = label.float().round() == number
        else:
            label = label[:, 1:]
        return label.to(self.head.weight.dtype)


def _check_settings(spatial_dims: int, classes: int, channels: Sequence[int]) -> None:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims!r}; known: 2, 3")
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(f"classes is {classes!r}; it must be at least 2, background and foreground")
    check_widths("channels", channels)
