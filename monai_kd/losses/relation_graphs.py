"""How the views of an image relate to each other: graphs over their latent vectors (GKD, Qi et al. 2024)."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from monai_kd.losses.class_prototypes import unit_vectors
from monai_kd.losses.dense import check_number, full_precision
from monai_kd.losses.kl import softmax_kl

__all__ = ["CompleteGraph", "StarGraph"]

FORMS = ("mse", "contrastive")
SCOPES = ("views", "batch")


class RelationGraph(nn.Module, ABC):
    """Base of losses that compare the edges of two graphs: cosines of latent vectors, -1 to 1, no unit.

    Args:
        form: ``mse`` is the mean squared difference of the edges, 0 to 4; ``contrastive`` the KL divergence between
            the softmax of each node's edges, teacher to student, mean over the nodes.
        tau: temperature of that softmax, > 0; ``mse`` has none.
        scope: ``views`` has a graph for each sample; ``batch`` one for all, so that other samples are nodes too.
        center: whether the mean of all latents of the batch is subtracted before, on each side by itself.
    """

    def __init__(self, form: str = "mse", tau: float = 0.1, scope: str = "views", center: bool = False) -> None:
        super().__init__()
        for name, value, known in (("form", form, FORMS), ("scope", scope, SCOPES)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; known: {', '.join(known)}")
        self.form, self.scope, self.center = form, scope, center
        self.tau = check_number("tau", tau, above=0)
        self._warned = False

    @abstractmethod
    def edges(self, anchors: Tensor, views: Tensor) -> Tensor:
        """Return the cosines, ``(graphs, nodes, edges of a node)``, from unit vectors ``(graphs, nodes, F)``."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        self._check(student, teacher)
        with full_precision(student, teacher) as (student, teacher):
            own, target = self.edges(*self._nodes(student)), self.edges(*self._nodes(teacher))
            self._warn_of_nothing(0 if self.center and student.shape[0] * student.shape[1] < 3 else own.shape[2])
            if not own.numel():
                return own.sum()  # 0, with a gradient
            if self.form == "mse":
                return nn.functional.mse_loss(own, target)
            rows = own.flatten(0, 1).unsqueeze(2), target.flatten(0, 1).unsqueeze(2)
            return softmax_kl(*rows, self.tau).mean() / self.tau**2

    def extra_repr(self) -> str:
        tau = f", tau={self.tau:g}" if self.form == "contrastive" else ""
        return f"form={self.form!r}{tau}, scope={self.scope!r}" + (", center=True" if self.center else "")

    def _nodes(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return anchors and views as unit vectors, ``(graphs, nodes, F)``; zero vectors stay zero."""
        vectors = latents.flatten(2)
        if self.center:
            vectors = vectors - vectors.mean(dim=(0, 1))
        units = unit_vectors(vectors.flatten(0, 1).unsqueeze(2)).view_as(vectors)
        anchors, views = units[:, :1], units[:, 1:]
        if self.scope == "views":
            return anchors, views
        return anchors.flatten(0, 1).unsqueeze(0), views.flatten(0, 1).unsqueeze(0)

    def _warn_of_nothing(self, edges: int) -> None:
        least = 2 if self.form == "contrastive" else 1
        if edges >= least or self._warned:
            return
        self._warned = True
        reason = "a softmax over one is always 1" if edges else "there is nothing to compare"
        warnings.warn(
            f"{type(self).__name__}(form={self.form!r}, scope={self.scope!r}) has {edges} edges at a node: {reason}, "
            "the loss is 0; give more views",
            stacklevel=3,
        )

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        shapes = f"student latents {tuple(student.shape)} and teacher latents {tuple(teacher.shape)}"
        if student.ndim < 3 or teacher.ndim < 3 or student.shape[:2] != teacher.shape[:2]:
            raise ValueError(f"{shapes} must both be (batch, views, features) of the same images and views")
        if student.shape[1] < 2:
            raise ValueError(f"{shapes} hold one view; a graph needs the anchor and at least one view more")


class StarGraph(RelationGraph):
    """Difference of the student's and the teacher's cosines between the anchor and each view (intra-coupling).

    Zero when the student's vectors are the teacher's up to a common rotation and a factor for each. The dimensions of
    the two need not agree. A zero vector has cosine 0 and gets no gradient. Computed in float32, also inside autocast.
    The teacher receives no gradient.

    Args:
        form: ``mse``, or ``contrastive``: KL divergence of the softmax over an anchor's edges, which needs at least two
            edges (warned once).
        tau: temperature of that softmax, > 0, no unit.
        scope: ``views``: a star for each sample. ``batch``: each anchor with the views of all samples, so that the
            contrastive form has other samples as negatives.
        center: subtract the mean over all samples and views first, on each side by itself. Latents that have a large
            part in common, as those of one task do, have cosines of almost 1 without, and the loss is almost 0. Each
            process takes its own batch's mean. One sample with one view says nothing then (warned once), and the
            factor above must be one for all vectors.

    Shape:
        student, teacher: latents ``(B, V, ...)``, the first of the V >= 2 views is the anchor; further axes are
        flattened, and may differ.

    Returns:
        0-d.

    Raises:
        ValueError: an unknown setting, other batches or numbers of views, or a single view.

    Source: Qi et al. 2024, doi:10.1109/jbhi.2024.3385098, abstract and figure. Neither code nor formula was released:
    cosines, the squared difference, the temperature and the mean's removal are this project's reading.
    """

    def edges(self, anchors: Tensor, views: Tensor) -> Tensor:
        return torch.bmm(anchors, views.transpose(1, 2))


class CompleteGraph(RelationGraph):
    """Difference of the student's and the teacher's cosines between any two views but the anchor (inter-coupling).

    The anchor's edges are those of :class:`StarGraph`. Of a single view the graph is empty and the loss 0, with a
    gradient (warned once). Otherwise as there.

    Args:
        form: ``mse``, the mean over the pairs; or ``contrastive``: KL divergence of the softmax over the edges of each
            view, mean over the views, which needs at least three views (warned once).
        tau: temperature of that softmax, > 0, no unit.
        scope: ``views``: a graph for each sample. ``batch``: one of the views of all samples.
        center: see :class:`StarGraph`.

    Shape, Returns, Raises, Source: see :class:`StarGraph`.
    """

    def edges(self, anchors: Tensor, views: Tensor) -> Tensor:
        cosines = torch.bmm(views, views.transpose(1, 2))  # (graphs, n, n)
        graphs, count, _ = cosines.shape
        others = ~torch.eye(count, dtype=torch.bool, device=cosines.device)
        return cosines[:, others].view(graphs, count, count - 1)
