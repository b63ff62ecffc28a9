"""Every configuration file of every bundle: it parses, agrees with its siblings, and holds nothing dead."""

from __future__ import annotations

import ast
import builtins
import copy
import json
import os
import re
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.properties import InferProperties, TrainProperties

from monai_kd.distillers import Distiller

# the overlays that swap the distillation method, by name; tests/bundles/test_distillers.py lists them one by one
CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "student" / "configs"
DISTILLERS = sorted(path.stem for path in (CONFIGS / "distillers").iterdir())

# the parts of MTCM-KD, and all overlays of its training
PARTS = ("response_kd", "cdsfl_only", "uniform_weights", "linear_weights", "two_levels", "t1_student", "paper")
ARMS = ("baseline", "early_fusion", "teachers", "pretrained", "missing_modalities", "evaluate", "multi_gpu_train")

# the stages of GKD, its parts, its controls, other data and networks; all overlays of its training
STAGES = ("teacher", "scratch", "autoencoder", "alignment")
GKD_PARTS = (
    "intra_only",
    "inter_only",
    "graphs_only",
    "cross_only",
    "contrastive",
    "anchor_only",
)
CONTROLS = ("baseline", "augmentation", "logit_kd", "views_kd")
OTHERS = ("cached_teacher", "photometry", "polyps", "liver", "paper")

# of MTMS-KD: the parts and forms of the method with its controls, what changes the teacher, and other data and sizes
MTMS_PARTS = ("encoder_only", "bottleneck_only", "decoder_only", "contrast_only", "dense", "supervised", "mimic")
MTMS_ARMS = ("baseline", "logit_kd", "unlabelled", "wide_student", "trans_teacher", "cached_teacher", *MTMS_PARTS)
MTMS_TEACHERS = ("segmentation_teacher", "half_teacher")
MTMS_DATA = ("spleen", "hippocampus", "pictures", "paper")
PICTURES = (
    *("brain_tumor", "brain_tumor_lgg", "cvc_300", "cvc_clinicdb", "drive", "isic", "kvasir", "neopolyp"),
    *("rite", "rite_av"),
)

# what each bundle ships, and every combination of files that its documents name
FILES = {
    "distill-dsm": [
        "alpha_one.yaml",
        "alpha_quarter.yaml",
        "baseline.yaml",
        "brats.yaml",
        "evaluate.yaml",
        "from_teacher.yaml",
        "infer.json",
        "inference.yaml",
        "inference_brats.yaml",
        "inference_pancreas.yaml",
        "inference_sigmoid.yaml",
        "left_atrium.yaml",
        "metadata.json",
        "multi_gpu_train.yaml",
        "pancreas.yaml",
        "plain_dsm.yaml",
        "prostate.yaml",
        "residual_dsm.yaml",
        "sigmoid.yaml",
        "streaming.yaml",
        "train.yaml",
        "unet3d.yaml",
    ],
    "gkd": sorted(
        [
            *(f"{name}.yaml" for name in (*STAGES, *GKD_PARTS, *CONTROLS, *OTHERS)),
            *(f"{name}.yaml" for name in ("train", "evaluate", "shifts", "multi_gpu_train", "inference")),
            *(f"{name}.json" for name in ("infer", "metadata", "stages")),
        ]
    ),
    "mtcm-kd": [
        "baseline.yaml",
        "cdsfl_only.yaml",
        "early_fusion.yaml",
        "evaluate.yaml",
        "infer.json",
        "inference.yaml",
        "inference_brats.yaml",
        "linear_weights.yaml",
        "metadata.json",
        "missing_modalities.yaml",
        "multi_gpu_train.yaml",
        "paper.yaml",
        "pretrained.yaml",
        "response_kd.yaml",
        "t1_student.yaml",
        "teachers.yaml",
        "train.yaml",
        "two_levels.yaml",
        "uniform_weights.yaml",
    ],
    "mtms-kd": sorted(
        [
            *(f"{name}.yaml" for name in (*MTMS_ARMS, *MTMS_TEACHERS, *MTMS_DATA, "teacher", "one_component")),
            *(f"pictures/{name}.yaml" for name in PICTURES),
            *(f"{name}.yaml" for name in ("train", "evaluate", "multi_gpu_train", "inference", "inference_pictures")),
            *(f"{name}.json" for name in ("infer", "metadata", "stages")),
        ]
    ),
    "teacher": [
        "evaluate.yaml",
        "infer.json",
        "inference.yaml",
        "inference_trt.yaml",
        "metadata.json",
        "multi_gpu_train.yaml",
        "train.yaml",
    ],
    "student": [
        "baseline.yaml",
        *(f"distillers/{name}.yaml" for name in DISTILLERS),
        "evaluate.yaml",
        "infer.json",
        "inference.yaml",
        "inference_trt.yaml",
        "metadata.json",
        "multi_gpu_train.yaml",
        "train.yaml",
    ],
}
COMBINATIONS = [
    ("distill-dsm", ("train.yaml",)),
    *(
        ("distill-dsm", ("train.yaml", f"{name}.yaml"))
        for name in ("baseline", "plain_dsm", "residual_dsm", "alpha_quarter", "alpha_one", "unet3d", "sigmoid")
    ),
    ("distill-dsm", ("train.yaml", "from_teacher.yaml")),
    *(("distill-dsm", ("train.yaml", f"{name}.yaml")) for name in ("left_atrium", "prostate", "pancreas")),
    ("distill-dsm", ("train.yaml", "sigmoid.yaml", "brats.yaml")),
    ("distill-dsm", ("train.yaml", "unet3d.yaml", "left_atrium.yaml")),
    ("distill-dsm", ("train.yaml", "unet3d.yaml", "sigmoid.yaml", "brats.yaml")),
    ("distill-dsm", ("train.yaml", "evaluate.yaml")),
    ("distill-dsm", ("train.yaml", "multi_gpu_train.yaml")),
    ("distill-dsm", ("inference.yaml",)),
    ("distill-dsm", ("inference.yaml", "streaming.yaml")),
    ("distill-dsm", ("inference.yaml", "inference_sigmoid.yaml")),
    ("distill-dsm", ("inference.yaml", "inference_sigmoid.yaml", "inference_brats.yaml")),
    ("distill-dsm", ("inference.yaml", "inference_pancreas.yaml")),
    ("gkd", ("train.yaml",)),
    *(("gkd", ("train.yaml", f"{name}.yaml")) for name in (*STAGES, *GKD_PARTS, *CONTROLS, *OTHERS)),
    *(("gkd", ("train.yaml", data, f"{name}.yaml")) for data in ("polyps.yaml", "liver.yaml") for name in STAGES),
    *(("gkd", ("train.yaml", "paper.yaml", f"{name}.yaml")) for name in STAGES),
    ("gkd", ("train.yaml", "evaluate.yaml")),
    ("gkd", ("train.yaml", "teacher.yaml", "evaluate.yaml")),
    ("gkd", ("train.yaml", "evaluate.yaml", "shifts.yaml")),
    ("gkd", ("train.yaml", "liver.yaml", "evaluate.yaml")),
    ("gkd", ("train.yaml", "multi_gpu_train.yaml")),
    ("gkd", ("inference.yaml",)),
    ("mtcm-kd", ("train.yaml",)),
    *(("mtcm-kd", ("train.yaml", f"{name}.yaml")) for name in (*PARTS, *ARMS)),
    *(("mtcm-kd", ("train.yaml", "pretrained.yaml", f"{name}.yaml")) for name in PARTS),
    ("mtcm-kd", ("train.yaml", "teachers.yaml", "evaluate.yaml")),
    ("mtcm-kd", ("inference.yaml",)),
    ("mtcm-kd", ("inference.yaml", "inference_brats.yaml")),
    ("mtms-kd", ("train.yaml",)),
    *(("mtms-kd", ("train.yaml", f"{name}.yaml")) for name in ("teacher", *MTMS_ARMS, *MTMS_DATA)),
    *(("mtms-kd", ("train.yaml", "teacher.yaml", f"{name}.yaml")) for name in MTMS_TEACHERS),
    *(
        ("mtms-kd", ("train.yaml", f"{name}.yaml", "teacher.yaml"))
        for name in ("spleen", "hippocampus", "pictures", "trans_teacher", "paper")
    ),
    *(("mtms-kd", ("train.yaml", "pictures.yaml", f"pictures/{name}.yaml")) for name in PICTURES),
    *(("mtms-kd", ("train.yaml", f"{name}.yaml", "wide_student.yaml")) for name in ("baseline", "trans_teacher")),
    ("mtms-kd", ("train.yaml", "evaluate.yaml")),
    ("mtms-kd", ("train.yaml", "evaluate.yaml", "one_component.yaml")),
    ("mtms-kd", ("train.yaml", "teacher.yaml", "evaluate.yaml")),
    ("mtms-kd", ("train.yaml", "pictures.yaml", "evaluate.yaml")),
    ("mtms-kd", ("train.yaml", "multi_gpu_train.yaml")),
    ("mtms-kd", ("inference.yaml",)),
    ("mtms-kd", ("inference.yaml", "inference_pictures.yaml")),
    ("teacher", ("train.yaml",)),
    ("teacher", ("train.yaml", "evaluate.yaml")),
    ("teacher", ("train.yaml", "multi_gpu_train.yaml")),
    ("teacher", ("inference.yaml",)),
    ("student", ("train.yaml",)),
    ("student", ("train.yaml", "baseline.yaml")),
    ("student", ("train.yaml", "evaluate.yaml")),
    ("student", ("train.yaml", "multi_gpu_train.yaml")),
    ("student", ("inference.yaml",)),
    *(("student", ("train.yaml", f"distillers/{name}.yaml")) for name in DISTILLERS),
    ("student", ("train.yaml", "distillers/kd.yaml", "distillers/at.yaml")),
    ("student", ("train.yaml", "distillers/review.yaml", "multi_gpu_train.yaml")),
]
YAML_FILES = [(bundle, name) for bundle, names in FILES.items() for name in names if name.endswith(".yaml")]
NUMERIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
# the keys that MONAI, the model zoo and MONAI Label read (monai_bundle_consumers.md, 1.1)
METADATA_KEYS = {
    "schema",
    "version",
    "changelog",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "name",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
}


@pytest.fixture(scope="module")
def folder(repository: Path, bundles: list[Path]) -> Path:
    """``bundles/``; the tables above must list exactly what is in it."""
    found = {path.name: config_files(path / "configs") for path in bundles}
    assert found == FILES
    assert len(DISTILLERS) >= 15
    return repository / "bundles"


def config_files(folder: Path) -> list[str]:
    """The configuration files below a folder, by their names in it."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".conf")
    return sorted(path.relative_to(folder).as_posix() for path in found)


def load(path: Path) -> dict[str, Any]:
    return ConfigParser.load_config_file(str(path))


def merged(folder: Path, bundle: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The raw configuration of several files, overlays applied, as MONAI merges it."""
    parser = ConfigParser()
    parser.read_config([str(folder / bundle / "configs" / name) for name in names])
    return {key: value for key, value in parser.get().items() if key != "_meta_"}


def strings(content: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every string value below a configuration entry with its ``::`` id."""
    if isinstance(content, str):
        yield where, content
    elif isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from strings(value, f"{where}::{key}" if where else str(key))


# ---- each file by itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bundle", "name"), YAML_FILES)
def test_file_parses_without_duplicate_keys_and_numeric_looking_strings(folder, bundle, name):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Duplicate key")
        content = load(folder / bundle / "configs" / name)
    assert content
    looking = [(where, value) for where, value in strings(content) if NUMERIC.match(value.strip())]
    assert looking == [], "YAML reads 1e-3 as text: write 1.0e-3"


def test_the_checks_above_find_a_duplicate_key_and_a_numeric_looking_string(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: {lr: 1e-3}\na: {lr: 5e-3, fine: 1.0e-3, axes: RAS, size: '8*n'}\n")
    with pytest.warns(UserWarning, match="Duplicate key: `a`"):
        content = load(path)
    assert [where for where, value in strings(content) if NUMERIC.match(value)] == ["a::lr"]


@pytest.mark.parametrize(("bundle", "name"), YAML_FILES)
def test_header_says_what_the_file_is_and_gives_a_command_that_names_it(folder, bundle, name):
    lines = (folder / bundle / "configs" / name).read_text().splitlines()
    header = lines[: next(number for number, line in enumerate(lines) if not line.startswith("# "))]
    assert len(header) >= 2
    assert len(header[0].split()) > 5
    command = " ".join(header)
    assert "monai.bundle run" in command
    assert f"configs/{name}" in command
    assert "--bundle_root ." in command


@pytest.mark.parametrize("name", ["train.yaml", "inference.yaml"])
@pytest.mark.parametrize("bundle", list(FILES))
def test_header_says_how_long_it_takes(folder, bundle, name):
    header = "\n".join((folder / bundle / "configs" / name).read_text().splitlines()[:6])
    assert re.search(r"2 CPU cores: .*(hour|minute|second)", header), "an expected time, with its machine"


@pytest.mark.parametrize(("bundle", "name"), YAML_FILES)
def test_every_import_is_used_and_every_name_is_imported(folder, bundle, name):
    """Overlays that set ``imports`` replace the list, so they are judged together with the file they overlay."""
    base = "inference.yaml" if name.startswith(("inference", "streaming")) else "train.yaml"
    before = {
        ("distill-dsm", "brats.yaml"): ("sigmoid.yaml",),
        ("distill-dsm", "inference_brats.yaml"): ("inference_sigmoid.yaml",),
        ("gkd", "shifts.yaml"): ("evaluate.yaml",),
    }
    behind = before.get((bundle, name), ())
    names = (name,) if name == base else (base, *behind, name)
    config = merged(folder, bundle, names)
    imported = {statement.split(" as ")[-1].removeprefix("$import ").split(".")[0] for statement in config["imports"]}
    del config["imports"]
    used = {word for _, text in strings(config) if text.startswith("$") for word in names_of(text[1:])}
    assert used - imported - set(dir(builtins)) == set()
    assert imported - used == set()


def names_of(expression: str) -> set[str]:
    """The free names of a configuration expression; references count as constants."""
    tree = ast.parse(re.sub(r"@[\w:]+", "_", expression).strip(), mode="eval")
    loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return loaded - bound - {"_"}


# ---- files that must agree ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bundle", list(FILES))
def test_metadata_has_what_consumers_need(folder, repository, bundle):
    metadata = json.loads((folder / bundle / "configs" / "metadata.json").read_text())
    assert metadata.keys() >= METADATA_KEYS
    assert metadata["version"] in metadata["changelog"]
    components = metadata["version"].split(".")
    assert len(components) == 3
    assert all(part.isdigit() and int(part) < 10 for part in components), "versions are compared as strings"
    assert metadata["name"] == bundle
    assert "_v" not in bundle, "MONAI splits bundle names there"
    pins = dict(line.split("==") for line in (repository / "constraints.txt").read_text().splitlines() if "==" in line)
    stated = {**metadata["required_packages_version"], "numpy": metadata["numpy_version"]}
    stated |= {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    assert stated == {name: pins[name] for name in stated}


@pytest.mark.parametrize("bundle", list(FILES))
def test_classes_and_channels_are_the_same_in_network_training_and_metadata(folder, bundle):
    config = load(folder / bundle / "configs" / "train.yaml")
    formats = json.loads((folder / bundle / "configs" / "metadata.json").read_text())["network_data_format"]
    assert (list(formats["inputs"]), list(formats["outputs"])) == (["image"], ["pred"])
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert pred["channel_def"] == {str(channel): name for channel, name in enumerate(config["class_names"])}
    assert config["class_names"][0] == "background"
    assert pred["num_channels"] == config["network_def"]["out_channels"] == len(config["class_names"])
    assert image["num_channels"] == config["network_def"]["in_channels"] == len(image["channel_def"])
    dims = 2 if bundle in ("gkd", "mtms-kd") else 3
    assert len(image["spatial_shape"]) == config["network_def"].get("spatial_dims", dims) == dims


@pytest.mark.parametrize("bundle", list(FILES))
def test_network_and_geometry_are_the_same_wherever_they_stand(folder, bundle):
    train, inference = (merged(folder, bundle, (f"{name}.yaml",)) for name in ("train", "inference"))
    infer = json.loads((folder / bundle / "configs" / "infer.json").read_text())
    assert train["network_def"] == inference["network_def"] == infer["network_def"]
    assert list(infer) == ["bundle_root", "device", "network_def"]
    knobs = [knob for knob in ("spacing_mm", "roi_size", "overlap", "chunk", "intensity") if knob in train]
    assert len(knobs) >= 2
    values = ConfigParser(copy.deepcopy(train))
    for knob in knobs:
        stated = train[knob] if isinstance(train[knob], dict) else values.get_parsed_content(knob)
        assert stated == inference[knob], knob
    inner = dict(train["validate"]["inferer"]["inferer"])
    assert inner == inference["inferer"]


@pytest.mark.parametrize("bundle", list(FILES))
def test_the_shipped_network_fits_patch_and_window(folder, bundle):
    config = load(folder / bundle / "configs" / "train.yaml")
    widths = "filters" if "filters" in config["network_def"] else "channels"
    levels = range(3 if bundle in ("gkd", "mtms-kd") else 5)  # of networks that name no widths
    thin = {**config["network_def"], widths: [8] * len(config["network_def"].get(widths, levels))}
    network = ConfigParser({"network_def": thin}).get_parsed_content("network_def").eval()
    window = ConfigParser(config).get_parsed_content("roi_size")
    for size in (config["patch_size"], [9 if length < 0 else length for length in window]):
        with torch.inference_mode():
            assert network(torch.zeros(1, 1, *size)).shape == (1, len(config["class_names"]), *size)
    refused = [14 if bundle == "distill-dsm" else length - 2 for length in config["patch_size"]]
    with pytest.raises((RuntimeError, ValueError)), torch.inference_mode():
        network(torch.zeros(1, 1, *refused))


# what inference needs of monai_kd; all else is MONAI's own
OWN_TARGETS = {
    "gkd": [
        "monai_kd.networks.nets.ENet",
        *(f"monai_kd.transforms.{name}" for name in ("FieldOfViewd", "RetinaGreend", "ResizeFieldOfViewd")),
    ],
    "distill-dsm": ["monai_kd.networks.nets.DSMUNet", "monai_kd.inferers.ChunkedDepthInferer"],
    "mtcm-kd": ["monai_kd.networks.nets.ChannelAttentionResUNet"],
    "mtms-kd": ["monai_kd.networks.nets.SlimUNet"],
}


@pytest.mark.parametrize("bundle", list(FILES))
def test_inference_is_stock_monai_but_for_networks_that_monai_lacks(folder, bundle):
    content = load(folder / bundle / "configs" / "inference.yaml")
    own = OWN_TARGETS.get(bundle, [])
    named = [value for where, value in strings(content) if "monai_kd" in value and where.endswith("_target_")]
    assert named == own
    expressions = [value for _, value in strings(content) if "monai_kd" in value and value not in own]
    listing = ["$import monai_kd", "$monai_kd.data.image_mask_cases", "$monai_kd.data.as_color"]
    assert [text.partition("(")[0] for text in expressions] == (listing if bundle == "gkd" else [])
    targets = [value for where, value in strings(content) if where.endswith("_target_")]
    assert len(targets) > 10
    assert [target for target in targets if "." in target] == own, "short names are MONAI's own"


@pytest.mark.parametrize("bundle", list(FILES))
def test_the_model_card_states_the_settings_of_the_configuration(folder, bundle):
    card = (folder / bundle / "docs" / "README.md").read_text()
    config = load(folder / bundle / "configs" / "train.yaml")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card, re.MULTILINE))
    numbers = {name: [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", rows[name])] for name in rows}
    assert numbers["optimizer"] == [config["learning_rate"], config["weight_decay"]]
    assert numbers["epochs, batch size"] == [config["epochs"], config["batch_size"]]
    every = max(1, config["epochs"] // int(config["val_interval"].split("//")[1].strip(' )"')))
    assert numbers["selection"] == ([every] if every > 1 else [])
    assert " x ".join(map(str, config["patch_size"])) in card
    if soft := config.get("terms", {}).get("soft"):
        assert numbers["term `soft`"] == [soft["loss"]["temperature"], soft["weight"]]


# ---- what consumers do with them ------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def one_process(monkeypatch):
    """The environment that torchrun gives to the only process of a group."""
    values = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(("bundle", "names"), COMBINATIONS)
@pytest.mark.usefixtures("one_process")
def test_every_property_of_every_documented_combination_is_there(folder, workflow, tmp_path, bundle, names):
    kind, properties = ("infer", InferProperties) if names[0] == "inference.yaml" else ("train", TrainProperties)
    overrides = {}
    if "evaluate.yaml" in names:
        (tmp_path / "weights.pt").write_bytes(b"never opened")
        overrides["ckpt_path"] = str(tmp_path / "weights.pt")
    flow = workflow(folder / bundle, names, kind, **overrides)
    assert flow.check_properties() == []
    required = [name for name, item in properties.items() if item["required"]]
    assert all(getattr(flow, name) is not None for name in required)
    assert flow.version == json.loads((folder / bundle / "configs" / "metadata.json").read_text())["version"]


def test_check_properties_notices_a_renamed_id(folder, workflow):
    renamed = {"train::hooks": [], "train::trainer::train_handlers": "@train::hooks"}
    assert workflow(folder / "student", ("train.yaml",), **renamed).check_properties() == ["train_handlers"]


def test_nothing_in_initialize_reads_files(folder, workflow, tmp_path):
    """MONAI Label and federated clients initialize a bundle before they say where the data is."""
    nowhere = str(tmp_path / "nowhere")
    for bundle, names in (
        *((bundle, ("train.yaml",)) for bundle in FILES),
        ("student", ("inference.yaml",)),
        ("distill-dsm", ("inference.yaml",)),
    ):
        kind = "infer" if names == ("inference.yaml",) else "train"
        overrides = {"dataset_dir": nowhere, "bundle_root": str(folder / bundle)}
        if kind == "train":
            overrides["split_file"] = nowhere
        flow = workflow(folder / bundle, names, kind, **overrides)
        assert flow.network_def is not None
    assert os.listdir(tmp_path) == []


# ---- overlays -------------------------------------------------------------------------------------------------------

METHOD_IDS = ("method", "terms", "distiller_def")


def test_baseline_changes_the_method_and_nothing_else(folder):
    train, baseline = (merged(folder, "student", ("train.yaml", *more)) for more in ((), ("baseline.yaml",)))
    assert train.keys() == baseline.keys()
    # and where it publishes: the bundle's own weights stay
    assert {key for key in train if train[key] != baseline[key]} == {*METHOD_IDS, "ckpt_dir"}
    assert baseline["validate"] == train["validate"]
    expected = copy.deepcopy(train)
    expected["method"] = "baseline"
    expected["terms"]["soft"]["_disabled_"] = True
    expected["distiller_def"]["teachers"] = {}
    expected["ckpt_dir"] = "$@run_dir + '/models'"
    assert baseline == expected


@pytest.mark.parametrize("name", DISTILLERS)
def test_a_distiller_changes_the_method_and_nothing_else(folder, name):
    """Data, validation, schedule and optimizer stay as they are: that is what makes the comparison fair."""
    train, other = (merged(folder, "student", ("train.yaml", *more)) for more in ((), (f"distillers/{name}.yaml",)))
    assert train.keys() == other.keys()
    changed = {key for key in train if train[key] != other[key]}
    allowed = {"method", "terms", "schedules"}
    if name == "self":  # its teacher is the student's own average, which a handler moves
        allowed |= {"distiller_def", "train"}
        *handlers, last = other["train"].pop("handlers")
        assert handlers == train["train"].pop("handlers")
        assert last["_target_"] == "monai_kd.handlers.EMATeacher"
        assert other["train"] == train["train"]
    assert {"method", "terms"} <= changed <= allowed
    assert other["method"] == name
    assert other["terms"]["seg"] == train["terms"]["seg"]
    assert other["terms"]["soft"] == {**train["terms"]["soft"], "_disabled_": True}
    own = other["terms"].keys() - train["terms"].keys()
    assert own
    assert train["schedules"] == {}
    assert set(other["schedules"]) <= own, "a schedule of a term that is not there"


def test_distillers_combine_to_the_sum_of_their_terms(folder, workflow):
    names = ("train.yaml", "distillers/kd.yaml", "distillers/at.yaml")
    config = merged(folder, "student", names)
    apart = [merged(folder, "student", ("train.yaml", f"distillers/{name}.yaml")) for name in ("kd", "at")]
    for key in ("terms", "schedules"):
        assert config[key] == {**apart[0][key], **apart[1][key]}
    assert config["method"] == "at", "the last file names the run; --method kd_at says more"
    flow = workflow(folder / "student", names)
    assert set(flow.parser.get_parsed_content("distiller").terms) == {"seg", "kd", "at"}
    handler = flow.parser.get_parsed_content("train::handlers::1")
    assert set(handler.schedules) == {"kd", "at"}


def test_the_baseline_is_a_distiller_without_teachers_and_one_term(folder, workflow):
    weights = {name: term["weight"] for name, term in merged(folder, "student", ("train.yaml",))["terms"].items()}
    both = {}
    for arm, names in (("distilled", ("train.yaml",)), ("baseline", ("train.yaml", "baseline.yaml"))):
        distiller = workflow(folder / "student", names).parser.get_parsed_content("distiller")
        assert isinstance(distiller, Distiller)
        both[arm] = distiller
    assert list(both["distilled"].networks) == ["student", "teacher"]
    assert {name: (t.target, t.weight) for name, t in both["distilled"].terms.items()} == {
        "seg": ("label", weights["seg"]),
        "soft": ("teacher/logits", weights["soft"]),
    }
    assert list(both["baseline"].networks) == ["student"]
    assert {name: (t.target, t.weight) for name, t in both["baseline"].terms.items()} == {
        "seg": ("label", weights["seg"])
    }


@pytest.mark.parametrize("bundle", list(FILES))
def test_evaluation_leaves_preprocessing_inference_and_postprocessing_of_validation_alone(folder, bundle):
    train, evaluate = (merged(folder, bundle, ("train.yaml", *more)) for more in ((), ("evaluate.yaml",)))
    changed = {key for key in {*train, *evaluate} if train.get(key) != evaluate.get(key)}
    # one's training starts from weights, of the other the teacher may be scored
    own = {"network"} if bundle in ("gkd", "mtms-kd") else set()
    assert changed == {"run_name", "run_dir", "ckpt_path", "section", "cpu_bfloat16", "amp", "validate", "run"} | own
    for key, value in train["validate"].items():
        if key == "handlers":
            continue
        if key == "dataset":
            own = {"data": None, "cache_rate": None}
            assert {**evaluate["validate"][key], **own} == {**value, **own}
        else:
            assert evaluate["validate"][key] == value, key
    assert evaluate["validate"]["dataset"]["data"] == "$@split.cases(@section)"
    assert evaluate["cpu_bfloat16"] is evaluate["amp"] is False


@pytest.mark.parametrize("bundle", list(FILES))
def test_several_processes_change_how_it_runs_and_not_what_is_learned(folder, bundle):
    train, several = (merged(folder, bundle, ("train.yaml", *more)) for more in ((), ("multi_gpu_train.yaml",)))
    changed = {key for key in {*train, *several} if train.get(key) != several.get(key)}
    wrapper = "distiller" if "distiller_def" in train else "ddp_network"
    assert changed == {"imports", "device", "follower", wrapper, "train", "validate", "initialize", "run", "finalize"}
    for section in ("train", "validate"):
        for key, value in train[section].items():
            if key not in ("dataloader", "trainer"):
                found = several[section][key]
                if key == "sampler":  # one that shares out what it draws
                    found = {name: text for name, text in found.items() if name not in ("num_replicas", "rank")}
                assert found == value, f"{section}::{key}"


def test_images_of_several_files_are_read_by_one_thread(folder):
    """See ``test_monais_reader_of_several_files_is_not_made_for_threads``."""
    found = []
    for bundle, names in [pair for pair in COMBINATIONS if pair[1][0] == "train.yaml"]:
        config = merged(folder, bundle, names)
        if "brats_cases" in f"{config['split'].get('list_cases')} {config.get('list_cases')}":
            assert [config[section]["dataset"]["num_workers"] for section in ("train", "validate")] == [1, 1], names
            found.append((bundle, names[-1]))
    assert ("distill-dsm", "brats.yaml") in found


# ---- dead keys ------------------------------------------------------------------------------------------------------

# ids that no other id refers to, and why they may stand there
RUN_LISTS = {"imports", "initialize", "run", "finalize"}
TEACHERS_ALONE = {"performance", "performance_tau", "temperature", "staged", "student_modalities"}
UNUSED_BY_DESIGN = {
    # a window in place of chunks, and slice by slice
    ("distill-dsm", ("train.yaml", "unet3d.yaml")): {"chunk"},
    ("distill-dsm", ("train.yaml", "unet3d.yaml", "left_atrium.yaml")): {"chunk"},
    ("distill-dsm", ("train.yaml", "unet3d.yaml", "sigmoid.yaml", "brats.yaml")): {"chunk"},
    ("distill-dsm", ("inference.yaml", "streaming.yaml")): {"chunk"},
    # cases in place of a folder's images
    ("distill-dsm", ("inference.yaml", "inference_sigmoid.yaml", "inference_brats.yaml")): {"images_dir"},
    ("mtcm-kd", ("inference.yaml", "inference_brats.yaml")): {"images_dir"},
    # pixels have no size
    ("mtms-kd", ("inference.yaml", "inference_pictures.yaml")): {"pixel_size"},
    # teachers alone are weighed for nobody
    ("mtcm-kd", ("train.yaml", "teachers.yaml")): TEACHERS_ALONE,
    # nor are they scored where the student is
    ("mtcm-kd", ("train.yaml", "evaluate.yaml")): {"teacher_val_interval", "scored_teachers"},
    ("mtcm-kd", ("train.yaml", "teachers.yaml", "evaluate.yaml")): {
        *TEACHERS_ALONE,
        "teacher_val_interval",
        "scored_teachers",
    },
    # the overlay cuts the teacher off by `distiller_def::teachers: {}`, which nothing else refers to
    ("student", ("train.yaml", "baseline.yaml")): {"teacher"},
    # the same by a distiller that has no teacher
    ("student", ("train.yaml", "distillers/self.yaml")): {"teacher"},
}

# the same for gkd, whose stages and controls each use a part of what the method needs
GKD_HALVES = {"alignments", "detach_skips", "freeze_alignment"}
GKD_STAGE = {*GKD_HALVES, "graph_center", "graph_form", "graph_scope", "graph_tau"}
GKD_UNUSED = {
    **{name: {*GKD_STAGE, "scratch_path", "teacher"} for name in ("teacher", "scratch", "autoencoder")},
    "alignment": {*GKD_STAGE, "loss"},
    **{name: {*GKD_HALVES, "teacher"} for name in ("baseline", "augmentation")},
    **dict.fromkeys(("logit_kd", "views_kd"), GKD_HALVES),
    "polyps": {"clip_limit"},
    "liver": {"clip_limit", "diameter", "layout"},
    "paper": {"warm_up"},
    "evaluate": {"scratch_path"},
}


# the same for mtms-kd
MTMS_REBUILD = {"reconstruction_weight", "hidden_parts", "hidden_size", "hidden_share"}
MTMS_CONTRAST = {"contrast_mode", "contrast_tau", "queue_size", "neighbors", "min_voxels"}
MTMS_UNUSED = {
    "baseline": {"teacher"},
    "teacher": {
        *("teacher", "teacher_encoder", "grid", "head_hidden", "target_width", "temperature"),
        *MTMS_CONTRAST,
    },
    "mimic": MTMS_CONTRAST,
    "pictures": {"pixel_size"},
}


def unused_in_mtms(overlays: set[str]) -> set[str]:
    found = set().union(*(MTMS_UNUSED.get(name, set()) for name in overlays))
    found |= MTMS_REBUILD if "teacher" not in overlays else set()
    return found | ({"scored_def"} if "evaluate" not in overlays else set())


def unused_by_design(bundle: str, names: tuple[str, ...]) -> set[str]:
    overlays = {name.removesuffix(".yaml") for name in names}
    if bundle == "mtms-kd" and "inference" not in overlays:
        return unused_in_mtms(overlays)
    if bundle != "gkd" or "inference" in overlays:
        return UNUSED_BY_DESIGN.get((bundle, names), set())
    found = set().union(*(GKD_UNUSED.get(name, set()) for name in overlays))
    found |= {"autoencoder_path"} if "alignment" not in overlays else set()
    found |= {"autoencoder_def"} if not overlays & {"alignment", "autoencoder"} else set()
    found |= {"strong_photometry"} if not overlays & {"teacher", "alignment", "photometry"} else set()
    return found | ({"scored_def"} if "evaluate" not in overlays else set())


def references(config: dict[str, Any]) -> dict[str, set[str]]:
    """For every entry (``id`` or, below train and validate, ``section::key``) the entries that its values refer to."""
    found: dict[str, set[str]] = {}
    for where, value in strings(config):
        absolute = ConfigParser.resolve_relative_ids(where, value)
        ids = set(ReferenceResolver.match_refs_pattern(absolute)) | set(re.findall(r"%([\w:]+)", absolute))
        found.setdefault(entry(where), set()).update(entry(name) for name in ids)
    return found


def entry(config_id: str) -> str:
    parts = config_id.split("::")
    return "::".join(parts[:2]) if parts[0] in ("train", "validate") else parts[0]


def dead_entries(config: dict[str, Any], properties: dict[str, Any]) -> set[str]:
    """Entries that nothing refers to and that neither MONAI's properties nor the run lists name."""
    sections = [f"{name}::{key}" for name in ("train", "validate") for key in config.get(name, {})]
    entries = {key for key in config if key not in ("train", "validate")} | set(sections)
    named = {entry(item["id"]) for item in properties.values()} | RUN_LISTS
    referred = {name for owner, names in references(config).items() for name in names if name != owner}
    # `@train::dataloader::sampler` keeps `train::dataloader` alive; a bare `@train` would keep all of it
    return entries - referred - named


@pytest.mark.parametrize(("bundle", "names"), COMBINATIONS)
def test_no_entry_is_dead(folder, bundle, names):
    properties = InferProperties if names[0] == "inference.yaml" else TrainProperties
    dead = dead_entries(merged(folder, bundle, names), properties)
    assert dead == unused_by_design(bundle, names)


def test_the_search_finds_a_dead_entry_at_both_levels(folder):
    config = merged(folder, "student", ("train.yaml",))
    config["tempreature"] = 4.0
    config["train"]["samplr"] = {"_target_": "DistributedSampler", "dataset": "@train::dataset"}
    config["myself"] = {"a": 1, "b": "@myself::a"}
    assert dead_entries(config, TrainProperties) == {"tempreature", "train::samplr", "myself"}


@pytest.mark.parametrize(("bundle", "names"), COMBINATIONS)
def test_every_reference_has_a_target(folder, bundle, names):
    parser = ConfigParser(merged(folder, bundle, names))
    parser["_meta_"] = {}
    config = parser.get()
    asked = set()
    for where, value in strings(config):
        asked |= set(ReferenceResolver.match_refs_pattern(ConfigParser.resolve_relative_ids(where, value)))
    assert len(asked) > 10
    assert [name for name in sorted(asked) if name not in parser] == []
