"""Contrast of the student's features with the teacher's at several scales (MTMS-KD, Biswas 2024)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kd.losses.class_prototypes import unit_vectors
from monai_kd.losses.dense import check_label, check_number, full_precision
from monai_kd.losses.gather import gathered, process_count, sum_over_processes
from monai_kd.losses.levels import Features, level_pairs

__all__ = ["ContrastQueues", "MultiScaleContrastive"]

MODES = ("instance", "dense", "supervised")
_UNKNOWN = -1  # what was not given, or has no meaning outside of its batch
GROUP, POSITION, LABEL, IMAGE, ROW = range(5)


class Rows(NamedTuple):
    """Vectors and what tells which of them belong together.

    Attributes:
        vectors: ``(n, D)``, of length 1.
        facts: ``(n, 5)``, int64: patient, slice, class, and the numbers of image and vector in the batch.
    """

    vectors: Tensor
    facts: Tensor


class MultiScaleContrastive(nn.Module):
    """InfoNCE from the student's vectors (queries) to the teacher's (keys), added over the scales.

    ``-log(exp(u_i . v_i / tau) / sum_j exp(u_i . v_j / tau))``, mean over the queries i, with the cosines ``u . v`` of
    vectors of length 1. What a vector is, and which keys are the right ones, is the ``mode``:

    - ``instance``: the whole map of an image. Right: the same image.
    - ``dense``: each cell of the map. Right: the same cell of the same image.
    - ``supervised``: the mean of the map over each labeled class of an image. Right: all keys of that class, of any
      image, whose losses are averaged (SupCon, the sum outside of the logarithm). The maps of the two sides may have
      other grids; the label is brought to each by area, so that small structures keep a share.

    The natural logarithm of the number of keys is chance; 0 is only reached for a small ``tau``. Bring both sides to
    one width first, and to a small grid but with ``supervised``: :class:`monai_kd.networks.ProjectionHead` as adapter,
    :class:`monai_kd.networks.GridPool` as target adapter. Computed in float32, also inside autocast. The teacher
    receives no gradient.

    With several processes the keys are those of all, and the gradient, once it is averaged over the processes, is that
    of one process with all images. All of them have to call the loss.

    Args:
        mode: ``instance``, ``dense`` or ``supervised``.
        tau: temperature, > 0, no unit; 0.1 is usual, the thesis has 0.4 for the smaller student.
        queue_size: vectors of earlier batches that are kept as further keys of each scale, the newest, in training
            mode; 0 keeps none. The teacher is frozen, so they do not age. The same image with another augmentation is
            among them sooner or later: give ``group``.
        neighbors: slices to each side that are too alike to be wrong keys, where ``group`` is given: keys of the same
            group within so many positions are left out, among them the image itself in the queue. Without ``position``
            the whole group is left out. Not with ``supervised``, whose keys of one class are right in any image.
        symmetric: add the same with the teacher's vectors as queries and the student's of this process alone as keys,
            and halve the sum. Queue and other processes have no part in that.
        min_voxels: a class with less weight in an image than so many voxels of the map has no vector; ``supervised``.
        ignore_index: voxels with this label do not count; None ignores none.

    The queues are buffers, and no part of the state; :class:`ContrastQueues` saves them.

    Shape:
        student, teacher: features ``(B, D, *grid)`` of equal shape, or a list of scales of such.
        label: class indices ``(B, 1, *spatial)`` or ``(B, *spatial)``; for ``supervised``.
        group: optional whole numbers ``(B,)`` from 0 on: patients.
        position: optional whole numbers ``(B,)`` from 0 on: slices.

    Returns:
        0-d; exactly 0, with a gradient, where no query has a right and a wrong key (warned once).

    Raises:
        ValueError: a setting out of range, shapes that differ, no label with ``supervised``, or numbers of images that
            do not go together.

    Source: van den Oord et al. 2018, eq. 4; Khosla et al. 2020, eq. 2; scales from Biswas 2024, arXiv 2406.03173.
    There maps are flattened whole (up to 4 million numbers), negatives are the batch alone, neighboring slices among
    them, and a last batch of another size is reshaped wrongly.
    """

    compares_maps = True

    def __init__(
        self,
        mode: str = "instance",
        tau: float = 0.1,
        queue_size: int = 0,
        neighbors: int = 2,
        symmetric: bool = False,
        min_voxels: float = 1.0,
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; known: {', '.join(MODES)}")
        self.mode, self.symmetric, self.ignore_index = mode, symmetric, ignore_index
        self.tau = check_number("tau", tau, above=0)
        self.min_voxels = check_number("min_voxels", min_voxels, above=0)
        for name, value in {"queue_size": queue_size, "neighbors": neighbors}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 0")
        self.queue_size, self.neighbors = queue_size, neighbors
        self._warned = False

    def forward(
        self,
        student: Features,
        teacher: Features,
        label: Tensor | None = None,
        group: Tensor | None = None,
        position: Tensor | None = None,
    ) -> Tensor:
        pairs = level_pairs(student, teacher, channels=True)
        if self.mode != "supervised" and (other := [(a, b) for a, b in pairs if a.shape != b.shape]):
            ours, theirs = (tuple(value.shape) for value in other[0])
            raise ValueError(
                f"mode '{self.mode}' compares maps of one grid, got the student's {ours} and the teacher's {theirs}; "
                "bring both to one by the grid of ProjectionHead and GridPool"
            )
        losses = [
            self._scale(number, *pair, label=label, group=group, position=position) for number, pair in enumerate(pairs)
        ]
        return torch.stack(losses).sum()

    def extra_repr(self) -> str:
        queue = f", queue_size={self.queue_size}" if self.queue_size else ""
        return f"mode={self.mode!r}, tau={self.tau:g}{queue}, neighbors={self.neighbors}, symmetric={self.symmetric}"

    # ---- one scale ---------------------------------------------------------------------------------------------

    def _scale(self, number: int, student: Tensor, teacher: Tensor, **given: Tensor | None) -> Tensor:
        facts = _image_facts(student, given["group"], given["position"])
        with full_precision(student, teacher) as (student, teacher):
            queries = self._rows(student, facts, given["label"])
            own = self._rows(teacher, facts, given["label"])
            vectors, place = gathered(own.vectors)
            new = Rows(vectors, _of_other_images(gathered(own.facts)[0], place))
            keys = self._with_queue(number, new)
            loss = self._info_nce(queries, keys)
            if self.symmetric:
                loss = (loss + self._info_nce(own, queries)) / 2
            self._enqueue(number, new)
            return loss

    def _rows(self, features: Tensor, facts: Tensor, label: Tensor | None) -> Rows:
        """Return the vectors of a map ``(B, D, *grid)``."""
        if self.mode == "supervised":
            if label is None:
                raise ValueError("mode 'supervised' needs the label: class indices (batch, 1, *spatial)")
            return self._class_rows(features, facts, label)
        if self.mode == "instance":
            return _numbered(features.flatten(1), facts)
        cells = features.flatten(2).transpose(1, 2)  # (B, cells, D)
        count = cells.shape[1]
        return _numbered(cells.flatten(0, 1), facts.repeat_interleave(count, dim=0))

    def _class_rows(self, features: Tensor, facts: Tensor, label: Tensor) -> Rows:
        """Return the mean feature of every class that an image has, by the share of each voxel that is labeled so."""
        weights = _shares(label, features, self.ignore_index)  # (B, K, P)
        total = weights.sum(dim=2)
        means = torch.einsum("bkp,bdp->bkd", weights, features.flatten(2)) / total.clamp_min(1e-6)[..., None]
        image, found = (total >= self.min_voxels).nonzero(as_tuple=True)
        rows = facts[image].clone()
        rows[:, LABEL] = found
        return _numbered(means[image, found], rows)

    def _info_nce(self, queries: Rows, keys: Rows) -> Tensor:
        """Return the mean over the queries that have a right and a wrong key."""
        logits = queries.vectors @ keys.vectors.T / self.tau
        right, left_out = self._pairs(queries.facts, keys.facts)
        counts = right.any(dim=1) & (~right & ~left_out).any(dim=1)
        total = sum_over_processes(counts.sum())
        if not total:
            self._warn_of_nothing()
        logits = logits.masked_fill(left_out, -torch.inf)
        share = torch.where(right, logits - logits.logsumexp(dim=1, keepdim=True), 0.0)
        each = -share.sum(dim=1) / right.sum(dim=1).clamp_min(1)
        # gradients are averaged over the processes: with this factor they are those of one that had all queries
        return torch.where(counts, each, 0.0).sum() * (process_count() / total.clamp_min(1))

    def _pairs(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return for every query and key whether it is a right one, and whether it is left out."""
        ours, theirs = queries[:, None], keys[None]
        same, known = ours == theirs, theirs != _UNKNOWN
        if self.mode == "supervised":
            return same[..., LABEL], torch.zeros_like(same[..., LABEL])
        right = same[..., ROW] & known[..., ROW]
        timed = known[..., POSITION] & (ours[..., POSITION] != _UNKNOWN)
        near = (ours[..., POSITION] - theirs[..., POSITION]).abs() <= self.neighbors
        alike = same[..., GROUP] & known[..., GROUP] & (near | ~timed)
        own = same[..., IMAGE] & known[..., IMAGE]  # its other cells are wrong keys, with dense
        return right, alike & ~own

    def _warn_of_nothing(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"MultiScaleContrastive(mode={self.mode!r}) has no query with a right and a wrong key: the loss is 0; "
                "give larger batches, a queue_size, fewer neighbors, or images of more classes or groups",
                stacklevel=5,
            )

    # ---- the queue ---------------------------------------------------------------------------------------------

    def _with_queue(self, number: int, new: Rows) -> Rows:
        if not self.queue_size or f"vectors_{number}" not in self._buffers:
            return new
        vectors, facts = self._buffers[f"vectors_{number}"], self._buffers[f"facts_{number}"]
        assert vectors is not None
        assert facts is not None
        if vectors.shape[1] != new.vectors.shape[1]:
            raise ValueError(
                f"the queue of scale {number} holds vectors of {vectors.shape[1]} numbers, now got "
                f"{new.vectors.shape[1]}; pool every image to one grid"
            )
        together = torch.cat([new.vectors, vectors.to(new.vectors)])
        return Rows(together, torch.cat([new.facts, facts.to(new.facts.device)]))

    def _enqueue(self, number: int, new: Rows) -> None:
        """Keep the newest vectors; no query finds its own image among them later but by group and position."""
        if not (self.queue_size and self.training):
            return
        kept = self._with_queue(number, new)
        facts = kept.facts[: self.queue_size].clone()
        facts[:, [IMAGE, ROW]] = _UNKNOWN
        self._keep(number, kept.vectors[: self.queue_size].detach().clone(), facts)

    def _keep(self, number: int, vectors: Tensor, facts: Tensor) -> None:
        # not part of the state: what a federated client sends must not hold what its images look like
        self.register_buffer(f"vectors_{number}", vectors, persistent=False)
        self.register_buffer(f"facts_{number}", facts, persistent=False)

    def queue_state(self) -> dict[str, Tensor]:
        """Return the queues of all scales, for :class:`ContrastQueues`."""
        return {name: value for name, value in self._buffers.items() if value is not None}

    def load_queue_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the queues of all scales."""
        for number in range(sum(name.startswith("vectors_") for name in state)):
            self._keep(number, state[f"vectors_{number}"].clone(), state[f"facts_{number}"].clone())


class ContrastQueues:
    """The queues of all :class:`MultiScaleContrastive` losses inside a module, as a state to save and load.

    They are no part of the module's own state. With this among the objects of
    :class:`monai_kd.handlers.ResumableTraining` a resumed training goes on as it would have.

    Args:
        module: a :class:`monai_kd.distillers.Distiller`, also within DDP.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Any]:
        return {name: loss.queue_state() for name, loss in self._losses().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        losses = self._losses()
        if state.keys() != losses.keys():
            raise ValueError(f"the queues are of the losses {sorted(state)}, here are {sorted(losses)}")
        for name, loss in losses.items():
            loss.load_queue_state(state[name])

    def _losses(self) -> dict[str, MultiScaleContrastive]:
        core = getattr(self.module, "module", self.module)
        return {name: part for name, part in core.named_modules() if isinstance(part, MultiScaleContrastive)}


def _image_facts(features: Tensor, group: Tensor | None, position: Tensor | None) -> Tensor:
    """Return what is known of each image, ``(B, 5)``.

    Raises:
        ValueError: other numbers of images, or a number below 0 or between two whole ones.
    """
    batch, device = len(features), features.device
    facts = torch.full((batch, 5), _UNKNOWN, dtype=torch.int64, device=device)
    facts[:, IMAGE] = torch.arange(batch, device=device)
    for column, (name, values) in enumerate({"group": group, "position": position}.items()):
        if values is None:
            continue
        plain = torch.as_tensor(values).detach().flatten().to(device)
        if len(plain) != batch:
            raise ValueError(f"{name} has {len(plain)} numbers for {batch} images; give one each")
        if (plain != plain.long()).any() or (plain < 0).any():
            raise ValueError(f"{name} holds {plain.min().item():g}; give whole numbers from 0 on")
        facts[:, column] = plain.long()
    return facts


def _of_other_images(facts: Tensor, own: slice) -> Tensor:
    """Return the facts of all processes' rows; those of other processes are no image of this batch."""
    theirs = torch.ones(len(facts), dtype=torch.bool, device=facts.device)
    theirs[own] = False
    facts = facts.clone()
    facts[:, [IMAGE, ROW]] = torch.where(theirs[:, None], _UNKNOWN, facts[:, [IMAGE, ROW]])
    return facts


def _numbered(vectors: Tensor, facts: Tensor) -> Rows:
    """Return vectors of length 1 (zero vectors stay zero), numbered in their order."""
    facts = facts.clone()
    facts[:, ROW] = torch.arange(len(facts), device=facts.device)
    return Rows(unit_vectors(vectors.unsqueeze(2)).squeeze(2), facts)


def _shares(label: Tensor, features: Tensor, ignore_index: int | None) -> Tensor:
    """Return which share of each voxel of a map every class has, ``(B, K, P)``."""
    plain = label.as_tensor() if hasattr(label, "as_tensor") else label
    index = check_label(plain, features).long()
    ignored = torch.zeros_like(index, dtype=torch.bool) if ignore_index is None else index == ignore_index
    low, high = torch.stack(torch.aminmax(torch.where(ignored, 0, index))).tolist()
    if low < 0:
        raise ValueError(f"label holds {low}; classes start at 0, and ignore_index is {ignore_index}")
    one_hot = F.one_hot(torch.where(ignored, 0, index), high + 1).movedim(-1, 1).to(features.dtype)
    one_hot = one_hot * ~ignored[:, None]
    return F.interpolate(one_hot, size=features.shape[2:], mode="area").flatten(2)
