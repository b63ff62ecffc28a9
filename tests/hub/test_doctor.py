"""doctor: names the id that fails first, and reads off the voxels what the channels mean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_bundles import OVERLAYS, change_json, command, replace, tiny_student

from monai_kd.hub import Finding, diagnose
from monai_kd.hub.class_order import best_meaning, confusion, confusion_table, foreground_dice

# what a case holds: intensity by class, so that a threshold segments it
INTENSITY = {0: 20.0, 1: 50.0, 2: 80.0}


@pytest.fixture(scope="module")
def whole(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle whose network and teacher are threshold classifiers: they read the class off the intensity."""
    root = tiny_student(repository, tmp_path_factory.mktemp("whole") / "tiny")
    conv = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}
    text = "network_def: {_target_: torch.nn.Conv3d, in_channels: 1, out_channels: 3, kernel_size: 1}\n"
    for name in ("train.yaml", "inference.yaml"):
        path = root / "configs" / name
        before, _, after = path.read_text().partition("network_def:\n")
        path.write_text(before + text + after[after.index("network: $@network_def") :])
    for folder in (root, root / "models" / "teacher"):
        change_json(folder / "configs" / "infer.json", network_def=conv)
        write_thresholds(folder)
    return root


def write_thresholds(folder: Path, order: tuple[int, int, int] = (0, 1, 2)) -> None:
    """Weights of logits that are largest below, between and above two thresholds of the normalized image."""
    weight = torch.tensor([-4.0, 0.0, 2.0])[list(order)]
    bias = torch.tensor([4.8, 0.0, -8.6])[list(order)]  # thresholds 1.2 and 4.3
    state = {"weight": weight.reshape(3, 1, 1, 1, 1), "bias": bias}
    torch.save(state, folder / "models" / "model.pt")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases of two slabs each, in MSD layout."""
    root = tmp_path_factory.mktemp("slabs")
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        label = np.zeros((24, 24, 24), np.uint8)
        label[8:16, 4:9, 8:16], label[8:16, 9 : 14 + number, 8:16] = 1, 2
        image = np.vectorize(INTENSITY.get)(label) + generator.normal(0, 0.5, label.shape)
        for folder, volume in (("imagesTr", image.astype(np.float32)), ("labelsTr", label)):
            nib.save(nib.Nifti1Image(volume, np.eye(4)), root / folder / f"slabs_{number}.nii.gz")
    return root


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def unwell(bundle: Path, *arguments: Any) -> list[Finding]:
    found = diagnose(bundle, *arguments)
    assert all("\n" not in finding.message for finding in found)
    return [finding for finding in found if finding.level != "ok" and "inference_trt" not in finding.where]


# ---- configurations -------------------------------------------------------------------------------------------------


def test_a_well_bundle_has_no_finding_and_every_combination_is_looked_at(bundle):
    found = diagnose(bundle)
    assert unwell(bundle) == []
    fine = [finding.where for finding in found if finding.level == "ok"]
    for names in ("train.yaml", "train.yaml + configs/baseline.yaml", "train.yaml + configs/evaluate.yaml"):
        assert f"configs/{names}" in fine
    assert {"configs/inference.yaml", "models/model.pt", "models/teacher"} <= set(fine)


def test_the_repositorys_bundles_have_no_error(bundles):
    for path in bundles:
        assert unwell(path) == [], path.name


# how to break it; where and why the doctor must say it
BREAKS = {
    "expression": ("learning_rate: 5.0e-3", "learning_rate: $1 / 0", "learning_rate", "ZeroDivisionError"),
    "syntax": ("learning_rate: 5.0e-3", "learning_rate: $1 +", "learning_rate", "SyntaxError"),
    "no target": ("network_def: {_target_: torch.nn.Conv3d, in", "network_def: {in", "network", "has no _target_"),
    "unknown target": ("_target_: DiceCELoss", "_target_: DiceCELos", "loss", "DiceCELos"),
    "unknown argument": ("softmax: true, to_onehot_y", "softmaks: true, to_onehot_y", "loss", "softmaks"),
    "unknown reference": (
        '@optimizer"\n  warm',
        '@optimiser"\n  warm',
        "lr_scheduler",
        "did you mean '@optimizer'",
    ),
    "unknown name": ("split: {_target_: monai_kd.data", "split: {_target_: monai_kd.daten", "split", "daten"),
}


@pytest.mark.parametrize("name", list(BREAKS))
def test_the_failing_id_is_named_with_its_file_and_its_reason(bundle, name):
    old, new, config_id, message = BREAKS[name]
    replace(bundle / "configs" / "train.yaml", old, new)
    found = unwell(bundle)
    assert {finding.where for finding in found} == {f"configs/train.yaml: {config_id}"}, found
    assert all(finding.level == "error" and message in finding.message for finding in found)


def test_broken_yaml_is_said_once(bundle):
    (bundle / "configs" / "train.yaml").write_text("a: [1,\nb: }\n")
    (found,) = [finding for finding in unwell(bundle) if finding.where == "configs/train.yaml"]
    assert "cannot be parsed" in found.message


def test_an_id_of_an_overlay_that_its_base_lacks_is_a_warning(bundle):
    path = bundle / "configs" / "baseline.yaml"
    path.write_text(path.read_text() + "learning_rat: 1.0e-3\n")
    assert [(finding.level, finding.where) for finding in unwell(bundle)] == [("warning", "configs/baseline.yaml")]
    assert "learning_rat: no such key" in unwell(bundle)[0].message
    assert "did you mean --learning_rate" in unwell(bundle)[0].message


def test_an_overlay_that_breaks_is_named_itself(bundle):
    path = bundle / "configs" / "baseline.yaml"
    path.write_text(path.read_text() + "loss: $no_such_name\n")
    (found,) = unwell(bundle)
    assert found.where == "configs/baseline.yaml: loss"
    assert "no_such_name" in found.message


OVERLAY = "distillers/kd.yaml"


def test_every_overlay_in_a_subfolder_is_evaluated_on_train_yaml_also_without_a_command_in_its_header(bundle):
    path = bundle / "configs" / OVERLAY
    path.write_text(path.read_text().replace("configs/", "somewhere/"))
    fine = {finding.where for finding in diagnose(bundle) if finding.level == "ok"}
    assert {f"configs/train.yaml + configs/distillers/{name}" for name in OVERLAYS} <= fine
    replace(path, "SoftLogitKL", "SoftLogitsKL")
    (found,) = unwell(bundle)
    assert (found.level, found.where) == ("error", f"configs/{OVERLAY}: terms::kd::loss")
    assert "SoftLogitsKL" in found.message


def test_broken_yaml_in_a_subfolder_is_said_once_and_duplicate_keys_are_found(bundle):
    path = bundle / "configs" / OVERLAY
    text = path.read_text()
    path.write_text(f"{text}method: other\n")
    (found,) = unwell(bundle)
    assert (found.where, found.message) == (f"configs/{OVERLAY}", "the key 'method' stands twice; the last one counts")
    path.write_text(f"{text}a: [1,\nb: }}\n")
    (found,) = unwell(bundle)
    assert found.where == f"configs/{OVERLAY}"
    assert "cannot be parsed" in found.message


def test_an_unknown_id_of_an_overlay_in_a_subfolder_is_a_warning(bundle):
    path = bundle / "configs" / OVERLAY
    path.write_text(path.read_text() + "learning_rat: 1.0e-3\n")
    (found,) = unwell(bundle)
    assert (found.level, found.where) == ("warning", f"configs/{OVERLAY}")


def test_a_combination_of_overlays_that_the_card_names_is_evaluated(bundle):
    both = "configs/train.yaml','configs/distillers/kd.yaml','configs/distillers/cwd.yaml"
    (bundle / "docs" / "README.md").write_text(f"monai.bundle run --config_file \"['{both}']\"\n")
    fine = {finding.where for finding in diagnose(bundle) if finding.level == "ok"}
    assert both.replace("','", " + ") in fine


def test_classes_in_another_order_than_the_metadata_are_an_error(bundle):
    change_json(
        bundle / "configs" / "metadata.json",
        lambda content: content["network_data_format"]["outputs"]["pred"].update(
            channel_def={"0": "background", "1": "posterior", "2": "anterior"}
        ),
    )
    found = [finding for finding in unwell(bundle) if finding.where == "configs/metadata.json"]
    assert "['background', 'posterior', 'anterior']" in found[0].message


# ---- weights --------------------------------------------------------------------------------------------------------


def test_missing_weights_point_to_the_download(bundle):
    (bundle / "models" / "model.pt").unlink()
    (bundle / "large_files.yml").write_text("large_files: []\n")
    (found,) = [finding for finding in unwell(bundle) if finding.where == "models/model.pt"]
    assert "download_large_files" in found.message


def test_a_git_lfs_pointer_is_called_one(bundle):
    (bundle / "models" / "model.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (found,) = unwell(bundle)
    assert "is a Git LFS pointer" in found.message


def test_a_teacher_that_does_not_fit_is_named(bundle):
    torch.save({"weight": torch.zeros(3, 1, 1, 1, 1)}, bundle / "models" / "teacher" / "models" / "model.pt")
    found = {finding.where: finding.message for finding in unwell(bundle)}
    assert set(found) == {"models/teacher", "configs/train.yaml: teacher"}
    assert all("1 missing" in message for message in found.values())


# ---- what the channels mean -----------------------------------------------------------------------------------------


def test_confusion_and_dice_by_hand():
    label = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 2, 2]), 3).T
    pred = torch.nn.functional.one_hot(torch.tensor([0, 2, 2, 2, 1, 1]), 3).T
    counts = confusion(pred, label)
    assert counts.tolist() == [[1, 0, 1], [0, 0, 2], [0, 2, 0]]
    assert foreground_dice(counts) == 0.0
    meaning, now, permuted = best_meaning(counts)
    assert (meaning, now) == ([0, 2, 1], 0.0)
    assert permuted == pytest.approx((2 * 2 / (2 + 3) + 1.0) / 2)
    table = confusion_table(counts, ["background", "anterior", "posterior"])
    assert "anterior -> background 0, anterior 0, posterior 2" in table


def test_a_right_network_and_teacher_are_well(bundle, data):
    found = {finding.where: finding for finding in diagnose(bundle, data) if "labelled -> predicted" in finding.message}
    assert set(found) == {"models/model.pt", "models/teacher"}
    for finding in found.values():
        assert finding.level == "ok"
        assert "Dice 1.000 on 2 cases" in finding.message
        assert "anterior -> background 0, anterior 640, posterior 0" in finding.message


def test_swapped_classes_of_the_teacher_are_named(bundle, data):
    write_thresholds(bundle / "models" / "teacher", order=(0, 2, 1))
    (found,) = unwell(bundle, data)
    assert (found.level, found.where) == ("error", "models/teacher")
    assert "channel 1 means posterior here, not anterior; channel 2 means anterior here, not posterior" in found.message
    assert "Dice 1.000 instead of 0.000" in found.message


def test_a_network_far_below_its_card_is_a_warning_with_both_numbers(bundle, data):
    change_json(bundle / "models" / "model.json", best_metric=0.95)
    state = {"weight": torch.tensor([-4.0, 0.0, 0.0]).reshape(3, 1, 1, 1, 1), "bias": torch.tensor([4.8, 0.0, -9.0])}
    torch.save(state, bundle / "models" / "model.pt")
    (found,) = unwell(bundle, data)
    assert (found.level, found.where) == ("warning", "models/model.pt")
    assert "far below what it should reach; Dice 0." in found.message
    assert "the card says 0.950" in found.message


def test_a_network_that_wants_intensities_from_0_to_1_is_recognized(bundle, data):
    """Thresholds at 0.25 and 0.75 of the range: right only where the image is scaled so."""
    state = {"weight": torch.tensor([-8.0, 0.0, 8.0]).reshape(3, 1, 1, 1, 1), "bias": torch.tensor([2.0, 0.0, -6.0])}
    torch.save(state, bundle / "models" / "model.pt")
    (found,) = unwell(bundle, data)
    assert found.where == "models/model.pt"
    assert "with its intensities scaled to 0..1 it reaches 1.000" in found.message


def test_cases_of_a_split_are_its_test_cases(bundle, data, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["slabs_0"], "validation": ["slabs_1"], "test": ["slabs_2"]}))
    messages = [finding.message for finding in diagnose(bundle, data, split, 2)]
    assert any("on 1 cases" in message and "posterior 448" in message for message in messages), messages


def test_data_that_is_not_there_is_refused_before_anything_is_looked_at(bundle, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        diagnose(bundle, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cases is 0"):
        diagnose(bundle, tmp_path, None, 0)


def test_the_command_exits_by_its_errors(bundle, data):
    done = command("doctor", bundle, "--dataset_dir", data, "--cases", 1)
    assert "Dice 1.000 on 1 cases" in done.stdout
    replace(bundle / "configs" / "train.yaml", "learning_rate: 5.0e-3", "learning_rate: $1 / 0")
    done = command("doctor", bundle, succeed=False)
    assert "error   configs/train.yaml: learning_rate: ZeroDivisionError: division by zero" in done.stdout
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_bundle_that_lists_its_cases_in_its_own_way_is_scored_elsewhere(repository, tmp_path):
    with pytest.raises(ValueError, match=r"mtcm-kd' lists its cases by @list_cases.*score by configs/evaluate.yaml"):
        diagnose(repository / "bundles" / "mtcm-kd", tmp_path)
