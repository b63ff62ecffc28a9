"""The documentation: it builds without a warning, its examples run, and what it names exists."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

import monai_kd

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (REPOSITORY / "docs").rglob("*.md") if "_build" not in path.parts)
DOCUMENTS = [*PAGES, *REPOSITORY.glob("*.md"), *(REPOSITORY / "bundles").glob("**/*.md")]
FOLDERS = ("benchmarks", "bundles", "docs", "monai_kd", "tests")

# whose commands a page shows; else the student's
BUNDLE_OF_PAGE = {
    "slices.md": "distill-dsm",
    "one_modality.md": "mtcm-kd",
    "unseen_cameras.md": "gkd",
    "tiny_students.md": "mtms-kd",
}
_OF_MONAI = ("--config_file", "--tracking")  # arguments of `monai.bundle run` itself


def page_id(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def prose(path: Path) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Return the headings as GitHub writes them in links."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def packages() -> list[str]:
    return [f"monai_kd.{module.name}" for module in pkgutil.iter_modules(monai_kd.__path__) if module.ispkg]


def public_names() -> list[str]:
    return [f"{package}.{name}" for package in packages() for name in importlib.import_module(package).__all__]


# ---- the build ------------------------------------------------------------------------------------------------------


def sphinx(folder: Path, builder: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-b", builder, "-d", str(folder / "doctrees")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"}
    return subprocess.run(
        [*command, "docs", str(folder / builder)], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="sphinx is not installed: pip install 'monai_kd[docs]'")
    folder = tmp_path_factory.mktemp("docs")
    result = sphinx(folder, "html")
    assert result.returncode == 0, result.stderr
    return folder


def test_every_public_name_is_in_the_reference(built: Path):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((built / "html" / "objects.inv").read_bytes(), uri="")
    documented = {name for kind, names in inventory.data.items() if kind.startswith("py:") for name in names}
    wanted = public_names()
    assert len(wanted) > 40
    assert sorted(set(wanted) - documented) == []


def test_every_example_of_the_pages_runs(built: Path):
    result = sphinx(built, "doctest")
    assert result.returncode == 0, result.stdout + result.stderr
    summary = re.search(r"(\d+) tests\n\s*0 failures in tests", result.stdout)
    assert summary, result.stdout
    written = sum(page.read_text(encoding="utf-8").count("\n>>> ") for page in PAGES)
    assert int(summary[1]) == written > 50


# ---- what the text names --------------------------------------------------------------------------------------------


def test_every_package_has_a_page_of_its_own():
    assert len(packages()) > 8
    for package in packages():
        page = REPOSITORY / "docs" / "reference" / f"{package.removeprefix('monai_kd.')}.md"
        assert f".. automodule:: {package}\n" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=page_id)
def test_relative_links_lead_somewhere(path: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{page_id(path)} links to '{link}'"
        if anchor:
            assert anchor in anchors(target), f"{page_id(path)} links to '{link}'; known: {sorted(anchors(target))}"


def named_paths(path: Path) -> list[str]:
    """Return the repository paths in a page's inline code; those with a place holder in <> name no file."""
    words = [word for code in re.findall(r"`([^`\n]+)`", prose(path)) for word in code.split()]
    return [word for word in words if word.partition("/")[0] in FOLDERS and "/" in word and "<" not in word]


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_paths_in_the_text_exist(path: Path):
    for name in named_paths(path):
        assert list(REPOSITORY.glob(name.rstrip("/"))), f"{page_id(path)} names '{name}'"


def test_the_paths_are_found_at_all():
    assert sum(len(named_paths(path)) for path in PAGES) > 10


def bundle_commands(path: Path) -> list[list[str]]:
    """Return the words of each ``python -m monai.bundle run`` in the shell blocks of a document."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if "monai.bundle run" in line]


@pytest.mark.parametrize("path", DOCUMENTS, ids=page_id)
def test_commands_name_files_and_ids_that_exist(path: Path):
    for words in bundle_commands(path):
        files = re.findall(r"configs/[\w/]+\.\w+", words[words.index("--config_file") + 1])
        assert files, words
        own = path.parents[1] if path.parent.parent.parent.name == "bundles" else None
        # the student has every file and id of the teacher's
        bundle = own or REPOSITORY / "bundles" / BUNDLE_OF_PAGE.get(path.name, "student")
        known = ConfigParser.load_config_files([str(bundle / name) for name in files])
        given = words[words.index("monai.bundle") :]  # before it stand the options of torchrun
        ids = [word[2:] for word in given if word.startswith("--") and word not in _OF_MONAI]
        assert ids, words
        for name in ids:
            assert name.partition("::")[0] in known, f"{page_id(path)}: --{name} is no id of {files}"


def test_the_commands_are_found_at_all():
    assert sum(len(bundle_commands(path)) for path in DOCUMENTS) > 15
