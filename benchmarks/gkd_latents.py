"""What distillation does to latents: how they follow views of a photograph, and how far two cameras are apart.

    python benchmarks/gkd_latents.py [--bundle bundles/gkd] [--seed 0] [--further augmentation=PATH ...]

Takes the networks, views and preprocessing from the bundle's train.yaml, and the weights of its stages: the teacher,
the student from scratch (before), the distilled one (after), and the alignment networks, of which the student's is that
of the student from scratch, before and after. MONAI_KD_DATA is the folder of the photographs and of splits/retina.json.

Patches lie side by side on a grid over the field of view; those count that lie in it by half or more and show a vessel.
They come from the test photographs of the source and from all photographs of the targets, which are measured once and
choose nothing.

Writes docs/results/gkd/latents.png, the source's patches and their views in two dimensions, and latents.json, from
which the tables in the documents are made. One CPU core: about a minute and 0.8 GB. Needs monai_kd[latents,report].
"""

from __future__ import annotations

import argparse
import copy
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bundle_runs import REPOSITORY
from measurements import publish
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import Tensor

from monai_kd.data import target_dirs
from monai_kd.handlers.provenance import environment, file_sha256
from monai_kd.metrics import bottleneck_reliance, frechet_semantic_distance
from monai_kd.teachers import load_weights
from monai_kd.transforms import PhotometricViewsd, ResizeFieldOfViewd
from monai_kd.visualize import anchor_cosines, latents_figure, sample_cosine, save_figure, view_silhouette
from monai_kd.visualize.latents_table import latents_markdown

RESULTS = REPOSITORY / "docs" / "results" / "gkd"
BEFORE, AFTER = "student before", "student after"
LEAST_FIELD = 0.5  # of a patch
CHANCE_ROUNDS = 20
# what views are called by the first transform that makes them
VIEW_NAMES = {
    "RandAdjustContrast": "contrast",
    "RandGaussianNoise": "noise",
    "RandGaussianSmooth": "blur",
    "RandBiasField": "bias field",
}

Case = Mapping[Hashable, Any]


class Aligned(NamedTuple):
    """A network with ``encode`` and the alignment network of its features."""

    network: Any
    alignment: Any


class Cut(NamedTuple):
    """Patches ``(n, 1, H, W)`` of a domain, and of how many photographs they are."""

    patches: Tensor
    photographs: int


# ---- patches --------------------------------------------------------------------------------------------------------


def grid_corners(field: Tensor, patch_size: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the corners of patches side by side, in the middle of a field of view ``(H, W)``.

    Raises:
        ValueError: the image is smaller than a patch.
    """
    places, starts = field.nonzero(), []
    for axis, (size, edge) in enumerate(zip(field.shape, patch_size, strict=True)):
        if size < edge:
            raise ValueError(f"an image of {tuple(field.shape)} pixels holds no patch of {tuple(patch_size)}")
        first, end = int(places[:, axis].min()), int(places[:, axis].max()) + 1
        count = min(size // edge, max(1, round((end - first) / edge)))
        start = min(max(0, (first + end - count * edge) // 2), size - count * edge)
        starts.append([start + number * edge for number in range(count)])
    return list(product(*starts))


def usable_patches(image: Tensor, label: Tensor, field: Tensor, patch_size: Sequence[int]) -> list[Tensor]:
    """Return the patches of an image ``(C, H, W)`` that lie in the field of view by half and show a vessel.

    Args:
        image, label, field: of one size; label and field ``(1, H, W)``, 0 and 1.

    Raises:
        ValueError: other sizes, or an image smaller than a patch.
    """
    if not image.shape[1:] == label.shape[1:] == field.shape[1:]:
        sizes = [tuple(each.shape[1:]) for each in (image, label, field)]
        raise ValueError(f"image, label and field of view have {sizes} pixels; bring them to one grid")
    found = []
    for corner in grid_corners(field[0], patch_size):
        place = (slice(None), *(slice(start, start + edge) for start, edge in zip(corner, patch_size, strict=True)))
        if field[place].mean() >= LEAST_FIELD and label[place].any():
            found.append(image[place])
    return found


def spread_evenly(counts: Sequence[int], limit: int, seed: int) -> list[tuple[int, int]]:
    """Choose (photograph, patch) so that all photographs give as many, as far as they have them; at random in each.

    Args:
        counts: patches of each photograph.
        limit: most that are chosen.
    """
    rng = np.random.default_rng(seed)
    ranked = [
        (rank, photograph, int(patch))
        for photograph, count in enumerate(counts)
        for rank, patch in enumerate(rng.permutation(count))
    ]
    return sorted((photograph, patch) for _, photograph, patch in sorted(ranked)[:limit])


def cut_patches(
    cases: Iterable[Case], prepare: Callable[[Case], Any], patch_size: Sequence[int], limit: int, seed: int
) -> Cut:
    """Return patches of a domain.

    Args:
        cases: of :func:`monai_kd.data.image_mask_cases`.
        prepare: gives ``image``, ``label`` and ``fov`` of a case on one grid.

    Raises:
        ValueError: no patch can be used.
    """
    found = []
    for case in cases:
        prepared = prepare(case)
        image, label, field = (torch.as_tensor(prepared[key]) for key in ("image", "label", "fov"))
        found.append(usable_patches(image, label, field, patch_size))
    chosen = spread_evenly([len(patches) for patches in found], limit, seed)
    if not chosen:
        raise ValueError(f"none of {len(found)} photographs has a patch with a vessel in its field of view")
    patches = torch.stack([found[photograph][patch] for photograph, patch in chosen])
    return Cut(patches.float(), len({photograph for photograph, _ in chosen}))


def make_views(patches: Tensor, transforms: Sequence[Any], seed: int) -> Tensor:
    """Return patches ``(n, C, H, W)`` as they are and in N views, ``(n, 1 + N, C, H, W)``."""
    views = PhotometricViewsd("image", "views", transforms).set_random_state(seed)
    return torch.stack([torch.cat([patch[None], views({"image": patch})["views"]]) for patch in patches])


def view_names(transforms: Iterable[Any]) -> list[str]:
    """Return a name for each view, the class of its transform where it has none; several of a kind are numbered."""
    names, seen = [], Counter[str]()
    for transform in transforms:
        first = transform.transforms[0] if isinstance(transform, Compose) else transform
        name = VIEW_NAMES.get(type(first).__name__, type(first).__name__)
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return names


# ---- latents --------------------------------------------------------------------------------------------------------


def latents_of(aligned: Aligned, views: Tensor, batch_size: int = 32) -> Tensor:
    """Return the latents ``(n, V, D, L)`` of images ``(n, V, C, H, W)``, in evaluation mode."""
    aligned.network.eval()
    aligned.alignment.eval()
    with torch.inference_mode():
        found = [
            aligned.alignment.encode(aligned.network.encode(part)[0]) for part in views.flatten(0, 1).split(batch_size)
        ]
    return torch.cat(found).unflatten(0, views.shape[:2])


def measure(source: Tensor, targets: Mapping[str, Tensor], views: Sequence[str], seed: int) -> dict[str, Any]:
    """Return what is recorded of one network.

    Args:
        source: latents ``(n, 1 + N, D, L)`` of the source's patches and of their views.
        targets: latents ``(n, 1, D, L)`` of each target's patches, by its name.
        views: N names.
    """
    groups, anchors = by_view(source, views), source[:, 0]
    variance = float(anchors.flatten(1).double().var(dim=0).sum())
    return {
        "cosine": anchor_cosines(groups),
        "sample_cosine": sample_cosine(anchors.numpy()),
        "silhouette": view_silhouette(groups),
        "source_variance": variance,
        "fsd": {name: distance(anchors, latents[:, 0], variance, seed) for name, latents in targets.items()},
    }


def by_view(latents: Tensor, views: Sequence[str]) -> dict[str, Any]:
    """Return latents ``(n, 1 + N, D, L)`` as arrays ``(n, D, L)`` by the name of the view."""
    return {name: each.numpy() for name, each in zip(["anchor", *views], latents.unbind(1), strict=True)}


def distance(source: Tensor, target: Tensor, variance: float, seed: int) -> dict[str, float]:
    """Return the Frechet semantic distance of two sets of latents, also over ``variance``, and what chance gives."""
    value, together = frechet_semantic_distance(source, target), torch.cat([source, target])
    generator, mixed = torch.Generator().manual_seed(seed), []
    for _ in range(CHANCE_ROUNDS):
        order = torch.randperm(len(together), generator=generator)
        one, other = together[order].split([len(source), len(target)])
        mixed.append(frechet_semantic_distance(one, other))
    return {"value": value, "relative": value / variance, "by_chance": sum(mixed) / len(mixed) / variance}


# ---- the bundle -----------------------------------------------------------------------------------------------------


def read_bundle(bundle: Path) -> ConfigParser:
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / "train.yaml"))
    config["bundle_root"] = str(bundle)
    return config


def weight_files(config: ConfigParser, arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the file of each network's weights, those of further students last."""
    ids = {"teacher": "teacher_path", BEFORE: "scratch_path", "alignment": "alignment_path"}
    given = {"teacher": arguments.teacher, BEFORE: arguments.scratch, "alignment": arguments.alignment}
    files = {name: given[name] or Path(config.get_parsed_content(key)) for name, key in ids.items()}
    if twice := [name for name, count in Counter(name for name, _ in arguments.further).items() if count > 1]:
        raise ValueError(f"--further names '{twice[0]}' twice")
    files[AFTER] = arguments.student or Path(config.get_parsed_content("ckpt_dir")) / "model.pt"
    return {**files, **dict(arguments.further)}


def load_networks(config: ConfigParser, files: Mapping[str, Path]) -> dict[str, Aligned]:
    """Return the teacher and all students, in the order of the tables."""
    alignments: Any = load_weights(config.get_parsed_content("aligned_def"), files["alignment"])
    teacher = load_weights(config.get_parsed_content("teacher_def"), files["teacher"])
    student = config.get_parsed_content("network_def")
    students = {
        name: Aligned(load_weights(copy.deepcopy(student), file), alignments["scratch"])
        for name, file in files.items()
        if name not in ("teacher", "alignment")
    }
    return {"teacher": Aligned(teacher, alignments["teacher"]), **students}


def domain_cases(config: ConfigParser) -> dict[str, list[Case]]:
    """Return the source's test photographs, then all photographs of each target that the split file names."""
    split, list_cases = (config.get_parsed_content(key) for key in ("split", "list_cases"))
    targets = target_dirs(split.split_file)
    cases = {Path(split.dataset_dir).name: split.cases("test")}
    return {**cases, **{name.partition("/")[0]: list_cases(folder) for name, folder in targets.items()}}


def preparation(config: ConfigParser) -> Compose:
    """Return the bundle's preprocessing of validation, which leaves label and field of view in the pixels of their
    files, and what brings these to the image's grid."""
    resize = ResizeFieldOfViewd(
        ["label", "fov"], config.get_parsed_content("diameter"), mode=["bilinear", "nearest-exact"]
    )
    return Compose([config.get_parsed_content("validate::preprocessing"), resize, _binary])


def _binary(case: Case) -> dict[Hashable, Any]:
    return {**case, "label": case["label"] >= 0.5}


def record_and_figure(config: ConfigParser, files: Mapping[str, Path], limit: int, seed: int, perplexity: float) -> Any:
    """Return the record, and the figure of the source's patches."""
    patch_size, transforms = (config.get_parsed_content(key) for key in ("patch_size", "views"))
    names, prepare = view_names(transforms), preparation(config)
    networks = load_networks(config, files)  # a wrong one fails before any photograph is read
    cuts = {name: cut_patches(cases, prepare, patch_size, limit, seed) for name, cases in domain_cases(config).items()}
    (source, first), *others = cuts.items()
    views = make_views(first.patches, transforms, seed)
    panels, found = {}, {}
    for name, aligned in networks.items():
        latents = latents_of(aligned, views)
        targets = {target: latents_of(aligned, cut.patches[:, None]) for target, cut in others}
        panels[name] = by_view(latents, names)
        reliance = bottleneck_reliance(aligned.network, first.patches)
        found[name] = {"reliance": reliance, **measure(latents, targets, names, seed)}
    record = {
        **environment("cpu", REPOSITORY),
        "seed": seed,
        "source": source,
        "targets": [target for target, _ in others],
        "patch_size": list(patch_size),
        "patches": {name: len(cut.patches) for name, cut in cuts.items()},
        "photographs": {name: cut.photographs for name, cut in cuts.items()},
        "views": names,
        "latent": [config.get_parsed_content(key) for key in ("latent_channels", "latent_length")],
        "chance_rounds": CHANCE_ROUNDS,
        "perplexity": perplexity,
        "weights": {name: file_sha256(file) for name, file in files.items()},
        "networks": found,
    }
    return record, latents_figure(panels, seed=seed, perplexity=perplexity)


# ---- the command ----------------------------------------------------------------------------------------------------


def named_path(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not path or name in ("teacher", "alignment", BEFORE, AFTER):
        raise argparse.ArgumentTypeError(f"'{text}' is no NAME=PATH with a name of its own")
    return name, Path(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=REPOSITORY / "bundles" / "gkd")
    parser.add_argument("--seed", type=int, default=0, help="of views, of the choice of patches and of t-SNE")
    for name in ("teacher", "scratch", "alignment", "student"):
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help="weights; by default the bundle's")
    further = "students to compare with, e.g. augmentation=runs/augmentation-seed0/model.pt"
    parser.add_argument("--further", type=named_path, nargs="*", default=[], metavar="NAME=PATH", help=further)
    parser.add_argument("--patches", type=int, default=64, help="most patches of each domain")
    parser.add_argument("--perplexity", type=float, default=30.0, help="of t-SNE")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of latents.json and latents.png")
    arguments = parser.parse_args(argv)
    if not os.environ.get("MONAI_KD_DATA"):
        parser.error("set MONAI_KD_DATA to the folder that holds CHASE_DB1, STARE, DRIVE and splits")
    torch.set_num_threads(arguments.threads)
    config = read_bundle(arguments.bundle.resolve())
    files = weight_files(config, arguments)
    record, figure = record_and_figure(config, files, arguments.patches, arguments.seed, arguments.perplexity)
    publish(record, latents_markdown(record), arguments.out / "latents.json")
    print(f"written: {save_figure(figure, arguments.out / 'latents.png')}")


if __name__ == "__main__":
    main()
