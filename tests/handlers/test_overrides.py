"""Overrides on the command line: unknown keys, words for booleans, texts for numbers."""

from __future__ import annotations

import sys

import pytest

from monai_kd.handlers import check_overrides, override_problems

CONFIG = """
seed: 0
epochs: 16
amp: $torch.cuda.is_available()
resume: false
method: none
split_file: $''
network_def: {_target_: UNet, channels: [8, 16]}
terms:
  seg: {_target_: Term, weight: 1.0}
train:
  trainer: {_target_: Trainer, max_epochs: "@epochs", keys: {label: label}}
distiller_def: {_target_: Distiller, teachers: {}}
schedules: {}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.mark.parametrize(
    "overrides",
    [
        {"seed": 3},
        {"epochs": "$2 * 3"},
        {"amp": True},
        {"resume": "@amp"},
        {"split_file": ""},
        {"method": "yes"},  # a text in the file: any text is right
        {"network_def::channels": [4, 8]},
        {"network_def#channels::0": 2},
        {"network_def::dropout": 0.1},  # MONAI refuses an argument the component does not take
        {"terms::seg::_disabled_": True},
        {"terms::mine": {"_target_": "my.Loss"}},
        {"terms::mine": {"_target_": "my.Loss", "value": "@factor"}, "factor": 2},
        {"train::trainer::max_epochs": 2},
        {"+train::trainer": {"amp": True}},
        {"_meta_::version": "0.2.0"},
        {"finalize": ["$print('done')"]},
        {"distiller_def::teachers::second": "@teacher2", "teacher2": {"_target_": "my.Teacher"}},
        {"train::trainer::keys::soft": "soft"},
        {"epochs": 4.0},
        {"schedules::seg": {"ramp": 0.1}},
    ],
)
def test_overrides_that_mean_something_pass(config, overrides):
    assert override_problems(config, overrides) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 5}, "--epoch: no such key in .*train.yaml; did you mean --epochs?"),
        ({"xyz": 5}, "--xyz: no such key in .*train.yaml$"),
        ({"terms::sge::weight": 5}, "--terms::sge::weight: no such key"),
        ({"terms::soft": 5}, "--terms::soft: no such key"),
        ({"schedules::seg": 0.1}, "--schedules::seg: no such key"),
        ({"schedules::seg::ramp": 0.1}, "--schedules::seg::ramp: no such key"),
        ({"train::trainre::max_epochs": 5}, "did you mean --train::trainer"),
        ({"amp": "false"}, "--amp: 'false' is a text here, and any text counts as true; write True, False"),
        ({"amp": "no"}, "'no' is a text"),
        ({"split_file": "null"}, "'null' is a text .* for nothing, \"''\""),
        ({"resume": "later"}, "'later' is a text, the files have False; write True or False"),
        ({"epochs": "ten"}, "--epochs: 'ten' is a text, the files have the number 16"),
        ({"seed::x": 1}, "--seed::x: no such key"),
        ({"epochs": 2.5}, "--epochs: 2.5 is no whole number, the files have 16"),
        ({"epochs": True}, "--epochs: True is no number, the files have 16"),
        ({"resume": 1}, "--resume: 1 is a number, the files have False; write True or False"),
        ({"network_def::channels": "8"}, "'8' is a text, the files have a list"),
        ({"train::trainer::decollate": "false"}, "'false' is a text here, and any text counts as true"),
    ],
)
def test_each_mistake_is_named_with_what_would_be_right(config, overrides, message):
    import re

    (problem,) = override_problems(config, overrides)
    assert re.search(message, problem)


def test_keys_of_later_files_count(config, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("section: test\n")
    assert override_problems([config, str(overlay)], {"section": "all"}) == []
    assert len(override_problems([config], {"section": "all"})) == 1


def test_nothing_is_checked_when_python_started_the_workflow(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/monailabel/main.py", "run", "--nonsense", "1"])
    check_overrides()
