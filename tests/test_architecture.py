"""The house: import arrows point one way, importing is cheap, and every package has tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "monai_kd"
LEAVES = {"losses", "networks", "transforms", "metrics", "data", "inferers"}
# folder -> folders of monai_kd that it may import; itself always
ARROWS: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "distillers": set(),
    "teachers": set(),
    "engines": {"distillers"},
    "handlers": {"engines", "distillers", "teachers", "data", "metrics", "inferers"},
    "export": LEAVES | {"distillers", "teachers", "engines", "handlers"},
    "hub": LEAVES | {"distillers", "teachers", "engines", "handlers", "export", "visualize"},
    "visualize": LEAVES | {"distillers", "teachers", "engines", "handlers", "export"},
}


def imported_folders(path: Path) -> set[str]:
    """Return the folders of monai_kd that a file imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "monai_kd" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
                found.add(parts[1])
            assert parts[0] not in ("bundles", "tests", "benchmarks"), f"{path} imports {name}"
    return found


def test_import_arrows_point_one_way():
    files = [path for path in sorted(PACKAGE.glob("*/*.py")) if path.parent.name != "__pycache__"]
    assert len(files) > 20
    for path in files:
        folder = path.parent.name
        wrong = imported_folders(path) - ARROWS[folder] - {folder}
        assert not wrong, f"monai_kd/{folder}/{path.name} may not import {sorted(wrong)}"


def test_every_folder_has_a_place_in_the_house():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(ARROWS)
    for folder in folders:
        assert list((PACKAGE.parent / "tests" / folder).glob("test_*.py")), f"tests/{folder} is missing"


def test_the_check_finds_a_forbidden_arrow(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from monai_kd.engines import DistillationTrainer\n")
    assert imported_folders(path) == {"engines"}


@pytest.mark.parametrize("module", ["monai_kd.distillers", "monai_kd.losses", "monai_kd.engines"])
def test_the_core_imports_no_heavy_package_of_its_own(module):
    code = (
        "import sys, monai; before = set(sys.modules)\n"
        f"import {module}\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(output.strip().splitlines()[-1]) == ["monai_kd"]
