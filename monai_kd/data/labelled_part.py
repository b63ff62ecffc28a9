"""Which training cases keep their labels: a drawn part of the patients, the rest is there for distillation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from monai_kd.data.case_names import case_id
from monai_kd.data.patients import case_patients

__all__ = ["labelled_part"]

Case = dict[str, Any]


def labelled_part(cases: Sequence[Case], fraction: float, seed: int = 0, keep_unlabelled: bool = False) -> list[Case]:
    """Return cases with a flag ``labelled``, 1 for those of a drawn part of the patients and 0 for the others.

    Patients are ranked by a hash of seed and name, whatever the order of the cases; a larger fraction holds the cases
    of a smaller one, and a case that is left out changes little. All cases of a patient (of one ``group``, where cases
    have one) share their flag.

    Args:
        cases: as :meth:`CaseSplit.cases` gives them.
        fraction: of the patients, above 0 to 1; rounded up.
        seed: of the draw.
        keep_unlabelled: whether the others are returned too. Their labels stay in the files; a loss that reads the flag
            does not look at them (:class:`monai_kd.losses.OnLabelled`).

    Returns:
        The cases in their order.

    Raises:
        ValueError: a fraction out of range, or no case.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction!r}; it must be above 0 and at most 1, e.g. 0.5 for half of the labels")
    if not cases:
        raise ValueError("there is no case to draw a labelled part from")
    names = [case_id(case["image"]) for case in cases]
    groups: dict[str, list[str]] = {}
    for name, case in zip(names, cases, strict=True):
        if "group" in case:
            groups.setdefault(str(case["group"]), []).append(name)
    patients = case_patients(names, "", groups.values())
    first: dict[str, str] = {}  # case of each patient, by name
    for name in sorted(names):
        first.setdefault(patients[name], name)
    ranked = sorted(first, key=lambda patient: _rank(seed, first[patient]))
    chosen = set(ranked[: math.ceil(fraction * len(ranked) - 1e-9)])  # 0.07 * 100 is 7.000000000000001
    flags = [int(patients[name] in chosen) for name in names]
    return [{**case, "labelled": flag} for case, flag in zip(cases, flags, strict=True) if flag or keep_unlabelled]


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
