"""Every export of a bundle: it agrees with PyTorch, the record says so, and a wrong one leaves nothing."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, load_bundle_config
from monai.data import load_net_with_metadata
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, NormalizeIntensity, Orientation, Spacing
from small_bundle import SMALL_WINDOW, small_network

from monai_kd.__main__ import main
from monai_kd.data import CaseSplit, case_id
from monai_kd.export import ExportResult, Limits, export_bundle, load_runtime
from monai_kd.export.exporter import LIMITS, RECORD
from monai_kd.export.pipeline import inference_flow, record_windows
from monai_kd.export.slicer import slicer_settings
from monai_kd.export.writers import FORMATS, Job
from monai_kd.handlers.provenance import file_sha256
from monai_kd.teachers import load_teacher

REPOSITORY = Path(__file__).resolve().parents[2]
EXACT = ("onnx", "openvino", "torchscript", "torch-export", "slicer")


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return content


@pytest.fixture
def copied(small_bundle: Path, tmp_path: Path) -> Path:
    """The small bundle without exports."""
    return shutil.copytree(small_bundle, tmp_path / "student", ignore=shutil.ignore_patterns("exported"))


# ---- what is written ------------------------------------------------------------------------------------------------


def test_the_record_describes_every_file(exported: dict[str, ExportResult], small_bundle: Path):
    folder = small_bundle / "models" / "exported"
    entries = record(folder)
    assert entries.keys() == exported.keys()
    listed = [file for entry in entries.values() for file in entry["files"]]
    assert sorted(item.name for item in folder.iterdir()) == sorted([RECORD, *(file["name"] for file in listed)])
    for file in listed:
        path = folder / file["name"]
        assert (file["size"], file["sha256"]) == (path.stat().st_size, file_sha256(path))
    for name, entry in entries.items():
        assert entry["size"] == exported[name].size == sum(file["size"] for file in entry["files"])
        assert folder / entry["files"][0]["name"] == exported[name].path
        assert entry["weights_sha256"] == file_sha256(small_bundle / "models" / "model.pt")
        assert entry["versions"]["torch"].startswith("2.")
        assert None not in entry["versions"].values()
        assert entry["parity"]["windows"] > 2
        assert entry["parity"]["max_logit_difference"] == exported[name].max_logit_difference


@pytest.mark.parametrize("name", EXACT)
def test_float32_exports_agree_with_pytorch(exported: dict[str, ExportResult], name: str):
    assert exported[name].max_logit_difference <= 1e-3
    assert exported[name].dice > 0.999


@pytest.mark.parametrize("name", EXACT)
def test_float32_exports_take_other_sizes_and_batches(exported: dict[str, ExportResult], small_bundle: Path, name: str):
    network = load_teacher(small_bundle)
    image = torch.randn(3, 1, 16, 40, 24)
    with torch.inference_mode():
        difference = (load_runtime(exported[name].path)(image) - network(image)).abs().max()
    assert difference < 1e-3


def test_smaller_numbers_make_smaller_files_and_larger_differences(exported: dict[str, ExportResult]):
    full, half, int8 = (exported[name] for name in ("openvino", "openvino-f16", "openvino-int8"))
    sizes = [result.path.with_suffix(".bin").stat().st_size for result in (full, half, int8)]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.1)
    assert sizes[2] < sizes[1]
    assert full.max_logit_difference < half.max_logit_difference < int8.max_logit_difference
    assert '"FakeQuantize"' in int8.path.read_text()


def test_no_test_case_calibrates_or_checks(exported: dict[str, ExportResult], small_bundle: Path, phantoms: Path):
    entry = record(small_bundle / "models" / "exported")["openvino-int8"]
    split = CaseSplit(str(phantoms)).ids
    used = entry["calibration"]["images"] + entry["parity"]["images"]
    assert sorted(used) == split["train"]
    assert not entry["calibration"]["also_in_parity"]
    assert entry["calibration"]["windows"] > 2


def test_torchscript_carries_configuration_and_metadata(exported: dict[str, ExportResult], small_bundle: Path):
    path = str(exported["torchscript"].path)
    _, metadata, extra = load_net_with_metadata(path, more_extra_files=["inference.json"])
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["2"] == "posterior"
    stored = ConfigParser.load_config_file(str(small_bundle / "configs" / "inference.yaml"))
    assert json.loads(extra["inference.json"]) == stored
    parser = load_bundle_config(path, "inference.json")
    assert parser["network_def"]["channels"] == [4, 4, 8]


def test_torch_export_refuses_sizes_outside_the_metadata(exported: dict[str, ExportResult]):
    runtime = load_runtime(exported["torch-export"].path)
    with pytest.raises(AssertionError, match="512"):
        runtime(torch.zeros(1, 1, 520, 16, 16))


# ---- 3D Slicer ------------------------------------------------------------------------------------------------------


def test_the_slicer_zip_has_the_files_and_fields_that_the_extension_reads(
    exported: dict[str, ExportResult], small_bundle: Path
):
    path = exported["slicer"].path
    assert path.name == "student-v0.1.0.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["labels.csv", "model.pt"]
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        content = torch.load(io.BytesIO(archive.read("model.pt")), weights_only=True)
    assert [(row["LabelValue"], row["Name"]) for row in rows] == [("1", "anterior"), ("2", "posterior")]
    assert {row["SegmentedPropertyTypeCodeSequence.CodeValue"] for row in rows} == {"85756007"}
    assert content.keys() == {"config", "state_dict", "epoch", "best_metric"}
    assert content["config"]["normalize_mode"] == "mri"
    assert content["config"]["roi_size"] == list(SMALL_WINDOW)
    assert content["config"]["network"]["_target_"] == "UNet"


def test_the_slicer_settings_prepare_an_image_as_the_bundle_does(small_bundle: Path, phantoms: Path):
    settings = slicer_settings(small_bundle)
    assert (settings["orientation_ras"], settings["crop_foreground"], settings["sigmoid"]) == (True, False, False)
    image = sorted((phantoms / "imagesTr").glob("*.nii.gz"))[0]
    steps = [LoadImage(), EnsureChannelFirst(), Orientation("RAS", labels=None)]
    steps += [Spacing(settings["resample_resolution"], mode="bilinear")]
    steps += [NormalizeIntensity(nonzero=True, channel_wise=True)]
    preprocessing = inference_flow(small_bundle).parser.get_parsed_content("preprocessing")
    torch.testing.assert_close(Compose(steps)(image), preprocessing({"image": str(image)})["image"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "{_target_: NormalizeIntensityd, keys: image, nonzero: true, channel_wise: true}",
            "{_target_: ScaleIntensityd, keys: image}",
            "prepares images by ScaleIntensityd",
        ),
        ("softmax: true", "sigmoid: true", "has no softmax"),
        ("_target_: UNet", "_target_: torch.nn.Identity", "only MONAI's own"),
    ],
)
def test_slicer_refuses_what_equals_none_of_its_modes(copied: Path, old: str, new: str, words: str, tmp_path: Path):
    config = copied / "configs" / "inference.yaml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    job = Job(copied, small_network(copied), copied / "models" / "model.pt", {"version": "1.0.0"}, (8, 8, 8), tmp_path)
    with pytest.raises(ValueError, match=words):
        FORMATS["slicer"].write(job, tmp_path)
    assert list(tmp_path.glob("*.zip")) == []


# ---- what must not be kept ------------------------------------------------------------------------------------------


def altered(job: Job, folder: Path) -> list[Path]:
    """Write TorchScript of a network whose last bias moved by 0.5 after the export began."""
    network = small_network(job.root)
    network.load_state_dict(job.network.state_dict())
    with torch.no_grad():
        list(network.parameters())[-1][0] += 0.5
    other = replace(job, network=network)
    other.work = folder
    return FORMATS["torchscript"].write(other, folder)


@pytest.fixture
def one_weight_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"]))
    good = FORMATS["torchscript"]

    def write(job: Job, folder: Path) -> list[Path]:
        monkeypatch.setitem(FORMATS, "torchscript", good)
        return altered(job, folder)

    monkeypatch.setitem(FORMATS, "torchscript", replace(good, write=write))


@pytest.mark.usefixtures("one_weight_is_wrong")
def test_an_export_with_one_wrong_weight_is_not_kept_and_the_older_one_stays(copied: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.ts").write_bytes(b"older")
    with pytest.raises(RuntimeError, match=r"torchscript export of 'student' differs from PyTorch by 5\.00e-01"):
        export_bundle(copied, ["torchscript"], out)
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("model.ts", b"older")]
    export_bundle(copied, ["torchscript"], out)  # the fixture spoils the first export alone
    assert (out / "model.ts").read_bytes() != b"older"


@pytest.mark.usefixtures("one_weight_is_wrong")
def test_the_command_ends_with_one_line_and_exit_code_1(copied: Path, tmp_path: Path, monkeypatch, capsys):
    arguments = ["export", str(copied), "--formats", "torchscript", "--out_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["monai_kd", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert list((tmp_path / "out").iterdir()) == []
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: the torchscript export of 'student' differs")


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_file_whose_weight_changed_on_disk_does_not_pass(
    exported: dict[str, ExportResult], copied: Path, tmp_path: Path, monkeypatch, name: str
):
    """The files of before with one byte of their weights changed: only the comparison can notice."""
    sources = sorted(exported[name].path.parent.glob(exported[name].path.stem + ".*"))
    sources = [path for path in sources if path.suffix in (".onnx", ".xml", ".bin")]
    sources = [path for path in sources if (path.suffix == ".onnx") == (name == "onnx")]

    def write(_job: Job, folder: Path) -> list[Path]:
        files = [Path(shutil.copyfile(path, folder / path.name)) for path in sources]
        weights = next(path for path in files if path.suffix in (".onnx", ".bin"))
        bias = list(load_teacher(copied).parameters())[-1].numpy().tobytes()  # of the last layer: no norm undoes it
        content = weights.read_bytes()
        assert content.count(bias) == 1
        weights.write_bytes(content.replace(bias, (np.frombuffer(bias, np.float32) + np.float32(0.5)).tobytes()))
        return sorted(files, key=lambda path: path.suffix != ".xml")

    monkeypatch.setitem(FORMATS, name, replace(FORMATS[name], write=write))
    with pytest.raises(RuntimeError, match=f"the {name} export of 'student' differs"):
        export_bundle(copied, [name], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_limits_are_a_knob(copied: Path, tmp_path: Path):
    for limits in (Limits(-1.0, 0.0), Limits(None, 1.5)):
        with pytest.raises(RuntimeError, match="it was not kept"):
            export_bundle(copied, ["torchscript"], tmp_path / "out", limits={"torchscript": limits})
    assert LIMITS["torchscript"] == Limits(1e-3, 0.99)
    (result,) = export_bundle(copied, ["torchscript"], tmp_path / "out")
    assert result.path.is_file()


def test_without_images_noise_of_two_sizes_decides(copied: Path, tmp_path: Path):
    export_bundle(copied, ["slicer"], tmp_path / "out")
    parity = record(tmp_path / "out")["slicer"]["parity"]
    assert (parity["images"], parity["windows"]) == ([], 2)


def test_a_folder_of_images_that_is_no_dataset_is_used_whole(copied: Path, phantoms: Path, tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((phantoms / "imagesTr").glob("*.nii.gz"))[:2]:
        shutil.copyfile(path, images / path.name)
    export_bundle(copied, ["slicer"], tmp_path / "out", images, parity_images=5)
    assert record(tmp_path / "out")["slicer"]["parity"]["images"] == [case_id(sorted(images.iterdir())[0])]


def test_every_image_gives_its_share_of_the_windows_spread_over_it(small_bundle: Path, tmp_path: Path):
    """Voxels of the large image count up along the last axis: they tell where a window lies."""
    large, small = tmp_path / "large.nii.gz", tmp_path / "small.nii.gz"
    ramp = np.broadcast_to(np.arange(1, 97, dtype=np.float32), (24, 32, 96))
    nibabel.save(nibabel.Nifti1Image(ramp, np.diag([1.0, 1, 1, 1])), large)
    nibabel.save(nibabel.Nifti1Image(ramp[..., :24].copy(), np.diag([1.0, 1, 1, 1])), small)
    network = torch.nn.Conv3d(1, 2, 1).requires_grad_(False)
    every = record_windows(small_bundle, network, [large], most=100)
    assert len(every) == 5  # windows of 24, 18 apart: at 0, 18, 36, 54 and 72
    samples = record_windows(small_bundle, network, [large, small], most=4)
    assert len(samples) == 3  # two of the large image, the only one of the small
    for (window, logits), (expected, _) in zip(samples[:2], (every[1], every[3]), strict=True):
        assert torch.equal(window, expected)
        assert torch.equal(logits, network(window))
    assert len(record_windows(small_bundle, network, [large, small], most=1)) == 2  # one of each


def test_int8_is_refused_where_the_network_sees_background_alone(copied: Path, phantoms: Path, tmp_path: Path):
    pytest.importorskip("nncf")
    weights = copied / "models" / "model.pt"
    state = torch.load(weights, weights_only=True)
    list(state.values())[-1][0] += 1000.0  # the last bias
    torch.save(state, weights)
    with pytest.raises(RuntimeError, match=r"openvino-int8 export of 'student' cannot be judged: .* background alone"):
        export_bundle(copied, ["openvino-int8"], tmp_path / "out", phantoms / "imagesTr", calibration_images=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_format_given_twice_is_exported_once(copied: Path, tmp_path: Path):
    (result,) = export_bundle(copied, ["slicer", " slicer"], tmp_path / "out")
    assert result.format == "slicer"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "holds a list"),
        ('{"onnx": {}}', "the entry 'onnx' of .* is incomplete"),
    ],
)
def test_a_damaged_record_is_refused_before_an_export_is_replaced(copied: Path, tmp_path: Path, text: str, words: str):
    out = tmp_path / "out"
    out.mkdir()
    (out / RECORD).write_text(text)
    (out / "model.ts").write_bytes(b"older")
    with pytest.raises(ValueError, match=words):
        export_bundle(copied, ["torchscript"], out)
    assert sorted((path.name, path.read_bytes()) for path in out.iterdir()) == [
        (RECORD, text.encode()),
        ("model.ts", b"older"),
    ]


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"formats": ["onyx"]}, ValueError, "format 'onyx' is unknown; known: onnx, openvino"),
        ({"formats": []}, ValueError, "no format given"),
        ({"formats": ["openvino-int8"]}, ValueError, "give --images"),
        ({"formats": ["onnx"], "parity_images": 0}, ValueError, "at least 1, got 0"),
        ({"formats": ["onnx"], "images": "nowhere"}, FileNotFoundError, "images 'nowhere' do not exist"),
        ({"formats": ["onnx"], "ckpt": "nothing.pt"}, FileNotFoundError, "nothing.pt' do not exist"),
        ({"formats": ["onnx"], "bundle": "nowhere"}, FileNotFoundError, "no configs/metadata.json"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(copied: Path, tmp_path: Path, arguments, error, words):
    given: dict[str, Any] = {"bundle": copied, "out_dir": tmp_path / "out", **arguments}
    with pytest.raises(error, match=words):
        export_bundle(**given)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_tensorrt_says_that_it_needs_a_gpu(copied: Path, tmp_path: Path):
    with pytest.raises(RuntimeError, match="tensorrt needs an NVIDIA GPU, and PyTorch finds none"):
        export_bundle(copied, ["tensorrt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bundle", ["teacher", "student"])
def test_the_tensorrt_overlay_composes_with_inference(bundle: str):
    configs = REPOSITORY / "bundles" / bundle / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / "inference.yaml"), str(configs / "inference_trt.yaml")])
    config = parser.get()
    assert config["imports"][-1] == "$import torch_tensorrt"
    assert "$import glob" in config["imports"]
    assert (config["amp"], config["load_pretrain"]) == (False, False)
    assert config["network_def"].endswith("torch.jit.load(@trt_path)")
    parser["network_def"] = torch.nn.Identity()  # the engine needs the GPU
    parser["bundle_root"] = "B"
    assert parser.get_parsed_content("trt_path") == "B/models/exported/model_trt.ts"
    parser["datalist"] = []
    assert parser.get_parsed_content("evaluator").amp is False
