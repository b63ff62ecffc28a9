"""Every command of docs/how_to/openvino.md, on a tiny bundle and phantoms."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from monai_kd.__main__ import main
from monai_kd.export import Limits
from monai_kd.export.exporter import LIMITS
from monai_kd.export.writers import FORMATS

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "how_to" / "openvino.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["monai_kd", *words[3:]])
    main()


def test_every_command_of_the_page_runs(
    exported, small_bundle: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Those that export again start from nothing; TensorRT needs a GPU, and installing is the test's own condition."""
    shutil.copytree(small_bundle, tmp_path / "bundles" / "student")
    (tmp_path / "Task04_Hippocampus").symlink_to(phantoms)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(LIMITS, "openvino-int8", Limits(None, 0.5))  # the weights are random
    ours = [words for words in commands() if words[:3] == ["python", "-m", "monai_kd"] and "tensorrt" not in words]
    assert [words[3] for words in ours] == ["export", "predict", "predict", "export", "predict", "compare", "export"]
    for words in ours:
        run(words, monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count("exported: ") == 5
    assert printed.count("written: ") == 6
    assert "| voxels with equal labels |" in printed
    assert len(list((tmp_path / "out").glob("*/*_seg.nii.gz"))) == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_tensorrt_command_says_what_it_needs(small_bundle: Path, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "student").symlink_to(small_bundle)
    monkeypatch.chdir(tmp_path)
    (words,) = [words for words in commands() if "tensorrt" in words]
    with pytest.raises(SystemExit) as stopped:
        run(words, monkeypatch)
    assert stopped.value.code == 1
    assert "tensorrt needs an NVIDIA GPU" in capsys.readouterr().err


def test_the_other_commands_are_the_known_ones():
    others = [words for words in commands() if words[:3] != ["python", "-m", "monai_kd"]]
    assert [words[:4] for words in others] == [
        ["pip", "install", "monai_kd[openvino,onnx]"],
        ["python", "-m", "monai.bundle", "run"],
    ]


def test_the_page_lists_every_format_with_its_limits():
    rows = dict(re.findall(r"^\| `([\w-]+)` \| .* \| ([^|]+) \|$", PAGE, flags=re.MULTILINE))
    assert rows.keys() == FORMATS.keys()
    for name, text in rows.items():
        numbers = [float(number) for number in re.findall(r"[\d.]+", text)]
        limits = LIMITS[name]
        expected = [limits.max_logit_difference, limits.min_dice]
        assert numbers == [value for value in expected if value is not None]
