"""A bundle's own inference pipeline, with any network in it, and the windows that it feeds to a network."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor, nn

from monai_kd.data import case_id
from monai_kd.data.raster import RASTER_ENDINGS
from monai_kd.export.torchscript import axis_length
from monai_kd.inferers.slice_stacks import as_slice_stack

__all__ = [
    "Sample",
    "bundle_metadata",
    "find_images",
    "image_endings",
    "inference_config",
    "inference_flow",
    "quiet",
    "record_windows",
    "takes_photographs",
]

# a window as the network sees it, and the logits that PyTorch gives for it
Sample = tuple[Tensor, Tensor]
_NIFTI_ENDINGS = (".nii.gz", ".nii")


class _Windows(nn.Module):
    """Stand in for a network: count the windows, keep those of some numbers, and answer zeros."""

    def __init__(self, wanted: Collection[int] = ()) -> None:
        super().__init__()
        self.wanted = wanted
        self.count = 0
        self.kept: list[Tensor] = []

    def forward(self, window: Tensor) -> Tensor:
        if self.count in self.wanted:
            self.kept.append(torch.as_tensor(window.detach().clone().numpy()))  # no MetaTensor
        self.count += 1
        return torch.zeros(len(window), 1, *window.shape[2:])


@contextmanager
def quiet() -> Iterator[None]:
    """Keep log records of MONAI and ignite off the screen; errors are raised, and said once, by the caller."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def inference_config(bundle: str | Path) -> Path:
    """Return a bundle's inference configuration, the JSON file first as MONAI's consumers do.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    for ending in ("json", "yaml", "yml"):
        path = Path(bundle) / "configs" / f"inference.{ending}"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"'{bundle}' is no bundle for inference: it has no configs/inference.yaml or inference.json"
    )


def bundle_metadata(bundle: str | Path) -> dict[str, Any]:
    """Return a bundle's configs/metadata.json.

    Raises:
        FileNotFoundError: the bundle has none.
    """
    path = Path(bundle) / "configs" / "metadata.json"
    if not path.is_file():
        raise FileNotFoundError(f"'{bundle}' is no bundle: it has no configs/metadata.json")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def inference_flow(bundle: str | Path, **overrides: Any) -> ConfigWorkflow:
    """Build and initialize the workflow of a bundle's inference configuration.

    Args:
        bundle: the bundle's folder.
        overrides: ids and values; ``network`` may be a module, which then stands in for the configured one.
    """
    root = Path(bundle).resolve()
    with quiet():
        flow = ConfigWorkflow(
            config_file=str(inference_config(root)),
            workflow_type="infer",
            logging_file=False,
            bundle_root=str(root),
            **overrides,
        )
        flow.initialize()
    return flow


def takes_photographs(metadata: Mapping[str, Any]) -> bool:
    """Tell whether the images of a bundle are photographs, such as PNG, by its metadata."""
    return f".{metadata.get('data_type', '')}".lower() in RASTER_ENDINGS


def image_endings(bundle: str | Path) -> tuple[str, ...]:
    """Return how the names of a bundle's images end: those of photographs if its metadata's ``data_type`` is one."""
    return RASTER_ENDINGS if takes_photographs(bundle_metadata(bundle)) else _NIFTI_ENDINGS


def find_images(path: str | Path, endings: tuple[str, ...] = _NIFTI_ENDINGS) -> list[Path]:
    """List the images of a folder (of its imagesTs, if it has one), or the one that a path names.

    Args:
        path: a folder or a file.
        endings: what counts as an image, see :func:`image_endings`.

    Raises:
        FileNotFoundError: the path does not exist, or holds no image.
        ValueError: a file of another ending, or two that differ in their endings alone, ``a.nii`` and ``a.nii.gz``.
    """
    given, known = Path(path), f"{', '.join(endings[:-1])} or {endings[-1]}"
    kind = "NIfTI image" if endings == _NIFTI_ENDINGS else "photograph"
    if given.is_file():
        if not given.name.lower().endswith(endings):
            raise ValueError(f"'{given}' is no {kind}: its name must end in {known}")
        return [given.resolve()]
    if not given.is_dir():
        raise FileNotFoundError(f"images '{given}' do not exist; give a {kind} or a folder of them")
    folder = given / "imagesTs" if (given / "imagesTs").is_dir() else given
    items = (item for item in folder.resolve().iterdir() if item.is_file() and item.name[0] != ".")
    found = sorted(item for item in items if item.name.lower().endswith(endings))
    if not found:
        raise FileNotFoundError(f"'{folder}' holds no {known} image")
    by_case: dict[str, list[str]] = {}
    for item in found:
        by_case.setdefault(case_id(item), []).append(item.name)
    if doubled := next((names for names in by_case.values() if len(names) > 1), None):
        raise ValueError(f"two images in '{folder}' would write one output: {doubled[0]} beside {doubled[1]}")
    return found


def record_windows(bundle: str | Path, network: nn.Module, images: Sequence[Path], most: int) -> list[Sample]:
    """Cut windows from images by the bundle's preprocessing and sliding window, and keep the network's answers.

    Every image gives an equal share of the windows, spread evenly over it, or all it has if those are fewer.

    Args:
        bundle: the bundle's folder.
        network: the network, on the CPU and in evaluation mode.
        images: image files.
        most: so many windows at most; with more images than that, one of each.
    """
    flow = inference_flow(bundle, network=nn.Identity(), device="cpu", load_pretrain=False)
    preprocessing = flow.parser.get_parsed_content("preprocessing")
    inferer = flow.parser.get_parsed_content("inferer")
    samples: list[Sample] = []
    for path in images:
        image = preprocessing({"image": str(path)})["image"][None]
        with torch.inference_mode():
            inferer(image, as_slice_stack(found := _Windows(), network))
            share = min(found.count, max(1, most // len(images)))
            middles = {(2 * part + 1) * found.count // (2 * share) for part in range(share)}
            inferer(image, as_slice_stack(chosen := _Windows(middles), network))
            samples += [(window, network(window).float()) for window in chosen.kept]
    return samples


def window_size(bundle: str | Path) -> tuple[int, ...]:
    """Return the size of the bundle's sliding window in voxels.

    An axis that it takes whole (-1) has the length that the metadata give for n = 8, such as 8 for ``"n"``.

    Raises:
        ValueError: its inferer, and the one inside that, has no window.
    """
    inferer = inference_flow(bundle, network=nn.Identity(), load_pretrain=False).parser.get_parsed_content("inferer")
    inner = inferer
    while not hasattr(inner, "roi_size") and hasattr(inner, "inferer"):
        inner = inner.inferer
    size: Sequence[int] | None = getattr(inner, "roi_size", None)
    if size is None or isinstance(size, int) or min(size) < -1 or 0 in size:
        raise ValueError(
            f"the inferer of '{bundle}' is {type(inferer).__name__} with roi_size {size}; an export is checked on "
            "windows, so it needs a SlidingWindowInferer with one length per axis, -1 for one that is taken whole"
        )
    shape = bundle_metadata(bundle)["network_data_format"]["inputs"]["image"]["spatial_shape"]
    return tuple(axis_length(own, 8) if length < 0 else int(length) for length, own in zip(size, shape, strict=True))
