"""Provenance: hashes that depend on what they should, and files that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_kd.handlers import provenance
from monai_kd.handlers.provenance import (
    config_hash,
    environment,
    executed_config,
    file_sha256,
    network_facts,
    peak_memory_mb,
    write_json,
)


def test_config_hash_ignores_the_named_ids_and_nothing_else():
    config = {"epochs": 2, "run_dir": "/a", "train": {"run_dir": 1}}
    moved = {**config, "run_dir": "/b"}
    assert config_hash(config) != config_hash(moved)
    assert config_hash(config, ["run_dir"]) == config_hash(moved, ["run_dir"])
    assert config_hash(config, ["run_dir"]) != config_hash({**config, "epochs": 3}, ["run_dir"])
    # only top-level ids are left out
    assert config_hash(config, ["run_dir"]) != config_hash({**config, "train": {"run_dir": 2}}, ["run_dir"])


def test_config_hash_does_not_depend_on_the_order_of_the_ids():
    assert config_hash({"a": 1, "b": {"c": 2, "d": 3}}) == config_hash({"b": {"d": 3, "c": 2}, "a": 1})


def test_file_sha256_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"monai" * 1000)
    assert file_sha256(path) == hashlib.sha256(b"monai" * 1000).hexdigest()


def test_write_json_replaces_whole_files_and_leaves_no_draft(tmp_path):
    path = tmp_path / "new" / "run.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2, "b": None})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2, "b": None}
    assert [item.name for item in path.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", [{"a": float("nan")}, {"a": object()}])
def test_write_json_keeps_the_earlier_file_when_the_content_cannot_be_written(tmp_path, content):
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}


def test_write_json_keeps_the_earlier_file_when_the_disk_fails(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(provenance.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}


def test_network_facts_count_every_parameter():
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
    assert network_facts(network) == {"target": "Sequential", "parameters": 2 * 27 + 2 + 2 + 2}


def test_environment_names_versions_and_device(repository):
    facts = environment("cpu", repository)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["device"]["type"] == "cpu"
    assert facts["device"]["name"]
    head = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert facts["commit"].removesuffix("+changes") == head.stdout.strip()


def test_commit_says_when_tracked_files_differ_and_is_none_outside_a_checkout(tmp_path):
    assert environment("cpu", tmp_path)["commit"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "a.txt").write_text("1")
    for command in (["init", "-q"], ["add", "a.txt"], ["commit", "-q", "-m", "x", "--no-verify"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    clean = environment("cpu", tmp_path)["commit"]
    assert len(clean) == 40
    (tmp_path / "a.txt").write_text("2")
    assert environment("cpu", tmp_path)["commit"] == f"{clean}+changes"


def test_peak_memory_is_that_of_a_process_with_torch_in_it():
    assert 50 < peak_memory_mb() < 1e6


class Witness:
    """A component that asks for the configuration it stands in."""

    def __init__(self) -> None:
        self.config, self.files = executed_config()


def test_a_component_finds_the_configuration_that_builds_it_with_overrides_and_without_metadata():
    parser = ConfigParser({"epochs": 1, "text": "$@epochs + 1", "w": "$Witness()", "_meta_": {"name": "b"}})
    parser.globals["Witness"] = Witness
    parser["epochs"] = 7
    witness = parser.get_parsed_content("w")
    assert witness.config == {"epochs": 7, "text": "$@epochs + 1", "w": "$Witness()"}
    assert witness.files == []


def test_without_a_parser_there_is_no_configuration():
    assert executed_config() == ({}, [])
