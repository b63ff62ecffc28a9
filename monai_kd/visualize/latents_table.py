"""The tables of what distillation does to latents, from docs/results/gkd/latents.json alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_kd.visualize.measured import measured_markdown

__all__ = ["latents_markdown", "latents_table"]


def latents_table(path: str | Path) -> str:
    """Return the Markdown tables of what ``benchmarks/gkd_latents.py`` measured; a sentence if there is no record.

    Args:
        path: the JSON file.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    return measured_markdown(path, "latents", latents_markdown)


def latents_markdown(record: Mapping[str, Any]) -> str:
    """Return the tables of one record, views and domains, and their notes."""
    networks, views, targets = record["networks"], record["views"], record["targets"]
    heads = ["network", *(f"cosine, {view}" for view in views), "of samples", "silhouette of views", "bottleneck"]
    of_views = _table(heads, ([name, *_view_cells(found, views)] for name, found in networks.items()))
    heads = ["network", *(head for target in targets for head in (f"FSD, {target}", "relative", "by chance"))]
    of_domains = _table(heads, ([name, *_domain_cells(found, targets)] for name, found in networks.items()))
    notes = (_view_notes(record), _domain_notes(record))
    return "\n\n".join("\n".join([*table, "", *own]) for table, own in zip((of_views, of_domains), notes, strict=True))


def _view_cells(found: Mapping[str, Any], views: Sequence[str]) -> Iterator[str]:
    yield from (f"{found['cosine'][view]:.3f}" for view in views)
    yield f"{found['sample_cosine']:.3f}"
    yield f"{found['silhouette']:+.3f}"
    yield f"{found['reliance']:.2g}"


def _domain_cells(found: Mapping[str, Any], targets: Sequence[str]) -> Iterator[str]:
    for target in targets:
        distance = found["fsd"][target]
        yield f"{distance['value']:.4g}"
        yield f"{distance['relative']:.3f}"
        yield f"{distance['by_chance']:.3f}"


def _view_notes(record: Mapping[str, Any]) -> Iterator[str]:
    source, (height, width) = record["source"], record["patch_size"]
    channels, length = record["latent"]
    yield (
        f"- {record['patches'][source]} patches of {height} x {width} pixels of {record['photographs'][source]} test "
        f"photographs of {source}, each as it is and in {len(record['views'])} views (seed {record['seed']}). Latents "
        f"of {channels} x {length} numbers. One training of each network; students before and after share the "
        "alignment network of the first."
    )
    yield (
        "- Cosine: of a patch and its view, mean over patches; of samples: of two different patches. Silhouette: 1 "
        "where each view is a cluster of its own, 0 or less where views lie in each other. Bottleneck: divergence of "
        "the prediction from that without the bottleneck (its mean in place), nats per pixel; near 0 the network "
        "segments by its skip connections, and latents say little of what it finds."
    )


def _domain_notes(record: Mapping[str, Any]) -> Iterator[str]:
    counts = [
        f"{name} {patches} patches of {record['photographs'][name]} photographs"
        for name, patches in record["patches"].items()
    ]
    yield (
        f"- FSD: Frechet semantic distance between the latents of {record['source']} and of the other camera, in "
        "squared units of the latents, which differ from network to network; lower depends less on the camera. "
        f"Relative: over the variance of the source's latents. {'; '.join(counts)}."
    )
    yield (
        "- By chance: the relative distance of two sets of the same sizes that hold patches of both cameras at random, "
        f"mean of {record['chance_rounds']}. With few patches it is far from 0, and what counts is above it."
    )


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (titles, rule, *rows)]
