"""Pack a bundle into a zip that is the same bytes every time."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monai_kd.hub.archive import METADATA, WEIGHTS, check_bundle_name, check_bundle_version, file_hash, whole_file
from monai_kd.hub.bundle_folder import WRITTEN_LATER, BundleFolder
from monai_kd.hub.checksums import CHECKSUMS, checksum_problems
from monai_kd.teachers.weights import find_weights

__all__ = ["Packed", "large_file_entries", "pack_bundle"]

_LARGE_FILES = re.compile(r"large_files[^/]*\.(yml|yaml|json)")
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can state


@dataclass(frozen=True)
class Packed:
    """A written zip: its path, size in bytes, number of files in it, and sha256."""

    path: Path
    size: int
    files: int
    sha256: str


def pack_bundle(bundle: str | Path, out_dir: str | Path = "dist") -> Packed:
    """Write ``out_dir/NAME_vVERSION.zip``: one top folder, the weights inside, the same bytes on every machine.

    Names are sorted, dates and modes fixed, and nothing is compressed: weights hardly shrink, and compressed bytes
    would depend on the zlib at hand. Left out are ``runs``, ``eval``, ``models/previous``, ``models/exported``,
    ``__pycache__``, hidden files, and ``large_files.yml``, whose weights are in the zip.

    Args:
        bundle: the bundle's folder; its name is the zip's top folder. The version is that of configs/metadata.json.
        out_dir: outside the bundle; made if missing. A zip of that version in it is replaced when the new one is whole.

    Raises:
        FileNotFoundError: no such folder, no metadata.json, or weights missing.
        ValueError: a name or version that MONAI would misread, a link that points outside the bundle, or files in
            ``models/`` that are not those of its list of checksums.
        OSError: the zip cannot be written, for example because the disk is full.
    """
    root = Path(bundle).resolve()
    name, version = _identity(Path(bundle), root)
    target = Path(out_dir) / f"{name}_v{version}.zip"
    if target.resolve().is_relative_to(root):
        raise ValueError(f"out_dir '{out_dir}' lies inside the bundle and would be packed next time; choose another")
    _check_large_files(Path(bundle), root)
    _check_weights(Path(bundle), root)
    if (root / CHECKSUMS).is_file() and (problems := checksum_problems(BundleFolder(root))):
        raise ValueError(f"'{bundle}': {'; '.join(problems)}")
    files = sorted(_files(root, root), key=lambda path: path.relative_to(root).as_posix())
    with whole_file(target) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            _add(archive, path, f"{name}/{path.relative_to(root).as_posix()}")
    return Packed(target, target.stat().st_size, len(files), file_hash(target, "sha256"))


def large_file_entries(root: Path) -> list[dict[str, Any]]:
    """Return the entries of a bundle's ``large_files.yml`` (or .yaml, .json), checked for what a download needs.

    Raises:
        ValueError: the file is not in MONAI's form, or an entry lacks path, url or hash_val.
    """
    entries: list[dict[str, Any]] = []
    for listing in sorted(path for path in root.iterdir() if _LARGE_FILES.fullmatch(path.name)):
        try:
            content = yaml.safe_load(listing.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{listing.name} is no YAML: {error}") from error
        found = content.get("large_files") if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise ValueError(f"{listing.name} must hold 'large_files:' and a list of path, url, hash_val, hash_type")
        for entry in found:
            missing = [key for key in ("path", "url", "hash_val") if not entry.get(key)]
            if missing:
                raise ValueError(f"{listing.name}: entry '{entry.get('path')}' lacks {', '.join(missing)}")
        entries += found
    return entries


def _identity(given: Path, root: Path) -> tuple[str, str]:
    if not root.is_dir():
        raise FileNotFoundError(f"bundle '{given}' is no folder")
    metadata_file = root / METADATA
    if not metadata_file.is_file():
        raise FileNotFoundError(f"'{given}' is no bundle: it has no {METADATA}")
    try:
        metadata = json.loads(metadata_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{given / METADATA}' is no JSON: {error}") from error
    name = check_bundle_name(root.name)
    version = check_bundle_version(metadata.get("version") if isinstance(metadata, dict) else None)
    title = metadata.get("name", name)
    # the model zoo writes a title with blanks here, which names no folder
    if title != name and re.fullmatch(r"[\w-]+", str(title)):
        raise ValueError(f"{METADATA} names the bundle '{title}' and its folder is '{name}'; make them equal")
    return name, version


def _check_large_files(given: Path, root: Path) -> None:
    for entry in large_file_entries(root):
        path, kind = root / str(entry["path"]), str(entry.get("hash_type") or "sha256")
        if not path.is_file():
            raise FileNotFoundError(
                f"'{given / str(entry['path'])}' is listed in large_files.yml and is not there; "
                f"run `python -m monai.bundle download_large_files --bundle_path {given}` first"
            )
        if kind not in ("md5", "sha1", "sha256", "sha512"):
            raise ValueError(f"large_files.yml: hash_type '{kind}'; MONAI knows md5, sha1, sha256, sha512")
        found = file_hash(path, kind)
        if found != str(entry["hash_val"]).lower():
            raise ValueError(
                f"'{given / str(entry['path'])}' has {kind} {found}, large_files.yml says {entry['hash_val']}; "
                "correct the list, or download the file again"
            )


def _check_weights(given: Path, root: Path) -> None:
    wanted = [WEIGHTS]
    if (root / "models" / "teacher").exists():
        wanted.append(find_weights(root / "models" / "teacher", None).relative_to(root).as_posix())
    for name in wanted:
        path = root / name
        if not path.is_file() or not path.stat().st_size:
            raise FileNotFoundError(f"'{given / name}' is missing or empty; a packed bundle holds its weights")
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                raise ValueError(f"'{given / name}' is a Git LFS pointer, not the weights; run `git lfs pull` first")


def _files(folder: Path, root: Path) -> Iterator[Path]:
    """Yield what belongs in the zip, below a folder of the bundle."""
    for path in folder.iterdir():
        relative = path.relative_to(root).as_posix()
        if path.name.startswith(".") or path.name == "__pycache__" or relative in WRITTEN_LATER:
            continue
        if folder == root and _LARGE_FILES.fullmatch(path.name):
            continue
        if path.is_symlink():
            _check_link(path, root)
        if path.is_dir():
            yield from _files(path, root)
        elif path.is_file():
            yield path
        else:
            raise ValueError(f"'{relative}' is neither a file nor a folder; remove it from the bundle")


def _check_link(path: Path, root: Path) -> None:
    relative, points_to = path.relative_to(root).as_posix(), os.readlink(path)
    if not path.exists():
        raise ValueError(f"'{relative}' is a link to '{points_to}', which does not exist")
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"'{relative}' is a link to '{points_to}', outside the bundle; put the file itself there")
    if path.is_dir():
        raise ValueError(f"'{relative}' is a link to the folder '{points_to}'; put a copy there")


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    member = zipfile.ZipInfo(name, _DATE)
    member.create_system = 3  # Unix, also on Windows
    member.external_attr = (stat.S_IFREG | 0o644) << 16
    member.file_size = path.stat().st_size  # decides whether 64-bit sizes are needed
    with path.open("rb") as source, archive.open(member, "w") as file:
        shutil.copyfileobj(source, file, 1 << 20)
