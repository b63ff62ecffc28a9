"""A bank of patches that are drawn before training, with what a frozen teacher says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader, list_data_collate
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from tqdm import tqdm

__all__ = ["DrawnBank"]


class DrawnBank(Dataset[Any]):
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
        by_case: an index is a case and not a patch: it gives the list of patches of one of its draws, chosen at random.
            The bank then stands in for a dataset that draws, with its sampler and its loader.

    Raises:
        ValueError: no draws or no batch; ``compute`` gives other than one row for each patch, or takes a name that a
            patch has already.
        RuntimeError: a loader's worker asks first: each would draw a bank of its own.

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
        by_case: bool = False,
    ) -> None:
        if draws < 1 or batch_size < 1:
            raise ValueError(f"draws is {draws} and batch_size {batch_size}; both must be 1 or more")
        self.data = list(data)
        self.transform = transform
        self.draws, self.batch_size = draws, batch_size
        self.compute, self.device, self.progress = compute, torch.device(device), progress
        self.by_case = by_case
        self._drawn: list[list[dict[str, Any]]] | None = None
        self._patches: list[dict[str, Any]] = []

    @property
    def patches(self) -> list[dict[str, Any]]:
        """The patches, drawn on first use, so that a run which is refused before costs nothing."""
        if self._drawn is None:
            self._drawn = self._draw()
            self._patches = [patch for patches in self._drawn for patch in patches]
        return self._patches

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the bank."""
        values = [value for patch in self.patches for value in patch.values() if isinstance(value, Tensor)]
        return sum(value.nbytes for value in values)

    def __len__(self) -> int:
        return len(self.data) if self.by_case else len(self.patches)

    def __getitem__(self, index: int) -> Any:
        patches = self.patches
        if not self.by_case:
            return patches[index]
        assert self._drawn is not None
        draw = int(torch.randint(self.draws, ()))
        return list(self._drawn[draw * len(self.data) + range(len(self.data))[index]])

    def _draw(self) -> list[list[dict[str, Any]]]:
        """Return the patches of every case, draw by draw."""
        if get_worker_info() is not None:
            raise RuntimeError(
                "the bank is not drawn yet and a loader's worker asks for a patch: each worker would draw a bank of "
                "its own; set num_workers 0, or read DrawnBank.patches before"
            )
        cases = CacheDataset(self.data, self.transform, progress=False)
        # in this process: the random state of training goes on from here
        loader = DataLoader(cases, batch_size=self.batch_size, collate_fn=lambda items: items)
        drawn: list[list[dict[str, Any]]] = []
        with tqdm(
            total=self.draws * len(loader), desc="drawing patches", unit="batch", disable=not self.progress
        ) as bar:
            for _ in range(self.draws):
                for items in loader:
                    drawn += self._with_outputs([item if isinstance(item, list) else [item] for item in items])
                    bar.update()
        return drawn

    def _with_outputs(self, drawn: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        """Return the patches of some cases with what ``compute`` says of them."""
        outputs = iter(self._outputs([patch for patches in drawn for patch in patches]))
        return [[{**_owned(patch), **next(outputs)} for patch in patches] for patches in drawn]

    def _outputs(self, drawn: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        if self.compute is None:
            return [{} for _ in drawn]
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
        return [{name: value[row].clone() for name, value in outputs.items()} for row in range(len(drawn))]


def _owned(patch: dict[str, Any]) -> dict[str, Any]:
    """Return a patch without the volumes that its crops are views of, each of which a draw has copied."""
    return {
        key: value.clone() if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes else value
        for key, value in patch.items()
    }
