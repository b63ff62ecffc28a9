"""load_teacher reads third-party-looking bundles, says what it did, and refuses what does not fit."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.networks.nets import UNet
from torch import nn

from monai_kd.teachers import LoadReport, load_report, load_teacher
from monai_kd.teachers.network_config import _CONFIG_FILES

UNET = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": "@num_classes",
    "channels": [4, 8, 16],
    "strides": [2, 2],
    "norm": "batch",
}
# what surrounds a network in a zoo bundle; evaluating any of it would raise or leave a trace
SURROUNDINGS = {
    "imports": ["$import glob", "$import a_module_that_nobody_has"],
    "bundle_root": "/workspace/somewhere/else",
    "device": "$torch.device('cuda:7')",
    "num_classes": 3,
    "datalist": "$open('/nonexistent/datalist.txt').read()",
    "macro": "%/nonexistent/other.json::key",
    "evaluator": {"_target_": "no.such.Class", "network": "@network_def"},
    "odd": "$@datalist if 'import' else 0",
}


def make_unet(out_channels: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return UNet(2, 1, out_channels, channels=(4, 8, 16), strides=(2, 2), norm="batch").eval()


def image() -> torch.Tensor:
    return torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def write_config(root: Path, config: dict[str, Any], name: str = "inference.json") -> None:
    path = root / "configs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config) if name.endswith("json") else yaml.safe_dump(config))


def save(content: Any, root: Path, name: str = "models/model.pt") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def save_script(network: nn.Module, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.script(network).save(str(path))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A JSON bundle with ``network_def`` and a plain state dict."""
    write_config(tmp_path, {**SURROUNDINGS, "network_def": UNET})
    save(make_unet().state_dict(), tmp_path)
    return tmp_path


def assert_same_output(teacher: nn.Module, network: nn.Module | None = None) -> None:
    with torch.no_grad():
        assert torch.equal(teacher(image()), (network or make_unet())(image()))


# ---- every kind of bundle -------------------------------------------------------------------------------------------


def test_a_json_bundle_gives_the_original_network(root):
    teacher = load_teacher(root)
    assert type(teacher) is UNet
    assert_same_output(teacher)


@pytest.mark.parametrize("name", _CONFIG_FILES)
def test_every_config_name_is_searched(tmp_path, name):
    write_config(tmp_path, {**SURROUNDINGS, "network_def": UNET}, name)
    save(make_unet().state_dict(), tmp_path)
    teacher = load_teacher(tmp_path)
    assert load_report(teacher).config_file == tmp_path / "configs" / name
    assert_same_output(teacher)


def test_the_inference_config_wins_over_the_training_config(root):
    write_config(root, {**SURROUNDINGS, "num_classes": 9, "network_def": UNET}, "train.json")
    assert load_report(load_teacher(root)).config_file == root / "configs/inference.json"


def test_a_config_without_a_network_is_passed_over(root):
    write_config(root, SURROUNDINGS, "inference.json")
    write_config(root, {**SURROUNDINGS, "network_def": UNET}, "train.yaml")
    assert load_report(load_teacher(root)).config_file == root / "configs/train.yaml"


def test_a_config_file_can_be_chosen_with_or_without_its_folder(root):
    write_config(root, {**SURROUNDINGS, "network_def": UNET}, "other.yml")
    for name in ("other.yml", "configs/other.yml", root / "configs/other.yml"):
        assert load_report(load_teacher(root, config_file=name)).config_file == root / "configs/other.yml"


def test_network_with_a_device_move_is_used_where_network_def_is_missing(tmp_path):
    config = {**SURROUNDINGS, "net": UNET, "network": "$@net.to(@device)"}
    write_config(tmp_path, config)
    save(make_unet().state_dict(), tmp_path)
    teacher = load_teacher(tmp_path)
    assert load_report(teacher).network_id == "network"
    assert_same_output(teacher)


def test_network_def_is_preferred_to_network(root):
    write_config(root, {**SURROUNDINGS, "network_def": UNET, "network": "$@network_def.to(@device)"})
    assert load_report(load_teacher(root)).network_id == "network_def"


def test_another_network_id_can_be_nested(root):
    write_config(root, {**SURROUNDINGS, "nets": {"small": UNET, "broken": {"_target_": "no.such.Net"}}})
    teacher = load_teacher(root, network_id="nets::small")
    assert load_report(teacher).network_id == "nets::small"
    assert_same_output(teacher)


def test_references_macros_and_relative_ids_are_followed(root):
    config = {
        **SURROUNDINGS,
        "num_classes": "$@labels::count + 1",
        "labels": {"count": 2, "never": "$1 / 0"},
        "widths": [4, 8, 16],
        "norm_of_all": "batch",
        "network_def": {**UNET, "channels": "%widths", "norm": "@##norm_of_all"},
    }
    write_config(root, config)
    assert_same_output(load_teacher(root))


def test_torchscript_weights_fill_the_configured_network(root):
    (root / "models/model.pt").unlink()
    save_script(make_unet(), root / "models/model.ts")
    teacher = load_teacher(root)
    assert type(teacher) is UNet
    assert_same_output(teacher)


@pytest.mark.parametrize("place", ["model.pt", "anything.bin", "models/model.ts"])
def test_a_torchscript_file_of_any_name_is_a_teacher(tmp_path, place):
    path = save_script(make_unet(), tmp_path / place)
    teacher = load_teacher(path)
    assert isinstance(teacher, torch.jit.ScriptModule)
    assert_same_output(teacher)
    report = load_report(teacher)
    assert (report.config_file, report.network_id, report.weights) == (None, None, path)
    assert report.loaded == len(make_unet().state_dict())


@pytest.mark.parametrize("place", ["model.pt", "models/model.ts"])
def test_a_folder_that_holds_one_torchscript_file_is_a_teacher(tmp_path, place):
    save_script(make_unet(), tmp_path / place)
    (tmp_path / "LICENSE").write_text("Apache-2.0")
    assert_same_output(load_teacher(tmp_path))


def test_weights_choose_among_the_torchscript_files_of_a_folder(tmp_path):
    for name, channels in (("a.ts", 3), ("b.ts", 5)):
        save_script(make_unet(channels), tmp_path / name)
    assert_same_output(load_teacher(tmp_path, weights="b.ts"), make_unet(5))


# ---- scripts/ -------------------------------------------------------------------------------------------------------


def make_scripts_bundle(root: Path, factor: float) -> Path:
    (root / "scripts").mkdir(parents=True)
    (root / "scripts/__init__.py").touch()
    (root / "scripts/helper.py").write_text(f"FACTOR = {factor}\n")
    (root / "scripts/net.py").write_text(
        "import torch\nfrom scripts.helper import FACTOR\n\n\n"
        "class Scale(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.bias = torch.nn.Parameter(torch.zeros(1))\n"
        "    def forward(self, x):\n        return FACTOR * x + self.bias\n"
    )
    write_config(root, {**SURROUNDINGS, "network_def": {"_target_": "scripts.net.Scale"}})
    save({"bias": torch.ones(1)}, root)
    return root


@pytest.fixture
def from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("from_another_folder")
def test_custom_code_of_two_bundles_does_not_mix(tmp_path):
    teachers = [load_teacher(make_scripts_bundle(tmp_path / f"b{k}", factor=k)) for k in (2.0, 3.0)]
    assert [float(teacher(torch.tensor(1.0)).detach()) for teacher in teachers] == [3.0, 4.0]


@pytest.mark.usefixtures("from_another_folder")
def test_sys_path_and_modules_are_restored(tmp_path, monkeypatch):
    mine = type(sys)("scripts")
    monkeypatch.setitem(sys.modules, "scripts", mine)
    path_before, modules_before = list(sys.path), set(sys.modules)
    root = make_scripts_bundle(tmp_path / "bundle", factor=2.0)
    load_teacher(root)
    assert sys.path == path_before
    assert sys.modules["scripts"] is mine
    assert {name for name in set(sys.modules) - modules_before if name.startswith("scripts")} == set()


@pytest.mark.usefixtures("from_another_folder")
def test_sys_path_and_modules_are_restored_after_a_failure(tmp_path):
    path_before = list(sys.path)
    root = make_scripts_bundle(tmp_path / "bundle", factor=2.0)
    (root / "scripts/net.py").write_text("import scripts.helper\n1 / 0\n")
    with pytest.raises(RuntimeError, match="cannot be built"):
        load_teacher(root)
    assert sys.path == path_before
    assert not [name for name in sys.modules if name.partition(".")[0] == "scripts"]


@pytest.mark.usefixtures("from_another_folder")
def test_an_import_that_the_network_uses_is_kept(tmp_path):
    root = make_scripts_bundle(tmp_path / "bundle", factor=2.0)
    imports = ["$import a_module_that_nobody_has", "$from scripts.net import Scale as Network"]
    write_config(root, {**SURROUNDINGS, "imports": imports, "network_def": "$Network()"})
    assert float(load_teacher(root)(torch.tensor(1.0)).detach()) == 3.0


# ---- only the network is evaluated ----------------------------------------------------------------------------------


def test_nothing_else_in_the_config_is_evaluated(root, tmp_path, monkeypatch):
    (tmp_path / "tell_tale.py").write_text("import pathlib\npathlib.Path(__file__).with_name('imported').touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    touched = {
        "imports": ["$import tell_tale", "$from tell_tale import x"],
        "late_import": "$import tell_tale",
        "expression": f"$__import__('pathlib').Path('{tmp_path}/evaluated').touch()",
        "component": {"_target_": "os.mkdir", "path": f"{tmp_path}/instantiated"},
        "nested": {"deep": [f"$__import__('pathlib').Path('{tmp_path}/evaluated').touch()"]},
    }
    write_config(root, {**SURROUNDINGS, **touched, "network_def": UNET})
    load_teacher(root)
    assert [name for name in ("imported", "evaluated", "instantiated") if (tmp_path / name).exists()] == []
    # the same tell-tales do work when the network needs them
    write_config(
        root, {**SURROUNDINGS, **touched, "network_def": {**UNET, "_requires_": ["@expression", "$tell_tale"]}}
    )
    load_teacher(root)
    assert [name for name in ("imported", "evaluated") if (tmp_path / name).exists()] == ["imported", "evaluated"]


def test_bundle_root_in_the_config_is_the_given_folder(root):
    (root / "widths.txt").write_text("4 8 16")
    read = "$[int(width) for width in open(@bundle_root + '/widths.txt').read().split()]"
    write_config(root, {**SURROUNDINGS, "network_def": {**UNET, "channels": read}})
    assert_same_output(load_teacher(root))


def test_a_relative_bundle_root_works(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert load_report(load_teacher(root.name)).weights == root / "models/model.pt"


# ---- overrides ------------------------------------------------------------------------------------------------------


def test_overrides_change_the_network(root):
    save(make_unet(5).state_dict(), root)
    teacher = load_teacher(root, overrides={"num_classes": 5})
    assert teacher(image()).shape == (1, 5, 16, 16)
    assert_same_output(teacher, make_unet(5))


def test_nested_overrides_reach_lists_and_new_arguments(root):
    torch.manual_seed(1)
    wider = UNet(2, 1, 3, channels=(4, 8, 20), strides=(2, 2), norm="batch", num_res_units=1).eval()
    save(wider.state_dict(), root)
    overrides = {"network_def::channels::2": 20, "network_def::num_res_units": 1}
    assert_same_output(load_teacher(root, overrides=overrides), wider)


def test_overrides_may_be_expressions_and_the_old_separator_works(root):
    save(make_unet(4).state_dict(), root)
    overrides = {"network_def#out_channels": "$@num_classes + 1"}
    assert load_teacher(root, overrides=overrides)(image()).shape[1] == 4


@pytest.mark.parametrize("key", ["num_clases", "network_deff::channels", "network_def::channels::9", "labels::new"])
def test_an_unknown_override_is_refused_with_the_known_ids(root, key):
    write_config(root, {**SURROUNDINGS, "labels": {"a": 1}, "network_def": UNET})
    with pytest.raises(ValueError, match=rf"override '{key}' is not in .*inference.json'; known ids there: "):
        load_teacher(root, overrides={key: 1})


def test_an_override_without_effect_on_the_network_is_refused(root):
    with pytest.raises(
        ValueError, match=r"'datalist' has no effect on 'network_def', .* from: network_def, num_classes"
    ):
        load_teacher(root, overrides={"datalist": []})


def test_an_unknown_argument_names_the_reason(root):
    with pytest.raises(RuntimeError, match=r"'network_def' of .*inference.json' cannot be built: TypeError: .*depth"):
        load_teacher(root, overrides={"network_def::depth": 1})


# ---- state of what is returned, and the report ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["config", "torchscript"])
def test_the_teacher_is_frozen_and_in_evaluation_mode(root, kind):
    place = root if kind == "config" else save_script(make_unet().train(), root / "script.ts")
    teacher = load_teacher(place)
    assert not any(module.training for module in teacher.modules())
    assert len(list(teacher.parameters())) > 0
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_report_says_what_was_loaded(root):
    weights = root / "models/model.pt"
    report = load_report(load_teacher(root))
    assert report == LoadReport(
        config_file=root / "configs/inference.json",
        network_id="network_def",
        weights=weights,
        sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        loaded=len(make_unet().state_dict()),
    )
    assert report.complete


def test_a_network_that_was_not_loaded_has_no_report():
    with pytest.raises(ValueError, match="UNet has no load report"):
        load_report(make_unet())


def test_the_report_does_not_keep_the_network_alive(root):
    from monai_kd.teachers import report

    gc.collect()
    before = len(report._REPORTS)
    teacher = load_teacher(root)
    assert len(report._REPORTS) == before + 1
    del teacher
    gc.collect()
    assert len(report._REPORTS) == before


# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["model", "state_dict", "network"])
def test_wrapped_state_dicts_are_found(root, key):
    save({key: make_unet().state_dict(), "epoch": 3, "optimizer": {"state": {}}}, root)
    assert_same_output(load_teacher(root))


def test_any_other_key_must_be_named(root):
    save({"ema": make_unet().state_dict(), "epoch": 3}, root)
    with pytest.raises(ValueError, match="set key_in_ckpt; keys: ema, epoch"):
        load_teacher(root)
    assert_same_output(load_teacher(root, key_in_ckpt="ema"))


def test_several_state_dicts_must_be_chosen_from(root):
    save({"model": make_unet(4).state_dict(), "network": make_unet().state_dict()}, root)
    with pytest.raises(ValueError, match="several state dicts: choose key_in_ckpt among model, network"):
        load_teacher(root)
    assert_same_output(load_teacher(root, key_in_ckpt="network"))


def test_a_wrong_key_lists_the_keys(root):
    save({"model": make_unet().state_dict(), "epoch": 3}, root)
    with pytest.raises(ValueError, match=r"'epoch' is no state dict in .*; its keys: model, epoch"):
        load_teacher(root, key_in_ckpt="epoch")


def test_the_prefix_of_ddp_is_removed(root):
    save({"model": {f"module.{key}": value for key, value in make_unet().state_dict().items()}}, root)
    assert_same_output(load_teacher(root))


def test_a_prefix_that_the_network_itself_has_stays(root):
    write_config(root, {"network_def": "$torch.nn.DataParallel(torch.nn.Linear(2, 2))"})
    wrapped = nn.DataParallel(nn.Linear(2, 2))
    save(wrapped.state_dict(), root)
    assert torch.equal(load_teacher(root).module.weight, wrapped.module.weight)


class Code:
    """Something that weights_only refuses."""


def test_a_pickle_that_needs_code_is_refused(root):
    save({"model": make_unet().state_dict(), "config": Code()}, root)
    with pytest.raises(ValueError, match=r"model.pt' needs code to unpickle \(.*Code\).*weights_only=True"):
        load_teacher(root)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no readable PyTorch checkpoint"),
        (b"not a checkpoint at all", "is no readable PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
    ],
)
def test_an_unreadable_file_is_named(root, content, reason):
    (root / "models/model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=f"model.pt' {reason}"):
        load_teacher(root)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2]])
def test_a_checkpoint_that_is_no_mapping_is_refused(root, content):
    save(content, root)
    with pytest.raises(ValueError, match="not a state dict"):
        load_teacher(root)


# ---- weights that do not fit ----------------------------------------------------------------------------------------


def damaged_state() -> dict[str, torch.Tensor]:
    """A UNet(out_channels=4) state dict: two keys gone, six of another network added, the head's two mismatched."""
    state = OrderedDict(make_unet(4).state_dict())
    del state["model.0.conv.weight"], state["model.0.conv.bias"]
    return {**state, **{f"head.{k}": torch.zeros(1) for k in range(6)}}


def test_keys_that_do_not_fit_are_counted_and_listed(root):
    save(damaged_state(), root)
    with pytest.raises(RuntimeError, match="weights do not fit") as caught:
        load_teacher(root)
    message = str(caught.value)
    loaded = len(make_unet().state_dict()) - 2 - 2
    assert f"{loaded} loaded, 2 missing, 6 unexpected, 2 mismatched" in message
    assert str(root / "models/model.pt") in message
    assert "for UNet ('network_def' of" in message
    assert "missing: model.0.conv.weight; model.0.conv.bias" in message
    assert "unexpected: head.0; head.1; head.2; head.3; head.4; ..." in message
    assert "head.5" not in message
    assert "model.2.conv.weight: file (8, 4, 3, 3), network (8, 3, 3, 3)" in message
    assert "strict=False" in message


def test_strict_false_loads_what_fits_and_warns_with_the_same_report(root):
    save(damaged_state(), root)
    with pytest.warns(UserWarning, match="2 missing, 6 unexpected, 2 mismatched") as caught:
        teacher = load_teacher(root, strict=False)
    assert caught[0].filename == __file__
    fitting = "model.1.submodule.0.conv.weight"
    assert torch.equal(teacher.state_dict()[fitting], damaged_state()[fitting])
    report = load_report(teacher)
    assert not report.complete
    assert (len(report.missing), len(report.unexpected), len(report.mismatched)) == (2, 6, 2)


@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_which_nothing_fits_are_refused(root, strict):
    save({"encoder.weight": torch.zeros(2)}, root)
    with pytest.raises(RuntimeError, match=r"nothing fits: .* 0 loaded"):
        load_teacher(root, strict=strict)


# ---- folders and files that are not there ---------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"bundle_root '.*nowhere' does not exist"):
        load_teacher(tmp_path / "nowhere")


def test_a_checkpoint_is_not_a_bundle(root):
    with pytest.raises(ValueError, match="is not TorchScript, so it holds no network"):
        load_teacher(root / "models/model.pt")


def test_a_folder_without_configs_says_so(tmp_path):
    save(make_unet().state_dict(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no configs/ .* one TorchScript file \(found: none\)"):
        load_teacher(tmp_path)


def test_a_folder_with_two_torchscript_files_lists_them(tmp_path):
    for name in ("a.ts", "b.pt"):
        save_script(make_unet(), tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"\(found: a.ts, b.pt\)"):
        load_teacher(tmp_path)


def test_an_empty_configs_folder_says_what_was_looked_for(tmp_path):
    (tmp_path / "configs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config in '.*configs': looked for inference.json, .*train.yml"):
        load_teacher(tmp_path)


def test_a_missing_config_file_says_where_it_was_looked_for(root):
    with pytest.raises(FileNotFoundError, match=r"config_file 'other\.json' is neither in"):
        load_teacher(root, config_file="other.json")


def test_configs_without_a_network_list_their_ids(root):
    write_config(root, {"lr": 1.0, "trainer": {}})
    write_config(root, {"dataset": []}, "train.yaml")
    with pytest.raises(ValueError, match=r"no 'network_def' or 'network' in .*; known ids: lr, ") as caught:
        load_teacher(root)
    searched = ", ".join(os.path.join("configs", name) for name in ("inference.json", "train.yaml"))
    assert f"in {searched} of" in str(caught.value)
    assert str(caught.value).endswith("known ids: lr, trainer, dataset")


def test_an_unknown_network_id_does_not_fall_back(root):
    with pytest.raises(ValueError, match="no 'generator' in"):
        load_teacher(root, network_id="generator")


@pytest.mark.parametrize(("text", "reason"), [("{", "cannot be parsed"), ("[]", "holds a list")])
def test_a_malformed_config_is_named(root, text, reason):
    (root / "configs/inference.json").write_text(text)
    with pytest.raises(ValueError, match=f"inference.json' {reason}"):
        load_teacher(root)


def test_an_id_that_builds_no_network_is_refused(root):
    with pytest.raises(TypeError, match=r"'num_classes' of .* is a int, not a torch.nn.Module"):
        load_teacher(root, network_id="num_classes")


def test_a_target_that_is_not_installed_is_named(root):
    with pytest.raises(RuntimeError, match=r"cannot be built: .*Cannot locate class or function path: 'no.such.Net'"):
        load_teacher(root, overrides={"network_def": {"_target_": "no.such.Net"}})


def test_missing_weights_say_where_they_were_looked_for(root):
    shutil.rmtree(root / "models")
    with pytest.raises(FileNotFoundError, match=r"no weights in '.*models': looked for model.pt, model.ts") as caught:
        load_teacher(root)
    assert "download_large_files" not in str(caught.value)


@pytest.mark.parametrize("weights", [None, "models/model.pt"])
def test_missing_large_files_come_with_the_command_that_fetches_them(root, weights):
    shutil.rmtree(root / "models")
    (root / "large_files.yml").write_text("large_files: []\n")
    command = rf"python -m monai.bundle download_large_files --bundle_path '{root}'"
    with pytest.raises(FileNotFoundError, match=command):
        load_teacher(root, weights=weights)


def test_the_only_weights_file_is_taken_and_several_are_listed(root):
    (root / "models/model.pt").rename(root / "models/best.pth")
    assert load_report(load_teacher(root)).weights == root / "models/best.pth"
    save(make_unet(4).state_dict(), root, "models/last.pt")
    with pytest.raises(ValueError, match=r"holds best.pth, last.pt, none is model.pt .* weights='models/best.pth'"):
        load_teacher(root)


def test_weights_may_be_relative_to_the_bundle_or_absolute(root, tmp_path_factory):
    elsewhere = save(make_unet().state_dict(), tmp_path_factory.mktemp("elsewhere"), "w.pt")
    save({"model": make_unet().state_dict()}, root, "models/teacher/w.pt")
    for weights, expected in ((elsewhere, elsewhere), ("models/teacher/w.pt", root / "models/teacher/w.pt")):
        assert load_report(load_teacher(root, weights=weights)).weights == expected


@pytest.mark.parametrize(
    "setting",
    [
        {"overrides": {"a": 1}},
        {"key_in_ckpt": "model"},
        {"network_id": "net"},
        {"config_file": "a"},
        {"weights": "w.pt"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_that_torchscript_would_ignore_are_refused(tmp_path, setting):
    path = save_script(make_unet(), tmp_path / "model.ts")
    with pytest.raises(ValueError, match=f"is TorchScript .* remove {next(iter(setting))}"):
        load_teacher(path, **setting)
