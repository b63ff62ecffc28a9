"""What a packed bundle is: its name, its version, its one top folder; and reading one that may be hostile."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = [
    "PackedBundle",
    "check_bundle_name",
    "check_bundle_version",
    "check_member_names",
    "extract_bundle",
    "file_hash",
    "newest_version",
    "read_metadata",
    "read_packed",
    "whole_file",
]

METADATA = "configs/metadata.json"
WEIGHTS = "models/model.pt"
_METADATA_LIMIT = 4_000_000  # bytes; a metadata.json has a few thousand
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class PackedBundle:
    """A zip that was looked through: nothing of it is unpacked yet."""

    path: Path
    name: str
    version: str
    members: frozenset[str]
    unpacked_bytes: int


def check_bundle_name(name: str) -> str:
    """Return the name if MONAI's lister, GitHub and Hugging Face all keep it as it is, else raise ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"bundle name '{name}': use letters, digits, '_' and '-' only")
    if "_v" in name:
        raise ValueError(f"bundle name '{name}' has '_v', where MONAI splits off the version; rename the folder")
    return name


def check_bundle_version(version: object) -> str:
    """Return the version if it is x.y.z with one digit each, else raise ValueError."""
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"version {version!r} in {METADATA}: it must be x.y.z, such as '0.1.0'")
    if not re.fullmatch(r"\d\.\d\.\d", version):
        raise ValueError(
            f"version '{version}' in {METADATA}: each part must be one digit, because MONAI sorts versions as text "
            "('0.10.0' comes before '0.9.0')"
        )
    return version


def newest_version(versions: Iterable[str]) -> str:
    """Return the highest version, part by part as numbers; a word counts below any number."""

    def parts(version: str) -> list[tuple[bool, int, str]]:
        return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in version.split(".")]

    return max(versions, key=parts)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a temporary name beside a file, renamed to it at the end; on any failure the file before it stays.

    Raises:
        OSError: the folder cannot be made, or the disk is full; the message names the file.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        os.replace(draft, target)
    except OSError as error:
        raise OSError(error.errno, f"'{target}' was not written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # renamed, or never made
            draft.unlink()


def check_member_names(names: Iterable[str], where: str) -> None:
    """Refuse names that could leave the folder they are unpacked to, or overwrite each other.

    Args:
        names: relative paths with '/', of files; folders end with '/'.
        where: what holds them, for the message.

    Raises:
        ValueError: an absolute path, a drive letter, '..', a backslash, a control character, or a name given twice
            (also when only upper and lower case differ, which some disks do not tell apart).
    """
    files: dict[str, str] = {}
    folders: set[str] = set()
    for name in names:
        parts = name.removesuffix("/").split("/")
        if "\\" in name or ":" in name or not name.isprintable() or {"", ".", ".."} & set(parts):
            raise ValueError(f"{where} holds {name!r}, a path that may lead outside its folder; nothing was unpacked")
        folded = name.casefold()
        folders.update(str(parent) for parent in PurePosixPath(folded).parents)
        if name.endswith("/"):
            folders.add(folded.removesuffix("/"))
        elif folded in files:
            raise ValueError(f"{where} holds {name!r} twice; nothing was unpacked")
        else:
            files[folded] = name
    both = sorted(folders & set(files))
    if both:
        raise ValueError(f"{where} holds {files[both[0]]!r} as a file and as a folder; nothing was unpacked")


def read_packed(path: Path, label: str | None = None) -> PackedBundle:
    """Look through a packed bundle without unpacking it.

    Args:
        path: the zip.
        label: how messages call it, such as its address; None is its path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole zip, or not one that may be unpacked, or no bundle; the message names the member.
    """
    label = f"'{label or path}'"
    if not path.is_file():
        raise FileNotFoundError(f"{label} is no file; give a zip made by `python -m monai_kd pack`")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members, label)
            name = _top_folder([member.filename for member in members], label)
            metadata = _read_metadata(archive, name, label)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{label} is no zip, or a truncated one ({error})") from error
    names = frozenset(member.filename for member in members)
    return PackedBundle(path, name, metadata["version"], names, sum(member.file_size for member in members))


def extract_bundle(packed: PackedBundle, folder: Path) -> Path:
    """Unpack a bundle that `read_packed` looked through into an empty folder; return the bundle's folder in it.

    Raises:
        OSError: the disk has less room than the files need.
        ValueError: a file in the zip is damaged.
    """
    free = shutil.disk_usage(folder).free
    if packed.unpacked_bytes > free:
        raise OSError(
            errno.ENOSPC,
            f"{packed.path.name} unpacks to {packed.unpacked_bytes / 1e6:.0f} MB and the disk of '{folder.parent}' has "
            f"{free / 1e6:.0f} MB free; make room or choose another --bundle_dir",
        )
    try:
        with zipfile.ZipFile(packed.path) as archive:
            for member in archive.infolist():
                target = folder / member.filename
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(f"'{packed.path.name}' is damaged: {error}") from error
    except OSError as error:
        raise OSError(error.errno, f"unpacking {packed.path.name} stopped: {error.strerror or error}") from error
    return folder / packed.name


def _check_members(members: list[zipfile.ZipInfo], label: str) -> None:
    # orig_filename: the name as stored; on Windows the other one has its backslashes replaced
    check_member_names([member.orig_filename for member in members], label)
    for member in members:
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{label} holds '{member.filename}', a link or device; nothing was unpacked")
        if member.flag_bits & 1 or member.compress_type not in _COMPRESSIONS:
            raise ValueError(f"{label} holds '{member.filename}', encrypted or in an unknown compression")


def _top_folder(names: list[str], label: str) -> str:
    tops = sorted({name.split("/")[0] for name in names})
    if len(tops) != 1:
        raise ValueError(f"{label} must hold one top folder, named as the bundle; it holds {tops[:4] or 'nothing'}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", tops[0], re.ASCII):
        raise ValueError(f"{label}: its top folder '{tops[0]}' is no name of a bundle")
    return tops[0]


def _read_metadata(archive: zipfile.ZipFile, name: str, label: str) -> dict[str, Any]:
    try:
        member = archive.getinfo(f"{name}/{METADATA}")
    except KeyError:
        raise ValueError(f"{label} is no bundle: '{name}/{METADATA}' is not in it") from None
    if member.file_size > _METADATA_LIMIT:
        raise ValueError(f"{label}: {METADATA} has {member.file_size} bytes; at most {_METADATA_LIMIT} are read")
    return read_metadata(archive.read(member), label)


def read_metadata(content: bytes, where: str) -> dict[str, Any]:
    """Return a bundle's metadata, which has at least a version.

    Raises:
        ValueError: it is no JSON object, or has no version.
    """
    try:
        metadata = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {METADATA} is no JSON ({error})") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("version"), str):
        raise ValueError(f"{where}: {METADATA} has no version, such as '0.1.0'")
    return metadata


def file_hash(path: Path, kind: str) -> str:
    """Return a file's hash as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
