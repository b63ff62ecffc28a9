"""A page with the surfaces of a case that can be turned; one file that needs no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_kd.visualize.meshes import viewer_package
from monai_kd.visualize.panels import BACKGROUND, TEXT, dice_text
from monai_kd.visualize.viewer_case import ViewerCase

if TYPE_CHECKING:
    from trimesh import Trimesh

__all__ = ["surface_colors", "write_page"]

_WHITER = 0.6  # share of white in the color of truth
_OPACITY = {"prediction": 0.85, "truth": 0.25}
_OPACITY_OF_NESTED = {"prediction": 0.4, "truth": 0.15}  # regions that overlap, or the outer one would hide the rest
_MUTED, _LINE = "#9aa4b1", "#30353c"


def write_page(
    path: str | Path,
    case: ViewerCase,
    meshes: Mapping[str, Trimesh],
    pictures: Sequence[tuple[str, str | Path]] = (),
) -> Path:
    """Write a page: the scene to turn, what to show of it, Dice and volumes, pictures below.

    Everything is inside, plotly.js too (about 5 MB); the page's content policy forbids every request. Prediction and
    truth have a switch and an opacity each, every surface one in the legend. A structure without a voxel is called
    empty.

    Args:
        path: the file; its folder must exist.
        case: the case.
        meshes: surfaces in RAS+ millimeters by ``prediction/<structure>`` and ``truth/<structure>``.
        pictures: caption and PNG file of pictures to embed.

    Raises:
        ImportError: plotly is missing.
    """
    kinds = [kind for kind in case.maps if any(name.startswith(f"{kind}/") for name in meshes)]
    scene = _scene(case, meshes) if meshes else "<p class='empty'>Nothing to show: all label maps are empty.</p>"
    figures = "".join(_picture(caption, Path(file)) for caption, file in pictures)
    page = _PAGE.format(
        title=escape(case.name),
        style=_STYLE,
        controls=_controls(kinds, _opacities(case)) if meshes else "",
        scene=scene,
        table=_table(case),
        figures=figures,
        script=_SCRIPT if meshes else "",
    )
    Path(path).write_text(page, encoding="utf-8")
    return Path(path)


def surface_colors(case: ViewerCase) -> dict[str, str]:
    """Return ``#rrggbb`` by ``<kind>/<structure>``: the structure's color, and a paler one for truth."""
    colors = {f"prediction/{structure.name}": structure.color for structure in case.structures}
    for structure in case.structures:
        rgb = np.array([int(structure.color[start : start + 2], 16) for start in (1, 3, 5)])
        paler = np.round(rgb + _WHITER * (255 - rgb)).astype(int)
        colors[f"truth/{structure.name}"] = "#{:02x}{:02x}{:02x}".format(*paler)
    return colors


# ---------------------------------------------------------------- the scene


def _scene(case: ViewerCase, meshes: Mapping[str, Trimesh]) -> str:
    graph = viewer_package("plotly.graph_objects")
    colors, opacities = surface_colors(case), _opacities(case)
    traces = [_trace(graph, name, mesh, colors[name], opacities) for name, mesh in meshes.items()]
    figure = graph.Figure(traces, _plot_layout())
    # plotly offers to send the scene to its cloud unless told otherwise; a patient's anatomy stays here
    config = {"displaylogo": False, "responsive": True, "showSendToCloud": False}
    return str(figure.to_html(config=config, include_plotlyjs=True, full_html=False, div_id="scene"))


def _opacities(case: ViewerCase) -> dict[str, float]:
    values = [value for structure in case.structures for value in structure.values]
    return _OPACITY if len(set(values)) == len(values) else _OPACITY_OF_NESTED


def _trace(graph: Any, name: str, mesh: Trimesh, color: str, opacities: Mapping[str, float]) -> Any:
    kind, _, structure = name.partition("/")
    x, y, z = np.asarray(mesh.vertices, dtype=np.float32).T
    i, j, k = np.asarray(mesh.faces, dtype=np.int32).T
    return graph.Mesh3d(
        **{"x": x, "y": y, "z": z, "i": i, "j": j, "k": k},
        **{"name": structure, "legendgroup": kind, "legendgrouptitle_text": kind, "meta": kind},
        **{"color": color, "opacity": opacities[kind], "flatshading": False, "showlegend": True},
        lighting={"ambient": 0.4, "diffuse": 0.75, "specular": 0.25, "roughness": 0.6, "fresnel": 0.1},
        lightposition={"x": 2000, "y": 3000, "z": 4000},
        hovertemplate=f"{escape(structure)}, {kind}<br>%{{x:.1f}}, %{{y:.1f}}, %{{z:.1f}} mm<extra></extra>",
    )


def _plot_layout() -> dict[str, Any]:
    ends = {"x": "left → right", "y": "back → front", "z": "down → up"}
    axis = {"backgroundcolor": BACKGROUND, "gridcolor": _LINE, "zerolinecolor": _LINE, "color": _MUTED}
    scene: dict[str, Any] = {
        f"{name}axis": {**axis, "title": {"text": f"{text}, mm"}, "showspikes": False} for name, text in ends.items()
    }
    # from the front, a little from the patient's right and from above
    camera = {"eye": {"x": 1.15, "y": 1.95, "z": 0.8}, "up": {"x": 0, "y": 0, "z": 1}}
    return {
        "scene": {**scene, "aspectmode": "data", "camera": camera, "dragmode": "orbit"},
        "paper_bgcolor": BACKGROUND,
        "font": {"color": TEXT, "size": 13},
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "legend": {"groupclick": "toggleitem", "x": 0.01, "y": 0.98, "bgcolor": "rgba(16,18,20,0.6)"},
        "uirevision": "keep",
    }


# ---------------------------------------------------------------- around it


def _controls(kinds: Sequence[str], opacities: Mapping[str, float]) -> str:
    parts = []
    for kind in kinds:
        percent = round(100 * opacities[kind])
        shown = f"<label><input type='checkbox' class='shown' checked> {kind}</label>"
        opacity = f"<label>opacity <input type='range' class='opacity' min='5' max='100' value='{percent}'></label>"
        parts.append(f"<fieldset data-kind='{kind}'>{shown}{opacity}</fieldset>")
    views = "".join(f"<button data-eye='{escape(json.dumps(eye))}'>{name}</button>" for name, eye in _VIEWS.items())
    return f"<div class='controls'>{''.join(parts)}<button id='turn'>turn</button>{views}</div>"


# camera places: x to the patient's right, y to the front, z up; the top view a little off the axis, which is "up"
_VIEWS = {"front": (0, 2, 0), "right": (2, 0, 0), "left": (-2, 0, 0), "back": (0, -2, 0), "top": (0, -0.02, 2)}


def _table(case: ViewerCase) -> str:
    truth = "truth" in case.maps
    head = ["structure", "prediction, mL", *(["truth, mL", "Dice"] if truth else [])]
    rows = []
    for structure in case.structures:
        swatch = f"<span class='swatch' style='background:{structure.color}'></span>"
        cells = [f"<td>{swatch}{escape(structure.name)}</td>"]
        for kind in case.maps:
            volume = case.volume_ml(kind, structure)
            cells.append(f"<td class='number'>{f'{volume:.2f}' if volume else 'empty'}</td>")
        if truth:
            cells.append(f"<td class='number'>{dice_text(case.dice(structure))}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    titles = "".join(f"<th{'' if number == 0 else ' class=number'}>{text}</th>" for number, text in enumerate(head))
    empty = "".join(f"<p class='warning'>The {kind} is empty.</p>" for kind in case.maps if not case.maps[kind].any())
    return f"{empty}<table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _picture(caption: str, file: Path) -> str:
    source, text = base64.b64encode(file.read_bytes()).decode("ascii"), escape(caption)
    return f"<figure><img alt='{text}' src='data:image/png;base64,{source}'><figcaption>{text}</figcaption></figure>"


_STYLE = f"""
:root {{ color-scheme: dark; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: {BACKGROUND}; color: {TEXT};
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
main {{ max-width: 1200px; margin: 0 auto; padding: 18px 20px 48px; }}
h1 {{ font-size: 20px; margin: 0 0 10px; overflow-wrap: anywhere; }}
.stage {{ border: 1px solid {_LINE}; border-radius: 10px; overflow: hidden; }}
.stage:has(#scene) {{ height: 620px; }}
.empty {{ padding: 60px 20px; text-align: center; color: {_MUTED}; }}
.warning {{ color: #ff9f0a; font-weight: 600; }}
.controls {{ display: flex; flex-wrap: wrap; gap: 10px; align-items: center; margin: 0 0 12px; }}
fieldset {{ border: 1px solid {_LINE}; border-radius: 8px; padding: 4px 10px; margin: 0; display: flex; gap: 14px;
  align-items: center; }}
fieldset label {{ display: flex; gap: 6px; align-items: center; white-space: nowrap; }}
fieldset input[type=range] {{ width: 110px; }}
button {{ background: #1d2126; color: {TEXT}; border: 1px solid {_LINE}; border-radius: 8px; padding: 5px 12px;
  font: inherit; cursor: pointer; }}
button:hover, button.on {{ background: #2b3138; }}
table {{ border-collapse: collapse; margin: 18px 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 6px 18px 6px 0; text-align: left; border-bottom: 1px solid {_LINE}; }}
th {{ color: {_MUTED}; font-weight: 600; }}
.number {{ text-align: right; }}
.swatch {{ display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }}
figure {{ margin: 18px 0 0; }} img {{ max-width: 100%; height: auto; border-radius: 8px; }}
figcaption, .muted {{ color: {_MUTED}; font-size: 13px; }}
"""

# turning moves the camera around the z axis by half a degree a frame, from wherever the reader left it
_SCRIPT = """
<script>
const scene = document.getElementById('scene');
const ofKind = kind => scene.data.flatMap((trace, i) => trace.meta === kind ? [i] : []);
for (const field of document.querySelectorAll('fieldset')) {
  const kind = field.dataset.kind;
  field.querySelector('.shown').addEventListener('change', event =>
    Plotly.restyle(scene, {visible: event.target.checked}, ofKind(kind)));
  field.querySelector('.opacity').addEventListener('change', event =>
    Plotly.restyle(scene, {opacity: event.target.value / 100}, ofKind(kind)));
}
const look = (eye, up) => Plotly.relayout(scene, {'scene.camera.eye': {x: eye[0], y: eye[1], z: eye[2]},
  'scene.camera.up': {x: 0, y: 0, z: 1}, 'scene.camera.center': {x: 0, y: 0, z: 0}});
for (const button of document.querySelectorAll('button[data-eye]'))
  button.addEventListener('click', () => { stop(); look(JSON.parse(button.dataset.eye)); });
const turn = document.getElementById('turn');
let turning = 0;
const stop = () => { cancelAnimationFrame(turning); turning = 0; turn.classList.remove('on'); };
const step = () => {
  const eye = scene._fullLayout.scene.camera.eye, a = Math.PI / 360, c = Math.cos(a), s = Math.sin(a);
  look([c * eye.x - s * eye.y, s * eye.x + c * eye.y, eye.z]).then(() => {
    if (turning) turning = requestAnimationFrame(step);
  });
};
turn.addEventListener('click', () => {
  if (turning) return stop();
  turn.classList.add('on');
  turning = requestAnimationFrame(step);
});
scene.addEventListener('pointerdown', stop);
</script>
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; style-src 'unsafe-inline';
 script-src 'unsafe-inline' 'unsafe-eval'; worker-src blob:">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
<h1>{title}</h1>
{controls}
<div class="stage">{scene}</div>
{table}
{figures}
</main>
{script}
</body>
</html>
"""
