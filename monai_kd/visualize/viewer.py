"""What a network saw, to look at: surfaces, a page to turn them, slices and a GIF of one prediction or many."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from monai_kd.handlers.provenance import write_json
from monai_kd.visualize.meshes import fewer_triangles, structure_mesh, write_scene, write_stl
from monai_kd.visualize.output_folder import RECORD, whole_folder
from monai_kd.visualize.structures import Names, Regions, Structure, named_structures
from monai_kd.visualize.viewer_case import ViewerCase, read_case
from monai_kd.visualize.viewer_files import CaseFiles, find_cases
from monai_kd.visualize.viewer_index import write_index
from monai_kd.visualize.volume_gif import save_gif
from monai_kd.visualize.volume_page import surface_colors, write_page
from monai_kd.visualize.volume_slices import save_slices

if TYPE_CHECKING:
    from trimesh import Trimesh

__all__ = ["View", "ViewerSettings", "write_viewer"]

_logger = logging.getLogger("monai_kd")
_FEWEST_TRIANGLES = 100


@dataclass(frozen=True)
class ViewerSettings:
    """How cases are shown.

    Attributes:
        point_mm: RAS+ millimeters where the slices meet; None takes the slices with most prediction and truth.
        window: gray values of black and white, ``(-160, 240)`` for soft tissue in CT; None finds them.
        axis: of the GIF: ``axial``, ``coronal`` or ``sagittal``.
        fps: frames of the GIF a second.
        gif_size: its longest side in pixels.
        smoothing: rounds of smoothing of the surfaces, see :func:`~monai_kd.visualize.structure_mesh`.
        page_triangles: triangles in the page, all surfaces together, at least 100; STL and GLB files have all.

    Raises:
        ValueError: a setting is out of its range; those of the GIF are checked when it is drawn.
    """

    point_mm: Sequence[float] | None = None
    window: Sequence[float] | None = None
    axis: str = "axial"
    fps: float = 10.0
    gif_size: int = 480
    smoothing: int = 30
    page_triangles: int = 150_000

    def __post_init__(self) -> None:
        if self.page_triangles < _FEWEST_TRIANGLES:
            raise ValueError(f"page_triangles is {self.page_triangles}; it must be {_FEWEST_TRIANGLES} or more")
        if self.smoothing < 0:
            raise ValueError(f"smoothing is {self.smoothing}; it must be 0 or more rounds")


@dataclass(frozen=True)
class View:
    """What was written for one case: its folder, and the record that lies there as ``view.json``."""

    folder: Path
    record: dict[str, Any] = field(hash=False)


def write_viewer(
    pred: str | Path,
    out: str | Path,
    image: str | Path,
    label: str | Path | None = None,
    bundle_root: str | Path | None = None,
    class_names: Names = None,
    regions: Regions = None,
    channel: int | str = 0,
    settings: ViewerSettings | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> list[View]:
    """Write ``page.html``, ``slices.png``, ``volume.gif``, ``meshes/*.stl``, ``scene.glb`` and ``view.json``.

    Of a folder of predictions each case gets a folder of its own, and ``index.html`` shows all. The output appears
    whole or not at all; a case that fails does not stop the others. A structure without voxels has no surface, and an
    empty prediction is warned of; with no surface at all there is no ``meshes`` folder and no ``scene.glb``.

    Args:
        pred: a label map (NIfTI), or a folder of them, ``<image>_seg.nii.gz``.
        out: the folder to write; it must not exist, or be empty.
        image, label, channel: see :func:`~monai_kd.visualize.viewer_files.find_cases`; image and maps share one grid.
        bundle_root, class_names, regions: one of them, or none; see :func:`~monai_kd.visualize.named_structures`.
        settings: how cases are shown; None takes the defaults.
        overwrite: True replaces an older output of the viewer in ``out``.
        progress: show a bar.

    Returns:
        What was written, a case each.

    Raises:
        FileNotFoundError: a file is missing, or a prediction has no image or label.
        FileExistsError: ``out`` holds something that is not replaced.
        ValueError: a file or a setting does not fit; names it.
        RuntimeError: some cases of a folder failed; the message names them, the others are written.
        ImportError: a package of the extra ``viewer`` is missing.
    """
    chosen = settings or ViewerSettings()
    named_structures([], class_names, regions, bundle_root)  # says what is wrong with them before a file is read
    cases = find_cases(pred, image, label, channel)

    def structures(values: Iterable[int]) -> tuple[Structure, ...]:
        return named_structures(values, class_names, regions, bundle_root)

    with whole_folder(out, overwrite) as draft:
        if not Path(pred).is_dir():
            record = _write_case(cases[0], draft, structures, chosen, progress)
            views, failed = [View(Path(out), record)], list[str]()
        else:
            views, failed = _write_cases(cases, draft, Path(out), structures, chosen, progress)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(cases)} cases failed, {len(views)} are in '{out}': {'; '.join(failed)}"
        )
    return views


def _write_cases(
    cases: Sequence[CaseFiles], draft: Path, out: Path, structures: Any, settings: ViewerSettings, progress: bool
) -> tuple[list[View], list[str]]:
    views: list[View] = []
    failed: list[str] = []
    for case in tqdm(cases, desc="cases", unit="case", disable=not progress):
        folder = draft / case.name
        try:
            with whole_folder(folder) as place:
                record = _write_case(case, place, structures, settings, progress=False)
            views.append(View(out / case.name, record))
        except ImportError:
            raise
        except Exception as error:  # any defect of one case: the others go on
            failed.append(f"'{case.name}' ({type(error).__name__}: {' '.join(str(error).split())[:300]})")
    if not views:
        raise RuntimeError(f"all {len(cases)} cases failed: {'; '.join(failed)}")
    write_index(draft / "index.html", [view.record for view in views], failed)
    _record_files(draft, {"cases": [view.record["case"] for view in views], "failed": failed})
    return views, failed


def _write_case(
    files: CaseFiles, folder: Path, structures: Any, settings: ViewerSettings, progress: bool
) -> dict[str, Any]:
    case = read_case(files.name, files.prediction, files.image, files.truth, structures, files.channel)
    for kind, found in case.maps.items():
        if not found.any():
            _logger.warning("the %s of %s is empty", kind, case.name)
    meshes = case_meshes(case, settings.smoothing)
    slices = save_slices(folder / "slices.png", case, settings.point_mm, settings.window)
    gif = (settings.axis, settings.fps, settings.gif_size)
    save_gif(folder / "volume.gif", case, *gif, window=settings.window, progress=progress)
    if meshes:
        write_stl(folder / "meshes", meshes)
        write_scene(folder / "scene.glb", meshes, surface_colors(case))
    light = fewer_triangles(meshes, settings.page_triangles)
    write_page(folder / "page.html", case, light, [("Slices where there is most to see", slices)])
    sources = {"prediction": files.prediction.name, "image": files.image.name}
    truth = {"truth": files.truth.name} if files.truth else {}
    found_structures = [_structure_record(case, structure) for structure in case.structures]
    content = {"case": case.name, **sources, **truth, "settings": asdict(settings), "structures": found_structures}
    return _record_files(folder, content)


def case_meshes(case: ViewerCase, smoothing: int) -> dict[str, Trimesh]:
    """Return the surfaces of a case by ``prediction/<structure>`` and ``truth/<structure>``, without the empty ones."""
    masks = {
        f"{kind}/{structure.name}": structure.mask(found)
        for kind, found in case.maps.items()
        for structure in case.structures
    }
    return {name: structure_mesh(mask, case.affine, smoothing) for name, mask in masks.items() if mask.any()}


def _structure_record(case: ViewerCase, structure: Structure) -> dict[str, Any]:
    volumes = {f"{kind}_ml": round(case.volume_ml(kind, structure), 6) for kind in case.maps}
    scores = {"dice": case.dice(structure)} if "truth" in case.maps else {}
    return {"name": structure.name, "values": list(structure.values), **volumes, **scores}


def _record_files(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the record of a folder, which lists all its files, and return it."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    record: dict[str, Any] = json.loads(json.dumps({**content, "files": [*files, RECORD]}))
    write_json(folder / RECORD, record)
    return record
