"""The page: all inside, nothing leaves it, a trace per surface, what is empty is said."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from viewer_cases import small_case

pytest.importorskip("plotly", reason="pip install 'monai_kd[viewer]'")
pytest.importorskip("trimesh")
pytest.importorskip("skimage")

from monai_kd.visualize.viewer import case_meshes
from monai_kd.visualize.viewer_case import ViewerCase
from monai_kd.visualize.volume_page import surface_colors, write_page


class Elements(HTMLParser):
    """Collects tags with their attributes, and the texts of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(small_case(), tmp_path_factory.mktemp("page"))


def written(case: ViewerCase, folder: Path, pictures: list | None = None) -> str:
    return write_page(folder / "page.html", case, case_meshes(case, 5), pictures or []).read_text(encoding="utf-8")


def traces(page: str) -> list[dict]:
    """Return the traces that the page hands to plotly."""
    call = next(text for text in Elements(page).scripts if "Plotly.newPlot(" in text and len(text) < 500_000)
    start = call.index("[", call.index("Plotly.newPlot("))
    found, _ = json.JSONDecoder().raw_decode(call[start:])
    return found


def numbers(packed: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["bdata"]), dtype=np.dtype(packed["dtype"]))


def test_page_loads_nothing(page: str) -> None:
    for tag, attributes in Elements(page).tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            assert not attributes.get(name) or attributes[name].startswith("data:"), (tag, name)
    assert "@import" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    policy = next(item["content"] for tag, item in Elements(page).tags if item.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|connect-src|\*", policy)
    assert sum(len(text) for text in Elements(page).scripts) > 1_000_000  # plotly.js itself is inside


def test_scene_cannot_be_sent_to_a_cloud(page: str) -> None:
    (call,) = [text for text in Elements(page).scripts if "Plotly.newPlot(" in text and len(text) < 500_000]
    config = json.loads(re.search(r'\{[^{}]*"showSendToCloud"[^{}]*\}', call)[0])
    assert config["showSendToCloud"] is False
    assert not re.search(r"BASE_URL|https?://", call)


def test_every_surface_is_a_trace_in_millimeters(page: str) -> None:
    found = {(trace["legendgroup"], trace["name"]): trace for trace in traces(page)}
    assert set(found) == {("prediction", "a"), ("truth", "a"), ("truth", "b")}
    x, y, z = (numbers(found["prediction", "a"][name]) for name in "xyz")
    assert x.mean() == pytest.approx(5.5, abs=0.1)  # voxels 4 to 7 of 1 x 2 x 3 mm
    assert (y.min(), y.max()) == pytest.approx((7, 15), abs=0.8)
    assert (z.min(), z.max()) == pytest.approx((10.5, 22.5), abs=1.2)
    assert numbers(found["prediction", "a"]["i"]).max() < len(x)
    colors = surface_colors(small_case())
    assert found["prediction", "a"]["color"] == colors["prediction/a"] == "#4cc9f0"
    assert found["truth", "a"]["color"] == colors["truth/a"] == "#b7e9f9"
    assert found["truth", "a"]["opacity"] < found["prediction", "a"]["opacity"]


def test_controls_exist_for_what_is_shown(page: str, tmp_path: Path) -> None:
    def kinds(text: str) -> list[str | None]:
        return [attributes["data-kind"] for tag, attributes in Elements(text).tags if tag == "fieldset"]

    assert kinds(page) == ["prediction", "truth"]
    assert kinds(written(small_case(truth=False), tmp_path)) == ["prediction"]
    eyes = [json.loads(item["data-eye"]) for tag, item in Elements(page).tags if "data-eye" in item]
    assert len(eyes) == 5


def test_table_has_volumes_and_dice(page: str) -> None:
    cells = re.findall(r"<td[^>]*>(?:<span[^>]*></span>)?([^<]*)</td>", page)
    assert cells == ["a", "0.38", "0.38", "0.500", "b", "empty", "0.19", "0.000"]


def test_nested_regions_are_seen_through(page: str, tmp_path: Path) -> None:
    nested = traces(written(small_case(regions={"all": [1, 2], "b": [2]}), tmp_path))
    assert nested[0]["opacity"] < traces(page)[0]["opacity"]


def test_empty_maps_say_so_and_need_no_scene(tmp_path: Path) -> None:
    case = small_case()
    case.maps["prediction"][:] = 0
    half = written(case, tmp_path)
    assert "The prediction is empty." in half
    assert {trace["legendgroup"] for trace in traces(half)} == {"truth"}
    case.maps["truth"][:] = 0
    nothing = written(case, tmp_path)
    assert "all label maps are empty" in nothing
    assert "Plotly" not in nothing


def test_names_are_text_and_no_markup(tmp_path: Path) -> None:
    case = small_case(class_names=["<b>a</b>", "</script><script>alert(1)</script>"])
    page = written(case, tmp_path)
    assert "<b>a</b>" not in page
    assert not any("alert(1)" in text and "Plotly" not in text for text in Elements(page).scripts)


def test_pictures_are_embedded(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG pixels")
    page = written(small_case(), tmp_path, [("Slices & more", picture)])
    (image,) = [attributes for tag, attributes in Elements(page).tags if tag == "img"]
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == picture.read_bytes()
    assert image["alt"] == "Slices & more"
