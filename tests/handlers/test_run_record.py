"""run.json of real tiny trainings and evaluations, built by a ConfigParser as in a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointSaver, MeanDice, from_engine
from monai.networks.nets import UNet
from monai.transforms import AsDiscreted
from torch import nn

from monai_kd.data import CaseSplit
from monai_kd.handlers import CaseScores, new_run_name, require_weights
from monai_kd.handlers.provenance import file_sha256
from monai_kd.handlers.training_record import _without_method_handlers, refuse_other_run

CLASS_NAMES = ["background", "anterior", "posterior"]


def network(channels: int = 4) -> UNet:
    torch.manual_seed(channels)
    return UNet(3, 1, 3, channels=(channels, 2 * channels), strides=(2,), norm="instance")


def loader(paths: Sequence[str]) -> DataLoader:
    """One random volume a path, its label an intensity class."""
    items = []
    for number, path in enumerate(paths):
        image = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(number))
        label = (image > -0.5).float() + (image > 0.5).float()
        pair = {"image": image, "label": label}
        items.append({key: MetaTensor(value, meta={"filename_or_obj": path}) for key, value in pair.items()})
    return DataLoader(Dataset(items), batch_size=1)


def evaluator(model: nn.Module, data: Sequence[dict[str, str]], run_dir: str, extra: Sequence[Any] = ()) -> Engine:
    saver = CheckpointSaver(run_dir, {"model": model}, save_key_metric=True, key_metric_filename="model.pt")
    dice = MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
    return SupervisedEvaluator(
        device="cpu",
        val_data_loader=loader([item["image"] for item in data]),
        network=model,
        postprocessing=AsDiscreted(keys=["pred", "label"], argmax=[True, False], to_onehot=3),
        key_val_metric={"val_mean_dice": dice},
        val_handlers=[CaseScores(CLASS_NAMES), *([] if extra else [saver]), *extra],
    )


def fail_at(engine: Engine, iteration: int) -> None:
    if engine.state.iteration == iteration:
        raise RuntimeError("out of memory")


def cases(*names: str) -> list[dict[str, str]]:
    return [{"image": f"/data/imagesTr/{name}.nii.gz", "label": f"/data/labelsTr/{name}.nii.gz"} for name in names]


CONFIG: dict[str, Any] = {
    "bundle_root": ".",
    "run_dir": "",
    "device": "cpu",
    "bundle": {"name": "student", "version": "0.1.0"},
    "method": "distilled",
    "protocol": "hippocampus",
    "seed": 3,
    "epochs": 2,
    "learning_rate": 0.1,
    "class_names": CLASS_NAMES,
    "spacing_mm": [1.0, 1.0, 1.0],
    "roi_size": [8, 8, 8],
    "overlap": 0.25,
    "network": "$network()",
    "teacher": "$network(8)",
    "loss": {"_target_": "DiceCELoss", "softmax": True, "to_onehot_y": True},
    "terms": {
        "seg": {"_target_": "monai_kd.distillers.Term", "loss": "@loss"},
        "soft": {
            "_target_": "monai_kd.distillers.Term",
            "loss": {"_target_": "monai_kd.losses.SoftLogitKL"},
            "target": "teacher/logits",
            "weight": 0.5,
        },
    },
    "distiller": {
        "_target_": "monai_kd.distillers.Distiller",
        "student": "@network",
        "teachers": {"teacher": "@teacher"},
        "terms": "@terms",
    },
    "train": {
        "data": cases("a", "b", "c"),
        "handlers": [
            {"_target_": "ValidationHandler", "validator": "@validate::evaluator", "interval": 1},
            {"_target_": "monai_kd.handlers.Progress", "title": "t", "validator": "@validate::evaluator"},
            "@record",
        ],
        "trainer": {
            "_target_": "monai_kd.engines.DistillationTrainer",
            "max_epochs": "@epochs",
            "device": "@device",
            "train_data_loader": "$loader([item['image'] for item in @train::data])",
            "network": "@distiller",
            "optimizer": {
                "_target_": "torch.optim.SGD",
                "params": "$@network.parameters()",
                "lr": "@learning_rate",
            },
            "prepare_batch": {"_target_": "PrepareBatchExtraInput", "extra_keys": {"label": "label"}},
            "train_handlers": "@train::handlers",
        },
    },
    "validate": {
        "data": cases("d", "e"),
        "preprocessing": {"_target_": "Compose", "transforms": []},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": []},
        "evaluator": "$evaluator(@network, @validate::data, @run_dir)",
    },
    "record": {
        "_target_": "monai_kd.handlers.TrainingRecord",
        "run_dir": "@run_dir",
        "bundle": "@bundle",
        "bundle_root": "@bundle_root",
        "method": "@method",
        "protocol": "@protocol",
        "seed": "@seed",
        "class_names": "@class_names",
        "device": "@device",
        "network": "@network",
        "evaluator": "@validate::evaluator",
        "train_data": "@train::data",
        "validation_data": "@validate::data",
        "distiller": "@distiller",
    },
    "evaluation": {
        "_target_": "monai_kd.handlers.EvaluationRecord",
        "run_dir": "@run_dir",
        "bundle": "@bundle",
        "bundle_root": "@bundle_root",
        "method": "@method",
        "protocol": "@protocol",
        "class_names": "@class_names",
        "device": "@device",
        "network": "@network",
        "data": "@validate::data",
        "section": "test",
        "weights": "",
    },
}
GLOBALS = {"network": network, "loader": loader, "evaluator": evaluator, "CaseSplit": CaseSplit}


def configured(run_dir: Path, changes: dict[str, Any] | None = None) -> ConfigParser:
    parser = ConfigParser(json.loads(json.dumps(CONFIG)))
    parser.globals.update(GLOBALS)
    parser["run_dir"] = str(run_dir)
    for key, value in (changes or {}).items():
        parser[key] = value
    return parser


def read(run_dir: Path, name: str = "run.json") -> dict[str, Any]:
    return json.loads((run_dir / name).read_text(encoding="utf-8"))


def train(run_dir: Path, changes: dict[str, Any] | None = None, prepare: Callable[[Engine], Any] | None = None) -> Any:
    parser = configured(run_dir, changes)
    trainer = parser.get_parsed_content("train::trainer")
    if prepare is not None:
        prepare(trainer)
    trainer.run()
    return parser


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """The folder of a finished training, and what every iteration's output held."""
    run_dir = tmp_path_factory.mktemp("runs") / "distilled-seed3"
    seen: list[dict[str, float]] = []

    def watch(trainer: Engine) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(dict(engine.state.output[0])))

    train(run_dir, prepare=watch)
    return run_dir, seen


def test_a_finished_training_records_who_what_and_how(training):
    run_dir, _ = training
    record = read(run_dir)
    assert (record["kind"], record["status"], record["run_id"]) == ("training", "finished", "distilled-seed3")
    assert record["bundle"] == {"name": "student", "version": "0.1.0"}
    assert (record["method"], record["seed"], record["epochs"]) == ("distilled", 3, 2)
    assert record["classes"] == {"1": "anterior", "2": "posterior"}
    assert record["protocol"]["name"] == "hippocampus"
    assert (record["protocol"]["n_train"], record["protocol"]["n_validation"]) == (3, 2)
    parameters = sum(p.numel() for p in network().parameters())
    assert record["network"] == {
        "target": "UNet",
        "parameters": parameters,
        "weights_sha256": file_sha256(run_dir / "model.pt"),
    }
    assert record["config_files"] == []  # no bundle command line stood above
    assert record["config"] == {**CONFIG, "run_dir": str(run_dir)}
    assert record["device"]["type"] == "cpu"
    assert record["memory"]["peak_rss_mb"] > 50
    assert 0 < record["time"]["total_s"] < 600
    assert read(run_dir, "split.json") == {"train": ["a", "b", "c"], "validation": ["d", "e"]}


def test_curves_are_the_epoch_means_of_loss_and_terms(training):
    run_dir, seen = training
    curves = read(run_dir)["curves"]
    assert len(seen) == 6
    assert curves["epoch"] == [1, 2]
    assert set(curves["terms"]) == set(curves["weighted"]) == {"seg", "soft"}
    assert curves["weighted"]["soft"] == pytest.approx([0.5 * value for value in curves["terms"]["soft"]], rel=1e-6)
    for epoch in range(2):
        of_epoch = seen[3 * epoch : 3 * epoch + 3]
        for name, curve in {"loss": curves["loss"], **curves["terms"]}.items():
            assert curve[epoch] == pytest.approx(sum(output[name] for output in of_epoch) / 3, rel=1e-6)
        loss, seg, soft = curves["loss"][epoch], curves["terms"]["seg"][epoch], curves["terms"]["soft"][epoch]
        assert loss == pytest.approx(seg + 0.5 * soft, rel=1e-5)


def test_validation_scores_are_numbered_by_the_trainers_epochs_and_name_the_best(training):
    record = read(training[0])
    curves = record["curves"]
    assert curves["val_epoch"] == [1, 2]
    best = max(range(2), key=lambda epoch: curves["val_mean_dice"][epoch])
    assert record["best_epoch"] == best + 1
    # MeanDice averages over classes of a case first, the summary over cases first: equal while no class is absent
    assert record["best_metric"] == pytest.approx(curves["val_mean_dice"][best], rel=1e-4)
    assert record["validation"]["n_cases"] == 2
    assert record["validation"]["dice"]["mean"] == curves["val_mean_dice"][-1]
    assert 0 < record["validation"]["dice"]["mean"] < 1


def test_teachers_of_a_distiller_are_live_and_counted(training):
    facts = read(training[0])["teacher"]
    assert facts["source"] == "live"
    assert facts["networks"]["teacher"]["target"] == "UNet"
    assert facts["networks"]["teacher"]["parameters"] == sum(p.numel() for p in network(8).parameters())


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({"record::distiller": None}, "none"),
        ({"terms::soft::_disabled_": True, "distiller::teachers": {}}, "none"),
        ({"distiller::teachers": {}, "distiller::cached": {"teacher_logits": "teacher/logits"}}, "cached"),
    ],
)
def test_teacher_facts_tell_absent_from_cached(tmp_path, changes, source):
    record = configured(tmp_path, changes).get_parsed_content("record")
    assert record.content["teacher"] == {"source": source}


def test_teachers_that_no_term_reads_are_none(tmp_path):
    changes = {"terms::soft::_disabled_": True, "distiller::freeze": False}
    assert configured(tmp_path, changes).get_parsed_content("record").content["teacher"] == {"source": "none"}


def test_a_run_is_not_resumed_with_teachers_of_other_weights():
    def record(sha256: str | None) -> dict[str, Any]:
        facts = {"networks": {"teachers": {} if sha256 is None else {"weights_sha256": sha256}}}
        return {"config": {}, "protocol": {"split_hash": "s"}, "device": {"type": "cpu"}, "teacher": facts}

    for earlier, now in (("a", "a"), ("a", None), (None, "a")):
        refuse_other_run(record(earlier), record(now), "runs/one")
    with pytest.raises(ValueError, match="not the configuration of the run in 'runs/one': the weights of 'teachers'"):
        refuse_other_run(record("a"), record("b"), "runs/one")


@pytest.mark.parametrize("first", ["progress", "record"])
def test_a_training_that_fails_says_so_and_the_error_comes_through(tmp_path, first):
    """Whichever of the two handlers that re-raise stands first in the list."""
    handlers = CONFIG["train"]["handlers"]
    order = [handlers[0], *(handlers[1:] if first == "progress" else reversed(handlers[1:]))]

    def prepare(trainer: Engine) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, fail_at, 4)

    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path, {"train::handlers": order}, prepare)
    record = read(tmp_path)
    assert record["status"] == "stopped by RuntimeError"
    assert record["curves"]["epoch"] == [1]
    assert "weights_sha256" not in record["network"]


def test_an_interrupted_training_says_so_too(tmp_path):
    def interrupt(engine: Engine) -> None:
        if engine.state.iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, prepare=lambda trainer: trainer.add_event_handler(Events.ITERATION_COMPLETED, interrupt))
    assert read(tmp_path)["status"] == "stopped by KeyboardInterrupt"


def test_a_training_under_way_is_recorded_as_running_after_each_validation(tmp_path):
    seen = []

    def prepare(trainer: Engine) -> None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: seen.append(read(tmp_path)))

    train(tmp_path, prepare=prepare)
    assert [record["status"] for record in seen] == ["running", "running"]
    assert [record["curves"]["val_epoch"] for record in seen] == [[1], [1, 2]]


SPLIT = {"record::split": "@split", "split": "$CaseSplit(@dataset_dir)", "train::data": "$@split.cases('train')"}


def test_test_cases_of_the_split_are_written_down(tmp_path, phantoms):
    parser = configured(tmp_path, {**SPLIT, "dataset_dir": str(phantoms)})
    record = parser.get_parsed_content("record")
    ids = CaseSplit(str(phantoms)).ids
    assert record.ids == {"train": ids["train"], "validation": ["d", "e"], "test": ids["test"]}
    assert record.content["protocol"]["n_test"] == 1


def test_a_split_that_nobody_used_is_not_read(tmp_path):
    # MONAI Label and federated clients replace the data lists; the folder of the split need not exist
    changes = {**SPLIT, "dataset_dir": str(tmp_path / "nowhere"), "train::data": cases("a")}
    assert configured(tmp_path, changes).get_parsed_content("record").ids == {
        "train": ["a"],
        "validation": ["d", "e"],
    }


def content(tmp_path: Path, changes: dict[str, Any] | None = None, kind: str = "record") -> dict[str, Any]:
    return configured(tmp_path, changes).get_parsed_content(kind).content


BASELINE = {"method": "baseline", "terms::soft::_disabled_": True, "distiller::teachers": {}}
ELSEWHERE = {"run_dir": "/tmp/elsewhere", "bundle_root": "..", "seed": 4, "dataset_dir": "/data", "ckpt_dir": "x"}


RAMP = {"schedules": {"soft": {"ramp": 0.1}}}


@pytest.mark.parametrize("changes", [BASELINE, ELSEWHERE, RAMP, {"terms::soft::weight": 2.0}])
def test_arms_that_differ_in_method_seed_or_place_share_the_schedule_hash(tmp_path, changes):
    assert content(tmp_path, changes)["schedule_hash"] == content(tmp_path)["schedule_hash"]


# what trains teachers and heads that are not the student's
TEACHERS = {
    f"terms::{name}": {"_target_": "x", "student": f"teachers/{name}", "_disabled_": True}
    for name in ("flair", "fused")
}
SIDE = {"terms::side": {"_target_": "x", "student": "student/side_1", "target": "label", "_disabled_": True}}


@pytest.mark.parametrize("changes", [TEACHERS, SIDE, {**TEACHERS, **SIDE}])
def test_terms_of_teachers_and_side_heads_belong_to_the_method(tmp_path, changes):
    assert content(tmp_path, changes)["schedule_hash"] == content(tmp_path)["schedule_hash"]


@pytest.mark.parametrize("student", ["student/logits", "student/logits_1", ["student/logits"]])
def test_a_supervised_term_of_the_student_does_not(tmp_path, student):
    changes = {"terms::more": {"_target_": "x", "student": student, "target": "label", "_disabled_": True}}
    assert content(tmp_path, changes)["schedule_hash"] != content(tmp_path)["schedule_hash"]


def test_ids_of_the_method_leave_the_schedule_hash_alone(tmp_path):
    def hashes(**knobs: Any) -> tuple[str, str]:
        found = content(tmp_path, {"record::method_ids": "@method_ids", **knobs})
        return found["schedule_hash"], found["recipe_hash"]

    ids = {"method_ids": ["temperature", "staged"]}
    base = hashes(**ids, temperature=4.0)
    assert hashes(**ids, temperature=20.0, staged=True) == base
    assert hashes(method_ids=["temperature"], temperature=4.0) == base  # nor does the list itself
    assert hashes(**ids, temperature=4.0, max_norm=1.0) != base
    assert hashes(method_ids=[], temperature=4.0) != base


@pytest.mark.parametrize("key", ["schedule_hash", "recipe_hash"])
def test_a_precision_that_is_written_down_counts_in_place_of_the_hardware(tmp_path, monkeypatch, key):
    def on(has_bfloat16: bool, asked: Any) -> str:
        monkeypatch.setattr("monai_kd.handlers.training_record.cpu_has_bfloat16", lambda: has_bfloat16)
        return content(tmp_path, {"cpu_bfloat16": asked})[key]

    assert on(True, False) == on(False, False)
    assert on(True, False) != on(True, True)
    expression = "$monai_kd.inferers.cpu_has_bfloat16()"
    assert on(True, expression) != on(False, expression)


def test_handlers_of_the_method_are_no_part_of_the_schedule():
    stop = {"_target_": "EarlyStopHandler"}
    ours = [{"_target_": f"monai_kd.handlers.{name}"} for name in ("TermSchedules", "EMATeacher", "GradientRatios")]
    config = {"epochs": 2, "train": {"handlers": [stop, *ours], "x": 1}}
    assert _without_method_handlers(config) == {"epochs": 2, "train": {"handlers": [stop], "x": 1}}
    assert _without_method_handlers({"train": "@other"}) == {"train": "@other"}


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 3},
        {"learning_rate": 0.2},
        {"terms::seg::weight": 2.0},
        {"schedules": {"seg": {"stop": 0.1}}},
        {"terms::more": {"_target_": "x", "target": ["label"], "_disabled_": True}},
        {"train::data": cases("a", "b")},
        {"validate::data": cases("e", "d")},
        {"loss::softmax": False},
        {"train::trainer::accumulation_steps": 2},
    ],
)
def test_another_schedule_has_another_hash(tmp_path, changes):
    assert content(tmp_path, changes)["schedule_hash"] != content(tmp_path)["schedule_hash"]


def test_supervision_on_the_views_too_is_part_of_the_method(tmp_path):
    seg = {"_target_": "x", "student": "student/logits", "target": "label", "weight": 1.0, "_disabled_": True}
    views = {**seg, "student": "student/all_logits", "target": "all_labels"}
    anchor, everything, heavier = (
        content(tmp_path, {"terms::views": term})["schedule_hash"] for term in (seg, views, {**views, "weight": 2.0})
    )
    assert everything == anchor != heavier


WIDER = {"network_def": {"_target_": "x", "width": 9}}
WINDOW = {"roi_size": [8, 8, 8], "validate::inferer": {"_target_": "SlidingWindowInferer", "roi_size": "@roi_size"}}


@pytest.mark.parametrize("changes", [WIDER, {"chunk": 3}, WINDOW, {**WINDOW, **BASELINE}])
def test_another_network_has_another_schedule_and_the_same_recipe(tmp_path, changes):
    other, base = content(tmp_path, changes), content(tmp_path)
    assert other["schedule_hash"] != base["schedule_hash"]
    assert other["recipe_hash"] == base["recipe_hash"] != base["schedule_hash"]


@pytest.mark.parametrize("changes", [{"epochs": 3}, {"terms::seg::weight": 2.0}, {"validate::data": cases("e", "d")}])
def test_another_schedule_is_another_recipe(tmp_path, changes):
    assert content(tmp_path, changes)["recipe_hash"] != content(tmp_path)["recipe_hash"]


def test_the_way_through_a_volume_is_part_of_the_protocol_and_not_of_the_scoring(tmp_path):
    def protocol(changes: dict[str, Any]) -> dict[str, Any]:
        return content(tmp_path, changes, "evaluation")["protocol"]

    base, window = protocol({}), protocol(WINDOW)
    assert window["hash"] != base["hash"]
    assert window["scoring_hash"] == base["scoring_hash"]
    for other in (
        {"spacing_mm": [2, 2, 2]},
        {"validate::dataset": {"transform": "other"}},
        {"regions": {"all": [1, 2]}},
        {"intensity": {"_target_": "x"}},
        {"shift": {"_target_": "x"}},
        {"diameter": 256},
    ):
        assert protocol(other)["scoring_hash"] != base["scoring_hash"]
        assert protocol(other)["hash"] != base["hash"]


def test_a_window_that_follows_from_another_knob_counts_as_what_it_comes_out_as(tmp_path):
    def protocol_hash(patch: list[int], window: Any) -> str:
        changes = {"patch_size": patch, "roi_size": window}
        return content(tmp_path, changes, "evaluation")["protocol"]["hash"]

    followed = "$[*@patch_size[:2], -1]"
    assert protocol_hash([8, 8, 4], followed) != protocol_hash([6, 8, 4], followed)
    assert protocol_hash([8, 8, 4], followed) == protocol_hash([8, 8, 2], [8, 8, -1])


def test_config_hash_tells_methods_and_seeds_apart_and_not_places(tmp_path):
    base = content(tmp_path)["config_hash"]
    assert content(tmp_path / "other")["config_hash"] == base
    assert content(tmp_path, BASELINE)["config_hash"] != base
    assert content(tmp_path, {"seed": 4})["config_hash"] != base


def evaluate(run_dir: Path, weights: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run an evaluation to its end and return its run.json."""
    changes = {
        "evaluation::weights": str(weights),
        "validate::evaluator": "$evaluator(@network, @validate::data, @run_dir, [@evaluation])",
        "method": "named by the command line",
        **(changes or {}),
    }
    parser = configured(run_dir, changes)
    saved, network = torch.load(weights, weights_only=True), parser.get_parsed_content("network")
    if saved.keys() == network.state_dict().keys():  # what CheckpointLoader does in the bundles
        network.load_state_dict(saved)
    parser.get_parsed_content("validate::evaluator").run()
    return read(run_dir)


def test_an_evaluation_records_every_case_and_how_its_weights_were_made(tmp_path, training, capsys):
    run_dir, _ = training
    record = evaluate(tmp_path, run_dir / "model.pt")
    trained = read(run_dir)
    assert (record["kind"], record["status"]) == ("evaluation", "finished")
    assert record["network"]["weights_sha256"] == trained["network"]["weights_sha256"]
    assert [case["case"] for case in record["cases"]] == ["d", "e"]
    assert record["summary"]["n_cases"] == record["protocol"]["n_cases"] == 2
    mean = sum(case["dice"]["anterior"] for case in record["cases"]) / 2
    assert record["summary"]["dice"]["anterior"] == pytest.approx(mean)
    assert record["protocol"]["section"] == "test"
    seconds = sorted(case["inference_s"] for case in record["cases"])
    assert record["time"]["inference_s_per_case"] in seconds
    # adopted from the training beside the weights
    assert (record["method"], record["seed"]) == ("distilled", 3)
    assert record["schedule_hash"] == trained["schedule_hash"]
    assert record["teacher"] == trained["teacher"]
    assert record["protocol"]["n_train"] == 3
    assert record["training"]["curves"] == trained["curves"]
    assert "config" not in record["training"]
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2
    assert f"mean Dice {record['summary']['dice']['mean']:.4f} over 2 cases" in capsys.readouterr().out


def test_published_weights_bring_their_record_along_under_their_own_name(tmp_path, training):
    run_dir, _ = training
    shutil.copy(run_dir / "model.pt", tmp_path / "best.pt")
    shutil.copy(run_dir / "run.json", tmp_path / "best.json")
    record = evaluate(tmp_path / "run", tmp_path / "best.pt")
    assert record["training"]["run_id"] == "distilled-seed3"


def test_a_record_that_names_other_bytes_is_not_adopted(tmp_path, training):
    run_dir, _ = training
    torch.save({"other": torch.zeros(1)}, tmp_path / "model.pt")
    shutil.copy(run_dir / "run.json", tmp_path / "run.json")
    record = evaluate(tmp_path / "run", tmp_path / "model.pt")
    assert record["training"] is None
    assert record["seed"] is record["schedule_hash"] is record["teacher"] is None
    assert record["method"] == "named by the command line"


def test_a_record_of_an_evaluation_is_not_adopted(tmp_path, training):
    run_dir, _ = training
    shutil.copy(run_dir / "model.pt", tmp_path / "model.pt")
    (tmp_path / "run.json").write_text(json.dumps({**read(run_dir), "kind": "evaluation"}))
    assert evaluate(tmp_path / "run", tmp_path / "model.pt")["training"] is None


def test_weights_that_the_network_does_not_hold_are_not_named(tmp_path, training):
    """A federated client evaluates what the server sent, whatever file lies in its folder."""
    run_dir, _ = training
    state = {key: value + 1 for key, value in torch.load(run_dir / "model.pt", weights_only=True).items()}
    (tmp_path / "other").mkdir()
    torch.save(state, tmp_path / "other" / "model.pt")
    changes = {
        "evaluation::weights": str(tmp_path / "other" / "model.pt"),
        "validate::evaluator": "$evaluator(@network, @validate::data, @run_dir, [@evaluation])",
    }
    configured(tmp_path / "run", changes).get_parsed_content("validate::evaluator").run()
    record = read(tmp_path / "run")
    assert record["network"]["weights_sha256"] is None
    assert record["training"] is None


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x.pt' does not exist; train first, or pass --ckpt_path FILE"):
        require_weights(str(tmp_path / "x.pt"))


@pytest.mark.parametrize("kept", [0, 20_000])
def test_weights_that_were_cut_short_are_named_before_any_data_is_read(tmp_path, kept):
    path = tmp_path / "x.pt"
    torch.save({"weight": torch.zeros(100_000)}, path)
    require_weights(str(path))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"x.pt' is no readable PyTorch checkpoint, damaged or cut short"):
        require_weights(str(path))


def protocol(tmp_path: Path, training: tuple[Path, Any], changes: dict[str, Any] | None = None) -> dict[str, Any]:
    changes = {"evaluation::weights": str(training[0] / "model.pt"), **(changes or {})}
    return content(tmp_path, changes, "evaluation")["protocol"]


@pytest.mark.parametrize(
    "changes",
    [
        {"validate::data": cases("d", "f")},
        {"spacing_mm": [1.0, 1.0, 1.5]},
        {"roi_size": [16, 16, 16]},
        {"overlap": 0.5},
        {"validate::preprocessing::transforms": [{"_target_": "EnsureTyped", "keys": "image"}]},
        {"validate::inferer::_target_": "SlidingWindowInferer"},
        {"validate::postprocessing::transforms": [{"_target_": "EnsureTyped", "keys": "pred"}]},
    ],
)
def test_another_way_of_scoring_has_another_protocol_hash(tmp_path, training, changes):
    assert protocol(tmp_path, training, changes)["hash"] != protocol(tmp_path, training)["hash"]


@pytest.mark.parametrize("changes", [BASELINE, ELSEWHERE, {"epochs": 9}, {"learning_rate": 1.0}])
def test_how_the_weights_were_made_does_not_change_the_protocol_hash(tmp_path, training, changes):
    assert protocol(tmp_path, training, changes)["hash"] == protocol(tmp_path, training)["hash"]


def test_the_same_cases_in_another_folder_are_the_same_protocol(tmp_path, training):
    moved = [{key: path.replace("/data", "/mnt") for key, path in item.items()} for item in cases("d", "e")]
    assert protocol(tmp_path, training, {"validate::data": moved})["hash"] == protocol(tmp_path, training)["hash"]


def test_run_names_tell_method_seed_and_time():
    name = new_run_name("distilled", 2)
    assert name.startswith("distilled-seed2-20")
    assert len(name) == len("distilled-seed2-20261121-104400")
