"""One HTML file that answers first whether accuracy held and how much smaller and faster the student is.

The file needs nothing else: pictures are embedded, there is no script, and its content policy forbids requests.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from monai_kd.visualize.curves import curves_figure, paired_figure
from monai_kd.visualize.statistics import Arm, Record
from monai_kd.visualize.tables import NONE, Comparison, ResultGroup, Table, result_groups

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

_PNG = b"\x89PNG\r\n\x1a\n"
_VERDICTS = {"gain": "gain", "loss": "loss", "within noise": "noise"}


def write_report(
    output_dir: str | Path,
    records: Iterable[Record],
    overlays: Sequence[tuple[str, str | Path]] = (),
    title: str = "Knowledge distillation report",
    commands: Sequence[str] = (),
) -> Path:
    """Write ``output_dir/report.html`` and return its path. The same records give the same file.

    Args:
        output_dir: folder of the report; created if absent.
        records: evaluation records, see :func:`monai_kd.visualize.records.load_records`.
        overlays: caption and PNG file per picture, see :func:`monai_kd.visualize.overlays.save_overlay`.
        title: heading of the page.
        commands: shell commands that lead to these records, shown as they are.

    Raises:
        ValueError: there is no record, or an overlay is not a PNG file.
        FileNotFoundError: an overlay does not exist.
    """
    records = list(records)
    groups = result_groups(records)
    if not groups:
        raise ValueError("records is empty: there is nothing to report; evaluate a bundle first")
    body = "\n".join(
        [
            f"<header><h1>{escape(title)}</h1>",
            f"<p class='muted'>Every number comes from {len(records)} evaluation records (run.json).</p></header>",
            *(_hero(group) for group in groups),
            *_overlays(overlays),
            *(_details(group) for group in groups),
            _provenance(records, commands),
        ]
    )
    path = Path(output_dir) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_PAGE.format(title=escape(title), style=_STYLE, body=body), encoding="utf-8")
    return path


# ---------------------------------------------------------------- first screen


def _hero(group: ResultGroup) -> str:
    """The answer in one sentence and four tiles, for the distilled student or else the first student there is."""
    heading = f"<p class='eyebrow'>{escape(group.title)}</p>"
    chosen = _headline_comparison(group)
    if chosen is None:
        return f"<section class='hero'>{heading}<h2>Only the teacher was evaluated, no student yet.</h2></section>"
    tiles = "".join(_tile(*tile) for tile in _tiles(chosen))
    return (
        f"<section class='hero'>{heading}<h2>{escape(_headline(chosen))}</h2><div class='tiles'>{tiles}</div></section>"
    )


def _headline_comparison(group: ResultGroup) -> Comparison | None:
    order = ("distilled", *(c.student.method for c in group.comparisons if c.student.method != "baseline"), "baseline")
    found = sorted(group.comparisons, key=lambda comparison: order.index(comparison.student.method))
    return found[0] if found else None


def _headline(comparison: Comparison) -> str:
    dice, parameters, speed = comparison.dice_ratio, comparison.parameter_ratio, comparison.speed_up
    if dice is None or parameters is None:
        return f"{comparison.student.label}: no teacher recorded to compare with."
    faster = f", {_times(speed, 'faster', 'slower')} on the CPU" if speed else ""
    return (
        f"The {comparison.student.method} student reaches {100 * dice:.1f} % of the teacher's Dice "
        f"with {100 * parameters:.1f} % of its parameters{faster}."
    )


def _tiles(comparison: Comparison) -> Iterator[tuple[str, str, str, str]]:
    """Label, value, explanation and verdict class of each tile."""
    student, teacher = comparison.student, comparison.teacher
    dice, parameters = comparison.dice_ratio, comparison.parameter_ratio
    own = student.summary("dice", "mean")
    reference = teacher.summary("dice", "mean") if teacher else None
    yield (
        "Did accuracy hold?",
        f"{100 * dice:.1f} %" if dice else NONE,
        f"of the teacher's Dice: {_score(own)} against {_score(reference)}{_missed(student)}",
        "",
    )
    yield (
        "How much smaller?",
        _times(1 / parameters, "smaller", "larger") if parameters else NONE,
        f"{_millions(student.parameters)} parameters against {_millions(teacher.parameters if teacher else None)}",
        "",
    )
    yield (
        "How much faster?",
        _times(comparison.speed_up, "faster", "slower") if comparison.speed_up else NONE,
        f"{_milliseconds(student.cpu_ms)} per case against {_milliseconds(teacher.cpu_ms if teacher else None)}; "
        f"{'; '.join(student.cpus) or 'not timed on a CPU'}",
        "",
    )
    yield _distillation_tile(comparison)


def _distillation_tile(comparison: Comparison) -> tuple[str, str, str, str]:
    label, found = "What did distillation add?", comparison.difference
    if found is None:
        return label, NONE, comparison.refused or "this is the student without distillation", ""
    seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"
    text = f"Dice over the same student without it, {found.interval[0]:+.4f} to {found.interval[1]:+.4f} (95 %)"
    value = f"{found.mean:+.4f}"
    return label, value, f"{text}; {found.n_cases} cases, {seeds}", found.verdict


def _tile(label: str, value: str, text: str, verdict: str) -> str:
    badge = f" {_badge(verdict)}" if verdict else ""
    return (
        f"<div class='tile'><div class='label'>{escape(label)}</div>"
        f"<div class='value'>{escape(value)}{badge}</div><div class='muted'>{escape(text)}</div></div>"
    )


def _badge(verdict: str) -> str:
    return f"<span class='badge {_VERDICTS.get(verdict, 'noise')}'>{escape(verdict)}</span>"


def _times(ratio: float, better: str, worse: str) -> str:
    return f"{ratio:.1f}x {better}" if ratio >= 1 else f"{1 / ratio:.1f}x {worse}"


def _score(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return NONE
    return f"{found[0]:.4f}" + ("" if found[1] is None else f" ± {found[1]:.4f}")


def _missed(arm: Arm) -> str:
    counts = {name: arm.missed(name) for name in arm.records[0]["classes"].values()}
    found = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return f"; missed altogether: {found}" if found else ""


def _millions(parameters: int | None) -> str:
    return NONE if parameters is None else f"{parameters / 1e6:.2f} M"


def _milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


# ---------------------------------------------------------------- details


def _overlays(overlays: Sequence[tuple[str, str | Path]]) -> Iterator[str]:
    if not overlays:
        return
    yield "<section><h2>What it looks like</h2>"
    for caption, path in overlays:
        data = Path(path).read_bytes()
        if not data.startswith(_PNG):
            raise ValueError(f"overlay '{path}' is not a PNG file; save_overlay writes one")
        yield _picture(data, caption, " class='overlay'")
    yield "</section>"


def _details(group: ResultGroup) -> str:
    parts = [f"<section><h2>Results: {escape(group.title)}</h2>", _table(group.results)]
    if group.students:
        parts.append(_table(group.students, badge_column=1))
    parts.append("<ul class='muted'>" + "".join(f"<li>{escape(note)}</li>" for note in group.notes) + "</ul>")
    for comparison in group.comparisons:
        if comparison.difference and comparison.baseline:
            names = comparison.baseline.label, comparison.student.label
            figure = paired_figure(comparison.difference, comparison.baseline.method, comparison.student.method)
            parts.append(_drawing(figure, f"Case by case: {names[1]} against {names[0]}, mean over seeds."))
    trained = [record for arm in group.arms for record in arm.records if record["training"]]
    if trained:
        caption = "Training curves: a thin line per seed, a thick one for the mean over seeds."
        parts.append(_drawing(curves_figure(trained), caption))
    return "\n".join([*parts, "</section>"])


def _provenance(records: Sequence[Record], commands: Sequence[str]) -> str:
    """What made each run; what all runs share is said once above the table."""
    rows = [_provenance_row(record) for record in sorted(records, key=lambda record: record["run_id"])]
    shared = {key: value for key, value in rows[0].items() if all(row[key] == value for row in rows) and key != "run"}
    own = [key for key in rows[0] if key not in shared]
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in shared.items())
    table = Table(tuple(own), tuple(tuple(row[key] for key in own) for row in rows), n_text=len(own))
    parts = ["<section><h2>How it was measured</h2>", f"<dl>{items}</dl>" if items else "", _table(table)]
    if commands:
        parts.append("<h3>Commands</h3><pre>" + escape("\n".join(commands)) + "</pre>")
    return "\n".join([*parts, "</section>"])


def _provenance_row(record: Record) -> dict[str, str]:
    protocol, device = record["protocol"], record["device"]
    return {
        "run": record["run_id"],
        "bundle": f"{record['bundle']['name']} {record['bundle']['version']}",
        "config files": ", ".join(record["config_files"]),
        "config hash": record["config_hash"][:12],
        "protocol": f"{protocol['name']} {protocol['hash'][:12]}, {protocol['section']} section",
        "split": protocol.get("split_hash", "unknown")[:12],
        "weights": record["network"]["weights_sha256"][:12],
        "commit": _commit(record["commit"]),
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items())),
        "device": f"{device['name']}, {device['type']}, {device['threads']} threads",
    }


def _commit(commit: str | None) -> str:
    """Twelve digits, and whether the code differed from that commit."""
    digits, plus, state = (commit or "unknown").partition("+")
    return digits[:12] + plus + state


def _table(table: Table, badge_column: int | None = None) -> str:
    def cell(tag: str, column: int, text: str) -> str:
        content = _badge(text) if column == badge_column and text in _VERDICTS else escape(text)
        return f"<{tag}{'' if column < table.n_text else ' class=number'}>{content}</{tag}>"

    head = "".join(cell("th", column, text) for column, text in enumerate(table.header))
    rows = (
        "<tr>" + "".join(cell("td", column, text) for column, text in enumerate(row)) + "</tr>" for row in table.rows
    )
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _picture(data: bytes, caption: str, attributes: str = "") -> str:
    source, text = base64.b64encode(data).decode("ascii"), escape(caption)
    image = f"<img alt='{text}'{attributes} src='data:image/png;base64,{source}'>"
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _drawing(figure: Figure, caption: str) -> str:
    """A figure at the size it was drawn for (96 CSS pixels an inch), sharp on a dense screen."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return _picture(buffer.getvalue(), caption, f" width='{round(96 * figure.get_figwidth())}'")


_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #16191d; --muted: #5b6470; --line: #e2e5ea;
  --gain: #137a43; --loss: #b42318; --noise: #6b7280; --accent: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1216; --card: #181c22; --text: #e8eaed; --muted: #9aa4b1;
  --line: #2a3038; --gain: #1f9d5b; --loss: #e0533f; --noise: #737d8c; --accent: #7aa2ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 28px 20px 60px; }
header { margin-bottom: 18px; }
h1 { font-size: 20px; margin: 0; } h2 { font-size: 19px; margin: 0 0 14px; } h3 { font-size: 15px; margin: 18px 0 8px; }
header p { margin: 2px 0 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px;
  margin: 0 0 18px; }
.hero h2 { font-size: 25px; line-height: 1.3; margin: 0 0 18px; max-width: 34em; }
.eyebrow { margin: 0 0 6px; color: var(--accent); font-size: 13px; font-weight: 600; }
.muted, figcaption { color: var(--muted); font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 14px; }
.tile { border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tile .label { font-size: 13px; font-weight: 600; }
.tile .value { font-size: 27px; font-weight: 650; margin: 2px 0 4px; font-variant-numeric: tabular-nums; }
.badge { display: inline-block; border-radius: 999px; padding: 1px 9px; font-size: 12px; font-weight: 600; color: #fff;
  vertical-align: middle; white-space: nowrap; }
.badge.gain { background: var(--gain); } .badge.loss { background: var(--loss); }
.badge.noise { background: var(--noise); }
.wide { overflow-x: auto; margin: 0 0 16px; }
table { border-collapse: collapse; width: 100%; font-size: 12.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 6px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; } th { font-weight: 600; color: var(--muted); vertical-align: bottom; }
.number { text-align: right; }
ul { margin: 0 0 16px; padding-left: 18px; }
figure { margin: 0 0 20px; } figure:last-child { margin-bottom: 0; }
img { display: block; max-width: 100%; height: auto; border-radius: 8px; border: 1px solid var(--line);
  background: #fff; }
img.overlay { max-height: 760px; border: 0; background: none; }
figcaption { margin-top: 6px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; margin: 0 0 16px; font-size: 13px; }
dt { color: var(--muted); font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; font-size: 13px;
  margin: 0; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""
