"""Networks that segment an image and rebuild it: what they share."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from monai_kd.networks.halves import EncoderDecoder, Skips

__all__: list[str] = []


class MultiTask(EncoderDecoder):
    """A network of two halves with a second decoder, which runs in training alone.

    Attributes:
        head_names: what a Distiller must have a term for.
    """

    head_names = ("reconstruction",)

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:  # type: ignore[override]
        features, skips = self.encode(image)
        logits = self.decode(features, skips)
        if not self.training:
            return logits
        return {"logits": logits, "reconstruction": self.reconstruct(features, skips)}

    @abstractmethod
    def reconstruct(self, features: Tensor, skips: Skips) -> Tensor:
        """Return the rebuilt image ``(B, in_channels, *spatial)`` from what :meth:`encode` gave."""


def check_reconstruction_skips(value: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(
            f"reconstruction_skips is {value!r}; it must be a whole number from 0 to {most}, the skips there are"
        )
