"""``python -m monai_kd``: options that do not exist, texts that look like numbers, errors of one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from monai_kd.__main__ import COMMANDS

NOBODY = "http://127.0.0.1:9"  # no server has this port


def monai_kd(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monai_kd", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["fetch", f"{NOBODY}/a.zip", "--sha265", "0" * 64],
            "fetch has no option --sha265; did you mean --sha256",
        ),
        (["pack", "x", "--compression=9"], "pack has no option --compression; known: --bundle, --out_dir"),
        (["pack", "1e5"], "bundle '1e5' is no folder"),
        (["fetch", f"{NOBODY}/a.zip", "--sha256", "0" * 64], "cannot download http://127.0.0.1:9/a.zip"),
        (["fetch", f"{NOBODY}/a.zip?token=secret"], "cannot download http://127.0.0.1:9/a.zip: "),
        (["fetch", f"{NOBODY}/a.zip", "--sha256", "0" * 63], "sha256"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(tmp_path, arguments, message):
    done = monai_kd(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_command_has_help_that_names_its_options(tmp_path):
    assert len(COMMANDS) == 18
    for command in (COMMANDS[0], COMMANDS[4], COMMANDS[-1]):
        text = monai_kd(command.__name__, "--help", cwd=tmp_path)
        assert text.returncode == 0
        shown = text.stdout + text.stderr
        assert command.__doc__ is not None
        assert command.__doc__.splitlines()[0].split(",")[0] in shown
        assert "bundle" in shown
