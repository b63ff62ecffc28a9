"""A web server on loopback that hands out the files of a folder, well or badly."""

from __future__ import annotations

import email.utils
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["FileServer"]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.server.owner
        path = owner.folder / unquote(urlsplit(self.path).path).lstrip("/")
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        owner.requests.append((self.path, start))
        if owner.silent.is_set():
            owner.released.wait(30)
            return
        if owner.status != 200 or not path.is_file():
            self.send_error(owner.status if owner.status != 200 else 404)
            return
        content = path.read_bytes()
        fields = owner.validators(path, content)
        unchanged = self.headers.get("If-Range") in (None, *fields.values()) or owner.ignores_if_range
        if not (asked and owner.ranges and unchanged):
            self.answer(200, content, fields)
        elif start >= len(content):
            self.answer(416, b"", fields | {"Content-Range": f"bytes */{len(content)}"})
        else:
            fields["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], fields)

    def answer(self, status: int, body: bytes, fields: dict[str, str]) -> None:
        owner = self.server.owner
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        if owner.states_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = owner.cuts.pop(0) if owner.cuts else None
        self.wfile.write(body[:cut])
        self.wfile.flush()
        if cut is not None and owner.stalls:
            owner.released.wait(30)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: FileServer


class FileServer:
    """The server, in a thread of its own while the ``with`` block lasts.

    Attributes:
        ranges: whether it sends parts of a file.
        validator: 'etag', 'weak', 'date' or '' (it says nothing that tells two states of a file apart).
        ignores_if_range: it sends a part even of a file that changed.
        states_length: whether it says how long a file is.
        cuts: after how many bytes each of the next connections is cut.
        stalls: such a connection stays open and silent, until ``released``.
        silent: when set, no answer at all comes, until ``released``.
        status: the answer to everything, if not 200.
        requests: path and first byte of everything that was asked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges, self.validator, self.ignores_if_range, self.states_length = True, "etag", False, True
        self.cuts: list[int] = []
        self.stalls = False
        self.silent, self.released = threading.Event(), threading.Event()
        self.status = 200
        self.requests: list[tuple[str, int]] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def validators(self, path: Path, content: bytes) -> dict[str, str]:
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        if self.validator == "date":
            return {"Last-Modified": email.utils.formatdate(path.stat().st_mtime, usegmt=True)}
        return {"etag": {"ETag": etag}, "weak": {"ETag": f"W/{etag}"}, "": {}}[self.validator]

    def __enter__(self) -> FileServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
