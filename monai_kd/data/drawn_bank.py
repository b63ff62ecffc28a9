"""A bank of patches that are drawn before training, with what a frozen teacher says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader, list_data_collate
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

__all__ = ["DrawnBank"]


class DrawnBank(Dataset[dict[str, Any]]):
    """Patches drawn by a random transform once and for all, each with the outputs of a teacher on that very patch.

    Training reads the bank in place of drawing anew, and a teacher that would be asked in each step is asked once for
    each patch: a step costs what the student costs. The patches are the first ``draws`` epochs of a training that
    draws; a later epoch sees some of them again. Draw as many as memory holds: few are learned by heart.

    All is held in memory, in float32; ``nbytes`` tells how much.

    Args:
        data: the cases.
        transform: of training; one that gives several patches of a case gives as many to the bank.
        compute: returns what the teacher says of a collated batch, named as the distiller's ``cached`` keys, each
            ``(B, ...)``: e.g. :class:`monai_kd.distillers.TeacherOutputs`. None stores the patches alone.
        draws: how often each case is drawn.
        batch_size: cases that go to ``compute`` together.
        device: where ``compute`` works.
        progress: show a bar.

    Raises:
        ValueError: no draws or no batch; ``compute`` gives other than one row for each patch, or takes a name that a
            patch has already.

    Source: pre-drawn augmentations with stored teacher outputs, Shen and Xing 2022 (arXiv 2112.01528) for
    classification; dossier of GKD, section 9.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Transform,
        compute: Callable[[Mapping[str, Any]], Mapping[str, Tensor]] | None = None,
        draws: int = 16,
        batch_size: int = 2,
        device: str | torch.device = "cpu",
        progress: bool = True,
    ) -> None:
        if draws < 1 or batch_size < 1:
            raise ValueError(f"draws is {draws} and batch_size {batch_size}; both must be 1 or more")
        self.data = list(data)
        self.transform = transform
        self.draws, self.batch_size = draws, batch_size
        self.compute, self.device, self.progress = compute, torch.device(device), progress
        self._patches: list[dict[str, Any]] | None = None

    @property
    def patches(self) -> list[dict[str, Any]]:
        """The patches, drawn on first use, so that a run which is refused before costs nothing."""
        if self._patches is None:
            self._patches = self._draw()
        return self._patches

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the bank."""
        values = [value for patch in self.patches for value in patch.values() if isinstance(value, Tensor)]
        return sum(value.nbytes for value in values)

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.patches[index]

    def _draw(self) -> list[dict[str, Any]]:
        cases = CacheDataset(self.data, self.transform, progress=False)
        # in this process: the random state of training goes on from here
        loader = DataLoader(cases, batch_size=self.batch_size, collate_fn=lambda items: items)
        patches: list[dict[str, Any]] = []
        with tqdm(
            total=self.draws * len(loader), desc="drawing patches", unit="batch", disable=not self.progress
        ) as bar:
            for _ in range(self.draws):
                for items in loader:
                    drawn = [patch for item in items for patch in (item if isinstance(item, list) else [item])]
                    patches += self._with_outputs(drawn)
                    bar.update()
        return patches

    def _with_outputs(self, drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.compute is None:
            return drawn
        batch = {
            key: value.to(self.device) if isinstance(value, Tensor) else value
            for key, value in list_data_collate(drawn).items()
        }
        outputs = {
            name: convert_to_tensor(value, track_meta=False).cpu() for name, value in self.compute(batch).items()
        }
        for name, value in outputs.items():
            if len(value) != len(drawn):
                raise ValueError(
                    f"'{name}' has {len(value)} rows for {len(drawn)} patches; compute must give one for each"
                )
            if name in drawn[0]:
                raise ValueError(f"a patch has '{name}' already; name the teacher's outputs otherwise")
        # clone: a slice would keep the whole batch alive
        return [
            {**patch, **{name: value[row].clone() for name, value in outputs.items()}}
            for row, patch in enumerate(drawn)
        ]
