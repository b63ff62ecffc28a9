"""The marked places in documents that show result tables.

No number in a README or a model card is typed: a document names the protocol it wants,

    <!-- >>> results: hippocampus -->
    <!-- <<< results -->

and :func:`write_tables` fills in what the records say. Filters follow the name: ``methods=teacher,baseline``,
``bundles=student``, ``sections=test``. In place of a protocol stand tables of their own, without filters:
``depth_learning``, ``depth_memory``, ``depth_shift``, ``distill_dsm``, ``distillers``, ``exports``, ``gkd``,
``gkd_exports``, ``gkd_latents``, ``gkd_shifts``, ``gkd_step``, ``loss_costs``, ``mtcm_kd``, ``mtcm_step``,
``mtms_kd``, ``mtms_kd_wide``, ``mtms_step``, ``noisy_labels``, ``pulls``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from monai_kd.visualize.depth_learning import depth_learning_table
from monai_kd.visualize.depth_memory import depth_memory_table
from monai_kd.visualize.depth_shift_costs import depth_shift_table
from monai_kd.visualize.distillers import distillers_table
from monai_kd.visualize.domains import domains_table
from monai_kd.visualize.exports import exports_table
from monai_kd.visualize.gkd_step import gkd_step_table
from monai_kd.visualize.latents_table import latents_table
from monai_kd.visualize.loss_costs import loss_costs_table
from monai_kd.visualize.mtcm_step import mtcm_step_table
from monai_kd.visualize.mtms_step import mtms_step_table
from monai_kd.visualize.networks import networks_table
from monai_kd.visualize.noisy_labels import noisy_labels_table
from monai_kd.visualize.pulls import pulls_table
from monai_kd.visualize.records import load_records
from monai_kd.visualize.statistics import Record
from monai_kd.visualize.tables import results_table

__all__ = ["GKD_CAMERAS", "GKD_CONTROLS", "GKD_SHIFTS", "write_tables"]

_OPEN = re.compile(r"<!-- >>> results: (?P<protocol>\S+)(?P<filters>(?: \S+=\S+)*) -->")
_OPEN_START = "<!-- >>> results:"
_CLOSE = "<!-- <<< results -->"
_FILTERS = ("bundles", "methods", "sections")
# of the protocols of the bundle gkd: titles of its cameras, the source first
GKD_CAMERAS = {"retina": "CHASE_DB1 (source)", "retina_stare": "STARE", "retina_drive": "DRIVE"}
GKD_CONTROLS = ("baseline", "augmentation")
# the source's validation photographs as they are, and shifted by gkd's shifts.yaml
GKD_SHIFTS = {
    "retina": "as they are",
    **{f"retina_{name}": name.replace("_", " ") for name in ("low_resolution", "ringing", "dark", "grain", "tone")},
}
# of the bundle mtms-kd; the larger student's arms are named so
MTMS_CONTROLS = ("baseline", "logit_kd")
WIDE = "wide_"
# tables that are no protocol's: each from the folder of the records and the records
_SPECIAL: dict[str, Callable[[Path, Sequence[Record]], str]] = {
    "depth_learning": lambda folder, _records: depth_learning_table(folder / "depth_learning.json"),
    "depth_memory": lambda folder, _records: depth_memory_table(folder / "depth_memory.json"),
    "depth_shift": lambda folder, _records: depth_shift_table(folder / "depth_shift.json"),
    "distill_dsm": lambda _folder, records: networks_table(records, "distill-dsm", ("baseline", "plain_dsm", "unet3d")),
    "exports": lambda folder, _records: exports_table(folder / "exports.json"),
    "distillers": lambda folder, records: distillers_table(records, folder / "zoo" / "steps.json"),
    "gkd": lambda _folder, records: domains_table(_sections(records, "test", "all"), "gkd", GKD_CAMERAS, GKD_CONTROLS),
    "gkd_exports": lambda folder, _records: exports_table(folder / "gkd" / "exports.json"),
    "gkd_latents": lambda folder, _records: latents_table(folder / "gkd" / "latents.json"),
    "gkd_shifts": lambda _folder, records: domains_table(
        _sections(records, "validation"), "gkd", GKD_SHIFTS, GKD_CONTROLS, shifts=True
    ),
    "gkd_step": lambda folder, _records: gkd_step_table(folder / "gkd_step.json"),
    "loss_costs": lambda folder, _records: loss_costs_table(folder / "zoo"),
    "mtcm_kd": lambda _folder, records: networks_table(records, "mtcm-kd", ("baseline", "early_fusion")),
    "mtcm_step": lambda folder, _records: mtcm_step_table(folder / "mtcm_step.json"),
    "mtms_kd": lambda _folder, records: networks_table(_students(records, wide=False), "mtms-kd", MTMS_CONTROLS),
    "mtms_kd_wide": lambda _folder, records: networks_table(
        _students(records, wide=True), "mtms-kd", [f"{WIDE}{name}" for name in MTMS_CONTROLS]
    ),
    "mtms_step": lambda folder, _records: mtms_step_table(folder / "mtms_step.json"),
    "noisy_labels": lambda folder, _records: noisy_labels_table(folder / "zoo" / "noisy_labels.json"),
    "pulls": lambda folder, _records: pulls_table(folder / "zoo" / "pulls.json"),
}


def _sections(records: Iterable[Record], *names: str) -> list[Record]:
    return [record for record in records if record["protocol"]["section"] in names]


def _students(records: Iterable[Record], wide: bool) -> list[Record]:
    """Return the records of one of the two students of the bundle mtms-kd, and of the teachers."""
    return [r for r in records if r["method"].startswith(WIDE) == wide or r["method"].endswith("_teacher")]


def write_tables(results_dir: str | Path, files: Iterable[str | Path], check: bool = False) -> list[Path]:
    """Bring what stands between the results markers of documents up to date with the records.

    A marker stands alone on its line; one inside a fenced code block is an example and stays as it is. A protocol
    without records, or a filter that leaves none, yields "No results recorded.".

    Args:
        results_dir: folder of the records, see :func:`load_records`.
        files: markdown documents; one without a marker is left as it is.
        check: change nothing, only tell which documents have drifted.

    Returns:
        The files that changed, or with ``check`` would change, in the order given.

    Raises:
        ValueError: a marker is not closed, not opened, or has an unknown filter; names the file and the line.
    """
    records = load_records(results_dir)
    changed = []
    for path in map(Path, files):
        text = path.read_text(encoding="utf-8")
        updated = _fill(text, records, path, Path(results_dir))
        if updated != text:
            changed.append(path)
            if not check:
                path.write_text(updated, encoding="utf-8")
    return changed


def _fill(text: str, records: Sequence[Record], path: Path, results_dir: Path) -> str:
    lines: list[str] = []
    opened: int | None = None
    fenced = False
    for number, line in enumerate(text.split("\n"), start=1):
        bare = line.strip()
        fenced ^= opened is None and bare.startswith("```")
        marker = None if fenced else _OPEN.fullmatch(bare)
        if not fenced and not marker and bare.startswith(_OPEN_START):
            raise ValueError(f"{path}:{number}: cannot read '{bare}'; write {_OPEN_START} protocol filter=a,b -->")
        if marker and opened is not None:
            raise ValueError(f"{path}:{number}: a results marker opens inside the one of line {opened}")
        if bare == _CLOSE and not fenced:
            if opened is None:
                raise ValueError(f"{path}:{number}: '{_CLOSE}' closes a results marker that was not opened")
            opened = None
        if opened is None:
            lines.append(line)
        if marker:
            opened = number
            lines.append(_marked_table(marker, records, results_dir, f"{path}:{number}"))
    if opened is not None:
        raise ValueError(f"{path}:{opened}: this results marker is not closed; add a line '{_CLOSE}'")
    return "\n".join(lines)


def _marked_table(marker: re.Match[str], records: Sequence[Record], results_dir: Path, where: str) -> str:
    if special := _SPECIAL.get(marker["protocol"]):
        if marker["filters"]:
            raise ValueError(
                f"{where}: the table '{marker['protocol']}' takes no filters, got '{marker['filters'].strip()}'"
            )
        return special(results_dir, records)
    filters: dict[str, list[str]] = {}
    for item in marker["filters"].split():
        name, _, value = item.partition("=")
        if name not in _FILTERS:
            raise ValueError(f"{where}: unknown filter '{name}' of a results marker; known: {', '.join(_FILTERS)}")
        filters[name] = value.split(",")
    return results_table([r for r in records if r["protocol"]["name"] == marker["protocol"]], **filters)
