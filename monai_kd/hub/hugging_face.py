"""Download a Hugging Face repository and compare every file with the hub's own hash."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.utils import optional_import

from monai_kd.hub.archive import check_member_names, file_hash, newest_version

__all__ = ["download_snapshot"]

_IGNORED = [".git*"]  # the hub's own; a bundle has no hidden files


def download_snapshot(repository: str, revision: str | None, folder: Path, name: str) -> Path:
    """Download a repository to ``folder/.NAME-COMMIT.part/NAME`` and check it; a later call goes on there.

    Args:
        repository: OWNER/REPO. The endpoint is HF_ENDPOINT, the access token HF_TOKEN, if set.
        revision: tag, branch or commit; None takes the tag ``latest_version``, else the newest version tag, else main.
        folder: where the bundle will go.
        name: the bundle's name.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: the hub cannot be reached, or has no such repository or revision.
        ValueError: a file has another hash than the hub states, or a name that leads outside its folder.
    """
    hub, found = optional_import("huggingface_hub")
    if not found:
        raise ImportError("hf: needs huggingface_hub; run pip install 'monai_kd[hub]'")
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    where = f"hf:{repository}"
    with _one_line(f"{where} at {api.endpoint}"):
        commit = str(api.model_info(repository, revision=revision or _newest(api, repository)).sha)
        tree = api.list_repo_tree(repository, revision=commit, recursive=True)
        files = [entry for entry in tree if hasattr(entry, "blob_id") and not entry.path.startswith(".git")]
    check_member_names([file.path for file in files], where)
    draft = folder / f".{name}-{commit[:12]}.part"
    bundle = draft / name
    with _one_line(f"{where} at {api.endpoint}"):
        api.snapshot_download(repository, revision=commit, local_dir=bundle, ignore_patterns=_IGNORED)
    try:
        _check_files(bundle, files, where)
    except ValueError:
        shutil.rmtree(draft)
        raise
    shutil.rmtree(bundle / ".cache", ignore_errors=True)
    print(f"{where}: revision {commit}, {len(files)} files with the hub's hashes")
    return bundle


def _newest(api: Any, repository: str) -> str:
    refs = api.list_repo_refs(repository)
    tags = [tag.name for tag in refs.tags]
    if "latest_version" in tags:
        return "latest_version"
    versions = [tag for tag in tags if re.fullmatch(r"\d+(\.\d+)*", tag)]
    return newest_version(versions) if versions else "main"


def _check_files(bundle: Path, files: list[Any], where: str) -> None:
    """Compare each file with the sha256 of its large-file entry, or with its git hash."""
    for file in files:
        path = bundle / file.path
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"{where}: '{file.path}' did not arrive as a file")
        if file.lfs:
            found, expected = file_hash(path, "sha256"), file.lfs.sha256
        else:
            found, expected = _git_hash(path), file.blob_id
        if found != expected:
            raise ValueError(f"{where}: '{file.path}' has the hash {found}, the hub states {expected}")


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Turn the library's errors, which come from several families, into an OSError of one line."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{where}: {text}") from error
