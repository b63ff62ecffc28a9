"""A network that sees some of the image's channels, such as one modality of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from monai_kd.networks.bare_keys import use_bare_keys

__all__ = ["RouteModalities"]


class RouteModalities(nn.Module):
    """Hand a network the channels of the image that are its own: the routing of modalities.

    Stages and heads are those of the wrapped network, and so is the state dict: its keys are the network's own, so that
    a student's file fits the network alone. For a teacher that was loaded, see
    :class:`monai_kd.teachers.SelectChannels`.

    Args:
        network: takes as many channels as are selected.
        channels: numbers of the channels, from 0, in the order in which the network gets them.

    Shape:
        ``(B, C, *spatial)`` with more channels than the largest number, to what the network returns.

    Raises:
        ValueError: no channel, or a number that is none; on use, an image with too few channels.
    """

    def __init__(self, network: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)
        if not self.channels or not all(
            isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in self.channels
        ):
            raise ValueError(f"channels is {channels!r}; give the numbers of the image's channels, from 0, e.g. [1]")
        self.network = network
        use_bare_keys(self)

    def forward(self, image: Tensor) -> Any:
        return self.network(self.select(image))

    def select(self, image: Tensor) -> Tensor:
        """Return the network's own channels of an image."""
        if image.shape[1] <= max(self.channels):
            raise ValueError(
                f"the image has {image.shape[1]} channels and channel {max(self.channels)} is asked for (counted from "
                "0); the modalities of the data and the routing must agree"
            )
        first, count = self.channels[0], len(self.channels)
        if self.channels == list(range(first, first + count)):
            return image[:, first : first + count]  # a view
        return image[:, self.channels]

    def lower(self, image: Tensor) -> Any:
        """Run the wrapped network's ``lower`` on its channels, see :class:`monai_kd.networks.nets`."""
        return self.network.lower(self.select(image))  # type: ignore[operator]

    def top(self, *features: Tensor) -> Any:
        """Run the wrapped network's ``top``."""
        return self.network.top(*features)  # type: ignore[operator]
