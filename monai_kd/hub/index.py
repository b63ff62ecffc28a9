"""The download index ``models/model_info.json``: the model zoo's form, plus sha256."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from monai_kd.hub.archive import WEIGHTS, check_bundle_name, check_bundle_version, file_hash, read_packed, whole_file

__all__ = ["index_bundles", "parse_index", "split_entry"]


def index_bundles(zips: Sequence[str | Path], base_url: str, out: str | Path = "models/model_info.json") -> list[str]:
    """Enter packed bundles into a download index; other entries in it stay.

    An entry is ``"NAME_vVERSION": {"checksum": sha1, "source": address, "sha256": sha256}``. MONAI and the model zoo
    read the first two, `fetch_bundle` the last two.

    Args:
        zips: files made by `pack_bundle`.
        base_url: folder of the download addresses (http, https or file).
        out: the index; written whole or not at all, sorted by name.

    Returns:
        The names that were entered.

    Raises:
        FileNotFoundError: a zip does not exist.
        ValueError: a file that is no packed bundle, an address that is none, a damaged index, or a version that is
            already published with other bytes: raise the version then.
    """
    target = Path(out)
    if not zips:
        raise ValueError("no zip named; give the files made by `python -m monai_kd pack`")
    address = urlsplit(base_url)
    if address.scheme not in ("http", "https", "file") or not (address.netloc or address.path) or address.query:
        raise ValueError(
            f"base_url '{base_url}' is no address of a folder; give one such as "
            "https://github.com/OWNER/REPO/releases/download/hosting_storage_v1"
        )
    entries = parse_index(target.read_bytes(), str(target)) if target.exists() else {}
    for path in map(Path, zips):
        name = _packed_name(path)
        entry = _entry(path, f"{base_url.rstrip('/')}/{name}.zip")
        _refuse_other_bytes(name, entries.get(name), entry, path)
        entries[name] = entry
    with whole_file(target) as draft:
        text = json.dumps(dict(sorted(entries.items())), indent=4, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8")
    return sorted({path.stem for path in map(Path, zips)})


def parse_index(content: bytes, where: str) -> dict[str, dict[str, Any]]:
    """Return the entries of an index.

    Raises:
        ValueError: it is not in the model zoo's form; the message names the place and the entry.
    """
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{where}' is no download index: no JSON ({error})") from error
    if not isinstance(entries, dict):
        raise ValueError(f"'{where}' is no download index: it must hold an object, not {type(entries).__name__}")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("source"), str):
            raise ValueError(f"'{where}' is no download index: entry '{name}' has no source")
    return entries


def split_entry(entry: str) -> tuple[str, str]:
    """Return name and version of an entry such as ``student_v0.1.0``; the version is empty if there is none."""
    name, _, version = entry.rpartition("_v")
    return (name, version) if name else (entry, "")


def _packed_name(path: Path) -> str:
    """Return NAME_vVERSION of a zip made by `pack_bundle`; refuse any other file by its name."""
    packed = read_packed(path)
    try:
        name = f"{check_bundle_name(packed.name)}_v{check_bundle_version(packed.version)}"
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
    if path.name != f"{name}.zip":
        raise ValueError(f"'{path}' holds {packed.name} {packed.version}; its name must be '{name}.zip'")
    if f"{packed.name}/{WEIGHTS}" not in packed.members:
        raise ValueError(f"'{path}' is no packed bundle: '{packed.name}/{WEIGHTS}' is not in it")
    return name


def _entry(path: Path, source: str) -> dict[str, Any]:
    return {"checksum": file_hash(path, "sha1"), "source": source, "sha256": file_hash(path, "sha256")}


def _refuse_other_bytes(name: str, published: dict[str, Any] | None, entry: dict[str, Any], path: Path) -> None:
    if published is None:
        return
    kind = "sha256" if published.get("sha256") else "checksum"
    if published.get(kind) != entry[kind]:
        raise ValueError(
            f"{name} is already published with other bytes ({kind} {published.get(kind)}, '{path}' has {entry[kind]}); "
            "raise the version in configs/metadata.json and pack again"
        )
