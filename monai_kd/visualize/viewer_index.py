"""The page that lists the cases of a folder: a picture, Dice and volumes, and the way to each case's own page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from monai_kd.visualize.panels import BACKGROUND, TEXT, dice_text

__all__ = ["write_index"]


def write_index(path: str | Path, records: Sequence[Mapping[str, Any]], failed: Sequence[str] = ()) -> Path:
    """Write the list of cases; each lies in a folder of its name beside the file.

    Args:
        path: the file; its folder must exist.
        records: what ``view.json`` of each case holds.
        failed: cases that are not there, in words.
    """
    cards = "".join(_card(record) for record in records)
    missing = "".join(f"<li>{escape(text)}</li>" for text in failed)
    notes = f"<h2>Failed</h2><ul>{missing}</ul>" if failed else ""
    number = f"{len(records)} case{'s' if len(records) > 1 else ''}"
    Path(path).write_text(_PAGE.format(number=number, style=_STYLE, cards=cards, notes=notes), encoding="utf-8")
    return Path(path)


def _card(record: Mapping[str, Any]) -> str:
    name, place = escape(record["case"]), quote(record["case"])
    rows = "".join(_row(structure) for structure in record["structures"])
    truth = "<th class='number'>truth, mL</th><th class='number'>Dice</th>" if "truth" in record else ""
    head = f"<tr><th>structure</th><th class='number'>prediction, mL</th>{truth}</tr>"
    return (
        f"<article><a href='{place}/page.html'><img loading='lazy' alt='slices of {name}' src='{place}/slices.png'></a>"
        f"<div><h2><a href='{place}/page.html'>{name}</a></h2><table>{head}{rows}</table>"
        f"<p><a href='{place}/volume.gif'>through the volume</a></p></div></article>"
    )


def _row(structure: Mapping[str, Any]) -> str:
    cells = [structure["name"], _volume_text(structure["prediction_ml"])]
    if "dice" in structure:
        cells += [_volume_text(structure["truth_ml"]), dice_text(structure["dice"])]
    return "<tr>" + "".join(f"<td{' class=number' if i else ''}>{escape(cell)}</td>" for i, cell in enumerate(cells))


def _volume_text(volume_ml: float) -> str:
    return f"{volume_ml:.2f}" if volume_ml else "empty"


_STYLE = f"""
:root {{ color-scheme: dark; }}
body {{ margin: 0; background: {BACKGROUND}; color: {TEXT};
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
main {{ max-width: 1100px; margin: 0 auto; padding: 18px 20px 48px; }}
h1 {{ font-size: 20px; }} h2 {{ font-size: 17px; margin: 0 0 8px; overflow-wrap: anywhere; }}
article {{ display: flex; flex-wrap: wrap; gap: 24px; padding: 18px 0; border-top: 1px solid #30353c; }}
img {{ width: 340px; max-width: 100%; height: auto; border-radius: 8px; }}
a {{ color: #7fd4f5; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 4px 18px 4px 0; text-align: left; border-bottom: 1px solid #30353c; }}
th {{ color: #9aa4b1; font-weight: 600; }}
.number {{ text-align: right; }}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src 'self' file:;
 style-src 'unsafe-inline'">
<title>{number}</title>
<style>{style}</style>
</head>
<body><main>
<h1>{number}</h1>
{cards}
{notes}
</main></body>
</html>
"""
