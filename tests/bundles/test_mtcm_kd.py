"""The bundle mtcm-kd at work: overlays train and score, knobs count, all forms of data arrive, bad ones are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from brain_tumors import brain_tumors
from commands import TINY, bundle_run
from flows import causes, checksum, first_batches, get, ready, validated
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

from monai_kd.data import brats_cases
from monai_kd.handlers.scalars import raw_scalars
from monai_kd.hub import compare_cases
from monai_kd.hub.teacher_folder import output_classes

SMALL = {"epochs": 1, "batch_size": 1, "patch_size": [16, 16, 16], "roi_size": [32, 32, 32]}
REGIONS = ["whole_tumor", "tumor_core", "enhancing_tumor"]
MSD = {
    "modalities": ["flair", "t1", "t1ce", "t2"],
    "label_meanings::necrotic_core": [2],
    "label_meanings::edema": [1],
    "label_meanings::enhancing_tumor": [3],
}
PARTS = ("response_kd", "cdsfl_only", "uniform_weights", "linear_weights", "two_levels", "t1_student")


@pytest.fixture
def bundle(repository: Path) -> Path:
    return repository / "bundles" / "mtcm-kd"


def trained(flow: ConfigWorkflow, name: str) -> list[str]:
    """Train two batches; the weights of a part that did not move."""
    module = get(ready(flow), name)
    before = {key: value.clone() for key, value in module.named_parameters()}
    batches = first_batches(flow, 3)
    assert all(torch.isfinite(batch["image"]).all() for batch in batches)
    return [key for key, value in module.named_parameters() if torch.equal(value, before[key])]


# ---- overlays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        (),
        *((f"{name}.yaml",) for name in (*PARTS, "baseline", "early_fusion", "teachers", "missing_modalities")),
        ("pretrained.yaml",),
        *(("pretrained.yaml", f"{name}.yaml") for name in PARTS),
    ],
    ids=lambda names: "+".join(name.split(".")[0] for name in names) or "train",
)
def test_every_overlay_moves_every_weight_and_scores_every_region(bundle, workflow, names):
    flow = workflow(bundle, ("train.yaml", *names), **SMALL)
    assert trained(flow, "network") == []
    evaluator = get(flow, "validate::evaluator")
    evaluator.run()
    assert set(evaluator.state.case_summary["dice"]) == {*REGIONS, "mean"}
    assert 0.0 <= evaluator.state.metrics["val_mean_dice"] <= 1.0
    heads = {
        name for name in evaluator.state.metrics if name.startswith("dice_teacher") or name.startswith("dice_fused")
    }
    scores_teachers = not set(names) & {"pretrained.yaml", "baseline.yaml", "early_fusion.yaml"}
    assert bool(heads) == scores_teachers


def test_the_joint_form_trains_all_teachers_and_their_fusion(bundle, workflow):
    assert trained(workflow(bundle, ("train.yaml",), **SMALL), "teachers") == []


def test_pretrained_teachers_are_those_of_the_file_and_stay(bundle, workflow, tmp_path):
    flow = workflow(bundle, ("train.yaml", "pretrained.yaml"), **SMALL)
    saved = torch.load(get(flow, "teachers_path"), weights_only=True)
    still = trained(flow, "teachers")
    state = get(flow, "teachers").state_dict()
    assert set(still) == set(dict(get(flow, "teachers").named_parameters()))
    assert all(torch.equal(value, saved[key]) for key, value in state.items())
    assert get(flow, "method") == "mtcm_kd_pretrained"


def test_teachers_trained_alone_serve_as_pretrained_ones(bundle, workflow, tmp_path):
    flow = workflow(bundle, ("train.yaml", "teachers.yaml"), **SMALL)
    assert trained(flow, "network") == []
    path = tmp_path / "trained.pt"
    torch.save(get(flow, "scored").state_dict(), path)
    student = workflow(bundle, ("train.yaml", "pretrained.yaml"), **SMALL, teachers_path=str(path))
    image = torch.rand(1, 4, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(get(student, "teachers").eval()(image), get(flow, "scored")(image))


def test_teachers_of_each_student_are_looked_for_where_they_were_put_and_nowhere_else(bundle):
    def found(names: tuple[str, ...], name: str) -> str:
        parser = ConfigParser()
        parser.read_config([str(bundle / "configs" / f"{name}.yaml") for name in ("train", *names)])
        return parser.get_parsed_content(name)

    places = []
    for student in ((), ("t1_student",)):
        put = found((*student, "teachers"), "ckpt_dir")
        for overlays in (("pretrained", *student), (*student, "pretrained")):
            assert found(overlays, "teachers_path") == f"{put}/model.pt"
        places.append(put)
    assert len(set(places)) == 2  # networks of T1's teachers fit those of T1ce, so that no loading would tell


def test_missing_or_foreign_teacher_weights_stop_before_any_data_is_read(bundle, workflow, tmp_path):
    nowhere = workflow(
        bundle, ("train.yaml", "pretrained.yaml"), **SMALL, dataset_dir="nowhere", teachers_path="gone.pt"
    )
    with pytest.raises(Exception, match="") as caught:
        ready(nowhere)
    assert "weights 'gone.pt' do not exist; train them first" in causes(caught.value)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    other = workflow(
        bundle,
        ("train.yaml", "pretrained.yaml"),
        **SMALL,
        dataset_dir="nowhere",
        teachers_path=str(tmp_path / "other.pt"),
    )
    with pytest.raises(Exception, match="") as caught:
        ready(other)
    assert "the weights of another network than this CooperativeTeachers" in causes(caught.value)


def test_teachers_of_other_modalities_are_refused_by_their_record(bundle, workflow, tmp_path):
    names = ("train.yaml", "pretrained.yaml")
    path = Path(get(workflow(bundle, names, **SMALL), "teachers_path"))
    path.with_suffix(".json").write_text(json.dumps({"config": {"teacher_modalities": [["flair"], ["t1ce"], ["t2"]]}}))
    with pytest.raises(Exception, match="") as caught:
        ready(workflow(bundle, names, **SMALL, dataset_dir="nowhere"))
    assert "was trained with teacher_modalities [['flair'], ['t1ce'], ['t2']]" in causes(caught.value)
    assert "this configuration has [['flair'], ['t2'], ['t1']]" in causes(caught.value)


def test_teachers_alone_are_trained_whole(bundle, workflow):
    for names in (("missing_modalities.yaml", "teachers.yaml"), ("teachers.yaml", "missing_modalities.yaml")):
        with pytest.raises(Exception, match="") as caught:
            ready(workflow(bundle, ("train.yaml", *names), **SMALL, dataset_dir="nowhere"))
        assert "teachers.yaml trains on whole cases" in causes(caught.value)
    with pytest.raises(Exception, match="") as caught:
        ready(workflow(bundle, ("train.yaml", "two_levels.yaml", "teachers.yaml"), **SMALL, dataset_dir="nowhere"))
    assert "no term trains the heads ['fused_2'] of the student" in causes(caught.value)


def test_all_arms_see_the_same_batches_and_start_from_the_same_weights(bundle, workflow):
    seen = {}
    for names in ((), ("baseline.yaml",), ("pretrained.yaml", "response_kd.yaml"), ("early_fusion.yaml",)):
        flow = ready(workflow(bundle, ("train.yaml", *names), **{**SMALL, "batch_size": 2}))
        start = checksum(get(flow, "network").parameters())
        seen[names] = (start, first_batches(flow, 2))
    first, *others = seen.values()
    for names, (start, batches) in zip(list(seen)[1:], others, strict=True):
        assert (start == first[0]) == (names != ("early_fusion.yaml",)), names  # which has more input channels
        for ours, theirs in zip(first[1], batches, strict=True):
            for key in ("image", "label"):
                assert torch.equal(ours[key].as_tensor(), theirs[key].as_tensor())


# ---- knobs ----------------------------------------------------------------------------------------------------------


def student_after(flow: ConfigWorkflow, iterations: int = 4) -> float:
    first_batches(ready(flow), iterations)
    return checksum(get(flow, "network").parameters())


KNOBS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"performance": "linear"}, ()),
    ({"performance": "uniform"}, ()),
    ({"performance": "softmax"}, ()),
    ({"performance_tau": 0.01}, ()),
    ({"performance_decay": 0.0}, ()),
    ({"temperature": 20.0}, ()),
    ({"schedules": {"kd": {"ramp": 1.0}}}, ()),
    ({"max_norm": 0.01}, ()),
    ({"warm_up": 0.5}, ()),
    ({"weight_decay": 10.0}, ()),
    ({"spacing_mm": [1.7, 1.5, 1.5]}, ()),
    ({"loss::smooth": 100.0}, ()),
    ({"loss::resampling": "nearest"}, ()),
    ({"loss::include_background": True}, ()),
    ({"regions": {"enhancing_tumor": [3]}, "performance": "linear"}, ({"performance": "linear"},)),
    ({"student_modalities": ["t2"]}, ()),
    ({"teacher_modalities": [["flair"], ["t2"], ["t1ce"]]}, ()),
    ({"teacher_channels": [4, 8, 8, 12]}, ()),
    ({"teacher_skip_kernel_size": 3}, ()),
    ({"network_def::skip_kernel_size": 3}, ()),
]


@pytest.mark.parametrize(
    ("changed", "against"), KNOBS, ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_a_knob_changes_what_is_learned(bundle, workflow, changed, against):
    settings = {**SMALL, "epochs": 2}
    base = student_after(workflow(bundle, ("train.yaml",), **settings, **(against[0] if against else {})))
    assert student_after(workflow(bundle, ("train.yaml",), **settings, **changed)) != base


def test_staged_and_plain_learn_the_same(bundle, workflow):
    settings = {**SMALL, "epochs": 2}
    found = [student_after(workflow(bundle, ("train.yaml",), **settings, staged=staged)) for staged in (True, False)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_running_average_is_what_is_scored_and_its_decay_counts(bundle, workflow):
    settings = {**SMALL, "epochs": 2}
    found = {}
    for decay in (0.0, 0.2):
        flow = ready(workflow(bundle, ("train.yaml",), **settings, average_decay=decay))
        first_batches(flow, 4)
        network, scored = (dict(get(flow, name).named_parameters()) for name in ("network", "scored"))
        assert all(torch.equal(value, scored[key]) for key, value in network.items()) == (decay == 0.0)
        found[decay] = validated(flow)
    assert found[0.0] != found[0.2]


def test_weights_from_validation_follow_the_teachers_scores(bundle, workflow):
    flow = ready(workflow(bundle, ("train.yaml",), **SMALL, performance_source="validation"))
    dice = get(flow, "distiller").terms["kd"].loss.dice
    assert not dice.any()
    evaluator = get(flow, "validate::evaluator")
    evaluator.run()
    expected = [[evaluator.state.metrics[f"dice_teacher_{n}_{name}"] for name in REGIONS] for n in (1, 2, 3)]
    torch.testing.assert_close(dice, torch.tensor(expected))
    off = {**SMALL, "performance_source": "validation", "teacher_val_interval": 0}
    with pytest.raises(Exception, match="") as caught:
        ready(workflow(bundle, ("train.yaml",), **off))
    assert "interval is 0: make it 1" in causes(caught.value)


def test_windows_of_validation_count(bundle, workflow):
    def logits(**overrides: Any) -> float:
        set_determinism(0)
        fine = {"spacing_mm": [1.5, 1.5, 1.5]}  # several windows along an axis
        return validated(ready(workflow(bundle, ("train.yaml",), **{**SMALL, **fine, **overrides})))

    base = logits()
    assert logits() == base
    assert logits(roi_size=[16, 16, 16]) != base
    assert logits(roi_size=[16, 16, 16], overlap=0.0) != logits(roi_size=[16, 16, 16])


# ---- data of every form ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("forms")
    return {layout: brain_tumors(root / layout, layout)[0] for layout in ("2018", "2023", "msd")}


def test_four_files_of_any_year_and_one_file_of_four_channels_train_alike(bundle, workflow, forms):
    found = {}
    for layout, data in forms.items():
        extra = MSD if layout == "msd" else {}
        flow = workflow(bundle, ("train.yaml",), **{**SMALL, **extra}, dataset_dir=str(data))
        modalities = get(flow, "modalities")
        item = get(flow, "validate::preprocessing")(brats_cases(data, modalities)[0])
        order = [modalities.index(name) for name in ("flair", "t1ce", "t2", "t1")]
        found[layout] = (item["image"].as_tensor()[order], item["label"].as_tensor())
        first_batches(ready(flow), 1)
    for layout in ("2023", "msd"):
        for ours, theirs in zip(found["2018"], found[layout], strict=True):
            torch.testing.assert_close(ours, theirs, msg=layout)
    assert set(found["2018"][1].unique().tolist()) == {0, 1, 2, 3}


def test_each_modality_is_standardized_over_the_brain_alone(bundle, workflow):
    flow = workflow(bundle, ("train.yaml",), **SMALL)
    image = get(flow, "validate::dataset")[0]["image"].as_tensor()
    for channel in image:
        brain = channel[channel != 0]
        assert brain.mean().abs() < 1e-3
        assert brain.std(correction=0) == pytest.approx(1, abs=1e-3)
        assert (channel == 0).float().mean() > 0.05  # the corners of a box round a head


def test_a_case_with_the_students_modality_alone_teaches_by_its_label(bundle, workflow, forms, tmp_path):
    data = shutil.copytree(forms["2018"], tmp_path / "data")
    for path in data.glob("*/*.nii.gz"):
        if not path.name.endswith(("_t1ce.nii.gz", "_seg.nii.gz")):
            path.unlink()
    flow = ready(workflow(bundle, ("train.yaml", "missing_modalities.yaml"), **SMALL, dataset_dir=str(data)))
    losses: list[dict[str, float]] = []
    trainer = get(flow, "train::trainer")
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(raw_scalars(engine.state.output))
    )
    first_batches(flow, 3)
    assert losses
    for found in losses:
        assert found["seg"] > 0.1
        assert found["kd"] == found["side_kd"] == found["cooperation"] == found["teacher_1"] == 0


def test_a_case_without_a_modality_is_refused_or_trained_without_that_teacher(bundle, workflow, forms, tmp_path):
    data = shutil.copytree(forms["2018"], tmp_path / "data")
    for path in data.glob("*/*_flair.nii.gz"):
        path.unlink()
    with pytest.raises(Exception, match="") as caught:
        ready(workflow(bundle, ("train.yaml",), **SMALL, dataset_dir=str(data)))
    assert "lacks flair: no file ending in flair or t2f" in causes(caught.value)
    flow = ready(workflow(bundle, ("train.yaml", "missing_modalities.yaml"), **SMALL, dataset_dir=str(data)))
    teachers = get(flow, "teachers").networks
    before = {name: checksum(network.parameters()) for name, network in teachers.items()}
    (batch, *_) = first_batches(flow, 3)
    assert batch["available"].tolist() == [[0, 1, 1, 1]]
    assert not batch["image"][:, 0].any()
    decayed = 1 - get(flow, "weight_decay") * get(flow, "learning_rate")
    for name, network in teachers.items():
        moved = checksum(network.parameters()) != pytest.approx(before[name], rel=10 * (1 - decayed) + 1e-9)
        assert moved == (name != "teacher_1"), name


# ---- what is refused, through the command line ----------------------------------------------------------------------


def spoil(data: Path, name: str, change: Callable[[Path], None]) -> str:
    path = sorted(data.glob(f"*/*_{name}.nii.gz"))[0]
    change(path)
    return path.parent.name


def moved(path: Path) -> None:
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 9.0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)


def other_size(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-4], image.affine), path)


def with_values(*values: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        image = nib.load(path)
        label = np.asarray(image.dataobj).astype(np.uint8)
        for place, value in enumerate(values):
            label[place, 0, 0] = value
        nib.save(nib.Nifti1Image(label, image.affine), path)

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("t2", Path.unlink, ["lacks t2: no file ending in t2 or t2w"]),
        ("t1ce", moved, ["_t1ce.nii.gz", "differ, by up to 6 voxels; one image needs one grid"]),
        ("flair", other_size, ["_flair.nii.gz", "one image needs one grid"]),
        ("seg", moved, ["the affines of image and label differ, by up to 6 voxels: not the same grid"]),
        ("seg", with_values(7), ["label has the values 7", "the classes are 0 to 4"]),
        ("seg", with_values(3, 4), ["3", "4"]),
        ("t1", lambda path: path.write_bytes(path.read_bytes()[:500]), ["image cannot be read"]),
    ],
    ids=["missing", "moved modality", "other size", "moved label", "unknown value", "3 and 4", "truncated"],
)
def test_a_bad_case_is_named_before_training(bundle, workflow, forms, tmp_path, name, change, said):
    data = shutil.copytree(forms["2018"], tmp_path / "data")
    case = spoil(data, name, change)
    with pytest.raises(Exception, match="") as caught:
        ready(workflow(bundle, ("train.yaml",), **SMALL, dataset_dir=str(data)))
    everything = causes(caught.value)
    assert [text for text in (case, *said) if text not in everything] == [], everything


@pytest.mark.slow
def test_a_bad_case_ends_a_command_with_its_name_and_leaves_earlier_weights(bundle, forms, tmp_path):
    data = shutil.copytree(forms["2018"], tmp_path / "data")
    case = spoil(data, "t1ce", moved)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_bytes(b"earlier")
    given = {**SMALL, **TINY["mtcm-kd"], "dataset_dir": data, "split_file": "''"}
    places = {"run_dir": tmp_path / "run", "ckpt_dir": tmp_path / "models"}
    done = bundle_run(bundle, ["train.yaml"], tmp_path / "cwd", succeed=False, **given, **places)
    cause = done.stderr[done.stderr.rindex("Cause:") :]
    assert case in cause
    assert "one image needs one grid" in cause
    assert (tmp_path / "models" / "model.pt").read_bytes() == b"earlier"


def test_channels_in_another_order_and_labels_of_another_meaning_are_refused(bundle, workflow, forms):
    wrong = {name: value for name, value in MSD.items() if name != "modalities"}
    with pytest.raises(Exception, match="") as caught:
        ready(workflow(bundle, ("train.yaml",), **{**SMALL, **wrong}, dataset_dir=str(forms["msd"])))
    assert "--modalities \"['flair','t1','t1ce','t2']\"" in causes(caught.value)
    order = {"modalities": MSD["modalities"]}
    with pytest.raises(Exception, match="") as caught:
        ready(workflow(bundle, ("train.yaml",), **{**SMALL, **order}, dataset_dir=str(forms["msd"])))
    assert "--label_meanings::edema" in causes(caught.value)


# ---- inference ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny student, with a head that finds every class somewhere."""
    from monai_kd.networks.nets import ChannelAttentionResUNet

    torch.manual_seed(1)
    channels = TINY["mtcm-kd"]["network_def::channels"]
    network = ChannelAttentionResUNet(3, 1, 4, channels=channels, skip_kernel_size=1)
    network.head.weight.data.mul_(10)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
def test_a_brats_folder_that_has_t1ce_alone_is_segmented_in_its_own_grid(bundle, forms, weights, tmp_path):
    data = shutil.copytree(forms["2018"], tmp_path / "data")
    for path in data.glob("*/*"):
        if not path.name.endswith("_t1ce.nii.gz"):
            path.unlink()
    given = {"dataset_dir": data, "output_dir": tmp_path / "out", "ckpt_path": weights, **TINY["mtcm-kd"]}
    bundle_run(bundle, ["inference.yaml", "inference_brats.yaml"], tmp_path / "cwd", **given)
    written = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in written] == [f"{p.name[:-7]}_seg.nii.gz" for p in sorted(data.glob("*/*.nii.gz"))]
    values = set()
    for path, source in zip(written, sorted(data.glob("*/*.nii.gz")), strict=True):
        label, image = nib.load(path), nib.load(source)
        assert label.shape == image.shape
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
        values |= set(np.unique(np.asarray(label.dataobj)).tolist())
    assert values <= {0, 1, 2, 4}
    assert len(values) > 1


@pytest.mark.slow
def test_an_untouched_brats_case_comes_back_in_its_native_grid(bundle, real_data, tmp_path):
    source = real_data / "BraTS_fullres_example"
    if not source.is_dir():
        pytest.skip(f"MONAI_KD_DATA lacks {source}: this test needs it")
    images = tmp_path / "images"
    images.mkdir()
    (path,) = source.glob("*_t1ce.nii.gz")
    shutil.copy(path, images / path.name)
    bundle_run(
        bundle, ["inference.yaml"], tmp_path / "cwd", dataset_dir=images, output_dir=tmp_path / "out", overlap=0.1
    )
    (written,) = (tmp_path / "out").iterdir()
    label, image = nib.load(written), nib.load(path)
    assert label.shape == image.shape == (240, 240, 155)
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
    assert set(np.unique(np.asarray(label.dataobj)).tolist()) <= {0, 1, 2, 3}


def test_the_published_size_has_the_published_counts_and_runs(bundle, workflow):
    sizes = {"patch_size": [16, 16, 16], "roi_size": [16, 16, 16], "epochs": 1, "teacher_val_interval": 0}
    full = {"network_def::channels": [32, 64, 128, 256], "teacher_channels": [32, 64, 128, 256]}
    flow = ready(workflow(bundle, ("train.yaml", "paper.yaml"), **sizes, **full))
    count = lambda name: sum(p.numel() for p in get(flow, name).parameters())  # noqa: E731
    assert count("network") == 9_458_702
    assert count("fusion") == 2_540
    assert count("teachers") == 3 * 9_458_702 + 2_540
    assert count("distiller") == 4 * 9_458_702 + 2_540 + 260
    first_batches(flow, 1)


# ---- records --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_records_tell_the_teachers_and_which_arms_may_be_compared(bundle, forms, tmp_path):
    records = {}
    for name in ("", "baseline", "response_kd"):
        names = ["train.yaml", *([f"{name}.yaml"] if name else [])]
        run = tmp_path / (name or "mtcm_kd")
        given = {**SMALL, **TINY["mtcm-kd"], "dataset_dir": forms["2018"], "split_file": "''", "cpu_bfloat16": False}
        bundle_run(bundle, names, tmp_path / "cwd", run_dir=run, ckpt_dir=run / "models", **given)
        records[name] = json.loads((run / "run.json").read_text())
    assert len({record["schedule_hash"] for record in records.values()}) == 1
    assert [record["method"] for record in records.values()] == ["mtcm_kd", "baseline", "response_kd"]
    joint, alone, _ = records.values()
    assert joint["teacher"]["source"] == "live"
    curves = joint["curves"]["teacher_dice"]
    assert set(curves) == {f"teacher_{n}/{region}" for n in (1, 2, 3) for region in REGIONS}
    assert set(alone["curves"]["terms"]) == {"seg"}
    assert brats_cases(forms["2018"])


@pytest.mark.slow
def test_models_are_compared_by_the_regions_that_an_evaluation_scores(bundle, forms, tmp_path):
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "infer.json")
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    compared = compare_cases(bundle, tmp_path / "model.pt", tmp_path / "model.pt", forms["2018"])
    assert compared.class_names == REGIONS


def test_outputs_are_named_by_the_networks_classes_and_not_by_the_regions_that_are_scored(bundle):
    train = yaml.safe_load((bundle / "configs" / "train.yaml").read_text())
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    record = {"classes": {str(n): name for n, name in enumerate(REGIONS, 1)}, "config": train}
    assert output_classes(record) == metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    del train["class_names"]
    assert output_classes(record) == {"0": "background", **record["classes"]}
