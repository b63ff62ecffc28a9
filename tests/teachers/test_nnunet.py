"""nnU-Net v2 model folders: plans are read, networks built and wrapped, and other kinds of model refused.

Tests that build a network need dynamic_network_architectures; those of the package itself need nnunetv2.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_kd.teachers import (
    EnsembleTeacher,
    PadToMultiple,
    Reorient,
    RescaleIntensity,
    check_teacher,
    load_report,
    load_teacher,
    unwrap,
)
from monai_kd.teachers.nnunet_plans import find_plans

CLASSES = ["background", "anterior", "posterior"]
PATCH = [8, 6, 10]  # x, y, z
NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"
ARGUMENTS = {
    "n_stages": 2,
    "features_per_stage": [4, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2]],
    "n_conv_per_stage": [1, 1],
    "n_conv_per_stage_decoder": [1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": ARGUMENTS,
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
LEGACY = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 4,
    "unet_max_num_features": 8,
    "n_conv_per_stage_encoder": [1, 1],
    "n_conv_per_stage_decoder": [1],
    "num_pool_per_axis": [0, 1, 1],
    "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2]],
    "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3]],
}
HOUNSFIELD = {"mean": 100.0, "std": 50.0, "percentile_00_5": -50.0, "percentile_99_5": 300.0, "min": -1000.0}


def make_plans(**configuration: Any) -> dict[str, Any]:
    settings = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [10, 6, 8],
        "median_image_size_in_voxels": [10.0, 6.0, 8.0],
        "spacing": [3.0, 2.0, 1.0],  # z, y, x
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "batch_dice": True,
        **({} if "UNet_class_name" in configuration else {"architecture": ARCHITECTURE}),
        **configuration,
    }
    return {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 2.0, 1.0],
        "original_median_shape_after_transp": [10, 6, 8],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": settings},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": HOUNSFIELD},
    }


def make_dataset(**changes: Any) -> dict[str, Any]:
    labels = {name: value for value, name in enumerate(CLASSES)}
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz"}
    return {**dataset, **changes}


def make_folder(
    root: Path, plans: dict[str, Any] | None = None, dataset: dict[str, Any] | None = None, name: str = NAME
) -> Path:
    """A model folder without checkpoints."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans or make_plans()))
    (folder / "dataset.json").write_text(json.dumps(dataset or make_dataset()))
    return folder


def checkpoint(seed: int, outputs: int = 3) -> dict[str, Any]:
    """What nnU-Net saves: beside the weights, logs of numpy scalars and the arguments of its trainer."""
    networks = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet", reason="pip install 'monai_kd[nnunet]'"
    )
    torch.manual_seed(seed)
    classes = {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    network = networks.PlainConvUNet(1, num_classes=outputs, deep_supervision=True, **{**ARGUMENTS, **classes})
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": []},
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.1)], "lrs": [0.01]},
        "_best_ema": np.float64(0.4),
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def add_fold(folder: Path, fold: int | str = 0, name: str = "checkpoint_final.pth", **content: Any) -> Path:
    path = folder / f"fold_{fold}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**checkpoint(seed=fold if isinstance(fold, int) else 9), **content}, path)
    return path


def load(root: Any, **settings: Any) -> torch.nn.Module:
    return load_teacher(root, **{"in_channels": 1, "class_names": CLASSES, "patch_size": PATCH, **settings})


def image() -> torch.Tensor:
    return torch.rand(1, 1, *PATCH, generator=torch.Generator().manual_seed(3))


def run(network: torch.nn.Module, *arguments: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(*arguments)


# ---- networks and weights -------------------------------------------------------------------------------------------


def test_a_model_folder_gives_one_logits_tensor_in_monai_axes(tmp_path):
    folder = make_folder(tmp_path)
    path = add_fold(folder)
    teacher = load(folder)
    bare = unwrap(teacher)
    assert type(bare).__name__ == "PlainConvUNet"
    reversed_axes = image().permute(0, 1, 4, 3, 2)
    expected = run(bare, reversed_axes).permute(0, 1, 4, 3, 2)
    assert torch.allclose(run(teacher, image()), expected, atol=1e-6)
    report = load_report(teacher)
    assert (report.config_file, report.network_id) == (folder / "plans.json", "3d_fullres")
    assert report.weights == path
    assert report.complete
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


def test_plans_without_an_architecture_section_give_the_same_network(tmp_path):
    folder = make_folder(tmp_path / "new")
    legacy = make_folder(tmp_path / "old", make_plans(**LEGACY))
    for place in (folder, legacy):
        add_fold(place)
    assert torch.equal(run(load(folder), image()), run(load(legacy), image()))


def test_several_folds_are_averaged_and_folds_choose(tmp_path):
    folder = make_folder(tmp_path)
    for fold in (0, 1, 2):
        add_fold(folder, fold)
    (folder / "fold_3").mkdir()  # not trained yet
    single = [run(load(folder, folds=[fold]), image()).softmax(1) for fold in (0, 1, 2)]
    ensemble = load(folder)
    assert isinstance(ensemble, EnsembleTeacher)
    assert torch.allclose(run(ensemble, image()).softmax(1), sum(single) / 3, atol=1e-6)
    assert torch.equal(run(load(folder, folds=1), image()).softmax(1), single[1])
    assert len(load_report(ensemble).members) == 3
    with pytest.raises(FileNotFoundError, match=r"has the folds \['0', '1', '2', '3'\]; asked for \['7'\]"):
        load(folder, folds=[7])
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in '.*fold_3': looked for checkpoint_final.pth"):
        load(folder, folds=[3])


def test_the_best_checkpoint_is_taken_where_the_final_is_missing_or_by_name(tmp_path):
    folder = make_folder(tmp_path)
    best = add_fold(folder, "all", "checkpoint_best.pth")
    assert load_report(load(folder)).weights == best
    final = add_fold(folder, "all")
    assert load_report(load(folder)).weights == final
    assert load_report(load(folder, weights="checkpoint_best.pth")).weights == best


def test_a_bundle_that_monai_converted_loads_from_its_models_folder(tmp_path):
    folder = make_folder(tmp_path / "bundle", name="models")
    content = checkpoint(0)
    torch.save({"init_args": content["init_args"], "trainer_name": "nnUNetTrainer"}, folder / "nnunet_checkpoint.pth")
    (folder / "fold_0").mkdir()
    torch.save({"network_weights": content["network_weights"]}, folder / "fold_0" / "model.pt")
    assert load_report(load(tmp_path / "bundle")).network_id == "3d_fullres"


def test_the_checkpoint_names_the_configuration_in_a_renamed_folder(tmp_path):
    folder = make_folder(tmp_path, name="downloaded")
    add_fold(folder)
    assert load_report(load(folder)).network_id == "3d_fullres"


def test_numpy_scalars_of_either_numpy_are_read(tmp_path):
    folder = make_folder(tmp_path)
    path = add_fold(folder)
    old = path.with_name("old.pth")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(old, "w") as rewritten:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl"):
                before, after = b"numpy._core.multiarray", b"numpy.core.multiarray"
                content = content.replace(before, after) if before in content else content.replace(after, before)
            rewritten.writestr(name, content)
    assert torch.equal(run(load(folder, weights="old.pth"), image()), run(load(folder), image()))


class Code:
    """Something that only running code could restore."""


def test_a_checkpoint_that_needs_code_is_refused(tmp_path):
    folder = make_folder(tmp_path)
    path = add_fold(folder, logging=Code())
    with pytest.raises(ValueError, match=rf"'{path}' needs code to unpickle \(.*Code\)"):
        load(folder)
    assert np.dtype not in torch.serialization.get_safe_globals()  # nothing was allowed for good


def test_weights_of_another_network_are_refused(tmp_path):
    folder = make_folder(tmp_path)
    add_fold(folder, network_weights=checkpoint(0, outputs=5)["network_weights"])
    with pytest.raises(RuntimeError, match=r"weights do not fit: .*PlainConvUNet \('3d_fullres' of '.*plans.json'\)"):
        load(folder)
    add_fold(folder, network_weights=None)
    with pytest.raises(ValueError, match="has no network_weights; give a checkpoint that nnU-Net v2 wrote"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network_class_name": "os.system"}, "'os.system'; only classes of dynamic_network_architectures"),
        ({"network_class_name": "dynamic_network_architectures.No"}, "which the installed .* does not have"),
        ({"arch_kwargs": {**ARGUMENTS, "nonlin": "os.system"}}, "names 'os.system'; only classes of torch.nn"),
    ],
)
def test_plans_that_name_other_code_are_refused(tmp_path, change, message):
    folder = make_folder(tmp_path, make_plans(architecture={**ARCHITECTURE, **change}))
    add_fold(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_class_that_moved_within_the_package_is_found(tmp_path):
    moved = "dynamic_network_architectures.architectures.plain_unet.PlainConvUNet"
    folder = make_folder(tmp_path, make_plans(architecture={**ARCHITECTURE, "network_class_name": moved}))
    add_fold(folder)
    assert type(unwrap(load(folder))).__name__ == "PlainConvUNet"


def test_arguments_that_do_not_fit_the_class_are_named(tmp_path):
    arguments = {**ARGUMENTS, "depth": 3}
    folder = make_folder(tmp_path, make_plans(architecture={**ARCHITECTURE, "arch_kwargs": arguments}))
    add_fold(folder)
    with pytest.raises(RuntimeError, match=r"PlainConvUNet of '.*plans.json' cannot be built: TypeError: .*depth"):
        load(folder)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    folder = make_folder(tmp_path)
    (folder / "fold_0").mkdir()
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures", None)
    with pytest.raises(ImportError, match=r"pip install 'monai_kd\[nnunet\]'"):
        load(folder)


# ---- spacing, axes, intensities, sizes ------------------------------------------------------------------------------


def test_spacing_and_orientation_are_given_along_the_students_axes(tmp_path):
    folder = make_folder(tmp_path)
    add_fold(folder)
    load(folder, spacing_mm=[1, 2, 3], orientation="RAS")  # the plans say 3, 2, 1 along z, y, x
    with pytest.raises(
        ValueError, match=r"spacing of \[1.0, 2.0, 3.0\] mm, the student at \[1, 1, 1\] mm; set resample"
    ):
        load(folder, spacing_mm=[1, 1, 1])
    teacher = load(folder, spacing_mm=[1, 1, 1], resample=True)
    assert teacher.factor == pytest.approx([1, 1 / 2, 1 / 3])
    assert run(teacher, image()).shape == (1, 3, *PATCH)


@pytest.mark.parametrize(
    ("reader", "transpose", "stored", "codes"),
    [
        ("SimpleITKIO", [0, 1, 2], "RAS", "SAR"),
        ("SimpleITKIO", [1, 0, 2], "LPS", "PSL"),
        ("NibabelIOWithReorient", [0, 1, 2], "LPS", "SAR"),
        ("SimpleITKIO", [0, 1, 2], None, None),
    ],
)
def test_the_networks_axes_follow_reader_and_plans(tmp_path, reader, transpose, stored, codes):
    plans = find_plans(
        make_folder(tmp_path, {**make_plans(), "image_reader_writer": reader, "transpose_forward": transpose})
    )
    assert plans is not None
    assert plans.orientation(stored) == codes


def test_images_stored_in_another_orientation_are_flipped(tmp_path):
    folder = make_folder(tmp_path)
    add_fold(folder)
    teacher = load(folder, teacher_orientation="LAS")
    expected = run(load(folder), image().flip(2)).flip(2)
    assert torch.allclose(run(teacher, image()), expected, atol=1e-6)


def test_hounsfield_units_are_cut_and_normalized_as_the_plans_say(tmp_path):
    folder = make_folder(tmp_path, make_plans(normalization_schemes=["CTNormalization"]))
    add_fold(folder)
    own = {"network_data_format": {"inputs": {"image": {"value_range": [0, 1]}}}}
    message = r"Hounsfield units cut to \[-50, 300\], minus 100, divided by 50, the student's images are in \[0, 1\]"
    with pytest.raises(ValueError, match=message):
        load(folder, student_metadata=own)
    teacher = load(folder, student_metadata=own, intensity={"scale": 1000, "shift": -500})
    hounsfield = image() * 1000 - 500
    expected = run(unwrap(teacher), ((hounsfield.clamp(-50, 300) - 100) / 50).permute(0, 1, 4, 3, 2))
    assert torch.allclose(run(teacher, image()), expected.permute(0, 1, 4, 3, 2), atol=1e-4)
    # a student whose preprocessing does the same needs nothing
    assert not isinstance(load(folder, accept=["intensity"]), RescaleIntensity)


@pytest.mark.parametrize(
    ("scheme", "fits", "other"),
    [("ZScoreNormalization", [-10, 10], [0, 1]), ("RescaleTo01Normalization", [0, 1], [-10, 10])],
)
def test_statistics_of_each_image_must_be_the_students_own(tmp_path, scheme, fits, other):
    folder = make_folder(tmp_path, make_plans(normalization_schemes=[scheme]))
    add_fold(folder)
    meta = [{"network_data_format": {"inputs": {"image": {"value_range": values}}}} for values in (fits, other)]
    load(folder, student_metadata=meta[0])
    with pytest.raises(ValueError, match=rf"each whole image .*\({scheme}\), the student's images are in \[{other[0]}"):
        load(folder, student_metadata=meta[1])


def test_an_unknown_normalization_needs_a_word(tmp_path):
    folder = make_folder(tmp_path, make_plans(normalization_schemes=["OurOwnNormalization"]))
    add_fold(folder)
    with pytest.raises(ValueError, match="takes OurOwnNormalization, the student's images are of unknown intensities"):
        load(folder)
    load(folder, accept=["intensity"])


def test_patches_are_padded_to_the_total_stride(tmp_path):
    folder = make_folder(tmp_path)
    add_fold(folder)
    wrapped = load(folder, patch_size=[7, 5, 9])  # strides of x, y, z: 2, 2, 1
    assert isinstance(wrapped, Reorient)
    assert isinstance(wrapped.network, PadToMultiple)
    assert wrapped.network.multiple == [1, 2, 2]
    assert run(wrapped, torch.zeros(1, 1, 7, 5, 9)).shape == (1, 3, 7, 5, 9)


def test_classes_are_those_of_dataset_json(tmp_path):
    labels = {"posterior": 1, "background": 0, "anterior": 2, "ignore": 3}
    folder = make_folder(tmp_path, dataset=make_dataset(labels=labels))
    add_fold(folder)
    with pytest.raises(ValueError, match=r"order \['background', 'posterior', 'anterior'\], the student \['background"):
        load(folder)
    teacher = load(folder, class_map="by_name")
    plain = load(folder, class_names=None)
    assert torch.equal(run(teacher, image()), run(plain, image())[:, [0, 2, 1]])
    with pytest.raises(ValueError, match="order"):
        check_teacher(plain, folder, CLASSES, 1, PATCH)


def test_a_model_joins_an_ensemble_of_bundles(tmp_path):
    folder = make_folder(tmp_path)
    add_fold(folder)
    script = tmp_path / "other.ts"
    torch.jit.script(torch.nn.Conv3d(1, 3, 1)).save(str(script))
    members = load_report(load([folder, script])).members
    assert [member.network_id for member in members] == ["3d_fullres", None]


# ---- what is refused, with both sides -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plans", "dataset", "message"),
    [
        (make_plans(spacing=[1.0, 1.0]), None, "is the 2-D configuration '3d_fullres', the student's patches are 3-D"),
        (
            make_plans(previous_stage="3d_lowres"),
            None,
            "second stage .* of a cascade .* the student's batch holds only",
        ),
        (
            None,
            {"labels": {"background": 0, "whole": [1, 2]}},
            r"regions \['whole'\] by sigmoid, the student exclusive",
        ),
        (None, {"labels": {"background": 0, "a": 2}}, "numbers them from 0 without gaps"),
        ({"configurations": {"2d": {}}}, None, "has no configuration '3d_fullres'; known: 2d"),
        ({"plans_per_stage": {}}, None, "lists no configurations; a teacher is an nnU-Net v2 model"),
        (make_plans(architecture=None, UNet_class_name="Mine"), None, "has the network 'Mine'; .* PlainConvUNet and"),
    ],
)
def test_a_model_that_cannot_teach_is_refused(tmp_path, plans, dataset, message):
    folder = make_folder(tmp_path, plans, None if dataset is None else make_dataset(**dataset))
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_inherited_configurations_are_followed(tmp_path):
    plans = make_plans()
    plans["configurations"]["3d_mine"] = {"inherits_from": "3d_fullres", "spacing": [6.0, 5.0, 4.0]}
    found = find_plans(make_folder(tmp_path, plans, name="nnUNetTrainer__nnUNetPlans__3d_mine"))
    assert found is not None
    assert found.spacing_mm == (6.0, 5.0, 4.0)
    assert found.arguments == ARGUMENTS


def test_missing_and_damaged_files_are_named(tmp_path):
    folder = make_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has the folds \[\]"):
        load(folder)
    (folder / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset.json' is missing"):
        load(folder)
    (folder / "plans.json").write_text("{")
    with pytest.raises(ValueError, match=r"plans.json' cannot be parsed"):
        load(folder)


def test_a_folder_above_or_below_the_model_says_which_is_meant(tmp_path):
    folder = make_folder(tmp_path / "Dataset004_Hippocampus")
    (folder / "fold_0").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"one fold .* bundle_root='{folder}' and folds=\['0'\]"):
        load(folder / "fold_0")
    with pytest.raises(FileNotFoundError, match=f"holds the nnU-Net models {NAME}; give the folder of one"):
        load(folder.parent)


@pytest.mark.parametrize("setting", [{"overrides": {"a": 1}}, {"key_in_ckpt": "x"}, {"network_id": "n"}])
def test_settings_of_bundles_are_refused(tmp_path, setting):
    with pytest.raises(ValueError, match=f"is an nnU-Net model .* remove {next(iter(setting))}"):
        load(make_folder(tmp_path), **setting)


# ---- the real package -----------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Path:
    """A model folder that nnU-Net's own trainer wrote, after zero iterations, for CT."""
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed: this test needs the package itself")
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_compile", "false")
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans, dataset = make_plans(normalization_schemes=["CTNormalization"]), make_dataset(channel_names={"0": "CT"})
    trainer = nnUNetTrainer({**plans, "continue_training": False}, "3d_fullres", 0, dataset, torch.device("cpu"))
    cases = tmp_path / "preprocessed" / plans["dataset_name"] / "nnUNetPlans_3d_fullres"
    cases.mkdir(parents=True)
    for suffix in ("npz", "npy", "pkl"):  # the trainer looks which kind of preprocessed case there is
        (cases / f"case.{suffix}").touch()
    trainer.initialize()
    trainer._best_ema = np.float64(0.4)
    folder = Path(trainer.output_folder)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    (folder.parent / "plans.json").write_text(json.dumps(plans))
    (folder.parent / "dataset.json").write_text(json.dumps(dataset))
    return folder.parent


@pytest.mark.integration
def test_the_teacher_gives_what_nnunets_own_predictor_gives(trained):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    assert trained.name == NAME
    hounsfield = image() * 600 - 200
    raw = hounsfield[0].permute(0, 3, 2, 1).numpy()  # as SimpleITK would hand it over: (C, z, y, x)
    normalized = CTNormalization(False, HOUNSFIELD).run(raw.copy())
    predictor = nnUNetPredictor(
        use_gaussian=False, use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu")
    )
    predictor.initialize_from_trained_model_folder(str(trained), (0,), "checkpoint_final.pth")
    expected = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(normalized)).float()

    teacher = load(trained, spacing_mm=[1, 2, 3], intensity={"scale": 1})
    logits = run(teacher, hounsfield)[0].permute(0, 3, 2, 1)
    assert logits.std() > 0.01
    assert torch.allclose(logits, expected, atol=5e-3)  # the predictor keeps half precision
    assert load_report(teacher).weights == trained / "fold_0" / "checkpoint_final.pth"
