"""docs/how_to/share.md: its commands, in their order, against servers on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_folders import tree
from file_server import FileServer
from integration.hub_stand_in import HubStandIn

PAGE = "docs/how_to/share.md"


def blocks(text: str) -> list[tuple[str, str]]:
    """Return language and text of the fenced blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(repository: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the student bundle as trainings leave it."""
    shutil.copytree(repository / "bundles" / "student", tmp_path / "work" / "bundles" / "student")
    (tmp_path / "work" / "bundles" / "student" / "runs").mkdir(exist_ok=True)
    (tmp_path / "work" / "bundles" / "student" / "runs" / "log.txt").write_text("x")
    return tmp_path / "work"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "www").mkdir()
    with FileServer(tmp_path / "www") as running:
        yield running


def upload(workplace: Path, web: FileServer) -> None:
    """What the page asks its reader to do by hand: zips to the release, the index to main and to the tag."""
    release = web.folder / "OWNER" / "REPO" / "releases" / "download" / "hosting_storage_v1"
    shutil.copytree(workplace / "dist", release, dirs_exist_ok=True)
    for name in ("main", "hosting_storage_v1"):
        target = web.folder / "raw" / "OWNER" / "REPO" / name / "models"
        shutil.copytree(workplace / "models", target, dirs_exist_ok=True)


@pytest.mark.integration
def test_every_command_of_the_page_runs(repository, workplace, web):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install 'monai_kd[hub]'")
    found = blocks((repository / PAGE).read_text(encoding="utf-8"))
    assert [language for language, _ in found] == ["bash", "bash", "bash", "bash", "python", "bash"]
    with HubStandIn() as hub:
        environment = (
            os.environ
            | hub.environment
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(repository),
                "PYTHONWARNINGS": "ignore",
                "MONAI_KD_GITHUB": web.url,
                "MONAI_KD_GITHUB_RAW": f"{web.url}/raw",
            }
        )
        for language, text in found:
            if language == "python":
                upload(workplace, web)  # the heading Publish stands here
            loopback = text.replace("https://github.com", web.url).replace(
                "https://raw.githubusercontent.com", f"{web.url}/raw"
            )
            command = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
            done = subprocess.run([*command, loopback], cwd=workplace, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    index = json.loads((workplace / "models" / "model_info.json").read_text())
    assert sorted(index) == ["student_v0.1.0"]
    student = tree(workplace / "student")
    assert "models/model.pt" in student
    assert not [name for name in student if name.startswith("runs/")]
    assert tree(workplace / "from_release" / "student") == student
    assert tree(workplace / "by_monai" / "student") == student
    from_hub = tree(workplace / "from_hub" / "student")
    assert from_hub.pop("README.md").startswith(b"---\n")
    assert from_hub == student
