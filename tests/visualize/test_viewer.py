"""The viewer as a whole: files of one case and of a folder, nothing half-written, every option of the command."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from viewer_cases import SHAPE, SPACING_MM, blocks, gray, save, save_case

pytest.importorskip("plotly", reason="pip install 'monai_kd[viewer]'")
pytest.importorskip("trimesh")
pytest.importorskip("skimage")
pytest.importorskip("fast_simplification")

from PIL import Image

from monai_kd.__main__ import main, view
from monai_kd.visualize import ViewerSettings, write_viewer
from monai_kd.visualize.meshes import viewer_package
from monai_kd.visualize.output_folder import whole_folder

FILES = [
    *("meshes/prediction_1_a.stl", "meshes/truth_1_a.stl", "meshes/truth_2_b.stl"),
    *("page.html", "scene.glb", "slices.png", "view.json", "volume.gif"),
]
LIGHT = ViewerSettings(gif_size=120)
NAMES = {"class_names": ["a", "b"]}


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def folder_of(tmp_path: Path, *names: str) -> tuple[Path, Path, Path]:
    """Predictions, images and labels of several cases."""
    prediction, truth = blocks()
    for name in names:
        save(tmp_path / "pred" / f"{name}_seg.nii.gz", prediction)
        save(tmp_path / "data" / "imagesTs" / f"{name}.nii.gz", gray())
        save(tmp_path / "data" / "labelsTs" / f"{name}.nii.gz", truth)
    return tmp_path / "pred", tmp_path / "data", tmp_path / "data"


# ---- what is written ------------------------------------------------------------------------------------------------


def test_one_case_is_written_whole_with_its_record(tmp_path: Path) -> None:
    prediction, image, label = save_case(tmp_path)
    (shown,) = write_viewer(prediction, tmp_path / "out", image, label, **NAMES, settings=LIGHT, progress=False)
    assert files_in(shown.folder) == FILES
    record = json.loads((tmp_path / "out" / "view.json").read_text())
    assert record == shown.record
    assert record["structures"][0] == {
        **{"name": "a", "values": [1], "dice": 0.5},
        **{"prediction_ml": pytest.approx(0.384), "truth_ml": pytest.approx(0.384)},
    }
    assert sorted(record["files"]) == FILES
    assert str(tmp_path) not in json.dumps(record)


def test_case_without_truth_has_no_dice(tmp_path: Path) -> None:
    prediction, image, _ = save_case(tmp_path)
    (shown,) = write_viewer(prediction, tmp_path / "out", image, settings=LIGHT, progress=False)
    assert [path for path in files_in(shown.folder) if "truth" in path] == []
    assert shown.record["structures"] == [{"name": "class 1", "values": [1], "prediction_ml": pytest.approx(0.384)}]


def test_empty_prediction_is_warned_of_and_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, image, label = save_case(tmp_path)
    empty = save(tmp_path / "empty_seg.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
    with caplog.at_level(logging.WARNING, "monai_kd"):
        write_viewer(empty, tmp_path / "out", image, label, **NAMES, settings=LIGHT, progress=False)
        write_viewer(empty, tmp_path / "alone", image, **NAMES, settings=LIGHT, progress=False)
    assert "the prediction of empty is empty" in caplog.text
    assert "The prediction is empty." in (tmp_path / "out" / "page.html").read_text()
    assert files_in(tmp_path / "alone") == ["page.html", "slices.png", "view.json", "volume.gif"]


def test_folder_of_predictions_has_a_folder_per_case_and_an_index(tmp_path: Path) -> None:
    pred, data, _ = folder_of(tmp_path, "x_1", "x 2")
    views = write_viewer(pred, tmp_path / "out", data, data, **NAMES, settings=LIGHT, progress=False)
    assert [shown.folder.name for shown in views] == ["x 2", "x_1"]
    assert files_in(tmp_path / "out") == sorted(
        ["index.html", "view.json", *(f"{name}/{file}" for name in ("x 2", "x_1") for file in FILES)]
    )
    index = (tmp_path / "out" / "index.html").read_text()
    targets = set(re.findall(r"(?:href|src)='([^']+)'", index))
    assert all((tmp_path / "out" / target.replace("%20", " ")).is_file() for target in targets)
    assert len(targets) == 6
    assert index.count(">0.500<") == 2


def test_bundle_and_regions_name_the_structures(tmp_path: Path) -> None:
    prediction, image, label = save_case(tmp_path)
    bundle = Path(__file__).resolve().parents[2] / "bundles" / "student"
    (one,) = write_viewer(prediction, tmp_path / "a", image, label, bundle, settings=LIGHT, progress=False)
    assert [item["name"] for item in one.record["structures"]] == ["anterior", "posterior"]
    regions = {"all": [1, 2], "rim": [2]}
    (two,) = write_viewer(prediction, tmp_path / "b", image, label, regions=regions, settings=LIGHT, progress=False)
    assert [item["dice"] for item in two.record["structures"]] == [pytest.approx(2 * 32 / (64 + 96)), 0.0]


# ---- nothing half-written -------------------------------------------------------------------------------------------


def test_case_that_fails_leaves_nothing(tmp_path: Path) -> None:
    prediction, image, label = save_case(tmp_path)
    before = files_in(tmp_path)
    late = ViewerSettings(fps=1000)  # found out when the slices are drawn already
    with pytest.raises(ValueError, match="fps is 1000"):
        write_viewer(prediction, tmp_path / "out" / "deep", image, label, **NAMES, settings=late, progress=False)
    with pytest.raises(ValueError, match="class_names and regions"):
        write_viewer(prediction, tmp_path / "other", image, label, **NAMES, regions={"a": [1]})
    assert files_in(tmp_path) == before
    assert not (tmp_path / "out" / "deep").exists()
    assert not (tmp_path / "other").exists()


def test_case_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    pred, data, _ = folder_of(tmp_path, "bad", "good")
    affine = np.diag([*SPACING_MM, 1.0])
    affine[2, 3] = 40
    save(pred / "bad_seg.nii.gz", blocks()[0], affine)
    with pytest.raises(RuntimeError, match=r"1 of 2 cases failed, 1 are in .*'bad' \(ValueError: the affines of"):
        write_viewer(pred, tmp_path / "out", data, data, **NAMES, settings=LIGHT, progress=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good", "index.html", "view.json"]
    assert "the affines of" in (tmp_path / "out" / "index.html").read_text()
    (pred / "good_seg.nii.gz").unlink()
    with pytest.raises(RuntimeError, match="all 1 cases failed"):
        write_viewer(pred, tmp_path / "none", data, data, **NAMES, settings=LIGHT, progress=False)
    assert not (tmp_path / "none").exists()


def test_only_an_older_output_is_replaced_and_only_on_demand(tmp_path: Path) -> None:
    prediction, image, label = save_case(tmp_path)
    arguments = (prediction, tmp_path / "out", image, label)
    write_viewer(*arguments, **NAMES, settings=LIGHT, progress=False)
    with pytest.raises(FileExistsError, match=r"exists and is not empty; .* --overwrite True"):
        write_viewer(*arguments, **NAMES, settings=LIGHT, progress=False)
    (shown,) = write_viewer(*arguments[:3], **NAMES, settings=LIGHT, overwrite=True, progress=False)
    assert "truth" not in shown.record
    assert [path for path in files_in(tmp_path / "out") if "truth" in path] == []
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'notes.txt', which the viewer did not write"):
        write_viewer(*arguments, **NAMES, settings=LIGHT, overwrite=True, progress=False)
    with pytest.raises(TypeError, match="overwrite is 'yes'; it must be True or False"):
        write_viewer(*arguments, **NAMES, overwrite="yes")  # type: ignore[arg-type]


def test_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as draft:  # an empty one is
        (draft / "a").touch()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError), whole_folder(tmp_path / "out", overwrite):
            pass
    with pytest.raises(FileExistsError, match="is a file"), whole_folder(tmp_path / "out" / "a"):
        pass
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "new") as draft:
        (draft / "half" / "written").touch()
    assert files_in(tmp_path) == ["out/a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_missing_package_says_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"the viewer needs not_there: pip install 'monai_kd\[viewer\]'"):
        viewer_package("not_there.at_all")


# ---- the command ----------------------------------------------------------------------------------------------------


def run_view(folder: Path, out: str, **options) -> Path:
    prediction, image, label = (str(path) for path in save_case(folder))
    view(
        prediction, str(folder / out), image, **{"label": label, "class_names": ["a", "b"], "gif_size": 120, **options}
    )
    return folder / out


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_view(tmp_path_factory.mktemp("plain"), "out")


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({"label": ""}, ["page.html", "scene.glb", "slices.png"]),
        ({"class_names": ["a", "c"]}, ["meshes/truth_2_c.stl", "page.html", "slices.png"]),
        ({"class_names": None, "regions": {"a": [1, 2]}}, ["meshes/truth_1_a.stl", "page.html", "slices.png"]),
        ({"point": [13, 10, 12]}, ["slices.png"]),
        ({"window": [0, 400]}, ["page.html", "slices.png", "volume.gif"]),
        ({"axis": "sagittal"}, ["volume.gif"]),
        ({"fps": 2.5}, ["volume.gif"]),
        ({"gif_size": 160}, ["volume.gif"]),
        ({"smoothing": 0}, ["meshes/prediction_1_a.stl", "page.html", "scene.glb"]),
        ({"page_triangles": 200}, ["page.html"]),
    ],
    ids=lambda item: "-".join(item) if isinstance(item, dict) else "",
)
def test_every_option_changes_its_files(plain: Path, tmp_path: Path, options: dict, files: list[str]) -> None:
    other = run_view(tmp_path, "other", **options)
    same = [name for name in files if (plain / name).is_file() and (plain / name).read_bytes() == read(other / name)]
    assert same == []
    untouched = {"slices.png", "volume.gif", "scene.glb"} - set(files)
    if options.keys() & {"point", "axis", "fps", "gif_size", "page_triangles"}:  # those concern one file alone
        assert [name for name in untouched if (plain / name).read_bytes() != read(other / name)] == []


def read(path: Path) -> bytes:
    assert path.is_file()
    return path.read_bytes()


def test_channel_and_overwrite_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prediction, _, _ = save_case(tmp_path)
    image = save(tmp_path / "4d.nii.gz", np.stack([gray(), gray()[:, ::-1]], -1))
    pictures = []
    for channel in (0, 1):
        view(str(prediction), str(tmp_path / "out"), str(image), channel=channel, gif_size=120, overwrite=channel == 1)
        pictures.append((tmp_path / "out" / "slices.png").read_bytes())
    assert pictures[0] != pictures[1]
    assert capsys.readouterr().out == 2 * f"written: {tmp_path / 'out'}\n"


def test_dice_is_printed_also_where_it_is_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_view(tmp_path, "out")
    assert capsys.readouterr().out == f"written: {out}, Dice a 0.500, b 0.000\n"
    with Image.open(out / "volume.gif") as gif:
        assert gif.n_frames == 12


def test_setting_out_of_range_is_refused_before_a_file_is_read() -> None:
    with pytest.raises(ValueError, match="page_triangles is 10; it must be 100 or more"):
        view("no", "no", "no", page_triangles=10)
    with pytest.raises(ValueError, match="smoothing is -1"):
        view("no", "no", "no", smoothing=-1)


def test_command_line_reads_names_and_says_mistakes_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prediction, image, label = (str(path) for path in save_case(tmp_path))
    words = ["view", prediction, str(tmp_path / "out"), "--image", image, "--label", label, "--class_names"]
    monkeypatch.setattr(sys, "argv", ["monai_kd", *words, "{1:'core'}"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: the label maps hold the value 2, which has no name; known: core (1)\n"
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", ["monai_kd", *words, "{1:'core',2:'rim'}", "--point", "[13,10,12]", "--fps", "5"])
    main()
    assert capsys.readouterr().out == f"written: {tmp_path / 'out'}, Dice core 0.500, rim 0.000\n"
    assert json.loads((tmp_path / "out" / "view.json").read_text())["settings"]["point_mm"] == [13, 10, 12]
