"""calibrate: a suggested weight gives the wanted ratio, and nothing is left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_folders import command_line, tree
from tiny_bundles import replace, tiny_student

from monai_kd.hub.calibrate import Calibration, TermPull, calibrate_terms

WINDOW = [16, 24, 16]
HINT = """terms::hint:
  _target_: monai_kd.distillers.Term
  loss: {_target_: torch.nn.MSELoss}
  student: student/bottleneck
  target: teacher/bottleneck
  adapter: {_target_: torch.nn.Conv3d, in_channels: 8, out_channels: 2, kernel_size: 1, stride: 2}
"""


@pytest.fixture(scope="module")
def student(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student bundle with tiny networks."""
    return tiny_student(repository, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def measure(student: Path, phantoms: Path) -> Callable[..., Calibration]:
    """Calibrate the tiny student on the phantoms."""

    def run(*files: str, batches: int = 3, warmup: int = 2, ratio: float = 1.0, **overrides: Any) -> Calibration:
        settings = {"dataset_dir": str(phantoms), "split_file": "", "patch_size": WINDOW, "cpu_bfloat16": False}
        names = ["configs/train.yaml", *files]
        return calibrate_terms(student, names, batches, ratio, warmup=warmup, overrides={**settings, **overrides})

    return run


def soft(calibration: Calibration) -> TermPull:
    (term,) = [term for term in calibration.terms if term.name == "soft"]
    return term


def test_the_suggested_weight_gives_the_wanted_ratio_and_a_double_weight_the_double_ratio(measure):
    first = measure(ratio=0.7)
    assert first.terms[0] == TermPull("seg", 1.0, pytest.approx(1.0), pytest.approx(0.0, abs=1e-6), None)
    assert soft(first).weight == 5.0
    assert soft(first).ratio > 0
    assert soft(first).sd > 0
    assert soft(first).suggested == pytest.approx(5.0 * 0.7 / soft(first).ratio)
    printed = float(re.fullmatch(r"--terms::soft::weight (\S+)", first.options).group(1))
    again = soft(measure(**{"terms::soft::weight": printed}))
    assert again.ratio == pytest.approx(0.7, rel=1e-3)
    doubled = soft(measure(**{"terms::soft::weight": 10.0}))
    assert doubled.ratio == pytest.approx(2 * soft(first).ratio, rel=1e-3)
    assert doubled.sd == pytest.approx(2 * soft(first).sd, rel=1e-3)


def test_a_weight_of_0_and_a_negative_one_get_the_same_suggestion_up_to_its_sign(measure):
    plain, none, negative = (soft(measure(**{"terms::soft::weight": weight})) for weight in (5.0, 0.0, -5.0))
    assert none.ratio == 0.0
    assert none.suggested == pytest.approx(plain.suggested, rel=1e-3)
    assert negative.ratio == pytest.approx(plain.ratio, rel=1e-3)
    assert negative.suggested == pytest.approx(-plain.suggested, rel=1e-3)


def test_the_supervised_weight_counts(measure):
    single, double = soft(measure()), soft(measure(**{"terms::seg::weight": 2.0, "learning_rate": 0.0}, warmup=0))
    at_start = soft(measure(warmup=0))
    assert double.ratio == pytest.approx(at_start.ratio / 2, rel=1e-3)
    assert double.suggested == pytest.approx(2 * at_start.suggested, rel=1e-3)
    assert single.ratio != pytest.approx(at_start.ratio, rel=0.01), "the steps before the measurement changed nothing"


def test_seed_and_number_of_batches_decide_what_is_measured(measure):
    assert soft(measure()) == soft(measure())
    assert soft(measure(seed=1)).ratio != soft(measure()).ratio
    assert measure(batches=6, warmup=5).batches == 6  # of 4 training phantoms, one a batch: the next epochs go on
    assert soft(measure(batches=1)).sd == 0.0


def test_schedules_are_left_out(measure):
    scheduled = measure(schedules={"soft": {"stop": 0}}, warmup=1)
    assert soft(scheduled) == soft(measure(warmup=1))


def test_a_term_that_sends_no_gradient_gets_no_suggestion(measure, tmp_path):
    overlay = tmp_path / "still.yaml"
    overlay.write_text(
        "terms::still: {_target_: monai_kd.distillers.Term, loss: '$lambda student, target: target.mean()',"
        " target: teacher/logits}\n"
    )
    found = measure(str(overlay))
    assert [(term.name, term.suggested) for term in found.terms if not term.ratio] == [("still", None)]
    assert found.table().count("no gradient") == 1
    assert "still" not in found.options


def test_terms_on_features_and_their_adapters_are_measured(measure, tmp_path):
    overlay = tmp_path / "hint.yaml"
    overlay.write_text(HINT)
    found = measure(str(overlay))
    assert [term.name for term in found.terms] == ["seg", "soft", "hint"]
    assert all(term.ratio > 0 for term in found.terms)
    assert re.fullmatch(r"--terms::soft::weight \S+ --terms::hint::weight \S+", found.options)


def test_a_running_average_of_the_student_moves_in_the_steps_before_the_measurement(measure, tmp_path):
    overlay = tmp_path / "self.yaml"
    overlay.write_text(
        "terms::soft::target: ema/logits\n"
        "distiller_def: {_target_: monai_kd.distillers.self_distiller.SelfDistiller, student: '@network',"
        " terms: '@terms'}\n"
        "momentum: 1.0\n"
        "+train::handlers: [{_target_: monai_kd.handlers.ema_teacher.EMATeacher, distiller: '@distiller_def',"
        " momentum: '@momentum'}]\n"
    )
    kept, followed = (soft(measure(str(overlay), warmup=4, momentum=momentum)) for momentum in (1.0, 0.0))
    assert kept.ratio > 0.01
    assert followed.ratio < 0.1 * kept.ratio, "the average is the student itself"


def test_the_command_prints_the_table_and_writes_nothing(student, phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = tree(student)
    words = ["--dataset_dir", phantoms, "--split_file", "''", "--patch_size", str(WINDOW), "--ratio", "2"]
    assert command_line(monkeypatch, "calibrate", student, *words, "--batches", 2, "--warmup", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| term | weight | ratio now, mean | SD | weight for ratio 2 |"
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| seg", "| soft"]
    assert lines[5].endswith("n = 2 batches, after 1 iterations on 'seg' alone.")
    assert lines[-1] == f"--terms::soft::weight {lines[3].split(' | ')[-1].removesuffix(' |')}"
    assert list(tmp_path.iterdir()) == []
    assert tree(student) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--terms::sft::weight", "2"], "--terms::sft::weight: no such key in .*; did you mean --terms::s"),
        (["--bathces", "3"], "--bathces: no such key in .*; did you mean the option --batches?"),
        (["--reference", "sgm"], "the reference 'sgm' is no term of this distiller; known: seg, soft"),
        (["--terms::seg::weight", "0"], "the reference term 'seg' has weight 0"),
        (["--teacher_root", "/nowhere"], "'/nowhere' does not exist"),
        (["--terms::soft::loss::temperature", "-1"], "temperature is -1"),
        (["--dataset_dir", "/nowhere"], "dataset_dir '/nowhere' is not a folder"),
        (["--config_file", "configs/nope.yaml"], "config_file 'configs/nope.yaml' is neither in bundle"),
        (["--config_file", "configs/inference.yaml"], "inference.yaml describes no training"),
        (["--config_file", "configs/evaluate.yaml"], "evaluate.yaml cannot be read .*; an overlay stands behind"),
        (["--config_file", "['configs/train.yaml','configs/baseline.yaml']"], "'seg' is the only term of train.yaml"),
        (["--config_file", "['configs/train.yaml','configs/multi_gpu_train.yaml']"], "trains in several processes"),
        (["--batches", "0"], "batches is 0; give a whole number of at least 1"),
        (["--warmup", "-1"], "warmup is -1; give a whole number of at least 0"),
        (["--ratio", "0"], "ratio is 0; give a positive number"),
    ],
)
def test_a_mistake_is_one_line(student, phantoms, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    data = [] if "--dataset_dir" in words else ["--dataset_dir", phantoms]
    assert command_line(monkeypatch, "calibrate", student, *data, *words) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_without_weights_is_named(repository, phantoms, tmp_path, monkeypatch, capsys):
    bundle = tiny_student(repository, tmp_path / "tiny")
    (bundle / "models" / "teacher" / "models" / "model.pt").unlink()
    assert command_line(monkeypatch, "calibrate", bundle, "--dataset_dir", phantoms) == 1
    assert re.search(r"error: no weights in '.*teacher/models': looked for model.pt", capsys.readouterr().err)


def test_a_teacher_whose_weights_are_cut_short_is_named(repository, phantoms, tmp_path, monkeypatch, capsys):
    bundle = tiny_student(repository, tmp_path / "tiny")
    weights = bundle / "models" / "teacher" / "models" / "model.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert command_line(monkeypatch, "calibrate", bundle, "--dataset_dir", phantoms) == 1
    assert f"error: '{weights}' is no readable PyTorch checkpoint" in capsys.readouterr().err


def test_a_bundle_without_a_distiller_is_refused(repository, phantoms):
    with pytest.raises(TypeError, match=r"train\.yaml trains a DynUNet; only a Distiller has terms to calibrate"):
        calibrate_terms(repository / "bundles" / "teacher", overrides={"dataset_dir": str(phantoms)})


def test_an_unstable_loss_is_named(measure, tmp_path):
    overlay = tmp_path / "unstable.yaml"
    overlay.write_text("terms::soft::loss: '$lambda student, target: (student - student).sqrt().mean()'\n")
    with pytest.raises(ValueError, match="the gradient of term 'soft' has the norm nan on batch 1: its loss is unst"):
        measure(str(overlay), warmup=0)


def test_files_are_looked_for_in_the_bundle(student, measure):
    overlay = student / "configs" / "warm.yaml"
    overlay.write_text("terms::soft::weight: 1.0\n")
    try:
        assert soft(measure("configs/warm.yaml")).weight == 1.0
        replace(overlay, "1.0", "2.0")
        assert soft(measure("configs/warm.yaml")).weight == 2.0
    finally:
        overlay.unlink()
