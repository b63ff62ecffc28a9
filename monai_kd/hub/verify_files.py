"""Checks of a bundle's files: names, sizes, places, bytes."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from monai_kd.hub import checksums
from monai_kd.hub.archive import check_bundle_name, check_bundle_version
from monai_kd.hub.bundle_folder import BundleFolder, NotReadable
from monai_kd.hub.index import index_bundles
from monai_kd.hub.pack import large_file_entries, pack_bundle

__all__ = [
    "against_index",
    "checksum_problems",
    "code_files",
    "large_files",
    "missing_files",
    "name_problems",
    "personal_paths",
    "version_problems",
]

_REQUIRED = ("LICENSE", "configs/metadata.json", "models/model.pt", "docs/README.md", "docs/data_license.txt")
_LARGEST_MB = 25.0  # the model zoo keeps no larger file
# MONAI Label takes a bundle for another kind of task by these words
_TASK_WORDS = ("deepedit", "deepgrow", "detection", "classification")
_PERSONAL = re.compile(
    r"(?<![\w.])/(?:home|Users|root|work|tmp|mnt|scratch)/\w[\w.-]*|(?<![\w./])/root\b|[A-Za-z]:\\+Users\b"
)
_LARGEST_TEXT = 5_000_000  # bytes


def missing_files(bundle: BundleFolder) -> list[str]:
    """What the model zoo asks for by name, and what the documents of a shared bundle need."""
    problems = [f"{name} is missing" for name in _REQUIRED if not (bundle.root / name).is_file()]
    try:
        bundle.config_path("inference")
    except NotReadable as error:
        problems.append(str(error))
    for names in bundle.combinations():
        absent = [name for name in names if not (bundle.root / "configs" / name).is_file()]
        problems += [f"configs/{name} is named in a command and missing" for name in absent]
    return list(dict.fromkeys(problems))


def name_problems(bundle: BundleFolder) -> list[str]:
    """The folder's name is the bundle's name for every consumer."""
    name = bundle.root.name
    try:
        check_bundle_name(name)
    except ValueError as error:
        return [str(error)]
    words = [word for word in _TASK_WORDS if word in name]
    problems = [
        f"bundle name '{name}' contains '{word}', by which MONAI Label takes it for that task" for word in words
    ]
    stated = str(bundle.metadata.get("name", name))
    if stated != name and re.fullmatch(r"[\w-]+", stated):  # a title with blanks names no folder
        problems.append(f"configs/metadata.json names the bundle '{stated}', its folder '{name}'; make them equal")
    return problems


def version_problems(bundle: BundleFolder) -> list[str]:
    """Three one-digit parts, and a line in the changelog."""
    version, changelog = bundle.metadata.get("version"), bundle.metadata.get("changelog")
    try:
        check_bundle_version(version)
    except ValueError as error:
        return [str(error)]
    if not isinstance(changelog, dict) or version not in changelog:
        return [f"version '{version}' has no entry in the changelog of configs/metadata.json"]
    return []


def code_files(bundle: BundleFolder) -> list[str]:
    """A bundle is configuration; code comes from packages."""
    found = [path for path in bundle.files if path.suffix in (".py", ".pyc", ".ipynb", ".so")]
    return [f"{bundle.relative(path)} is code; put it into a package" for path in found]


def large_files(bundle: BundleFolder) -> list[str]:
    """Files that are too large for git, unless ``large_files.yml`` says where they are downloaded from."""
    listed = {(bundle.root / str(entry["path"])).resolve() for entry in large_file_entries(bundle.root)}
    sizes = {path: path.stat().st_size / 1e6 for path in bundle.files if path not in listed}
    return [
        f"{bundle.relative(path)} has {size:.1f} MB, the limit is {_LARGEST_MB:.0f} MB; list it in large_files.yml"
        for path, size in sizes.items()
        if size > _LARGEST_MB
    ]


def personal_paths(bundle: BundleFolder) -> list[str]:
    """Text files name no place on somebody's machine."""
    problems = []
    for path in bundle.files:
        if path.stat().st_size > _LARGEST_TEXT or b"\0" in (content := path.read_bytes()):
            continue
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
            if match := _PERSONAL.search(line):
                problems.append(f"{bundle.relative(path)}, line {number}: '{match[0]}' is a path of one machine")
    if any(problem.startswith("models/model.json") for problem in problems):
        problems[-1] += "; `python -m monai_kd materialize RUN OUT` makes a bundle without the paths of a training"
    return problems


def checksum_problems(bundle: BundleFolder) -> list[str]:
    """Every byte in ``models/``, and the sha256 that the records name."""
    return checksums.record_problems(bundle) + checksums.checksum_problems(bundle)


def against_index(index_file: str | Path) -> Callable[[BundleFolder], list[str]]:
    """Return a check that the bundle's version is not published with other bytes."""

    def check(bundle: BundleFolder) -> list[str]:
        with tempfile.TemporaryDirectory() as temporary:
            packed = pack_bundle(bundle.root, temporary)
            copy = Path(temporary) / "model_info.json"
            shutil.copyfile(index_file, copy)
            index_bundles([packed.path], "https://localhost/compared", copy)
        return []

    return check
