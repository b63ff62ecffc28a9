"""Pictures with masks: every layout, pairs by name, groups that stay together, and faults that are named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_kd.data import CaseCheck, CaseSplit, case_id, image_mask_cases, make_vessel_phantoms, target_dirs
from monai_kd.data.image_masks import IMAGE_MASK_LAYOUTS

CLASSES = ["background", "vessel"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_KD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_vessel_phantoms(tmp_path_factory.mktemp("vessels") / "a", 4, 2, size=64, progress=False)


@pytest.fixture
def chase(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "CHASE_DB1", tmp_path / "CHASE_DB1"))


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def polyps(folder: Path, sequences: dict[int, int]) -> Path:
    """Frames named by their number; the table says of which video each is."""
    for number in sequences:
        write(folder / "images" / f"{number}.png", np.full((6, 8, 3), number, np.uint8))
        write(folder / "labels" / f"{number}.png", np.eye(6, 8, dtype=np.uint8) * 255)
    rows = "".join(f"{frame},{sequence}\n" for frame, sequence in sequences.items())
    (folder / "sequences.csv").write_text("frame,sequence\n" + rows)
    return folder


# ---- listing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "count", "first", "label", "fov"),
    [
        ("CHASE_DB1", 6, "Image_01L", "labels_1stHO/Image_01L_1stHO.png", "fov_masks/Image_01L.gif"),
        ("STARE", 2, "im0101", "labels_ah/im0101.ah.png", None),
        ("DRIVE/training", 2, "101_training", "1st_manual/101_manual1.gif", "mask/101_training_mask.gif"),
    ],
)
def test_each_layout_is_told_by_its_folders(made, folder, count, first, label, fov):
    cases = image_mask_cases(made / folder)
    assert len(cases) == count
    assert case_id(cases[0]["image"]) == first
    assert cases[0]["label"] == str(made / folder / label)
    assert cases[0].get("fov") == (fov and str(made / folder / fov))
    for case in cases:
        assert all(Path(case[role]).is_file() for role in case if role != "group")


def test_both_eyes_of_a_child_are_a_group(made):
    groups = {case_id(case["image"]): case["group"] for case in image_mask_cases(made / "CHASE_DB1")}
    assert groups["Image_01L"] == groups["Image_01R"] == "01"
    assert len(set(groups.values())) == 3
    assert "group" not in image_mask_cases(made / "STARE")[0]


def test_frames_are_sorted_by_number_and_grouped_by_video(tmp_path):
    cases = image_mask_cases(polyps(tmp_path, {10: 2, 2: 1, 1: 1}))
    assert [case_id(case["image"]) for case in cases] == ["1", "2", "10"]
    assert [case["group"] for case in cases] == ["1", "1", "2"]


def test_patterns_replace_those_of_the_layout(tmp_path):
    write(tmp_path / "a_photo.JPG", np.zeros((4, 4, 3), np.uint8))
    write(tmp_path / "a_gt.png", np.zeros((4, 4), np.uint8))
    write(tmp_path / "seen" / "a.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "a_photo.txt").write_text("notes")
    (tmp_path / "._a_photo.jpg").write_bytes(b"macOS")
    (case,) = image_mask_cases(tmp_path, images="{case}_photo.*", labels="{case}_gt.png", masks="seen/{case}.*")
    assert [Path(case[role]).name for role in ("image", "label", "fov")] == ["a_photo.JPG", "a_gt.png", "a.png"]


def test_an_empty_pattern_of_masks_means_none_and_other_empty_ones_are_refused(chase):
    assert all("fov" in case for case in image_mask_cases(chase))
    assert not any("fov" in case for case in image_mask_cases(chase, masks=""))
    for role in ("image", "label"):
        with pytest.raises(ValueError, match=f"the pattern of {role} files is ''; name the case once"):
            image_mask_cases(chase, **{f"{role}s": ""})


def test_a_name_that_tells_no_group_is_refused_by_the_first_such_case(chase):
    for name in ("Image_60", "Image_61"):
        for place in ("images/{}.jpg", "labels_1stHO/{}_1stHO.png", "fov_masks/{}.gif"):
            shutil.copy(chase / place.format("Image_01L"), chase / place.format(name))
    with pytest.raises(
        ValueError, match=r"case 'Image_60' tells no group: its name does not fit 'Image_.*images_labels"
    ):
        image_mask_cases(chase)


def test_images_alone_need_no_labels(chase):
    shutil.rmtree(chase / "labels_1stHO")
    cases = image_mask_cases(chase, "chase_db1", labeled=False)
    assert len(cases) == 6
    assert all(set(case) == {"image", "fov", "group"} for case in cases)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda folder: (folder / "labels_1stHO/Image_02L_1stHO.png").unlink(),
            FileNotFoundError,
            r"case 'Image_02L' in .* has no label: 'labels_1stHO/Image_02L_1stHO.\*' is not there \(6 images, 5 label",
        ),
        (
            lambda folder: (folder / "fov_masks/Image_02L.gif").unlink(),
            FileNotFoundError,
            "case 'Image_02L' in .* has no fov: 'fov_masks/Image_02L",
        ),
        (
            lambda folder: shutil.copy(folder / "images/Image_02L.jpg", folder / "images/Image_02L.jpeg"),
            ValueError,
            "case 'Image_02L' in .* has several files for image: Image_02L.jpeg, Image_02L.jpg; keep one",
        ),
        (lambda folder: shutil.rmtree(folder / "images"), ValueError, r"has no image: no file is named as 'images/"),
    ],
    ids=["label", "mask", "twice", "none"],
)
def test_what_a_folder_lacks_is_named(chase, spoil, error, message):
    spoil(chase)
    with pytest.raises(error, match=message):
        image_mask_cases(chase)


def test_wrong_arguments_are_named(chase, tmp_path):
    with pytest.raises(ValueError, match=r"layout is 'hrf'; known: chase_db1, stare, drive, rite, .*, images_labels$"):
        image_mask_cases(chase, "hrf")
    for pattern in ("images/*.jpg", "{case}/image.jpg", "{case}/{case}.jpg"):
        with pytest.raises(ValueError, match=rf"of image files is '{re.escape(pattern)}'; name the case once, in the"):
            image_mask_cases(chase, images=pattern)
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder; pass --dataset_dir"):
        image_mask_cases(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (None, FileNotFoundError, "sequences.csv' does not exist; it tells which frames are of one sequence"),
        ("frame,video\n1,1\n", ValueError, "needs the columns frame and sequence"),
        ("frame,sequence\n1,1\n", ValueError, "has no sequence for 1 of 2 frames, the first is '2'"),
    ],
)
def test_a_table_of_sequences_that_does_not_fit_is_named(tmp_path, table, error, message):
    folder = polyps(tmp_path, {1: 1, 2: 1})
    (folder / "sequences.csv").unlink()
    if table is not None:
        (folder / "sequences.csv").write_text(table)
    with pytest.raises(error, match=message):
        image_mask_cases(folder, "cvc_clinicdb")


# ---- the published form of each set ---------------------------------------------------------------------------------

ISIC = {
    2016: ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth", "Segmentation"),
    2017: ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth", "segmentation"),
    2018: ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", "segmentation"),
}
LGG = ("TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_{}", "TCGA_DU_5871_19941206/TCGA_DU_5871_19941206_{}")
# layout, what tells it without its name, image and mask of each case, groups
PUBLISHED = {
    "rite": ("rite", True, {"images/21_training.tif": "vessel/21_training.png"}, [None]),
    "rite_av": ("rite_av", False, {"images/01_test.tif": "av/01_test.png"}, [None]),
    **{
        f"isic {year}": ("isic", True, {f"{images}/ISIC_0000000.jpg": f"{masks}/ISIC_0000000_{word}.png"}, [None])
        for year, (images, masks, word) in ISIC.items()
    },
    "figshare": ("brain_tumor_figshare", False, {f"images/{n}.png": f"masks/{n}.png" for n in (1, 2, 10)}, 3 * [None]),
    "lgg": (
        "brain_tumor_lgg",
        True,
        {f"{place.format(n)}.tif": f"{place.format(n)}_mask.tif" for place in LGG for n in (1, 10)},
        ["TCGA_CS_4941", "TCGA_CS_4941", "TCGA_DU_5871", "TCGA_DU_5871"],
    ),
    "kvasir": ("kvasir_seg", False, {"images/cju0qkwl.jpg": "masks/cju0qkwl.jpg"}, [None]),
    "clinic": ("cvc_clinicdb", True, {f"Original/{n}.tif": f"Ground Truth/{n}.tif" for n in (1, 26)}, ["1", "2"]),
    "clinic png": ("cvc_clinicdb", True, {f"Original/{n}.png": f"Ground Truth/{n}.png" for n in (1, 26)}, ["1", "2"]),
    "neopolyp": ("neopolyp", True, {"train/0081835c.jpeg": "train_gt/0081835c.jpeg"}, [None]),
    "neopolyp twice": ("neopolyp", True, {"train/train/0081835c.jpeg": "train_gt/train_gt/0081835c.jpeg"}, [None]),
    "cvc_300": ("cvc_300", False, {"images/149.png": "masks/149.png"}, [None]),
}


def published(root: Path, name: str) -> Path:
    """Write the files of a set, and what else lies in its folders."""
    _, _, files, _ = PUBLISHED[name]
    for place in [place for pair in files.items() for place in pair]:
        write(root / place, np.zeros((4, 6, 3) if place in files else (4, 6), np.uint8))
    if name == "isic 2017":
        write(root / ISIC[2017][0] / "ISIC_0000000_superpixels.png", np.zeros((4, 6, 3), np.uint8))
        (root / ISIC[2017][0] / "ISIC-2017_Training_Data_metadata.csv").write_text("image_id,age\n")
    if name == "lgg":
        (root / "data.csv").write_text("Patient\n")
    if name == "clinic":
        (root / "sequences.csv").write_text("frame,sequence\n1,1\n26,2\n")
    if name == "clinic png":  # as a mirror has it
        (root.parent / "metadata.csv").write_text("sequence_id,frame_id,png_image_path\n1,1,a\n2,26,b\n")
    return root


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_form_of_each_set_is_read(tmp_path, name):
    layout, told, files, groups = PUBLISHED[name]
    folder = published(tmp_path / "set", name)
    cases = image_mask_cases(folder, layout)
    assert [(case["image"], case["label"]) for case in cases] == [
        (str(folder / image), str(folder / mask)) for image, mask in files.items()
    ]
    assert [case.get("group") for case in cases] == groups
    if told:
        assert image_mask_cases(folder) == cases
    bare = [{key: value for key, value in case.items() if key != "label"} for case in cases]
    assert image_mask_cases(folder, layout, labeled=False) == bare, "a mask beside its image is no image"


def test_every_named_set_is_tried_above():
    tried = {layout for layout, *_ in PUBLISHED.values()}
    assert set(IMAGE_MASK_LAYOUTS) - tried == {"chase_db1", "stare", "drive", "slices", "images_labels"}


def test_patients_of_the_tumor_slices_come_by_a_table_and_their_absence_is_said(tmp_path, caplog):
    folder = published(tmp_path / "set", "figshare")
    assert not any("group" in case for case in image_mask_cases(folder, "brain_tumor_figshare"))
    assert "patients.csv' does not exist: every image counts as a patient of its own" in caplog.text
    (folder / "patients.csv").write_text("image,patient\n1,100360\n2,100360\n10,101016\n")
    cases = image_mask_cases(folder, "brain_tumor_figshare")
    assert [case["group"] for case in cases] == ["100360", "100360", "101016"]
    (folder / "patients.csv").write_text("image,patient\n1,100360\n2,100360\n")
    with pytest.raises(ValueError, match="has no patient for 1 of 3 images, the first is '10'"):
        image_mask_cases(folder, "brain_tumor_figshare")


def test_a_video_without_table_is_refused_with_all_names_of_the_table(tmp_path):
    folder = published(tmp_path / "set", "clinic")
    (folder / "sequences.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"sequences.csv' does not exist; .*'.*/../metadata.csv'"):
        image_mask_cases(folder)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (
            "lgg",
            lambda folder: (folder / f"{LGG[0].format(10)}_mask.tif").unlink(),
            r"no label: 'TCGA_\*/TCGA_CS_4941_19960909_10_mask.tif' is not there \(4 images, 3 label",
        ),
        (
            "neopolyp",
            lambda folder: (folder / "train_gt/0081835c.jpeg").unlink(),
            r"'train_gt/0081835c.\*' or 'train_gt/train_gt/0081835c.\*' is not there \(1 images, 0 label files\)",
        ),
        (
            "isic 2018",
            lambda folder: shutil.copytree(folder / ISIC[2018][0], folder / "ISIC2018_Task1-2_Test_Input"),
            "'ISIC_0000000' .*for image: ISIC2018_Task1-2_T.*Input/ISIC_0000000.jpg, ISIC2018_Task1-2_T.*; keep one",
        ),
        (
            "isic 2016",
            lambda folder: shutil.rmtree(folder / ISIC[2016][0]),
            r"has no image: no file is named as '\*_Data/\{case\}.jpg' or '\*_Input/\{case\}.jpg'",
        ),
    ],
    ids=["mask", "either place", "two folders", "none"],
)
def test_what_a_published_form_lacks_is_named(tmp_path, name, spoil, message):
    folder = published(tmp_path / "set", name)
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        image_mask_cases(folder, PUBLISHED[name][0])


def test_patterns_may_leave_the_folder_and_its_name_may_hold_wildcards(tmp_path):
    folder = tmp_path / "a[1]*" / "pictures"
    write(folder / "1.png", np.zeros((4, 4, 3), np.uint8))
    write(folder.parent / "labels" / "1.png", np.zeros((4, 4), np.uint8))
    for labels in ("../labels/{case}.png", f"{folder.parent.as_posix()}/labels/{{case}}.png"):
        (case,) = image_mask_cases(folder, images="{case}.*", labels=labels)
        assert case["label"] == str(folder.parent / "labels" / "1.png")


# ---- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_split_keeps_a_video_in_one_section(tmp_path, seed):
    sequences = {number: number // 4 for number in range(40)}
    split = CaseSplit(str(polyps(tmp_path, sequences)), seed=seed, list_cases=image_mask_cases)
    sections = {section: {sequences[int(name)] for name in names} for section, names in split.ids.items()}
    assert sum(map(len, sections.values())) == len(set().union(*sections.values())) == 10
    assert len(split.ids["test"]) >= 8
    other = CaseSplit(str(tmp_path), seed=seed + 10, list_cases=image_mask_cases)
    assert other.ids != split.ids


def test_a_split_file_that_cuts_a_video_is_refused(tmp_path):
    folder = polyps(tmp_path / "data", {1: 1, 2: 1, 3: 2, 4: 3})
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["1", "3"], "validation": ["4"], "test": ["2"]}))
    with pytest.raises(ValueError, match=r"has 1 groups in several sections, the first as 1 \(train\) and 2 \(test\)"):
        CaseSplit(str(folder), str(path), list_cases=image_mask_cases).cases("train")
    few = polyps(tmp_path / "few", {1: 1, 2: 1, 3: 2})
    with pytest.raises(
        ValueError, match="holds 3 labelled cases of 2 groups; train, validation and test need at least 3"
    ):
        CaseSplit(str(few), list_cases=image_mask_cases).cases("train")


def test_a_split_file_with_targets_names_folders_beside_it(made, tmp_path):
    path = made / "splits" / "retina.json"
    split = CaseSplit(str(made / "CHASE_DB1"), str(path), list_cases=image_mask_cases)
    assert split.ids == {
        "train": ["Image_01L", "Image_01R"],
        "validation": ["Image_02L", "Image_02R"],
        "test": ["Image_51L", "Image_51R"],
    }
    assert target_dirs(str(path)) == {name: str(made.resolve() / name) for name in ("STARE", "DRIVE/training")}
    for folder in target_dirs(str(path)).values():
        assert len(CaseSplit(folder, list_cases=image_mask_cases).cases("all")) == 2
    (tmp_path / "splits").mkdir()
    other = tmp_path / "splits" / "a.json"
    with pytest.raises(FileNotFoundError, match=r"a.json' does not exist"):
        target_dirs(str(other))
    other.write_text(json.dumps({"targets": "STARE"}))
    with pytest.raises(ValueError, match="has no list 'targets' of folders, got 'STARE'"):
        target_dirs(str(other))
    other.write_text(json.dumps({"targets": ["STARE"]}))
    with pytest.raises(FileNotFoundError, match=r"names the target '.*STARE', which is not a folder"):
        target_dirs(str(other))


# ---- checks ---------------------------------------------------------------------------------------------------------


def checked(folder: Path, channels: int = 3, skip: bool = False) -> CaseSplit:
    check = CaseCheck(channels, CLASSES, skip_bad_cases=skip, progress=False, label_values=[0, 255])
    return CaseSplit(str(folder), check=check, list_cases=image_mask_cases)


@pytest.mark.parametrize("folder", ["CHASE_DB1", "STARE", "DRIVE/training"])
def test_sound_photographs_pass(made, folder):
    split = checked(made / folder)
    assert len(split.cases("all")) == (6 if folder == "CHASE_DB1" else 2)
    assert split.skipped == {}


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = "Image_02L"
DAMAGE = {
    "truncated image": (f"images/{BAD}.jpg", truncated, "image cannot be read, it is damaged or truncated (OSError"),
    "no image": (f"images/{BAD}.jpg", lambda path: path.write_text("x"), "image cannot be read, it is damaged"),
    "truncated mask": (f"fov_masks/{BAD}.gif", truncated, "fov cannot be read, it is damaged or truncated (OSError"),
    "gray": (
        f"images/{BAD}.jpg",
        lambda path: write(path, np.zeros((62, 64), np.uint8)),
        "image has 1 channels, the network takes 3",
    ),
    "size": (
        f"labels_1stHO/{BAD}_1stHO.png",
        lambda path: write(path, np.zeros((60, 64), np.uint8)),
        "image has 64 x 62 pixels and label 64 x 60: not the same grid",
    ),
    "values": (
        f"labels_1stHO/{BAD}_1stHO.png",
        lambda path: write(path, 2 * np.eye(62, 64, dtype=np.uint8)),
        "label has the values 2; the classes are 0, 255",
    ),
    "smeared": (
        f"labels_1stHO/{BAD}_1stHO.png",
        lambda path: write(path, np.arange(62 * 64, dtype=np.uint8).reshape(62, 64)),
        "label has the values 1, 2, 3, 4, 5, ...; the classes are 0, 255; JPEG smears masks, save them as PNG",
    ),
    "mask of another size": (
        f"fov_masks/{BAD}.gif",
        lambda path: write(path, np.full((62, 60), 255, np.uint8)),
        "fov has 1 channels of 60 x 62 pixels; one of 64 x 62 would fit the image",
    ),
    "empty mask": (
        f"fov_masks/{BAD}.gif",
        lambda path: write(path, np.zeros((62, 64), np.uint8)),
        "fov has the values 0; it must be 0 outside of the field of view and one value inside",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_kind_of_bad_photograph_is_named(chase, damage):
    place, spoil, message = DAMAGE[damage]
    spoil(chase / place)
    with pytest.raises(ValueError, match=r"1 of 6 cases in .* cannot be used") as caught:
        checked(chase).cases("all")
    assert f"  {BAD}: " in str(caught.value)
    assert message in str(caught.value)
    assert list(checked(chase, skip=True).ids) == ["train", "validation", "test"]


def test_lists_from_elsewhere_are_checked_with_their_masks(chase):
    cases = image_mask_cases(chase)
    truncated(chase / "fov_masks" / f"{BAD}.gif")
    check = CaseCheck(3, CLASSES, progress=False, label_values=[0, 255])
    check.check_lists(chase, cases[:2])
    with pytest.raises(ValueError, match="1 of 4 listed cases cannot be used"):
        check.check_lists(chase, cases)


def test_a_gray_network_takes_gray_photographs(chase):
    for path in (chase / "images").iterdir():
        write(path, np.zeros((62, 64), np.uint8))
    assert len(checked(chase, channels=1).cases("all")) == 6


# ---- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "count"), [("CHASE_DB1", 28), ("STARE", 20), ("DRIVE/training", 20), ("CVC_ClinicDB", 123)]
)
def test_real_photographs_pass(real_data, folder, count):
    if not (real_data / folder).is_dir():
        pytest.skip(f"MONAI_KD_DATA lacks {folder}: this test needs it")
    split = checked(real_data / folder)
    assert len(split.cases("all")) == count
    assert split.skipped == {}


@pytest.mark.parametrize(
    ("protocol", "folder", "sizes"),
    [
        ("retina", "CHASE_DB1", [16, 4, 8]),
        ("polyps", "CVC_ClinicDB", [86, 10, 27]),
    ],
)
def test_published_splits_fit_and_cut_no_group(real_data, protocol, folder, sizes):
    path = real_data / "splits" / f"{protocol}.json"
    if not path.is_file():
        pytest.skip(f"MONAI_KD_DATA lacks {path}: this test needs it")
    split = CaseSplit(str(real_data / folder), str(path), list_cases=image_mask_cases)
    assert [len(names) for names in split.ids.values()] == sizes
