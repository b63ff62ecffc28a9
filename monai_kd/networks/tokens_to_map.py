"""From the tokens of a transformer to a feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from monai_kd.networks.shapes import Features, LazyAdapter, Shape, as_list, like

__all__ = ["TokensToMap"]


class TokensToMap(LazyAdapter):
    """Tokens ``(B, L, D)`` as a map ``(B, D, *grid)``; without weights.

    Tokens are taken in row-major order: the last axis runs fastest, as MONAI's and most other patch embeddings
    write them. It serves a student (``adapter``) as well as a teacher (``target_adapter``).

    Args:
        grid: number of tokens along each axis; None infers it at run time from the number of tokens: in proportion to
            the other side's grid as it was when built, else as many along each of its axes.
        class_tokens: leading tokens that belong to no place (class, register or distillation tokens) and are dropped;
            None drops none, or one if only so the rest fills a grid.

    Shape:
        ``(B, L, D)``, or a list of such. To infer the grid the other side must be ``(B, C, *spatial)``, one for each;
        one with a single axis gives a map with a single axis, so where both sides are tokens give ``grid``.

    Raises:
        ValueError: a setting out of range; features that are no tokens, or tokens that fill no grid: names their
            number and the grid. On building where that is known then, else on use.
        RuntimeError: on use without ``grid`` before it was built.
    """

    needs = "grid"

    def __init__(self, grid: Sequence[int] | None = None, class_tokens: int | None = None) -> None:
        super().__init__()
        self.grid = None if grid is None else tuple(grid)
        if self.grid is not None and not (1 <= len(self.grid) <= 3 and all(_is_count(size, 1) for size in self.grid)):
            raise ValueError(f"grid is {grid!r}; it must be 1 to 3 whole numbers of at least 1, e.g. [14, 14]")
        if class_tokens is not None and not _is_count(class_tokens, 0):
            raise ValueError(f"class_tokens is {class_tokens!r}; it must be a whole number of at least 0, or None")
        self.class_tokens = class_tokens

    def make(self, own: list[Shape], other: list[Shape]) -> None:
        if self.grid is None and len(own) != len(other):
            raise ValueError(f"TokensToMap got the tokens {own} for {other}; it needs one grid for each: give grid")
        for position, shape in enumerate(own):
            _check_tokens(shape)
            self._place(shape[1], None if self.grid else other[position][2:])

    def fits(self, feature: Tensor, shape: Shape) -> bool:
        return feature.ndim == len(shape) + 1 and feature.shape[2] == shape[1]

    def forward(self, student: Features) -> Any:
        tokens = as_list(student) if self.grid else self.take(student)
        results = []
        for position, value in enumerate(tokens):
            _check_tokens(value.shape)
            spatial = None if self.grid or self.built is None else self.built[1][position][1:]
            dropped, grid = self._place(value.shape[1], spatial)
            results.append(value[:, dropped:].transpose(1, 2).unflatten(2, grid))
        return like(student, results)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, class_tokens={self.class_tokens}"

    def _place(self, length: int, spatial: Shape | None) -> tuple[int, Shape]:
        """Return how many leading tokens to drop and the grid of the others.

        Args:
            length: number of tokens.
            spatial: grid of the other side, None where the own one is given.
        """
        for dropped in (0, 1) if self.class_tokens is None else (self.class_tokens,):
            grid = self.grid if spatial is None else _infer_grid(length - dropped, spatial)
            if grid is not None and math.prod(grid) == length - dropped:
                return dropped, grid
        without = "without or with one class token" if self.class_tokens is None else f"without {self.class_tokens}"
        goal = f"the grid {self.grid}" if spatial is None else f"a grid such as the other side's {spatial}"
        raise ValueError(
            f"TokensToMap got {length} tokens, which {without} do not fill {goal}; give grid, and class_tokens where "
            "leading tokens belong to no place"
        )


def _infer_grid(count: int, spatial: Shape) -> Shape | None:
    """Return the grid of ``count`` tokens in proportion to another one, else an even one; None where neither is."""
    if count < 1 or not spatial:
        return None
    scale = (count / math.prod(spatial)) ** (1 / len(spatial))
    proportional = tuple(max(1, round(size * scale)) for size in spatial)
    if math.prod(proportional) == count:
        return proportional
    even = (round(count ** (1 / len(spatial))),) * len(spatial)
    return even if math.prod(even) == count else None


def _check_tokens(shape: Sequence[int]) -> None:
    if len(shape) != 3:
        raise ValueError(f"TokensToMap got {tuple(shape)}; tokens are (batch, number, channels)")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
