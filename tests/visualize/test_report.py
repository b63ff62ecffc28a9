"""The report stands alone, escapes what it is given, and answers first."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from records import arm

from monai_kd.visualize import write_report
from monai_kd.visualize.curves import curves_figure, save_figure

BASE = ((0.80, 0.82, 0.84, 0.86), (0.82, 0.84, 0.86, 0.88))
BETTER = [[value + 0.05 for value in seed] for seed in BASE]


def study() -> list[dict]:
    return [*arm("teacher", [(0.90, 0.91, 0.92, 0.93)]), *arm("baseline", BASE), *arm("distilled", BETTER)]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    picture = save_figure(curves_figure(arm("baseline", BASE)), folder / "overlay.png", dpi=40)
    commands = ["python -m monai.bundle run --config_file \"['a.yaml','b.yaml']\" && echo <done>"]
    path = write_report(folder / "out", study(), [("case <1> & 'more'", picture)], "A & B <report>", commands)
    assert path == folder / "out" / "report.html"
    return path.read_text(encoding="utf-8")


def test_page_makes_no_request(page: str) -> None:
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert "default-src 'none'" in page
    sources = re.findall(r"src='([^']{0,30})", page)
    assert len(sources) == 3  # overlay, paired plot, curves
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_first_section_answers_accuracy_size_and_speed(page: str) -> None:
    hero = page[page.index("class='hero'") : page.index("</section>")]
    assert "reaches 97.3 % of the teacher&#x27;s Dice with 5.7 % of its parameters, 6.2x faster on the CPU" in hero
    assert "17.7x smaller" in hero
    assert "+0.0500 <span class='badge gain'>gain</span>" in hero


def test_page_holds_the_results_table_and_its_provenance(page: str) -> None:
    assert "<td class=number>0.8400 ± 0.0141</td>" in page
    assert "configs/train.yaml, configs/evaluate.yaml" in page
    assert "evaluate-distilled-seed1-20261121-104400" in page
    assert "<dt>commit</dt><dd>0123456789ab</dd>" in page


def test_given_text_is_escaped(page: str) -> None:
    assert "<title>A &amp; B &lt;report&gt;</title>" in page
    assert "case &lt;1&gt; &amp; &#x27;more&#x27;" in page
    assert "echo &lt;done&gt;" in page
    assert "<done>" not in page


def test_same_records_give_the_same_page(tmp_path: Path) -> None:
    records = arm("baseline", BASE, curves=False)
    one = write_report(tmp_path / "a", records).read_bytes()
    assert one == write_report(tmp_path / "b", list(reversed(records))).read_bytes()


def test_misses_stand_on_the_first_screen(tmp_path: Path) -> None:
    records = [*arm("baseline", BASE, curves=False), *arm("distilled", BETTER, missed=(0,), curves=False)]
    assert "missed altogether: posterior 2" in write_report(tmp_path, records).read_text()


def test_commit_with_changes_is_shown_as_such(tmp_path: Path) -> None:
    records = arm("baseline", BASE, curves=False)
    for record in records:
        record["commit"] += "+changes"
    assert "<dd>0123456789ab+changes</dd>" in write_report(tmp_path, records).read_text()


def test_one_seed_has_no_verdict_and_says_why(tmp_path: Path) -> None:
    records = [*arm("baseline", BASE[:1], curves=False), *arm("distilled", BETTER[:1], curves=False)]
    assert "<span class='badge noise'>1 seed: no seed noise known</span>" in write_report(tmp_path, records).read_text()


def test_teacher_alone_is_reported_as_such(tmp_path: Path) -> None:
    page = write_report(tmp_path, arm("teacher", BASE, curves=False)).read_text()
    assert "Only the teacher was evaluated" in page


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="records is empty"):
        write_report(tmp_path, [])


def test_overlay_that_is_no_png_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"a.png' is not a PNG"):
        write_report(tmp_path, arm("teacher", BASE, curves=False), [("a", tmp_path / "a.png")])
    assert not (tmp_path / "report.html").exists()


def test_importing_visualize_loads_neither_matplotlib_nor_torch() -> None:
    code = "import sys, monai_kd.visualize; print([m for m in ('matplotlib', 'torch', 'monai') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
