"""Scores of volumes under named protocols: the strict one of this package, and that of published tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from torch import Tensor

from monai_kd.metrics.cases import score_case, summarize

__all__ = ["PROTOCOLS", "score_volume", "summarize_volumes"]

# protocol: the key of its distances, which names their unit
PROTOCOLS = {"strict": "hd95_mm", "transunet": "hd95_voxels"}


def score_volume(
    pred: Tensor, label: Tensor, class_names: Sequence[str], spacing_mm: Sequence[float], protocol: str = "strict"
) -> dict[str, Any]:
    """Score one volume, class by class, background excluded, as a protocol has it.

    ==================================  =======================================  =================================
    class                               ``strict``                               ``transunet``
    ==================================  =======================================  =================================
    in prediction and label             Dice; HD95 in mm                         Dice; HD95 in voxels
    in the label alone (missed)         0; the diagonal of the image in mm       0; 0
    in the prediction alone             0; the diagonal of the image in mm       1; 0
    in neither                          no score                                 0; 0
    ==================================  =======================================  =================================

    HD95 of ``strict`` is the greater of the 95th percentiles of both directions' surface distances; ``transunet`` takes
    one percentile of both directions' distances together, and ignores the spacing though tables call it mm. There a
    missed class lowers the mean HD95 and a false alarm is perfect: use it to compare with published tables alone, and
    never beside ``strict`` in one table.

    Args:
        pred, label: one-hot ``(K, *spatial)``, channel 0 is background; whole volumes at their own size, not slices.
        class_names: K names, background first.
        spacing_mm: voxel size per spatial axis, mm.
        protocol: ``strict`` or ``transunet``.

    Returns:
        ``dice`` and ``hd95_mm`` or ``hd95_voxels``, each class to value, and the classes ``missed`` and
        ``false_positive``, as :func:`~monai_kd.metrics.score_case`, which is ``strict``.

    Raises:
        ValueError: an unknown protocol; shapes differ, or do not have one channel per class.

    Source: ``transunet`` is the code of Chen et al. 2021 (arXiv 2102.04306), which many papers on Synapse share, with
    the distances of medpy 0.4 and 0.5 for a voxel of 1.
    """
    distance = _distance_of(protocol)
    scores = score_case(pred, label, class_names, spacing_mm)
    if protocol == "strict":
        return scores
    del scores["hd95_mm"]
    scores[distance] = dict.fromkeys(scores["dice"], 0.0)
    for channel, name in enumerate(class_names[1:], start=1):
        if name in scores["false_positive"]:
            scores["dice"][name] = 1.0
        elif scores["dice"][name] is None or name in scores["missed"]:
            scores["dice"][name] = 0.0
        else:
            one, other = (_as_mask(volume[channel]) for volume in (pred, label))
            scores["dice"][name] = _dice(one, other)
            scores[distance][name] = _pooled_hd95(one, other)
    return scores


def summarize_volumes(
    cases: Sequence[Mapping[str, Any]], class_names: Sequence[str], protocol: str = "strict"
) -> dict[str, Any]:
    """Average scored volumes of one protocol per class, and over the classes.

    Returns:
        as :func:`~monai_kd.metrics.summarize`, under the protocol's own key of distances, with its name as
        ``protocol``. Each metric also has ``mean_of_cases``: the mean over the classes of a case, then over the cases.
        It is ``mean`` unless some classes have no score, as absent ones under ``strict``.

    Raises:
        ValueError: an unknown protocol, or cases that were scored under another one.
    """
    distance = _distance_of(protocol)
    if any(distance not in case for case in cases):
        raise ValueError(f"the cases have no '{distance}': score all of them with score_volume(..., '{protocol}')")
    summary = summarize([{**case, "hd95_mm": case[distance]} for case in cases], class_names)
    summary = {(distance if key == "hd95_mm" else key): value for key, value in summary.items()}
    for metric in ("dice", distance):
        known = [[value for value in case[metric].values() if value is not None] for case in cases]
        means = [float(np.mean(values)) for values in known if values]
        summary[metric]["mean_of_cases"] = float(np.mean(means)) if means else None
    return {"protocol": protocol, **summary}


def _distance_of(protocol: str) -> str:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def _as_mask(channel: Tensor) -> np.ndarray:
    mask: np.ndarray = channel.detach().cpu().numpy() > 0
    return mask


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice in float64: that of MONAI is rounded to float32."""
    return float(2.0 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))


def _pooled_hd95(one: np.ndarray, other: np.ndarray) -> float:
    """Return the 95th percentile, in voxels, of the distances of each surface to the other, taken together."""
    boxes = ndimage.find_objects((one | other).astype(np.int8))  # nothing outside has a part in it
    one, other = one[boxes[0]], other[boxes[0]]
    distances = [_surface_distances(one, other), _surface_distances(other, one)]
    return float(np.percentile(np.hstack(distances), 95))


def _surface_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the distance of each surface voxel of one to the nearest surface voxel of the other.

    A surface voxel has a neighbor across a face that is not of the object; beyond the image is not.
    """
    faces = ndimage.generate_binary_structure(one.ndim, 1)
    surface, target = (mask & ~ndimage.binary_erosion(mask, faces) for mask in (one, other))
    distances: np.ndarray = ndimage.distance_transform_edt(~target)[surface]
    return distances
