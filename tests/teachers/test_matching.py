"""What differs between teacher and student is bridged by a setting, or refused by a message that names both sides."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNet

from monai_kd.teachers import MapClasses, Reorient, Resample, check_teacher, load_report, load_teacher, unwrap
from monai_kd.teachers.facts import Facts, facts_of_metadata

CLASSES = ["background", "anterior", "posterior"]
PATCH = [8, 12, 16]
NETWORK = {"spatial_dims": 3, "channels": [4, 8], "strides": [2]}


def make_bundle(
    root: Path,
    classes: list[str] | None = None,
    in_channels: int = 1,
    channels: list[str] | None = None,
    seed: int = 0,
    config: dict[str, Any] | None = None,
    **image: Any,
) -> Path:
    """A bundle with metadata; ``image`` is added to the description of its input."""
    classes = CLASSES if classes is None else classes
    arguments = {**NETWORK, "in_channels": in_channels, "out_channels": len(classes)}
    torch.manual_seed(seed)
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    content = {**(config or {}), "network_def": {"_target_": "UNet", **arguments}}
    (root / "configs" / "inference.json").write_text(json.dumps(content))
    torch.save(UNet(**arguments).state_dict(), root / "models" / "model.pt")
    if channels is not None:
        image["channel_def"] = dict(enumerate(channels))
    formats = {
        "inputs": {"image": {"num_channels": in_channels, **image}},
        "outputs": {"pred": {"channel_def": dict(enumerate(classes))}},
    }
    (root / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": formats}))
    return root


def metadata(**image: Any) -> dict[str, Any]:
    return {"network_data_format": {"inputs": {"image": image}}}


def load(root: Any, **settings: Any) -> torch.nn.Module:
    return load_teacher(root, **{"in_channels": 1, "class_names": CLASSES, "patch_size": PATCH, **settings})


def image(channels: int = 1) -> torch.Tensor:
    return torch.rand(1, channels, *PATCH, generator=torch.Generator().manual_seed(3))


def run(network: torch.nn.Module, *arguments: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(*arguments)


# ---- classes --------------------------------------------------------------------------------------------------------


def test_the_same_names_are_brought_to_the_students_order(tmp_path):
    root = make_bundle(tmp_path / "t", ["Posterior", "background", "anterior"])
    teacher = load(root, class_map="by_name")
    assert torch.equal(run(teacher, image()), run(unwrap(teacher), image())[:, [1, 2, 0]])


def test_the_background_may_have_another_name(tmp_path):
    root = make_bundle(tmp_path / "t", ["bg", "posterior", "anterior"])
    with pytest.raises(ValueError, match=r"order \['bg', 'posterior', 'anterior'\], .* set class_map='by_name'"):
        load(root)
    teacher = load(root, class_map="by_name")
    assert torch.equal(run(teacher, image()), run(unwrap(teacher), image())[:, [0, 2, 1]])


def test_a_class_of_the_student_is_never_taken_for_the_background(tmp_path):
    root = make_bundle(tmp_path / "t", ["anterior", "bg", "posterior"])
    with pytest.raises(ValueError, match=r"gives the student's 'background' .* the class 'background'"):
        load(root, class_map="by_name")


def test_a_teacher_whose_background_is_not_first_is_refused_unless_mapped(tmp_path):
    with pytest.raises(ValueError, match="set class_map='by_name'"):
        load(make_bundle(tmp_path / "t", ["posterior", "background", "anterior"]))


@pytest.mark.parametrize(
    "class_map",
    [
        {"background": ["liver", "background"], "anterior": "head", "posterior": ["tail"]},
        {"background": [3, 0], "anterior": 1, "posterior": 2},
        {"background": "*", "anterior": "head", "posterior": "tail"},
    ],
)
def test_more_classes_are_merged_by_name_number_or_star(tmp_path, class_map):
    root = make_bundle(tmp_path / "t", ["background", "head", "tail", "liver"])
    teacher = load(root, class_map=class_map)
    p = run(unwrap(teacher), image()).softmax(1)
    expected = torch.stack([p[:, 0] + p[:, 3], p[:, 1], p[:, 2]], dim=1)
    assert torch.allclose(run(teacher, image()).softmax(1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ("by_name", r"the student's 'anterior' \(of .*'posterior'\]\) the class 'anterior'; .*\['background', 'head'"),
        ("by_nam", r"has 'by_nam', the student's classes are \['background', 'anterior', 'posterior'\]"),
        ({"background": 0, "anterior": 1}, r"has \['background', 'anterior'\], the student's classes are"),
        ({"background": 0, "anterior": "head", "posterior": "tail"}, r"\['background', 'an.*missing: \['liver'\]"),
        ({"background": [0, 3, 1], "anterior": 1, "posterior": 2}, r"more than once: \['head'\]"),
        ({"background": "*", "anterior": [1, 2, 3], "posterior": "*"}, r"student's \['posterior'\] without .* 'liver'"),
        ({"background": "*", "anterior": 1, "posterior": "thalamus"}, r"'thalamus'; .*'head', 'tail', 'liver'\]"),
    ],
)
def test_a_map_that_cannot_be_names_both_sides(tmp_path, class_map, message):
    root = make_bundle(tmp_path / "t", ["background", "head", "tail", "liver"])
    with pytest.raises(ValueError, match=message):
        load(root, class_map=class_map)


def test_a_map_without_the_students_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs class_names"):
        load(make_bundle(tmp_path / "t"), class_map="by_name", class_names=None)


def test_names_in_a_map_need_a_teacher_that_states_them(tmp_path):
    root = make_bundle(tmp_path / "t")
    (root / "configs" / "metadata.json").unlink()
    own = {"background": "bg", "anterior": 1, "posterior": 2}
    with pytest.raises(ValueError, match=r"not stated; give channel numbers"):
        load(root, class_map=own)
    with pytest.raises(ValueError, match=r"'\*' and teacher '.*' does not state its classes"):
        load(root, class_map={**own, "background": "*"})
    assert isinstance(load(root, class_map={**own, "background": 0}), MapClasses)


# ---- channels, modality, intensities --------------------------------------------------------------------------------


def test_channels_are_matched_by_number_or_name(tmp_path):
    root = make_bundle(tmp_path / "t", in_channels=2, channels=["FLAIR", "T1"])
    own = metadata(channel_def={"0": "T1", "1": "T2", "2": "FLAIR"})
    for order in (["flair", "T1"], [2, 0]):
        teacher = load(root, in_channels=3, channel_order=order, student_metadata=own)
        assert torch.equal(run(teacher, image(3)), run(unwrap(teacher), image(3)[:, [2, 0]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "takes images of 2 channels, the student of 1"),
        ({"in_channels": 2}, r"takes the channels \['FLAIR', 'T1'\], the student \['T1', 'FLAIR'\]; .*order=\[1, 0\]"),
        ({"in_channels": 2, "channel_order": ["T2", 0]}, r"the channel 'T2'; the student's 2 channels: \['T1', 'FLAIR"),
        ({"in_channels": 2, "channel_order": [0, 5]}, "the channel 5; the student's 2 channels"),
        ({"in_channels": 2, "channel_order": [0]}, r"has 1 of the student's channels, teacher .* takes 2: \['FLAIR'"),
    ],
)
def test_other_channels_are_refused_with_both_sides(tmp_path, settings, message):
    root = make_bundle(tmp_path / "t", in_channels=2, channels=["FLAIR", "T1"])
    own = metadata(channel_def={"0": "T1", "1": "FLAIR"})
    with pytest.raises(ValueError, match=message):
        load(root, student_metadata=own, **settings)


def test_another_modality_is_refused_unless_it_is_meant(tmp_path):
    root = make_bundle(tmp_path / "t", modality="CT")
    own = metadata(modality="MR")
    message = (
        r"was trained on CT, the student sees MR \(.* own configs/metadata.json\).*--teacher::accept \"\['modality'\]\""
    )
    with pytest.raises(ValueError, match=message):
        load(root, student_metadata=own)
    assert isinstance(load(root, student_metadata=own, accept=["modality"]), UNet)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("modality", ["MRI", "T1-weighted MRI", ["MR"], ["CT", "MR"], "PET/MR", "n/a", None, []])
def test_a_modality_that_is_written_otherwise_is_no_difference(tmp_path, modality):
    root = make_bundle(tmp_path / "t", modality=modality)
    assert isinstance(load(root, student_metadata=metadata(modality="MR")), UNet)


def test_two_unknown_modalities_are_a_warning(tmp_path):
    root = make_bundle(tmp_path / "t", modality="fluorescence")
    with pytest.warns(UserWarning, match="was trained on fluorescence, the student sees histology"):
        load(root, student_metadata=metadata(modality="histology"))


@pytest.mark.parametrize("stated", [[0, 255], [-1000, 1000]])
def test_other_intensities_are_refused_or_converted(tmp_path, stated):
    root = make_bundle(tmp_path / "t", value_range=stated)
    own = metadata(value_range=[-5, 5])
    message = rf"in \[{stated[0]}.0, {stated[1]}.0\], the student's images are in \[-5.0, 5.0\] \(.*metadata.json\); "
    with pytest.raises(ValueError, match=message + r".*--teacher::accept \"\['intensity'\]\""):
        load(root, student_metadata=own)
    teacher = load(root, student_metadata=own, intensity={"scale": 2, "shift": 0.5})
    assert torch.equal(run(teacher, image()), run(unwrap(teacher), image() * 2 + 0.5))
    assert isinstance(load(root, student_metadata=own, accept=["intensity"]), UNet)


@pytest.mark.parametrize("stated", [[-8, 1], [0, 1]])  # zoo bundles state [0, 1] whatever they do
def test_nominal_ranges_that_differ_a_little_are_a_warning(tmp_path, stated):
    root = make_bundle(tmp_path / "t", value_range=stated)
    with pytest.warns(
        UserWarning, match=rf"expects intensities in \[{stated[0]}.0, 1.0\], the student's images are in \[-10.0"
    ):
        load(root, student_metadata=metadata(value_range=[-10, 10]))


@pytest.mark.parametrize("intensity", [{"factor": 2}, {}])
def test_an_unknown_intensity_setting_lists_the_known(tmp_path, intensity):
    with pytest.raises(ValueError, match="give some of scale, shift, clip"):
        load(make_bundle(tmp_path / "t"), intensity=intensity)


# ---- grid -----------------------------------------------------------------------------------------------------------

PREPROCESSING = {
    "pixdim": [2.0, 2.0, 4.0],
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "monai.transforms.Orientationd", "keys": "image", "axcodes": "LSP"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": "@pixdim"},
        ],
    },
}


def test_another_spacing_is_refused_or_resampled(tmp_path):
    root = make_bundle(tmp_path / "t", config={"pre": [{"_target_": "Spacingd", "pixdim": [2, 2, 4.0]}]})
    with pytest.raises(ValueError, match=r"spacing of \[2.0, 2.0, 4.0\] mm, the student at \[1.0, 1.0, 1.0\] mm"):
        load(root, spacing_mm=[1.0, 1.0, 1.0])
    assert isinstance(load(root, spacing_mm=[2, 2.001, 4]), UNet)
    teacher = load(root, spacing_mm=[1.0, 1.0, 1.0], resample=True, size_multiple=2)
    assert isinstance(teacher, Resample)
    assert teacher.factor == [0.5, 0.5, 0.25]
    assert run(teacher, image()).shape == (1, 3, *PATCH)
    assert isinstance(load(root, spacing_mm=[1, 1, 1], accept=["spacing"]), UNet)


def test_a_spacing_may_be_given_where_none_is_stated(tmp_path):
    root = make_bundle(tmp_path / "t")
    with pytest.raises(ValueError, match=r"has none stated, the student .* give teacher_spacing_mm"):
        load(root, spacing_mm=[1, 1, 1], resample=True)
    assert load(root, spacing_mm=[1, 1, 1], teacher_spacing_mm=[2, 1, 1], resample=True).factor == [0.5, 1, 1]


def test_stated_axes_are_turned_and_the_spacing_with_them(tmp_path):
    root = make_bundle(tmp_path / "t", config=PREPROCESSING)  # along L, S, P at 2, 2, 4 mm
    teacher = load(root, orientation="RAS", spacing_mm=[2, 4, 2])
    assert isinstance(teacher, Reorient)
    assert (teacher.axis_order, teacher.flipped) == ([0, 2, 1], [0, 2])
    turned = image().permute(0, 1, 2, 4, 3).flip([2, 4])
    expected = run(unwrap(teacher), turned).flip([2, 4]).permute(0, 1, 2, 4, 3)
    assert torch.allclose(run(teacher, image()), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"spacing of \[2.0, 4.0, 2.0\] mm, the student at \[1, 1, 1\]"):
        load(root, orientation="RAS", spacing_mm=[1, 1, 1])


def test_the_bare_network_of_another_orientation_is_refused(tmp_path):
    root = make_bundle(tmp_path / "t", config=PREPROCESSING)
    with pytest.raises(ValueError, match="takes images along LSP, the student along RAS"):
        check_teacher(load_teacher(root), root, CLASSES, 1, PATCH, orientation="RAS")


def test_a_stride_that_does_not_divide_the_patch_is_padded(tmp_path):
    root = make_bundle(tmp_path / "t")
    with pytest.raises(ValueError, match=r"\(8, 8, 8\) voxels for a patch of \(7, 8, 8\); .* size_multiple"):
        load(root, patch_size=[7, 8, 8])
    assert run(load(root, patch_size=[7, 8, 8], size_multiple=2), torch.zeros(1, 1, 7, 8, 8)).shape[2:] == (7, 8, 8)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"accept": ["modalty"]}, "give a list of modality, channels, intensity, spacing, orientation"),
        ({"accept": "modality"}, "give a list of"),
        ({"teacher_orientation": "RAR"}, "teacher_orientation is 'RAR'; give three axis codes"),
        ({"orientation": "XYZ"}, "orientation is 'XYZ'"),
        ({"spacing_mm": [1, 0, 1]}, r"spacing_mm is \[1, 0, 1\]"),
        ({"folds": [0]}, r"folds=\[0\] are of nnU-Net models"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        load(make_bundle(tmp_path / "t"), **setting)


# ---- metadata written by others -------------------------------------------------------------------------------------


def test_channels_without_numbers_state_no_order():
    formats = {"inputs": {"image": {"channel_def": {"image": "T1"}}}, "outputs": {"pred": {"channel_def": {"a": "b"}}}}
    facts = facts_of_metadata({"network_data_format": formats})
    assert (facts.channel_names, facts.class_names) == (None, None)


@pytest.mark.parametrize(("stated", "channels"), [("1", 1), (2, 2), ("one", None), (None, None)])
def test_a_number_of_channels_may_be_text(stated, channels):
    assert facts_of_metadata(metadata(num_channels=stated)).channels == channels


@pytest.mark.parametrize("inputs", [{"image": None}, {}, None, []])
def test_an_empty_description_states_nothing(inputs):
    assert facts_of_metadata({"network_data_format": {"inputs": inputs}}) == Facts()


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be parsed"), ("[]", "holds a list")])
def test_broken_metadata_is_named(tmp_path, text, message):
    path = make_bundle(tmp_path / "t") / "configs" / "metadata.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"'{path}' {message}"):
        load(tmp_path / "t")


# ---- ensembles ------------------------------------------------------------------------------------------------------


def test_a_list_averages_probabilities_with_classes_in_one_order(tmp_path):
    order = ["posterior", "background", "anterior"]
    roots = [make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", order, seed=1)]
    ensemble = load([str(root) for root in roots])
    first, second = (run(load_teacher(root), image()).softmax(1) for root in roots)
    assert torch.allclose(run(ensemble, image()).softmax(1), (first + second[:, [1, 2, 0]]) / 2, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    assert not any(module.training for module in ensemble.modules())
    # without a student, the order of the first
    assert torch.allclose(run(load_teacher(roots), image()), run(ensemble, image()), atol=1e-6)


def test_members_of_one_order_may_name_the_background_otherwise(tmp_path):
    roots = [make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", ["bg", "posterior", "anterior"], seed=1)]
    first, second = (run(load_teacher(root), image()).softmax(1) for root in roots)
    expected = (first + second[:, [0, 2, 1]]) / 2
    assert torch.allclose(run(load_teacher(roots), image()).softmax(1), expected, atol=1e-6)


def test_one_mapping_is_one_teacher(tmp_path):
    root = make_bundle(tmp_path / "t", ["bg", "posterior", "anterior"])
    teacher = load({"bundle_root": str(root), "class_map": "by_name"})
    assert isinstance(teacher, MapClasses)
    assert load_report(teacher).weights == root / "models/model.pt"
    with pytest.raises(ValueError, match=r"a teacher is \{'class_map': 'by_name'\}; give its folder"):
        load({"class_map": "by_name"})


def test_the_report_of_an_ensemble_holds_those_of_its_members(tmp_path):
    roots = [make_bundle(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    report = load_report(load(roots))
    assert [member.weights for member in report.members] == [root / "models/model.pt" for root in roots]
    digests = [hashlib.sha256((root / "models/model.pt").read_bytes()).hexdigest() for root in roots]
    assert report.sha256 == hashlib.sha256("\n".join(digests).encode()).hexdigest()
    assert report.complete
    assert report.loaded == sum(member.loaded for member in report.members) > 0
    assert load_report(load(roots[::-1])).sha256 != report.sha256


def test_a_member_may_have_settings_of_its_own(tmp_path):
    other = make_bundle(tmp_path / "b", ["background", "head", "tail", "liver"])
    own = {"bundle_root": str(other), "class_map": {"background": "*", "anterior": "head", "posterior": "tail"}}
    assert run(load([make_bundle(tmp_path / "a"), own]), image()).shape == (1, 3, *PATCH)


def test_a_member_of_other_classes_is_refused_by_name(tmp_path):
    other = make_bundle(tmp_path / "b", ["background", "head", "tail", "liver"])
    with pytest.raises(ValueError, match=r"teacher '.*/b' gives 4 channels, the student has 3 classes"):
        load([make_bundle(tmp_path / "a"), other])


@pytest.mark.parametrize("entry", [{"class_map": "by_name"}, {"bundle_root": "x", "clas_map": 1}, 3])
def test_a_malformed_member_lists_what_is_known(entry):
    with pytest.raises(ValueError, match=r"a teacher is .*bundle_root, weights, .*class_map"):
        load([entry])


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="at least one teacher"):
        load([])
