"""Download one file: resumed after an interruption, restarted when it changed meanwhile, whole in the end."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_kd import __version__

__all__ = ["download", "forget", "read_address", "reason", "timeout_s"]

_ATTEMPTS = 5
_PAUSE_S = 1.0  # before the second attempt; longer before each further one
_CHUNK = 1 << 16  # bytes
_SMALL = 50_000_000  # bytes; the largest index that is read into memory


class _BrokenOff(Exception):
    """The connection ended before the file did; a further attempt may go on from there."""


def shown(url: str) -> str:
    """Return an address without its query, which may hold a token."""
    return urllib.parse.urlsplit(url)._replace(query="", fragment="").geturl()


def timeout_s() -> float:
    """Return how many seconds a server may stay silent: 30, or what MONAI_KD_TIMEOUT says."""
    text = os.environ.get("MONAI_KD_TIMEOUT", "30")
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not float(text) > 0:
        raise ValueError(f"MONAI_KD_TIMEOUT is '{text}'; it must be a number of seconds above 0")
    return float(text)


def read_address(url: str) -> bytes:
    """Return the content of a small file at an address (http, https or file).

    Raises:
        FileNotFoundError: the server has no such file (404).
        OSError: unreachable host, another HTTP error, time-out; one line that names the address.
    """
    with _opened(url, {}) as response:
        try:
            content: bytes = response.read(_SMALL + 1)
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"cannot read {shown(url)}: {reason(error)}") from error
    if len(content) > _SMALL:
        raise OSError(f"{shown(url)} has more than {_SMALL / 1e6:.0f} MB; that is no download index")
    return content


def download(url: str, part: Path) -> None:
    """Download an address to ``part``, going on with what an interrupted download left there.

    A server is asked for the missing bytes only if it named a validator (ETag or Last-Modified) the first time, and
    sends them only if the file is still that one. Any other answer starts the file anew. A connection that breaks off
    is taken up again up to four times; a bar on a terminal shows the progress.

    Args:
        url: http, https or file.
        part: where the bytes go. What is known of them stands beside it in ``<part>.json``.

    Raises:
        FileNotFoundError: the server has no such file (404).
        OSError: unreachable host, another HTTP error, time-out, a connection that keeps breaking off, or a full disk;
            one line that names the address. The bytes that came stay for the next call.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _attempt(url, part)
            return
        except _BrokenOff as error:
            if attempt == _ATTEMPTS:
                raise OSError(
                    f"download of {shown(url)} broke off {_ATTEMPTS} times, the last time {error}; "
                    "run the same command again to go on"
                ) from error
            time.sleep(_PAUSE_S * attempt)


def forget(part: Path) -> None:
    """Remove a download and what is known of it."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _attempt(url: str, part: Path) -> None:
    note = _read_note(url, part)
    have = part.stat().st_size if note and part.is_file() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": note["validator"]} if have and note else {}
    with _opened(url, headers) as response:
        status, fields = getattr(response, "status", None), response.headers
        if status == 416 and _is_whole(fields, have):  # it had all arrived before
            return
        if status == 416 or (status == 206 and not (note and _goes_on(fields, have, note["validator"]))):
            forget(part)
            raise _BrokenOff("because the server answered for other bytes than asked")
        if status != 206:
            have = 0
            _write_note(url, part, fields)
        length = fields.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        _require_room(url, part, (total or 0) - have)
        received = _receive(response, url, part, have, total)
    if total is not None and received != total:
        raise _BrokenOff(f"after {received} of {total} bytes")


def _receive(response: Any, url: str, part: Path, have: int, total: int | None) -> int:
    """Append a response to the part file (from its start if nothing is there yet); return the bytes in it."""
    bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=_basename(url), disable=None)
    with bar, _opened_part(url, part, have) as file:
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenOff(f"after {have} bytes ({reason(error)})") from error
            if not chunk:
                return have
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))


@contextmanager
def _opened_part(url: str, part: Path, have: int) -> Iterator[Any]:
    """Open the part file; a full disk or a folder that cannot be written becomes one line."""
    try:
        with part.open("ab" if have else "wb") as file:
            yield file
    except OSError as error:
        message = f"download of {shown(url)} to '{part}' stopped: {error.strerror or error}"
        raise OSError(error.errno, message) from error


@contextmanager
def _opened(url: str, headers: dict[str, str]) -> Iterator[Any]:
    """Open an address; every way to fail becomes an OSError of one line. 416 is an answer, not a failure."""
    fields = {"User-Agent": f"monai_kd/{__version__}", "Accept-Encoding": "identity", **headers}
    patience = timeout_s()
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=fields), timeout=patience)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            error.close()
            kind = FileNotFoundError if error.code in (404, 410) else OSError
            raise kind(f"cannot download {shown(url)}: HTTP {error.code} {error.reason}") from error
        response = error
    except (OSError, ValueError, http.client.HTTPException) as error:
        kind = FileNotFoundError if isinstance(getattr(error, "reason", None), FileNotFoundError) else OSError
        raise kind(f"cannot download {shown(url)}: {reason(error)}") from error
    with response:
        yield response


def reason(error: BaseException) -> str:
    """Return why, in the words of the system."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        error = inner
    elif isinstance(inner, str) and not isinstance(error, urllib.error.HTTPError):
        return inner
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s():g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _require_room(url: str, part: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if num_bytes > free:
        raise OSError(
            errno.ENOSPC,
            f"{shown(url)} has {num_bytes / 1e6:.0f} MB to download and the disk of '{part.parent}' has "
            f"{free / 1e6:.0f} MB free; make room or choose another --bundle_dir",
        )


def _goes_on(fields: Any, have: int, validator: str) -> bool:
    """Return whether a partial answer starts where the file here ends, and is of the file that was noted."""
    own = _validator(fields)
    return fields.get("Content-Range", "").startswith(f"bytes {have}-") and own in ("", validator)


def _validator(fields: Any) -> str:
    """Return what tells two states of a file apart; a weak ETag does not promise the same bytes."""
    etag: str = fields.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else fields.get("Last-Modified", "")


def _is_whole(fields: Any, have: int) -> bool:
    return bool(re.fullmatch(rf"bytes \*/{have}", fields.get("Content-Range", "")))


def _basename(url: str) -> str:
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1])


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _key(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()  # an address may hold a password; a hash does not


def _write_note(url: str, part: Path, fields: Any) -> None:
    """Note the validator of a download that starts; without one it cannot be resumed."""
    validator = _validator(fields)
    _note(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)  # before the note: bytes of another file must never stand beside it
    if validator:
        _note(part).write_text(json.dumps({"address_sha256": _key(url), "validator": validator}), encoding="utf-8")


def _read_note(url: str, part: Path) -> dict[str, str] | None:
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        usable = note["address_sha256"] == _key(url) and isinstance(note["validator"], str)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing known of the bytes: start anew
    return note if usable else None
