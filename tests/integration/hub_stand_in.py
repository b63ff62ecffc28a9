"""A stand-in for the Hugging Face Hub: the part of its HTTP interface that ``huggingface_hub`` uses, on loopback.

Repositories live in memory. Weights go through Git LFS and are served from another address, as on the Hub.

    with HubStandIn() as hub:
        os.environ |= hub.environment
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

__all__ = ["HubStandIn", "Repository"]

LFS_SUFFIXES = (".pt", ".ts", ".onnx", ".zip")
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "other"}


@dataclass
class Repository:
    """Commits are complete listings, path to content; a ref is a name for a commit."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        content = repr((len(self.commits), sorted(files), [blob_id(files[name]) for name in sorted(files)]))
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid] = files
        self.branches["main"] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        named = self.branches.get(revision) or self.tags.get(revision)
        return named or (revision if revision in self.commits else None)


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Refused(Exception):
    """An error reply: status, the Hub's error code, message."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code, self.message = status, code, message or code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    routes: tuple[tuple[str, str, str], ...] = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/models/([^/]+/[^/]+)/refs", "refs"),
        ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", "tree"),
        ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
        ("POST", r"/api/models/([^/]+/[^/]+)/tag/([^/]+)", "tag"),
        ("DELETE", r"/api/models/([^/]+/[^/]+)/tag/([^/]+)", "untag"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/([0-9a-f]{64})", "lfs_put"),
        ("POST", r"/lfs/verify", "lfs_verify"),
        ("GET", r"/cdn/([0-9a-f]{64})", "cdn"),
        ("HEAD", r"/cdn/([0-9a-f]{64})", "cdn"),
        ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "file"),
        ("HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "file"),
    )

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_request(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with hub.lock:
            hub.requests.append((self.command, path))
            for method, pattern, name in self.routes:
                if method == self.command and (match := re.fullmatch(pattern, path)):
                    try:
                        getattr(self, name)(*match.groups())
                    except Refused as error:
                        self.reply({"error": error.message}, error.status, {"X-Error-Code": error.code})
                    return
            self.reply({"error": f"the stand-in does not know {self.command} {path}"}, 501)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_request

    def reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        sent = {"Content-Length": str(len(data)), **(headers or {})}
        if not isinstance(content, bytes):
            sent["Content-Type"] = "application/json"
        self.send_response(status)
        for key, value in sent.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ---- rights and look-up

    @property
    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.hub.token}"

    def repository(self, repo: str, write: bool = False) -> Repository:
        found = self.server.hub.repositories.get(repo)
        if found is None or (found.private and not self.authorized):
            raise Refused(401 if not self.authorized else 404, "RepoNotFound", "Repository not found")
        if write and not self.authorized:
            raise Refused(403, "", "You have no write access to this repository")
        return found

    def files(self, repo: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        found = self.repository(repo)
        oid = found.resolve(revision or "main")
        if oid is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, found.commits[oid]

    # ---- repositories and refs

    def create(self) -> None:
        asked = json.loads(self.body)
        if not self.authorized:
            raise Refused(401, "", "Invalid username or password.")
        repo = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.hub.url}/{repo}"
        if repo in self.server.hub.repositories:
            self.reply({"error": "You already created this model repo", "url": url}, 409)
            return
        made = self.server.hub.repositories[repo] = Repository(private=asked.get("visibility") == "private")
        made.commit({".gitattributes": "".join(f"*{name} filter=lfs\n" for name in LFS_SUFFIXES).encode()})
        self.reply({"url": url, "name": repo, "id": repo})

    def validate(self) -> None:
        match = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            card = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError as error:
            self.reply({"errors": [{"message": str(error)}]}, 400)
            return
        if card.get("license", "other") not in LICENSES:
            self.reply({"errors": [{"message": f'"license" must be one of {sorted(LICENSES)}'}]}, 400)
            return
        self.reply({"errors": [], "warnings": [] if card else [{"message": "empty or missing yaml metadata"}]})

    def refs(self, repo: str) -> None:
        found = self.repository(repo)
        listed = {
            kind: [{"name": key, "ref": f"refs/{at}/{key}", "targetCommit": oid} for key, oid in names.items()]
            for kind, at, names in (("branches", "heads", found.branches), ("tags", "tags", found.tags))
        }
        self.reply({**listed, "converts": []})

    def tag(self, repo: str, revision: str) -> None:
        found, name = self.repository(repo, write=True), json.loads(self.body)["tag"]
        oid, _ = self.files(repo, revision)
        if name in found.tags:
            raise Refused(409, "", f"Tag {name} already exists")
        found.tags[name] = oid
        self.reply({})

    def untag(self, repo: str, name: str) -> None:
        if self.repository(repo, write=True).tags.pop(name, None) is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {name}")
        self.reply({})

    def info(self, repo: str, revision: str | None = None) -> None:
        oid, files = self.files(repo, revision)
        private = self.server.hub.repositories[repo].private
        siblings = [{"rfilename": name} for name in files]
        self.reply({"id": repo, "modelId": repo, "sha": oid, "private": private, "siblings": siblings, "tags": []})

    def tree(self, repo: str, revision: str) -> None:
        _, files = self.files(repo, revision)
        listed = []
        for name, content in sorted(files.items()):
            entry = {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
            if name.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            listed.append(entry)
        self.reply(listed)

    # ---- upload

    def preupload(self, repo: str, revision: str) -> None:
        self.repository(repo, write=True)
        _, present = self.files(repo, revision)
        answers = []
        for asked in json.loads(self.body)["files"]:
            name = asked["path"]
            mode = "lfs" if name.endswith(LFS_SUFFIXES) else "regular"
            known = present.get(name)
            oid = None if known is None else sha256(known) if mode == "lfs" else blob_id(known)
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": answers})

    def lfs_batch(self, repo: str) -> None:
        self.repository(repo, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry = dict(asked)
            if asked["oid"] not in self.server.hub.large_files:
                url = self.server.hub.url
                entry["actions"] = {
                    "upload": {"href": f"{url}/lfs/{asked['oid']}"},
                    "verify": {"href": f"{url}/lfs/verify"},
                }
            objects.append(entry)
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if sha256(self.body) != oid:
            raise Refused(400, "", "the content has another sha256 than its name")
        self.server.hub.large_files[oid] = self.body
        self.reply({})

    def lfs_verify(self) -> None:
        asked = json.loads(self.body)
        if len(self.server.hub.large_files.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "", "the object is not there")
        self.reply({})

    def commit(self, repo: str, revision: str) -> None:
        found = self.repository(repo, write=True)
        files = dict(self.files(repo, revision)[1])
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.hub.large_files[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            elif key != "header":
                raise Refused(501, "", f"the stand-in does not know the operation {key}")
        oid = found.commit(files)
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.server.hub.url}/{repo}/commit/{oid}"})

    # ---- download

    def file(self, repo: str, revision: str, name: str) -> None:
        oid, files = self.files(repo, revision)
        if name not in files:
            raise Refused(404, "EntryNotFound", f"Entry not found: {name}")
        content, headers = files[name], {"X-Repo-Commit": oid}
        if name.endswith(LFS_SUFFIXES):
            digest = sha256(content)
            self.server.hub.large_files.setdefault(digest, content)
            headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            self.reply(b"", 302, {**headers, "Location": f"{self.server.hub.cdn_url}/{digest}"})
            return
        self.send_content(content, {**headers, "ETag": f'"{blob_id(content)}"'})

    def cdn(self, digest: str) -> None:
        if "Authorization" in self.headers:
            raise Refused(400, "", "a token was sent to the storage, which is another host")
        self.send_content(self.server.hub.large_files[digest], {"ETag": f'"{digest}"'})

    def send_content(self, content: bytes, headers: dict[str, str]) -> None:
        content = self.server.hub.on_download(content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None:
            self.reply(content, 200, {**headers, "Accept-Ranges": "bytes"})
            return
        start = int(asked[1])
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.reply(content[start:], 206, {**headers, **span})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubStandIn


class HubStandIn:
    """The server, in a thread of its own while the ``with`` block lasts.

    Attributes:
        url: its address, the value of ``HF_ENDPOINT``.
        token: the one token that may write and see private repositories.
        repositories: ``owner/name`` to Repository; tests may read and put in what they like.
        requests: (method, path) of everything that was asked.
        on_download: changes the content of every file that is sent; for tests of damaged downloads.
    """

    def __init__(self) -> None:
        self.token = "hf_standin"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.on_download: Callable[[bytes], bytes] = lambda content: content
        self.lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        # another origin: the client takes what it needs from the redirect itself, and sends no token along
        self.cdn_url = f"http://localhost:{self._server.server_address[1]}/cdn"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use the stand-in as the Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def add(self, repo: str, files: dict[str, bytes], tags: tuple[str, ...] = (), private: bool = False) -> str:
        """Put a commit into a repository without the client, and return its id."""
        found = self.repositories.setdefault(repo, Repository(private))
        oid = found.commit(dict(files))
        found.tags |= dict.fromkeys(tags, oid)
        return oid

    def __enter__(self) -> HubStandIn:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
