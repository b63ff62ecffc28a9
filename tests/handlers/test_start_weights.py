"""Records name the weights that a training began with: of alignment networks, and of the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss
from test_run_record import GLOBALS, configured, network
from torch import nn

from monai_kd.distillers import AlignmentDistiller, Distiller, GeneralizableDistiller, Term
from monai_kd.handlers.provenance import file_sha256
from monai_kd.handlers.training_record import refuse_other_run
from monai_kd.losses import RelativeSquaredError, SoftLogitKL, StarGraph
from monai_kd.networks import EncodeDecode
from monai_kd.networks.nets import AlignmentNetwork
from monai_kd.teachers import load_weights


def alignments(student: int = 8, teacher: int = 16) -> nn.ModuleDict:
    widths = {"student": student, "teacher": teacher}
    return nn.ModuleDict({name: AlignmentNetwork(3, width, 6, 4, 2, 8) for name, width in widths.items()})


def saved(folder: Path, name: str, module: nn.Module) -> Path:
    path = folder / f"{name}.pt"
    torch.save(module.state_dict(), path)
    return path


def graph(folder: Path, student: nn.Module, cached: dict[str, str] | None = None) -> GeneralizableDistiller:
    terms = {
        "seg": Term(DiceCELoss(to_onehot_y=True, softmax=True)),
        "intra": Term(StarGraph(), "student/latents", "teacher/latents"),
    }
    bridges = load_weights(alignments(), saved(folder, "bridges", alignments()))
    return GeneralizableDistiller(student, EncodeDecode(network(8)), terms, bridges, cached)


def record_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distiller: nn.Module | None, **changes: Any) -> Any:
    monkeypatch.setitem(GLOBALS, "made", lambda: distiller)
    return configured(tmp_path, {"distiller": "$made()", **changes}).get_parsed_content("record").content


def test_alignments_that_were_loaded_as_a_whole_are_named_each(tmp_path, monkeypatch):
    distiller = graph(tmp_path, EncodeDecode(network()))
    content = record_of(tmp_path, monkeypatch, distiller)
    sha256 = file_sha256(tmp_path / "bridges.pt")
    facts = content["teacher"]
    assert (facts["source"], list(facts["networks"])) == ("live", ["teacher"])
    assert list(facts["helpers"]) == ["student_alignment", "teacher_alignment"]
    for found in facts["helpers"].values():
        assert (found["target"], found["weights_sha256"]) == ("AlignmentNetwork", sha256)
    assert "start" not in content


def test_a_cached_teacher_is_not_live_and_its_alignment_not_recorded(tmp_path, monkeypatch):
    distiller = graph(tmp_path, EncodeDecode(network()), {"latents": "teacher/latents"})
    facts = record_of(tmp_path, monkeypatch, distiller)["teacher"]
    assert facts["source"] == "cached"
    assert "networks" not in facts
    assert list(facts["helpers"]) == ["student_alignment"]


def test_a_students_start_is_named_in_a_distiller_alone_and_in_a_wrapper(tmp_path, monkeypatch):
    path = saved(tmp_path, "student", network())
    sha256 = file_sha256(path)
    student = load_weights(network(), path, freeze=False)
    seg = {"seg": Term(DiceCELoss(to_onehot_y=True, softmax=True))}
    assert record_of(tmp_path, monkeypatch, Distiller(student, terms=seg))["start"] == {"student": sha256}
    wrapped = graph(tmp_path, EncodeDecode(student))
    assert record_of(tmp_path, monkeypatch, wrapped)["start"] == {"student.network": sha256}
    monkeypatch.setitem(GLOBALS, "started", lambda: student)
    alone = record_of(tmp_path, monkeypatch, None, network="$started()")
    assert (alone["start"], alone["teacher"]) == ({"student": sha256}, {"source": "none"})


def test_alignments_that_learn_on_are_named_one_by_one(tmp_path, monkeypatch):
    path = saved(tmp_path, "bridges", alignments())
    bridges = load_weights(alignments(), path, freeze=False)
    networks = {"scratch": EncodeDecode(network()), "teacher": EncodeDecode(network(8))}
    coder = nn.Module()
    coder.latent = lambda label: label
    terms = {"features": Term(RelativeSquaredError(), "teacher/aligned", "teacher/features")}
    given = {"scratch": bridges["student"], "teacher": bridges["teacher"]}
    content = record_of(tmp_path, monkeypatch, AlignmentDistiller(given, networks, coder, terms))
    assert content["start"] == dict.fromkeys(("student.scratch", "student.teacher"), file_sha256(path))
    assert list(content["teacher"]["networks"]) == ["scratch", "teacher", "semantic"]


def test_the_weights_of_a_wrapped_teacher_are_its_own(tmp_path, monkeypatch):
    path = saved(tmp_path, "teacher", network(8))
    teacher = EncodeDecode(load_weights(network(8), path))
    terms = {"kd": Term(SoftLogitKL(1.0), target="teacher/logits")}
    content = record_of(tmp_path, monkeypatch, GeneralizableDistiller(EncodeDecode(network()), teacher, terms))
    assert content["teacher"]["networks"]["teacher"]["weights_sha256"] == file_sha256(path)
    assert "helpers" not in content["teacher"]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("helpers", "the weights of 'student_alignment'"),
        ("start", "the weights that 'student' started from"),
    ],
)
def test_a_run_is_not_resumed_with_other_alignments_or_another_start(key, words):
    def record(sha256: str | None) -> dict[str, Any]:
        plain = {"config": {}, "protocol": {"split_hash": "s"}, "device": {"type": "cpu"}, "teacher": {}}
        if sha256 is None:
            return plain
        if key == "start":
            return {**plain, "start": {"student": sha256}}
        return {**plain, "teacher": {"helpers": {"student_alignment": {"weights_sha256": sha256}}}}

    for earlier, now in (("a", "a"), ("a", None), (None, "a")):
        refuse_other_run(record(earlier), record(now), "runs/one")
    with pytest.raises(ValueError, match=f"not the configuration of the run in 'runs/one': {words}"):
        refuse_other_run(record("a"), record("b"), "runs/one")
