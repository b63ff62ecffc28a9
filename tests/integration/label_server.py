"""Start the real MONAI Label server on this machine, run the commands of its how-to page against it, and stop it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.consumer_venv import environment

__all__ = ["Page", "Server", "free_port", "running_server"]

HOST = "127.0.0.1"
_START_SECONDS = 300
_STOP_SECONDS = 15


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Page:
    """The shell commands of a how-to page, by the heading they stand under.

    Args:
        path: the page; each heading has at most one ``bash`` block.
        bin_folder: of the environment with MONAI Label; it comes first on PATH.
        folder: where the commands run.
    """

    def __init__(self, path: Path, bin_folder: Path, folder: Path) -> None:
        self.bin_folder = bin_folder
        self.folder = folder
        self.ran: set[str] = set()
        parts = re.split(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        self.commands: dict[str, str] = {}
        for heading, text in zip(parts[1::2], parts[2::2], strict=True):
            blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
            assert len(blocks) <= 1, f"'{heading}' has {len(blocks)} shell blocks; give each a heading of its own"
            if blocks:
                self.commands[heading] = blocks[0]

    def run(self, heading: str, **variables: str) -> str:
        """Run the block below a heading with some shell variables set; returns what it prints."""
        lines = [f"{name}='{value}'" for name, value in variables.items()]
        script = "\n".join(["set -euo pipefail", *lines, self._block(heading)])
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=environment(self.bin_folder),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def json(self, heading: str, **variables: str) -> Any:
        """Like :meth:`run`, for a block whose last line of output is JSON."""
        return json.loads(self.run(heading, **variables).strip().splitlines()[-1])

    def server_command(self, heading: str, port: int) -> str:
        """Return the block that starts the server, on another port than the page's."""
        block = self._block(heading)
        assert len(re.findall(r"--port 8000\b", block)) == 1, block
        return block.replace("--port 8000", f"--port {port}")

    def _block(self, heading: str) -> str:
        assert heading in self.commands, f"no shell block under '{heading}'; known: {sorted(self.commands)}"
        self.ran.add(heading)
        return self.commands[heading]


@dataclass(frozen=True)
class Server:
    """A running server: its address, what it logs, and its process group."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def request(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> Any:
        """Send JSON and return the JSON that comes back; an HTTP error is raised."""
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def finished_training(self, timeout: float) -> dict[str, Any]:
        """Wait until the newest training has ended; returns its status and the tail of its log."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            task = self.request("GET", "/train/?all=false")
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
            time.sleep(1)
        raise TimeoutError(f"the training did not end within {timeout:.0f} s; last lines:\n{self.tail()}")

    def tail(self, characters: int = 4000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]


@contextmanager
def running_server(command: str, port: int, bin_folder: Path, folder: Path) -> Iterator[Server]:
    """Run a shell command that starts a server; it and all its children are gone when the block is left.

    Raises:
        RuntimeError: the port is in use, or the server ended before it answered.
        TimeoutError: it did not answer in time.
    """
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise RuntimeError(f"port {port} of {HOST} is in use; choose another")
    log = folder / f"server-{port}.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            env=environment(bin_folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the whole group can be ended by its id
        )
    server = Server(f"http://{HOST}:{port}", log, process)
    try:
        _wait_until_it_answers(server)
        yield server
    finally:
        _end_group(process)


def _wait_until_it_answers(server: Server) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {server.process.returncode}:\n{server.tail()}")
        try:
            server.request("GET", "/info/")
            return
        except OSError:  # not listening yet, or an error inside
            time.sleep(0.5)
    raise TimeoutError(f"the server did not answer within {_START_SECONDS} s:\n{server.tail()}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the process group to end, and kill what is left of it."""
    for number, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _STOP_SECONDS)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        end = time.monotonic() + seconds
        while time.monotonic() < end and _alive(process):
            time.sleep(0.1)
    process.wait()


def _alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the leader, which would keep its group alive
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
