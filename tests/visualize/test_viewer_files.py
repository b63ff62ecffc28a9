"""Images and labels of predictions: MSD and BraTS layouts, by name alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_kd.visualize.viewer_files import find_cases


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, *places: str, channel: int | str = 0) -> list[tuple[str, str, str | None]]:
    cases = find_cases(root / "pred", *(root / place for place in places), channel=channel)
    relative = [(case.image.relative_to(root), case.truth and case.truth.relative_to(root)) for case in cases]
    return [(case.name, str(image), truth and str(truth)) for case, (image, truth) in zip(cases, relative, strict=True)]


def test_msd_layout_is_paired_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "pred/b_2_seg.nii.gz", "pred/a_1.nii.gz", "pred/._a_1.nii.gz", "pred/notes.txt")
    touch(tmp_path, "data/imagesTs/a_1.nii.gz", "data/imagesTr/b_2.nii", "data/labelsTr/b_2.nii.gz")
    touch(tmp_path, "data/labelsTs/a_1.nii.gz")
    assert found(tmp_path, "data", "data") == [
        ("a_1", "data/imagesTs/a_1.nii.gz", "data/labelsTs/a_1.nii.gz"),
        ("b_2", "data/imagesTr/b_2.nii", "data/labelsTr/b_2.nii.gz"),
    ]


def test_plain_folders_are_paired_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "pred/a_seg.nii.gz", "images/a.nii.gz", "labels/a.nii.gz")
    assert found(tmp_path, "images", "labels") == [("a", "images/a.nii.gz", "labels/a.nii.gz")]
    assert found(tmp_path, "images") == [("a", "images/a.nii.gz", None)]


def test_brats_layout_of_any_year(tmp_path: Path) -> None:
    touch(tmp_path, "pred/Brats18_A_1_t1_seg.nii.gz", "pred/BraTS-GLI-2-000_seg.nii.gz")
    touch(tmp_path, *(f"data/Brats18_A_1/Brats18_A_1_{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair", "seg")))
    touch(tmp_path, *(f"data/BraTS-GLI-2-000/BraTS-GLI-2-000-{name}.nii.gz" for name in ("t1c", "t2f", "seg")))
    assert found(tmp_path, "data", "data") == [
        ("BraTS-GLI-2-000", *(f"data/BraTS-GLI-2-000/BraTS-GLI-2-000-{name}.nii.gz" for name in ("t1c", "seg"))),
        ("Brats18_A_1_t1", *(f"data/Brats18_A_1/Brats18_A_1_{name}.nii.gz" for name in ("t1", "seg"))),
    ]
    assert [Path(image).name for _, image, _ in found(tmp_path, "data", channel="flair")] == [
        *("BraTS-GLI-2-000-t2f.nii.gz", "Brats18_A_1_flair.nii.gz")
    ]
    with pytest.raises(FileNotFoundError, match="is no file of the modality t2; it has seg, t1c, t2f"):
        found(tmp_path, "data", channel="t2")


def test_single_files_need_no_names(tmp_path: Path) -> None:
    touch(tmp_path, "x_seg.nii.gz", "y.nii.gz", "z.nii.gz")
    (case,) = find_cases(tmp_path / "x_seg.nii.gz", tmp_path / "y.nii.gz", tmp_path / "z.nii.gz", channel=2)
    assert (case.name, case.image.name, case.truth and case.truth.name, case.channel) == (
        "x",
        "y.nii.gz",
        "z.nii.gz",
        2,
    )


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "pred/a_seg.nii.gz", "images/b.nii.gz", "labels/b.nii.gz", "empty/notes.txt", "a.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"no image of the prediction 'a' in .*images"):
        found(tmp_path, "images")
    touch(tmp_path, "images/a.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"no label of the prediction 'a' in .*labels"):
        found(tmp_path, "images", "labels")
    with pytest.raises(FileNotFoundError, match=r"label '.*nowhere' does not exist"):
        found(tmp_path, "images", "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no prediction"):
        find_cases(tmp_path / "empty", tmp_path / "images")
    with pytest.raises(ValueError, match="is a folder of predictions, so image must be a folder too"):
        found(tmp_path, "a.nii.gz")
    with pytest.raises(ValueError, match="channel is 't3'; it must be a number from 0, or one of t1, t1ce, t2, flair"):
        found(tmp_path, "images", channel="t3")
    touch(tmp_path, "pred/a.nii.gz")
    with pytest.raises(ValueError, match=r"are two predictions of 'a'"):
        found(tmp_path, "images")
