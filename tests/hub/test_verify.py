"""verify: each check fails for what it is about and for nothing else."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_bundles import change_json, command, replace, tiny_student

from monai_kd.hub import index_bundles, pack_bundle, verify_bundle, write_checksums
from monai_kd.hub.bundle_folder import BundleFolder
from monai_kd.hub.shared_blocks import infer_json


@pytest.fixture(scope="module")
def whole(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_student(repository, tmp_path_factory.mktemp("whole") / "tiny")


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A whole bundle, to be spoiled."""
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def failures(bundle: Path, **options: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify_bundle(bundle, **options) if not check.passed}


class Code:
    """Unpickling this runs code."""

    def __reduce__(self):
        return (print, ("this pickle ran code",))


def metadata(**values: object) -> Callable[[Path], None]:
    return lambda bundle: change_json(bundle / "configs" / "metadata.json", **values)


def in_file(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda bundle: replace(bundle / name, old, new)


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text(text)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).unlink()


def with_new_checksums(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def both(bundle: Path) -> None:
        change(bundle)
        write_checksums(bundle)

    return both


def regenerated(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def both(bundle: Path) -> None:
        change(bundle)
        (bundle / "configs" / "infer.json").write_text(infer_json(bundle))

    return both


def add_pickle(bundle: Path) -> None:
    torch.save({"model": Code()}, bundle / "models" / "other.pt")


def drop_a_tensor(bundle: Path) -> None:
    """Of the teacher: its own folder alone knows its keys."""
    path = bundle / "models" / "teacher" / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    state.pop(next(iter(state)))
    torch.save(state, path)
    change_json(bundle / "models" / "teacher" / "configs" / "metadata.json", provenance={})


def large(bundle: Path) -> None:
    with (bundle / "docs" / "atlas.bin").open("wb") as file:
        file.truncate(26_000_000)


def rename_property(bundle: Path) -> None:
    path = bundle / "configs" / "train.yaml"
    replace(path, 'train_handlers: "@train::handlers"', 'train_handlers: "@train::hooks"')
    replace(path, "  handlers:\n    - {_target_: LrSch", "  hooks:\n    - {_target_: LrSch")


# the check that must fail: how to break it, and what its line must say
BREAKS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "license": ("files", remove("LICENSE"), "LICENSE is missing"),
    "data terms": ("files", remove("docs/data_license.txt"), "docs/data_license.txt is missing"),
    "card names a missing file": (
        "files",
        write("docs/README.md", "run --config_file configs/nnunet.yaml"),
        "configs/nnunet.yaml is named in a command and missing",
    ),
    "name": ("name", metadata(name="other"), "names the bundle 'other', its folder 'tiny'"),
    "version of two digits": (
        "version",
        metadata(version="0.10.0", changelog={"0.10.0": "x"}),
        "each part must be one digit",
    ),
    "version not in changelog": ("version", metadata(version="0.2.0"), "'0.2.0' has no entry in the changelog"),
    "metadata key": (
        "metadata",
        lambda bundle: change_json(bundle / "configs" / "metadata.json", lambda content: content.pop("task")),
        "'task' is a required property",
    ),
    "metadata type": ("metadata", metadata(authors=3), "at authors: 3 is not of type 'string'"),
    "our package as a requirement": (
        "metadata",
        metadata(required_packages_version={"monai_kd": "0.1.0"}),
        "required_packages_version",
    ),
    "code": ("code", write("scripts/net.py", "x = 1\n"), "scripts/net.py is code"),
    "large file": ("file sizes", large, "docs/atlas.bin has 26.0 MB, the limit is 25 MB"),
    "personal path": (
        "personal paths",
        lambda bundle: (bundle / "docs" / "README.md").open("a").write("see /home/jane/data\n"),
        "'/home/jane' is a path of one machine",
    ),
    "Windows path": ("personal paths", write("docs/notes.txt", "C:\\Users\\jane\\x\n"), "docs/notes.txt, line 1"),
    "checksums missing": ("checksums", remove("models/checksums.sha256"), "checksums.sha256 is missing"),
    "file not in checksums": ("checksums", write("models/notes.txt", "x"), "models/notes.txt is not listed"),
    "weights of another record": (
        "checksums",
        lambda bundle: change_json(bundle / "models" / "model.json", network={"weights_sha256": "0" * 64}),
        "models/model.pt is not the file that models/model.json names",
    ),
    "pickle that needs code": (
        "checkpoints",
        with_new_checksums(add_pickle),
        "other.pt' needs code to unpickle",
    ),
    "a tensor missing": ("weights", with_new_checksums(drop_a_tensor), "0 unexpected"),
    "duplicate key": (
        "yaml",
        in_file("configs/train.yaml", "epochs: 24", "epochs: 24\nepochs: 24"),
        "configs/train.yaml gives the key 'epochs' twice",
    ),
    "number that is a text": (
        "yaml",
        in_file("configs/train.yaml", "split_seed: 0 ", "split_seed: 1e3 "),
        "split_seed: '1e3'; write 1e-3 as 1.0e-3",
    ),
    "other network in training": (
        "network_def",
        in_file("configs/train.yaml", "num_res_units: 2", "num_res_units: 1"),
        "differs at num_res_units",
    ),
    "stale infer.json": (
        "infer.json",
        lambda bundle: change_json(bundle / "configs" / "infer.json", device="cpu"),
        "is not what inference.yaml gives",
    ),
    "our code in inference": (
        "stock inference",
        in_file("configs/inference.yaml", "inferer: {_target_: Sl", "inferer: {_target_: monai_kd.Sl"),
        "'inferer::_target_' of inference.yaml is 'monai_kd.SlidingWindowInferer'",
    ),
    "logging that runs code": (
        "logging",
        in_file("configs/logging.conf", "args=(sys.stdout,)", "args=(__import__('os').getcwd(),)"),
        "logging.conf",
    ),
    "renamed property": ("properties", rename_property, "train_handlers"),
    "overlay in a subfolder": (
        "properties",
        in_file("configs/distillers/kd.yaml", "SoftLogitKL,", "SoftLogitsKL,"),
        "train.yaml + distillers/kd.yaml: ModuleNotFoundError",
    ),
    "duplicate key in a subfolder": (
        "yaml",
        in_file("configs/distillers/cwd.yaml", "method: cwd", "method: cwd\nmethod: other"),
        "configs/distillers/cwd.yaml gives the key 'method' twice",
    ),
    "card names a missing overlay": (
        "files",
        write("docs/README.md", "run --config_file \"['configs/train.yaml','configs/distillers/none.yaml']\""),
        "configs/distillers/none.yaml is named in a command and missing",
    ),
    "channels of the metadata": (
        "network input and output",
        lambda bundle: change_json(
            bundle / "configs" / "metadata.json",
            lambda content: content["network_data_format"]["outputs"]["pred"].update(num_channels=7),
        ),
        "output channel number `3` doesn't match: `7`",
    ),
}
# one cause that two checks are about, each in its own right
ALSO = {"our code in inference": {"properties"}, "a tensor missing": {"properties"}}


@pytest.mark.parametrize("name", list(BREAKS))
def test_what_is_broken_is_named_and_nothing_else(bundle, name):
    check, spoil, message = BREAKS[name]
    spoil(bundle)
    found = failures(bundle)
    assert set(found) == {check} | ALSO.get(name, set()), found
    assert message in found[check]
    assert "\n" not in found[check]


def test_a_whole_bundle_passes_every_check(bundle):
    checks = verify_bundle(bundle)
    assert [check for check in checks if not check.passed] == []
    assert {check.name for check in checks} >= {check for check, _, _ in BREAKS.values()} | {"export"}


def test_the_repositorys_bundles_pass(bundles):
    for path in bundles:
        assert failures(path) == {}, path.name


def test_overlays_in_a_folder_stand_on_train_yaml_unless_a_file_of_its_name_lies_beside(bundle):
    write("configs/sets/broken.yaml", "terms::soft::loss: {_target_: torch.nn.NoSuchLoss}\n")(bundle)
    write_checksums(bundle)
    assert "sets/broken.yaml" in failures(bundle)["properties"]
    write("configs/sets.yaml", "method: sets\n")(bundle)
    write_checksums(bundle)
    assert "properties" not in failures(bundle)


def test_a_name_that_monai_would_split_is_refused(whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "brats_vnet"))
    change_json(folder / "configs" / "metadata.json", name="brats_vnet")
    assert "'_v'" in failures(folder)["name"]


def test_any_flipped_byte_in_the_models_folder_is_found(bundle):
    from monai_kd.hub.bundle_folder import BundleFolder
    from monai_kd.hub.verify_files import checksum_problems

    generator = random.Random(0)
    files = [path for path in (bundle / "models").rglob("*") if path.is_file()]
    assert len(files) == 6, files
    for path in files:
        whole = path.read_bytes()
        for place in {0, len(whole) - 1, *(generator.randrange(len(whole)) for _ in range(6))}:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert checksum_problems(BundleFolder(bundle)), f"byte {place} of {path.name}"
        path.write_bytes(whole)
    assert checksum_problems(BundleFolder(bundle)) == []


def test_checksums_are_not_written_over_damaged_weights(bundle):
    path = bundle / "models" / "model.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    before = (bundle / "models" / "checksums.sha256").read_bytes()
    with pytest.raises(ValueError, match=r"model\.pt is not the file that models/model\.json names"):
        write_checksums(bundle)
    assert (bundle / "models" / "checksums.sha256").read_bytes() == before


def test_a_pickle_is_never_loaded(bundle, capfd):
    torch.save({"model": Code()}, bundle / "models" / "model.pt")
    found = failures(bundle)
    assert "needs code to unpickle" in found["checkpoints"]
    assert "this pickle ran code" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["configs/metadata.json", "models/model.pt", "configs/inference.yaml"])
def test_a_bundle_without_a_main_file_fails_clearly(bundle, name):
    (bundle / name).unlink()
    found = failures(bundle)
    assert f"{name} is missing" in found["files"]
    assert all(name.rpartition("/")[2] in detail for detail in found.values()), found


def test_broken_yaml_is_one_line(bundle):
    (bundle / "configs" / "train.yaml").write_text("a: [1,\nb: }\n")
    found = failures(bundle)
    assert "configs/train.yaml cannot be parsed" in found["yaml"]
    assert all("\n" not in detail for detail in found.values())


def test_a_published_version_with_other_bytes_is_refused(bundle, tmp_path):
    index = tmp_path / "model_info.json"
    zipped = pack_bundle(bundle, tmp_path / "dist").path
    index_bundles([zipped], "https://example.org/files", index)
    before = index.read_bytes()
    assert failures(bundle, index_file=index) == {}
    (bundle / "docs" / "README.md").open("a").write("more\n")
    found = failures(bundle, index_file=index)
    assert set(found) == {"index"}
    assert "already published with other bytes" in found["index"]
    metadata(version="0.2.0", changelog={"0.2.0": "more"})(bundle)
    assert failures(bundle, index_file=index) == {}
    assert index.read_bytes() == before


def test_a_schema_of_ones_own_is_used(bundle, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "required": ["supported_apps"]}))
    found = failures(bundle, data_schema=schema)
    assert set(found) == {"metadata"}
    assert "'supported_apps' is a required property" in found["metadata"]


def test_the_command_prints_every_check_and_exits_by_them(bundle, tmp_path):
    (bundle / "LICENSE").unlink()
    done = command("verify", bundle, succeed=False)
    assert "FAIL  files: LICENSE is missing" in done.stdout
    assert done.stdout.splitlines()[-1] == "17 of 18 checks passed"
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    done = command("verify", tmp_path / "nowhere", succeed=False)
    assert done.stderr.strip() == f"error: bundle '{tmp_path / 'nowhere'}' is no folder"


def test_weights_of_a_training_mode_are_no_network_of_their_own(tmp_path):
    """Such as teachers that a student's configuration builds; a folder without a record must be a bundle's."""
    for name in ("teacher", "teachers"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model.pt").write_bytes(b"weights")
    (tmp_path / "models" / "teachers" / "model.json").write_text("{}")
    assert [path.name for path in BundleFolder(tmp_path).model_folders()] == ["teacher"]
