"""Fetch a bundle: check it, unpack it beside its place, and only then put it there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

from monai.apps.utils import HashCheckError
from monai.bundle import download_large_files

from monai_kd.hub.archive import (
    METADATA,
    PackedBundle,
    extract_bundle,
    file_hash,
    newest_version,
    read_metadata,
    read_packed,
)
from monai_kd.hub.download import download, forget, read_address, reason, shown, timeout_s
from monai_kd.hub.hugging_face import download_snapshot
from monai_kd.hub.index import parse_index, split_entry
from monai_kd.hub.pack import large_file_entries

__all__ = ["fetch_bundle"]

_GITHUB = "https://github.com"
_GITHUB_RAW = "https://raw.githubusercontent.com"
_LOCK_TRIES = 10
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True)
class _Wanted:
    """One zip to download, and what is known of it."""

    url: str
    name: str | None
    version: str | None
    hashes: dict[str, str]


def fetch_bundle(
    source: str,
    bundle_dir: str | Path = ".",
    name: str | None = None,
    version: str | None = None,
    sha256: str | None = None,
) -> Path:
    """Download a bundle, check it, and put it into ``bundle_dir/NAME``.

    The zip is compared with its sha256 before anything of it is unpacked. It is unpacked to a temporary folder beside
    the target, large files that it lists are downloaded there, and then the folder is renamed. A folder that stood
    there is kept as ``NAME.previous-<its version>``. If anything fails, it is still in place. An interrupted download
    stays as ``<zip>.part`` and is resumed by the next call.

    Args:
        source: address of a zip (http, https or file); ``github:OWNER/REPO/TAG``, a release with the asset
            NAME_vVERSION.zip; ``hf:OWNER/REPO``, a Hugging Face repository; or the address of a model_info.json.
        bundle_dir: where the bundle's folder goes; made if missing.
        name: the bundle's name; a zip of another name is refused. Needed for github, hf, and an index with several.
        version: the version (for hf a tag, branch or commit); empty takes the newest, a zip of another is refused.
        sha256: 64 hex digits; an index states it itself, and a release without one needs it. Not for hf, where the
            hub's own hashes are compared.

    Returns:
        The bundle's folder.

    Raises:
        FileNotFoundError: there is no such file or repository.
        OSError: unreachable host, time-out, a broken connection, a full disk.
        ValueError: the wrong hash, name or version, or a zip that may not be unpacked.
        ImportError: ``hf:`` without huggingface_hub.
    """
    source, folder = str(source), Path(bundle_dir)
    # the command line hands digits over as a number
    name, version, sha256 = (None if given is None else str(given) for given in (name, version, sha256))
    _check_arguments(folder, name, sha256)
    with _own_folder(folder) as make:
        if source.startswith("hf:"):
            return _fetch_snapshot(source, make, name, version, sha256)
        wanted = _resolve(source, name, version, sha256)
        return _fetch_zip(wanted, make())


# ---- what to download -----------------------------------------------------------------------------------------------


def _check_arguments(folder: Path, name: str | None, sha256: str | None) -> None:
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 '{sha256}' is not one: it has 64 hex digits")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise ValueError(f"name '{name}' is no name of a bundle; use letters, digits, '_' and '-'")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"bundle_dir '{folder}' is a file; give a folder")


def _resolve(source: str, name: str | None, version: str | None, sha256: str | None) -> _Wanted:
    given = {"sha256": sha256.lower()} if sha256 else {}
    if source.startswith("github:"):
        return _resolve_github(source, name, version, given)
    if urlsplit(source).scheme not in ("http", "https", "file"):
        hint = f"; for a file here write {Path(source).resolve().as_uri()}" if Path(source).exists() else ""
        raise ValueError(
            f"source '{source}' is no address; known: http://..., https://..., file:///..., github:OWNER/REPO/TAG, "
            f"hf:OWNER/REPO{hint}"
        )
    if not urlsplit(source).path.endswith(".json"):
        return _Wanted(source, name, version, given)
    index = parse_index(read_address(source), source)
    name, version = _choose(index, source, name, version)
    entry = index[f"{name}_v{version}"]
    return _Wanted(entry["source"], name, version, _merged(given, entry, f"{name}_v{version}"))


def _resolve_github(source: str, name: str | None, version: str | None, given: dict[str, str]) -> _Wanted:
    match = re.fullmatch(r"github:([\w.-]+)/([\w.-]+)/([\w.-]+)", source, re.ASCII)
    if not match:
        raise ValueError(f"source '{source}': write github:OWNER/REPO/TAG")
    if name is None:
        raise ValueError(f"source '{source}' needs --name, the bundle's name")
    owner, repository, tag = match.groups()
    raw = os.environ.get("MONAI_KD_GITHUB_RAW", _GITHUB_RAW).rstrip("/")
    index_url = f"{raw}/{owner}/{repository}/{tag}/models/model_info.json"
    try:
        index = parse_index(read_address(index_url), index_url)
    except FileNotFoundError as error:
        if version is None:
            raise
        if not given:
            raise FileNotFoundError(
                f"there is no index at {shown(index_url)}, so give --sha256, the zip's hash"
            ) from error
        index = {}
    if version is None or not given:  # a release may hold what its index does not list: then by the given hash alone
        name, version = _choose(index, index_url, name, version)
    entry_name = f"{name}_v{version}"
    github = os.environ.get("MONAI_KD_GITHUB", _GITHUB).rstrip("/")
    url = f"{github}/{owner}/{repository}/releases/download/{tag}/{entry_name}.zip"
    return _Wanted(url, name, version, _merged(given, index.get(entry_name, {}), entry_name))


def _choose(index: dict[str, dict[str, Any]], where: str, name: str | None, version: str | None) -> tuple[str, str]:
    """Return name and version of the entry that is meant."""
    known: dict[str, list[str]] = {}
    for entry in index:
        known.setdefault(split_entry(entry)[0], []).append(split_entry(entry)[1])
    if name is None and len(known) != 1:
        raise ValueError(f"{where} holds {len(known)} bundles: {', '.join(sorted(known)) or 'none'}; choose by --name")
    name = name or next(iter(known))
    if name not in known:
        raise ValueError(f"{where} has no bundle '{name}'; known: {', '.join(sorted(known)) or 'none'}")
    if version is not None and version not in known[name]:
        raise ValueError(f"{where} has no '{name}' {version}; known: {', '.join(sorted(known[name]))}")
    return name, version or newest_version(known[name])


def _merged(given: dict[str, str], entry: dict[str, Any], entry_name: str) -> dict[str, str]:
    """Return the hashes to compare: the given one and the index's own (the model zoo states a sha1 alone)."""
    stated = {
        kind: str(entry[key]).lower() for kind, key in (("sha256", "sha256"), ("sha1", "checksum")) if entry.get(key)
    }
    if given and stated.get("sha256", given["sha256"]) != given["sha256"]:
        raise ValueError(f"{entry_name} has sha256 {stated['sha256']} in the index, and {given['sha256']} was given")
    return {**stated, **given}


# ---- the zip --------------------------------------------------------------------------------------------------------


def _fetch_zip(wanted: _Wanted, folder: Path) -> Path:
    if wanted.name is not None:
        _check_target(folder / wanted.name)
    basename = re.sub(r"[^\w.-]", "_", unquote(urlsplit(wanted.url).path.rsplit("/", 1)[-1]), flags=re.ASCII)
    part = folder / f"{basename.lstrip('.') or 'bundle'}.part"
    with _locked(part):
        download(wanted.url, part)
        try:
            _check_hashes(wanted, part)
            packed = read_packed(part, wanted.url)
            _check_identity(wanted, packed.name, packed.version)
            _check_target(folder / packed.name)
            target = _unpack(packed, folder)
        except ValueError:
            forget(part)  # these bytes are of no use; what a full disk stopped can still be used
            raise
        forget(part)
    return target


def _unpack(packed: PackedBundle, folder: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix=f".{packed.name}-", dir=folder) as draft:
        bundle = extract_bundle(packed, Path(draft))
        _fetch_large_files(bundle)
        return _place(bundle, folder / packed.name)


def _check_hashes(wanted: _Wanted, part: Path) -> None:
    found = {kind: file_hash(part, kind) for kind in {"sha256", *wanted.hashes}}
    for kind, expected in wanted.hashes.items():
        if found[kind] != expected:
            raise ValueError(
                f"{shown(wanted.url)} has {kind} {found[kind]}, expected {expected}; nothing was unpacked and the "
                "download was removed"
            )
    checked = " and ".join(sorted(wanted.hashes))
    print(f"sha256: {found['sha256']} ({f'{checked} as expected' if checked else 'not compared: none was given'})")


def _check_identity(wanted: _Wanted, name: str, version: str) -> None:
    if wanted.name not in (None, name):
        raise ValueError(f"{shown(wanted.url)} holds the bundle '{name}', expected '{wanted.name}'")
    if wanted.version not in (None, version):
        raise ValueError(f"{shown(wanted.url)} holds version {version} of '{name}', expected {wanted.version}")


# ---- Hugging Face ---------------------------------------------------------------------------------------------------


def _fetch_snapshot(
    source: str, make: Callable[[], Path], name: str | None, version: str | None, sha256: str | None
) -> Path:
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)", source, re.ASCII)
    if not match:
        raise ValueError(f"source '{source}': write hf:OWNER/REPO")
    if name is None:
        raise ValueError(f"source '{source}' needs --name, the bundle's name")
    if sha256 is not None:
        raise ValueError(f"source '{source}': --sha256 is of a zip; here files are compared with the hub's hashes")
    folder = make()
    _check_target(folder / name)
    with _locked(folder / f"{name}.hf"):
        bundle = download_snapshot(match[1], version, folder, name)
        try:
            if not (bundle / METADATA).is_file():
                raise ValueError(f"{source} is no bundle: {METADATA} is not in it")
            stated = read_metadata((bundle / METADATA).read_bytes(), source)["version"]
            if version and re.fullmatch(r"\d+\.\d+\.\d+", version) and stated != version:
                raise ValueError(f"{source} at '{version}' holds version {stated}")
            _fetch_large_files(bundle)
            target = _place(bundle, folder / name)
        except ValueError:
            shutil.rmtree(bundle.parent)
            raise
        bundle.parent.rmdir()
        return target


# ---- putting it in place --------------------------------------------------------------------------------------------


def _fetch_large_files(bundle: Path) -> None:
    """Download what the bundle's large_files.yml lists, by MONAI; a file without a hash is refused."""
    entries = large_file_entries(bundle)
    if not entries:
        return
    addresses = ", ".join(str(entry["url"]) for entry in entries)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s())  # MONAI sets none, and would wait for ever
    try:
        download_large_files(bundle_path=str(bundle))
    except HashCheckError as error:
        raise ValueError(f"large files of '{bundle.name}' ({addresses}): {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:
        raise OSError(f"large files of '{bundle.name}' ({addresses}): {reason(error)}") from error
    finally:
        socket.setdefaulttimeout(before)
    missing = [str(entry["path"]) for entry in entries if not (bundle / str(entry["path"])).is_file()]
    if missing:
        raise OSError(f"large files of '{bundle.name}': {', '.join(missing)} did not arrive from {addresses}")


def _check_target(target: Path) -> None:
    if os.path.lexists(target) and not target.is_dir():
        raise FileExistsError(f"'{target}' is a file; the bundle's folder would go there, so move it away first")


def _place(bundle: Path, target: Path) -> Path:
    """Rename a new folder to its place; what stood there is kept under another name."""
    kept = _name_aside(target) if os.path.lexists(target) else None
    if kept:
        os.rename(target, kept)
    try:
        os.rename(bundle, target)
    except OSError:
        if kept:
            os.rename(kept, target)
        raise
    if kept:
        print(f"kept aside: the folder that stood at {target} is now {kept}")
    return target


def _name_aside(target: Path) -> Path:
    """Return a free name for the folder that stands in the way: by its version, else by the time."""
    now = f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    try:
        label = str(read_metadata((target / METADATA).read_bytes(), str(target))["version"])
    except (OSError, ValueError):
        label = now
    if not re.fullmatch(r"[\w.-]+", label, re.ASCII):
        label = now
    kept = target.with_name(f"{target.name}.previous-{label}")
    return target.with_name(f"{kept.name}-{now}") if os.path.lexists(kept) else kept


@contextmanager
def _own_folder(folder: Path) -> Iterator[Callable[[], Path]]:
    """Give a function that makes the folder; if it was made for nothing, it is removed again."""
    first = next((path for path in [*reversed(folder.parents), folder] if not path.exists()), None)

    def make() -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    try:
        yield make
    finally:
        for path in [folder, *folder.parents] if first else []:
            with suppress(OSError):  # not empty, or never made
                path.rmdir()
            if path == first:
                break


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Keep other processes from the same download; the system drops the lock when this process ends, however."""
    lock = part.with_name(f".{part.name}.lock")
    try:
        file = _open_locked(lock, part)
    except ImportError:  # Windows has no fcntl
        yield
        return
    with file:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _open_locked(lock: Path, part: Path) -> TextIO:
    """Open the lock's file and lock it, where the file system has locks.

    The process before removes the file at its end. Whoever opened it until then would lock a file without a name, and
    the next one a new file: so a locked file counts only if it is still the one at its path.
    """
    import fcntl

    for _ in range(_LOCK_TRIES):
        file = lock.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                return file
        except BlockingIOError as error:
            file.close()
            raise FileExistsError(f"another process downloads to '{part}'; wait for it") from error
        except FileNotFoundError:  # removed since it was opened
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                print(f"note: the disk of '{part.parent}' has no locks; let no other process download to it meanwhile")
                return file
            file.close()
            raise
        file.close()
    raise FileExistsError(f"other processes download to '{part}' over and over; wait for them")
