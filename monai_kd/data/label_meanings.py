"""What the values of a brain tumor's label mean: data sets number the same tissues differently."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_kd.data.dataset_json import label_names

__all__ = ["check_label_meanings", "compare_label_meanings", "meaning_of"]

_logger = logging.getLogger("monai_kd")
# in this order: "surrounding non-enhancing FLAIR hyperintensity" is edema, and "non-enhancing core" does not enhance
_PATTERNS = (
    ("edema", r"o?edema|\bed\b|\bsnfh\b|flair hyperintens"),
    ("resection_cavity", r"resect|cavity|\brc\b"),
    ("necrotic_core", r"necro|non ?enhanc|\bncr\b|\bnetc?\b"),
    ("enhancing_tumor", r"enhanc|\bet\b"),
    ("necrotic_core", r"\bcore\b"),
)


def meaning_of(name: str) -> str:
    """Return the tissue that a class name of the BraTS challenges or of MSD means, or an empty text.

    One of ``edema``, ``necrotic_core`` (which the non-enhancing core counts to), ``enhancing_tumor`` and
    ``resection_cavity``: ``"NCR/NET"`` -> ``necrotic_core``.
    """
    words = re.sub(r"[\W_]+", " ", name.casefold())
    return next((meaning for meaning, pattern in _PATTERNS if re.search(pattern, words)), "")


def check_label_meanings(label_meanings: Mapping[str, Sequence[float]]) -> None:
    """Raise unless every name means a known tissue, each another one, and no value is given twice."""
    tissues = [meaning_of(name) for name in label_meanings]
    if not all(tissues) or len(set(tissues)) < len(tissues):
        raise ValueError(
            f"label_meanings names {list(label_meanings)}; give each once, of "
            f"{', '.join(dict.fromkeys(meaning for meaning, _ in _PATTERNS))}"
        )
    if not all(isinstance(values, Sequence) and values for values in label_meanings.values()):
        raise ValueError(f"label_meanings is {dict(label_meanings)}; give each name a list of label values")
    values = [value for given in label_meanings.values() for value in given]
    if len(set(values)) < len(values) or 0 in values:
        raise ValueError(f"label_meanings is {dict(label_meanings)}; a value means one thing, and 0 is the background")


def compare_label_meanings(path: Path, label_meanings: Mapping[str, Sequence[float]]) -> None:
    """Compare the names in ``labels`` of a ``dataset.json`` with what a configuration takes the values for.

    Args:
        path: the file; where there is none, or it names no labels, there is nothing to compare.
        label_meanings: name of a tissue to its label values, e.g. ``{"edema": [2], "enhancing_tumor": [3, 4]}``.

    Raises:
        ValueError: the file says otherwise; the message says what to pass. A name that means no known tissue is a
            warning.
    """
    listed = {value: name for value, name in label_names(path).items() if value != 0}
    by_tissue: dict[str, list[float]] = {}
    for value, name in listed.items():
        by_tissue.setdefault(meaning_of(name), []).append(value)
    if unknown := by_tissue.pop("", []):
        _logger.warning(
            "%s names the labels %s; what %s mean is not clear from it, and taken from label_meanings %s",
            path,
            listed,
            unknown,
            dict(label_meanings),
        )
    own = {meaning_of(name): name for name in label_meanings}
    right = {}  # of the names whose values differ
    for tissue, name in own.items():
        stated = by_tissue.get(tissue, [])
        claimed = {value for other, values in by_tissue.items() if other != tissue for value in values}
        if not set(stated) <= set(label_meanings[name]) or claimed & set(label_meanings[name]):
            right[name] = stated or [value for value in label_meanings[name] if value not in claimed]
    right |= {tissue: values for tissue, values in by_tissue.items() if tissue not in own}
    if right:
        options = " ".join(f'--label_meanings::{name} "{_values(values)}"' for name, values in right.items())
        raise ValueError(
            f"'{path}' has the labels {listed}, this configuration takes {dict(label_meanings)}: a network would learn "
            f"one tissue for another; pass {options}"
        )


def _values(values: Sequence[float]) -> str:
    return "[" + ",".join(f"{value:g}" for value in values) + "]"
