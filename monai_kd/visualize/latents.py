"""What a network makes of several views of the same samples: its latents in two dimensions, and numbers beside them.

A group holds one view of every sample: first the anchor, the sample as it is, then its changed copies, all in the same
order. Latents of two networks have no common axes, so each network is embedded alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_kd.visualize.curves import _grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["anchor_cosines", "embed_latents", "latents_figure", "sample_cosine", "view_silhouette"]

Groups = Mapping[str, ArrayLike]

_MOST_DIMS = 50  # that t-SNE gets
# of a palette that color-blind readers tell apart (Okabe and Ito 2008); the anchor's is the dark one
_COLORS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442")
_MARKERS = "o^sDvP"


def embed_latents(groups: Groups, seed: int = 0, perplexity: float = 30.0) -> dict[str, NDArray[np.float64]]:
    """Embed groups of latents of one network together in two dimensions, by t-SNE.

    All latents are brought to at most 50 principal components first, whose common scale is then divided out. Which
    points are near each other means something; far distances, sizes and directions do not. The same arguments give the
    same points on one machine: computed in one thread, since sums over several come in any order.

    Args:
        groups: name to latents ``(n, ...)``, all of one shape behind the first axis, which is flattened.
        seed: of t-SNE's start, >= 0: the first two components and a tenth of noise. Other seeds tell what is chance.
        perplexity: about how many neighbors count, at least 1 and at most a third of the other latents.

    Returns:
        Name to points ``(n, 2)``, in the order given.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: no group, other shapes, numbers that are not finite, latents that are all the same, or a perplexity
            that is out of its range.

    Source: van der Maaten and Hinton 2008, by scikit-learn.
    """
    manifold = _scikit_learn("manifold")
    samples = _checked(groups)
    count = sum(map(len, samples.values()))
    if not 1 <= perplexity <= (count - 1) / 3:
        raise ValueError(
            f"perplexity is {perplexity:g} for {count} latents; give 1 to {(count - 1) / 3:.3g}, a third of the others"
        )
    with _one_thread():
        components = _principal(samples)
        tsne = manifold.TSNE(n_components=2, perplexity=perplexity, init=_start(components, seed))
        points = np.asarray(tsne.fit_transform(components), dtype=np.float64)
    return dict(zip(samples, _parted(points, samples), strict=True))


def view_silhouette(groups: Groups) -> float:
    """Return how far the groups of one network stand apart from each other: the mean silhouette of all latents.

    1 where each group is a tight cluster of its own, 0 where groups lie in each other, below 0 where most latents are
    nearer to another group than to their own. By Euclidean distances of what :func:`embed_latents` gives to t-SNE.

    Args:
        groups: as for :func:`embed_latents`, at least two.

    Raises:
        ImportError, ValueError: as there, or there is one group alone.
    """
    metrics = _scikit_learn("metrics")
    samples = _checked(groups)
    if len(samples) < 2:
        raise ValueError(f"there is one group alone, '{next(iter(samples))}'; a silhouette compares several")
    owners = np.repeat(np.arange(len(samples)), [len(values) for values in samples.values()])
    with _one_thread():
        return float(metrics.silhouette_score(_principal(samples), owners))


def anchor_cosines(groups: Groups) -> dict[str, float]:
    """Return the cosine of each view with the anchor, the first group, mean over samples: what a star graph compares.

    1 is complete invariance. That alone tells little: latents that are all alike have it too, so hold it against
    :func:`sample_cosine`. A latent of zeros has cosine 0.

    Args:
        groups: as for :func:`embed_latents`, with the same samples in the same order.

    Raises:
        ValueError: as there, or groups of different length.
    """
    samples = _checked(groups)
    _check_lengths(samples)
    name, *views = samples
    anchor = samples[name]
    return {view: float(_cosines(anchor, samples[view]).mean()) for view in views}


def sample_cosine(latents: ArrayLike) -> float:
    """Return the cosine of two different samples, mean over all pairs: what views have for no reason of their own.

    Args:
        latents: ``(n, ...)`` of one view, n at least 2.

    Raises:
        ValueError: fewer samples, or numbers that are not finite.
    """
    (values,) = _checked({"latents": latents}).values()
    if len(values) < 2:
        raise ValueError("there is one sample alone; give two or more")
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    units = values / np.where(norms > 0, norms, 1.0)
    pairs = np.triu_indices(len(values), k=1)
    return float((units @ units.T)[pairs].mean())


def latents_figure(
    panels: Mapping[str, Groups],
    domains: Sequence[str] | None = None,
    title: str = "",
    seed: int = 0,
    perplexity: float = 30.0,
) -> Figure:
    """Draw the latents of several networks, a panel each and a color for each view.

    Above each panel stand :func:`view_silhouette`, the mean of :func:`anchor_cosines` and the anchor's
    :func:`sample_cosine`, of the latents and not of their points, so that the picture can be held against numbers. Axes
    have no unit and are not those of other panels.

    Args:
        panels: name of the network to its groups, the same ones in each: the anchor first, then its views, each with
            the same samples in the same order. 2 to 8 groups.
        domains: of each sample, drawn as the shape of its points; at most 6 different ones. None draws dots.
        title: line above the figure.
        seed, perplexity: see :func:`embed_latents`.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: no panel, panels with other groups, too many groups or domains, or as for :func:`embed_latents`.
    """
    checked = {name: _checked(groups) for name, groups in panels.items()}
    names = _check_panels(checked)
    shapes = _shapes(domains, {name: len(groups[names[0]]) for name, groups in checked.items()})
    figure, axes = _grid(len(checked), title, height=3.7)
    for panel, (name, groups) in zip(axes, checked.items(), strict=True):
        _draw_points(panel, embed_latents(groups, seed, perplexity), domains, shapes)
        panel.set_title(name, loc="left", fontsize=10, fontweight="bold", pad=18)
        panel.text(0.0, 1.02, _numbers(groups), transform=panel.transAxes, fontsize=8, color="#374151")
    _legend(figure, names, shapes)
    return figure


# ---- numbers --------------------------------------------------------------------------------------------------------


def _checked(groups: Groups) -> dict[str, NDArray[np.float64]]:
    """Return the groups as ``(n, numbers)``, or say what does not fit."""
    if not groups:
        raise ValueError("groups is empty; give latents by name, the anchor's first")
    samples, shape = {}, None
    for name, latents in groups.items():
        values = np.asarray(latents, dtype=np.float64)
        if values.ndim < 2 or not values.size:
            raise ValueError(f"group '{name}' has the shape {values.shape}; give latents (n, ...)")
        shape = values.shape[1:] if shape is None else shape
        if values.shape[1:] != shape:
            raise ValueError(f"group '{name}' has latents {values.shape[1:]}, the first group {shape}; give one shape")
        bad = int((~np.isfinite(values)).reshape(len(values), -1).any(axis=1).sum())
        if bad:
            raise ValueError(f"group '{name}': {bad} of {len(values)} latents hold numbers that are not finite")
        samples[name] = values.reshape(len(values), -1)
    return samples


def _check_lengths(samples: Mapping[str, NDArray[np.float64]]) -> None:
    lengths = {name: len(values) for name, values in samples.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"groups have {lengths} latents; each holds one view of the same samples")


def _principal(samples: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return all latents by their principal components, the first with standard deviation 1."""
    together = np.concatenate(list(samples.values()))
    if not np.ptp(together, axis=0).any():
        raise ValueError(f"all {len(together)} latents are the same: there is nothing to embed")
    left, sizes, _ = np.linalg.svd(together - together.mean(axis=0), full_matrices=False)
    components: NDArray[np.float64] = (left * sizes)[:, :_MOST_DIMS]
    return components / components[:, 0].std()


def _start(components: NDArray[np.float64], seed: int) -> NDArray[np.float32]:
    """Return where t-SNE begins, ``(n, 2)``: as near to 0 as a random start, but with the data's coarse order."""
    points = 0.1 * np.random.default_rng(seed).standard_normal((len(components), 2))
    wide = components[:, :2]
    points[:, : wide.shape[1]] += wide
    return (1e-4 * points).astype(np.float32)


def _parted(points: NDArray[np.float64], samples: Mapping[str, NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    return np.split(points, np.cumsum([len(values) for values in samples.values()])[:-1])


def _cosines(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: NDArray[np.float64] = (one * other).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    return found


def _scikit_learn(part: str) -> Any:
    from monai.utils import optional_import

    module, found = optional_import(f"sklearn.{part}")
    if not found:
        raise ImportError("pictures of latents need scikit-learn: pip install 'monai_kd[latents]'")
    return module


def _one_thread() -> Any:
    from monai.utils import optional_import

    limits, _ = optional_import("threadpoolctl", name="threadpool_limits")  # scikit-learn brings it
    return limits(limits=1)


# ---- the picture ----------------------------------------------------------------------------------------------------


def _check_panels(panels: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> list[str]:
    """Return the names of the groups, which all panels share."""
    if not panels:
        raise ValueError("panels is empty; give the groups of at least one network")
    names = list(next(iter(panels.values())))
    for panel, groups in panels.items():
        if list(groups) != names:
            raise ValueError(f"panel '{panel}' has the groups {list(groups)}, the first one {names}; give the same")
        _check_lengths(groups)
    if not 2 <= len(names) <= len(_COLORS):
        raise ValueError(f"there are {len(names)} groups; give the anchor and 1 to {len(_COLORS) - 1} views")
    return names


def _shapes(domains: Sequence[str] | None, lengths: Mapping[str, int]) -> dict[str, str]:
    """Return the marker of each domain; none without domains."""
    if domains is None:
        return {}
    for panel, length in lengths.items():
        if len(domains) != length:
            raise ValueError(f"domains names {len(domains)} samples, panel '{panel}' has {length}")
    names = list(dict.fromkeys(domains))
    if len(names) > len(_MARKERS):
        raise ValueError(f"domains names {len(names)} domains; {len(_MARKERS)} can be told apart")
    return dict(zip(names, _MARKERS, strict=False))


def _numbers(groups: Mapping[str, NDArray[np.float64]]) -> str:
    cosine = float(np.mean(list(anchor_cosines(groups).values())))
    others = sample_cosine(next(iter(groups.values())))
    return f"silhouette {view_silhouette(groups):+.3f}, cosine {cosine:.3f} (samples {others:.3f})"


def _draw_points(
    axes: Axes, points: Mapping[str, NDArray[np.float64]], domains: Sequence[str] | None, shapes: Mapping[str, str]
) -> None:
    for color, places in zip(_COLORS, points.values(), strict=False):
        for marker, chosen in _chosen(domains, shapes):
            x, y = places[chosen].T
            axes.scatter(x, y, s=16, color=color, marker=marker, alpha=0.75, edgecolors="white", linewidths=0.3)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")


def _chosen(domains: Sequence[str] | None, shapes: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield each marker and which samples have it."""
    if domains is None:
        yield _MARKERS[0], slice(None)
    for domain, marker in shapes.items():
        yield marker, [name == domain for name in domains or ()]


def _legend(figure: Figure, names: Sequence[str], shapes: Mapping[str, str]) -> None:
    from monai.utils import optional_import

    line, _ = optional_import("matplotlib.lines", name="Line2D")
    dot: dict[str, Any] = {"linestyle": "", "markersize": 6, "markeredgewidth": 0}
    entries = [
        line([], [], marker="o", color=color, label=name, **dot) for name, color in zip(names, _COLORS, strict=False)
    ]
    entries += [line([], [], marker=marker, color="#9ca3af", label=name, **dot) for name, marker in shapes.items()]
    widest = max(len(entry.get_label()) for entry in entries)
    columns = max(1, int(figure.get_size_inches()[0] / (0.5 + 0.08 * widest)))  # inches, at 9 points
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0.0, 0.0, 1.0, 1.0))  # a legend that is outside, of one row or more, makes its own room
    figure.legend(
        handles=entries, loc="outside lower center", ncols=min(columns, len(entries)), frameon=False, fontsize=9
    )
