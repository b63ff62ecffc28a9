"""The table of measured exports says what its record says, and nothing else."""

from __future__ import annotations

import json

import pytest

from monai_kd.visualize import write_tables
from monai_kd.visualize.exports import exports_table


@pytest.fixture
def record(repository, tmp_path):
    path = tmp_path / "exports.json"
    path.write_text((repository / "docs" / "results" / "exports.json").read_text(encoding="utf-8"), encoding="utf-8")
    return path


def test_an_edited_record_changes_the_table(record):
    before = exports_table(record)
    results = json.loads(record.read_text(encoding="utf-8"))
    bundle, formats = next(iter(results["bundles"].items()))
    next(iter(formats.values()))["times_faster"] = 77.5
    record.write_text(json.dumps(results), encoding="utf-8")
    after = exports_table(record)
    assert "77.50 x" in after
    assert "77.50 x" not in before
    assert after.count(f"| {bundle} |") == len(formats)


def test_without_a_record_the_document_says_so(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- >>> results: exports -->\nold\n<!-- <<< results -->\n", encoding="utf-8")
    assert write_tables(tmp_path, [page]) == [page]
    assert "No results recorded." in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["{", "[]", '{"bundles": {"student": {"onnx": {}}}}'])
def test_a_broken_record_is_named(tmp_path, text):
    path = tmp_path / "exports.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"exports\.json.*no record of measured exports"):
        exports_table(path)
