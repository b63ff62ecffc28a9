"""Several looks of one image: the same anatomy under other light, noise and sharpness."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import MAX_SEED, convert_to_tensor

__all__ = ["PhotometricViewsd"]


class PhotometricViewsd(MapTransform, Randomizable):
    """Add copies of an image that are changed photometrically, one by each transform; the image stays as it is.

    Place it behind all that moves voxels, so that the copies lie on the grid of image and label. A transform of MONAI
    that is random changes nothing in most calls unless it is given ``prob: 1.0``; ``RandSimulateLowResolution`` needs
    ``upsample_mode: bilinear`` for 2-D images.

    Args:
        keys: of the image, one key.
        output: key of the copies.
        transforms: N transforms of arrays, each for one copy, e.g. ``RandAdjustContrast``, ``RandGaussianNoise``,
            ``RandGaussianSmooth``, ``RandBiasField``, or a ``Compose`` of several.
        allow_missing_keys: see MONAI.

    Shape:
        image ``(C, *spatial)``; ``output`` is ``(N, C, *spatial)``, a plain float32 tensor, ``(B, N, C, *spatial)``
        in a batch.

    Raises:
        ValueError: no transform, several keys, or on use a transform that changes the shape.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output: str,
        transforms: Sequence[Callable[..., Any]],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1 or self.keys[0] == output:
            raise ValueError(f"keys is {self.keys} and output {output!r}; give one key, and another one for the copies")
        if not transforms:
            raise ValueError("transforms is empty; give one for each copy")
        self.output = output
        self.transforms = list(transforms)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> PhotometricViewsd:
        super().set_random_state(seed=seed, state=state)
        for transform in self.transforms:
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed=int(self.R.randint(MAX_SEED, dtype="uint32")))
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            image = convert_to_tensor(found[key], dtype=torch.float32, track_meta=False)
            # clone: a transform may work in place
            views = [convert_to_tensor(t(image.clone()), track_meta=False) for t in self.transforms]
            for transform, view in zip(self.transforms, views, strict=True):
                if view.shape != image.shape:
                    raise ValueError(
                        f"{type(transform).__name__} makes {tuple(view.shape)} of '{key}' with {tuple(image.shape)}; "
                        "views may not change the shape"
                    )
            found[self.output] = torch.stack(views).float()  # (N, C, *spatial)
        return found
