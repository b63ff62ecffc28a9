"""Wiring that needs shapes: which stage of the student meets which of the teacher's, and the weights of adapters."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from monai_kd.distillers.stages import Stage, feature_shapes, measured_stages
from monai_kd.distillers.taps import FeatureTaps
from monai_kd.distillers.term import Term

__all__ = ["pair_stages"]


def pair_stages(student: Sequence[Stage], teacher: Sequence[Stage]) -> list[tuple[int, int]]:
    """Return for each of the student's stages, by number, the teacher's that has the nearest stride.

    Among equally near ones the same side of the U wins (encoder, bottleneck, decoder), then the decoder. One of the
    teacher's stages may serve several of the student's.
    """
    numbers = range(len(teacher))
    return [(k, min(numbers, key=lambda n, own=own: _distance(own, teacher[n]))) for k, own in enumerate(student)]  # type: ignore[misc]


def pair_terms(
    terms: Mapping[str, Term], networks: Mapping[str, nn.Module], input_shape: Sequence[int] | None
) -> dict[str, torch.Size]:
    """Replace the ``*`` in the addresses of terms by stages: to each of the student's the nearest of the target's.

    Returns:
        The shape of every view that was measured for it, by address.

    Raises:
        ValueError: no ``input_shape``, a ``*`` on the student's side only or one that matches no stage, or tokens;
            names the term.
    """
    patterns = {name: term for name, term in terms.items() if any("*" in address for address in term.addresses)}
    if not patterns:
        return {}
    if input_shape is None:
        raise ValueError(f"terms {list(patterns)} read stages by '*': give input_shape, e.g. [1, C, *patch_size]")
    read = _owners(patterns.values())
    measured = {name: measured_stages(network, input_shape) for name, network in networks.items() if name in read}
    stages = {name: found for name, (found, _) in measured.items()}
    for name, term in patterns.items():
        sides = [[side] if isinstance(side, str) else side for side in (term.student, term.target)]
        if not any("*" in address for address in sides[1]):
            raise ValueError(
                f"term '{name}' has a '*' on the student's side only, student {term.student!r} and target "
                f"{term.target!r}: the target's stages are found by its '*'"
            )
        try:
            student, target = (_matching(side, stages) for side in sides)
        except ValueError as error:
            raise ValueError(f"term '{name}': {error}") from None
        if tokens := [address for address, stage in (*student.items(), *target.items()) if not stage.stride]:
            raise ValueError(
                f"term '{name}': {tokens} are tokens without a stride; name them, with the adapter TokensToMap"
            )
        pairs = pair_stages(list(student.values()), list(target.values()))
        term.student = [list(student)[own] for own, _ in pairs]
        term.target = [list(target)[other] for _, other in pairs]
    return {f"{name}/{view}": shape for name, (_, shapes) in measured.items() for view, shape in shapes.items()}


def build_adapters(
    terms: Mapping[str, Term],
    networks: Mapping[str, nn.Module],
    taps: Mapping[str, FeatureTaps],
    input_shape: Sequence[int] | None,
    known: Mapping[str, torch.Size],
) -> None:
    """Give lazy adapters their weights, from the shapes of one forward pass; random numbers go on as without them.

    Args:
        known: shapes that were measured before, by address; a network all of whose views are known does not run.

    Raises:
        ValueError: no ``input_shape``, or features that an adapter cannot bring together; names the term.
    """
    lazy = {name: term for name, term in terms.items() if term.unbuilt}
    if not lazy:
        return
    if input_shape is None:
        raise ValueError(
            f"adapters of the terms {list(lazy)} take their shapes from the features they meet: give input_shape, "
            "e.g. [1, C, *patch_size]"
        )
    shapes = dict(known)
    unknown = _owners(lazy.values(), without=shapes)
    for name, network in networks.items():
        if name in unknown:
            found = feature_shapes(network, taps[name], input_shape)
            shapes.update({f"{name}/{view}": shape for view, shape in found.items()})
    with torch.random.fork_rng():  # data and other terms draw what they would draw without this one
        for name, term in lazy.items():
            sides = [side if isinstance(side, list) else [side] for side in (term.student, term.target)]
            if missing := [address for side in sides for address in side if address not in shapes]:
                raise ValueError(f"term '{name}' has an adapter, but no network gives {missing}; known: {list(shapes)}")
            try:
                term.build(shapes)
            except ValueError as error:
                raise ValueError(f"adapter of term '{name}': {error}") from error


def _owners(terms: Iterable[Term], without: Container[str] = ()) -> set[str]:
    """Return the networks whose views terms read, leaving out some addresses."""
    return {address.partition("/")[0] for term in terms for address in term.addresses if address not in without}


def _matching(addresses: Sequence[str], stages: Mapping[str, Sequence[Stage]]) -> dict[str, Stage]:
    """Return the stages that a list of addresses names, in the order given, each once.

    ``student/decoder_*:-1`` is the last decoder stage, however many there are.
    """
    found: dict[str, Stage] = {}
    for entry in addresses:
        network, _, stated = entry.partition("/")
        pattern, is_one, place = stated.partition(":")
        own = stages.get(network, [])
        matching = [stage for stage in own if fnmatchcase(stage.name, pattern)]
        if is_one and matching:
            matching = [matching[_place(place, len(matching), entry)]]
        if not matching:
            known = ", ".join(f"{network}/{stage.name}" for stage in own) or (
                f"none of '{network}', whose class is not known: name its modules in taps, without '*'"
            )
            raise ValueError(f"'{entry}' matches no stage; stages: {known}")
        for stage in matching:
            found.setdefault(f"{network}/{stage.name}", stage)
    return found


def _place(text: str, number: int, entry: str) -> int:
    """Return which of so many stages an address names behind its colon."""
    try:
        place = int(text)
    except ValueError:
        raise ValueError(f"'{entry}' has '{text}' behind the colon; give a number, -1 for the last stage") from None
    if not -number <= place < number:
        raise ValueError(f"'{entry}' asks for stage {place} of {number}; they count from 0, or backwards from -1")
    return place


def _distance(own: Stage, other: Stage) -> tuple[float, bool, bool]:
    if len(own.stride) != len(other.stride) or not own.stride:
        return math.inf, True, True
    ratio = sum(abs(math.log2(a / b)) for a, b in zip(own.stride, other.stride, strict=True)) / len(own.stride)
    return round(ratio, 3), _side(own) != _side(other), _side(other) != "decoder"


def _side(stage: Stage) -> str:
    return stage.name.rpartition(".")[2].partition("_")[0]  # what follows the member of an ensemble
