"""Case lists and splits: fixed by a file or by a seed, with errors that say what to do."""

from __future__ import annotations

import json
import shutil

import pytest

from monai_kd.data import CaseSplit, case_id, default_dataset_dir, default_split_file, labelled_cases


@pytest.mark.parametrize(
    ("path", "expected"),
    [("imagesTr/heart_003.nii.gz", "heart_003"), ("/a/b/x.nii", "x"), ("v1.2_case.nii.gz", "v1.2_case")],
)
def test_case_id_is_the_name_without_its_nifti_ending(path, expected):
    assert case_id(path) == expected


def test_lists_dataset_json_sorted_by_case(phantoms):
    cases = labelled_cases(phantoms)
    assert len(cases) == 6
    assert [case_id(case["image"]) for case in cases] == sorted(case_id(case["label"]) for case in cases)


def test_folder_without_dataset_json_is_paired_by_name(phantoms, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(phantoms, folder)
    (folder / "dataset.json").unlink()
    first = labelled_cases(folder)[0]
    (folder / "imagesTr" / "._junk.nii.gz").write_bytes(b"macOS")
    assert len(labelled_cases(folder)) == 6
    assert first["label"].endswith(f"labelsTr/{case_id(first['image'])}.nii.gz")


def test_images_without_a_label_are_left_out_and_named(phantoms, tmp_path, caplog):
    folder = tmp_path / "copy"
    shutil.copytree(phantoms, folder)
    (folder / "dataset.json").unlink()
    gone = sorted((folder / "labelsTr").iterdir())[0]
    gone.unlink()
    with caplog.at_level("WARNING", logger="monai_kd"):
        assert len(labelled_cases(folder)) == 5
    assert f"1 images have no label of their name and are left out: ['{gone.name}']" in caplog.text


def test_several_files_for_one_image_are_refused(phantoms, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(phantoms, folder)
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][0]["image"] = [content["training"][0]["image"]] * 2
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="several files for one image; merge the modalities"):
        labelled_cases(folder)


def test_missing_folder_names_it_and_says_how_to_give_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' is not a folder; pass --dataset_dir"):
        labelled_cases(tmp_path / "nowhere")


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no labelled case"):
        labelled_cases(tmp_path)


def test_listed_file_that_is_absent_is_named(phantoms, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(phantoms, folder)
    gone = sorted((folder / "labelsTr").iterdir())[2]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks 1 listed files, the first is '{gone}'"):
        labelled_cases(folder)


def test_drawn_split_is_disjoint_complete_and_fixed_by_the_seed(phantoms):
    split = CaseSplit(str(phantoms), seed=3)
    ids = split.ids
    assert sorted(name for names in ids.values() for name in names) == [
        case_id(case["image"]) for case in labelled_cases(phantoms)
    ]
    assert [len(ids[section]) for section in ("train", "validation", "test")] == [4, 1, 1]
    assert CaseSplit(str(phantoms), seed=3).ids == ids
    assert any(CaseSplit(str(phantoms), seed=seed).ids != ids for seed in range(4, 8))
    assert len(CaseSplit(str(phantoms), fractions=(0.4, 0.2)).ids["validation"]) == 2


def test_split_file_fixes_the_sections_whatever_the_seed(phantoms, tmp_path):
    names = [case_id(case["image"]) for case in labelled_cases(phantoms)]
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": names[2:], "validation": names[:1], "test": names[1:2]}))
    for seed in (0, 1):
        split = CaseSplit(str(phantoms), str(path), seed)
        assert [case_id(case["image"]) for case in split.cases("test")] == names[1:2]
        assert len(split.cases("all")) == 6


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"train": ["nobody"], "validation": [], "test": []}, ValueError, "the first is 'nobody'"),
        ({"train": []}, ValueError, r"lacks the lists \['validation', 'test'\]"),
        (None, FileNotFoundError, "does not exist; pass --split_file"),
    ],
)
def test_bad_split_file_is_named(phantoms, tmp_path, content, error, message):
    path = tmp_path / "split.json"
    if content is not None:
        path.write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        CaseSplit(str(phantoms), str(path)).cases("train")


def test_overlapping_sections_are_refused(phantoms, tmp_path):
    name = case_id(labelled_cases(phantoms)[0]["image"])
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": [name], "validation": [], "test": [name]}))
    with pytest.raises(ValueError, match="more than once; sections may not overlap"):
        CaseSplit(str(phantoms), str(path)).cases("train")


def test_unknown_or_empty_section_is_refused(phantoms, tmp_path):
    with pytest.raises(ValueError, match="section is 'tests'; known: train, validation, test, all"):
        CaseSplit(str(phantoms)).cases("tests")
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": [], "validation": [], "test": []}))
    with pytest.raises(ValueError, match=r"section 'train' of .*split.json' has no usable case"):
        CaseSplit(str(phantoms), str(path)).cases("train")


def test_nothing_is_read_before_the_first_use(tmp_path):
    split = CaseSplit(str(tmp_path / "nowhere"))
    assert not split.loaded


def test_defaults_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MONAI_KD_DATA", raising=False)
    assert default_dataset_dir("Task") == "Task"
    assert default_split_file("Task", "Task", "task") == ""
    monkeypatch.setenv("MONAI_KD_DATA", str(tmp_path))
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "task.json").write_text("{}")
    assert default_dataset_dir("Task") == str(tmp_path / "Task")
    assert default_split_file(str(tmp_path / "Task"), "Task", "task") == str(tmp_path / "splits" / "task.json")
    # the published split is of that one folder
    assert default_split_file(str(tmp_path / "Other"), "Task", "task") == ""
