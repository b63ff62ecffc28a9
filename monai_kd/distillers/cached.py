"""A distiller that reads what its frozen teachers said before the training, in place of running them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_kd.distillers.distiller import Distiller
from monai_kd.distillers.term import Term, plain_tensor

__all__ = ["CachedDistiller"]


class CachedDistiller(Distiller):
    """A Distiller whose frozen teachers are asked before the training: a step runs the student alone.

    What a term meets is stored as its ``target_adapter`` leaves it: features that are pooled and reduced there take
    little room. :meth:`targets` computes it for a batch under the names ``<term>_target`` (``<term>_target_1``, ... of
    a term that meets a list), and the batches of training bring it back under these names, which ``cached`` then holds
    besides the given ones. For images that are drawn before the training::

        DrawnBank(cases, transform, compute=distiller.targets, by_case=True)

    Loss, gradient and ``state_dict()`` are those of a Distiller with the same arguments, on the same images. Teachers
    run once more on ``input_shape``, where adapters take their shapes from them.

    Args:
        student, teachers, terms, taps, cached, input_shape: see :class:`Distiller`. Terms that read no teacher stay as
            they are.

    Raises:
        ValueError: no term meets a teacher; a term that reads a teacher otherwise than as its target, meets a teacher
            beside something else, or has a target adapter that looks at the student; a name in ``cached`` that a
            stored target takes; otherwise as for :class:`Distiller`.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        terms: Mapping[str, Term] | None = None,
        taps: Mapping[str, Sequence[str] | Mapping[str, str]] | None = None,
        cached: Mapping[str, str] | None = None,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(student, teachers, terms, taps, cached, input_shape=input_shape)
        self.asked_teachers = self.read_teachers
        self.read_teachers = []  # of a step
        self._origins = {name: _origin(name, term, self.asked_teachers) for name, term in self._storable().items()}
        if not self._origins:
            raise ValueError(
                f"no term meets a teacher, so there is nothing to store; the terms are {', '.join(self.terms)}: use a "
                "Distiller"
            )
        for name, origin in self._origins.items():
            self._redirect(name, origin)

    @torch.no_grad()
    def targets(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what the terms meet on the ``image`` of a batch, each ``(B, ...)``; teachers move to its device."""
        image = plain_tensor(batch["image"])
        views: dict[str, Tensor] = {}
        for name in self.asked_teachers:
            views.update(self._run(name, self.frozen_teachers[name].to(image.device).eval(), image))
        found: dict[str, Tensor] = {}
        for name, origin in self._origins.items():
            met = [plain_tensor(views[address]) for address in origin.addresses]
            adapted: Any = met if origin.is_list else met[0]
            if origin.adapter is not None:
                adapted = origin.adapter.to(image.device)(adapted)
            values = adapted if origin.is_list else [adapted]
            found.update(zip(_keys(name, origin), values, strict=True))
        return found

    def helpers(self) -> dict[str, nn.Module]:
        return {name: self.frozen_teachers[name] for name in self.asked_teachers}

    # ---- inner work --------------------------------------------------------------------------------------------

    def _storable(self) -> dict[str, Term]:
        """Return the terms that read a teacher."""
        found = {}
        for name, term in self.terms.items():
            assert isinstance(term, Term)
            if _of_teachers(term.addresses, self.asked_teachers):
                found[name] = term
        return found

    def _redirect(self, name: str, origin: _Origin) -> None:
        """Let a term read what is stored, which has been adapted."""
        term: Any = self.terms[name]
        keys = _keys(name, origin)
        if taken := [key for key in keys if key in self.cached or key in self.cached.values()]:
            raise ValueError(f"cached names {taken}, which holds the stored target of term '{name}'; choose another")
        self.cached.update({key: key for key in keys})
        term.target = keys if origin.is_list else keys[0]
        term.target_adapter = None


class _Origin(NamedTuple):
    """What a term met before its target was stored: views of teachers, one or a list, and what adapts them."""

    addresses: list[str]
    is_list: bool
    adapter: nn.Module | None


def _origin(name: str, term: Term, teachers: Sequence[str]) -> _Origin:
    is_list = isinstance(term.target, list)
    addresses = list(term.target) if is_list else [str(term.target)]
    others = list(term.addresses)
    for address in addresses:
        others.remove(address)
    if read := _of_teachers(others, teachers):
        raise ValueError(f"term '{name}' reads {read} beside its target {addresses}; only targets are stored")
    if live := [address for address in addresses if address not in _of_teachers(addresses, teachers)]:
        raise ValueError(f"term '{name}' meets {live} beside a teacher; give each a term of its own")
    adapter = term.target_adapter
    if adapter is not None and "target" in inspect.signature(adapter.forward).parameters:
        raise ValueError(
            f"the target_adapter of term '{name}', a {type(adapter).__name__}, looks at the student, which changes in "
            "each step: what it gives cannot be stored"
        )
    return _Origin(addresses, is_list, adapter)


def _of_teachers(addresses: Sequence[str], teachers: Sequence[str]) -> list[str]:
    return [address for address in addresses if address.partition("/")[0] in teachers]


def _keys(name: str, origin: _Origin) -> list[str]:
    numbers = range(1, len(origin.addresses) + 1)
    return [f"{name}_target_{number}" for number in numbers] if origin.is_list else [f"{name}_target"]
