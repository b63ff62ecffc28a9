"""A bundle as a repository of the Hugging Face Hub: model card with front matter, a tag for each version."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from monai.utils import optional_import

from monai_kd.hub.archive import METADATA, extract_bundle, newest_version, read_packed
from monai_kd.hub.pack import pack_bundle

__all__ = ["LATEST_TAG", "PushedBundle", "hugging_face_card", "lay_out_for_hugging_face", "push_to_hugging_face"]

LATEST_TAG = "latest_version"  # what `monai.bundle download` asks for when no version is given
_TAGS = ["monai", "monai_kd", "medical", "segmentation", "knowledge-distillation"]


@dataclass(frozen=True)
class PushedBundle:
    """What a push left on the Hub: repository, version tag, the commit it names, and whether it is the latest."""

    repo: str
    version: str
    commit: str
    latest: bool


def hugging_face_card(bundle: str | Path) -> str:
    """Return the text of the repository's README.md: front matter from the metadata, then the bundle's model card.

    The card moves from ``docs/`` to the root, so its relative links are rewritten.

    Raises:
        FileNotFoundError: ``configs/metadata.json`` or ``docs/README.md`` is missing.
        ValueError: the metadata lacks a version or a license.
    """
    metadata = _metadata(Path(bundle))
    path = Path(bundle) / "docs" / "README.md"
    if not path.is_file():
        raise FileNotFoundError(f"'{bundle}' has no docs/README.md, the model card that its repository shows")
    front_matter = {
        "license": metadata["license"].casefold(),
        "library_name": "monai",
        "pipeline_tag": "image-segmentation",
        "tags": _TAGS,
    }
    text = yaml.safe_dump(front_matter, sort_keys=False)
    return f"---\n{text}---\n\n{_links_from_root(path.read_text(encoding='utf-8'))}"


def lay_out_for_hugging_face(bundle: str | Path, out: str | Path) -> Path:
    """Write a bundle as the content of its Hugging Face repository: the files of its zip at the root, and README.md.

    Runs, earlier weights and hidden files stay behind, as in `pack_bundle`. The bundle itself is not changed.

    Args:
        bundle: the bundle's folder.
        out: a folder that does not exist yet.

    Raises:
        FileNotFoundError: metadata, model card or weights are missing.
        FileExistsError: ``out`` exists.
        ValueError: the metadata lacks a version or a license, or `pack_bundle` refuses the bundle.
    """
    target = Path(out)
    card = hugging_face_card(bundle)
    if target.exists():
        raise FileExistsError(f"'{target}' exists; give the name of a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        packed = read_packed(pack_bundle(bundle, temporary).path)
        staged = extract_bundle(packed, Path(temporary))
        (staged / "README.md").write_text(card, encoding="utf-8")
        os.replace(staged, target)
    return target


def push_to_hugging_face(
    bundle: str | Path, repo: str, private: bool = True, token: str | None = None, endpoint: str | None = None
) -> PushedBundle:
    """Upload a bundle to a repository of the Hugging Face Hub and tag it with its version.

    The repository holds exactly the bundle afterwards: files of earlier versions that are gone are deleted, and stay in
    their versions. The tag ``latest_version`` moves to the pushed version unless a higher one is tagged. A push that
    was interrupted is repeated safely; a version that is tagged with other content is refused.

    MONAI's ``push_to_hf_hub`` differs: it writes README.md into the bundle, uploads everything in the folder, and
    leaves tags where they are, so that downloads without a version go on getting the first one.

    Args:
        bundle: the bundle's folder.
        repo: ``owner/name``; made if it does not exist.
        private: of a repository that is made.
        token: of the Hub; None takes ``HF_TOKEN`` or the stored login.
        endpoint: address of the Hub; None takes ``HF_ENDPOINT`` or the public one.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError, ValueError: the bundle cannot be laid out, or the Hub refuses its front matter, or the
            version is there with other content; nothing was uploaded.
        RuntimeError: the Hub refused or could not be reached. Push again: what was done already is not repeated.
    """
    hub, available = optional_import("huggingface_hub")
    if not available:
        raise ImportError("pushing to the Hugging Face Hub needs huggingface_hub: pip install 'monai_kd[hub]'")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"repo is '{repo}'; it must be OWNER/NAME")
    version = _metadata(Path(bundle))["version"]
    api = hub.HfApi(endpoint=endpoint or os.environ.get("HF_ENDPOINT"), token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = lay_out_for_hugging_face(bundle, Path(temporary) / "repository")
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            commit = _commit_version(api, repo, version, folder)
            latest = _move_latest(api, repo, version)
        except ValueError:
            raise
        except Exception as error:  # the client raises errors of its own and of the HTTP library that it happens to use
            raise RuntimeError(f"the Hub did not take '{repo}' version {version}: {_first_line(error)}") from error
    return PushedBundle(repo, version, commit, latest)


def _commit_version(api: Any, repo: str, version: str, folder: Path) -> str:
    """Upload and tag, or find the version there with the same content; return the commit that the tag names."""
    tagged = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
    if version in tagged:
        differing = _differing_files(api, repo, version, folder)
        if differing:
            raise ValueError(
                f"'{repo}' already has version {version} with other content ({', '.join(differing[:3])}); "
                "raise `version` and `changelog` in configs/metadata.json"
            )
        return str(tagged[version])
    uploaded = api.upload_folder(
        repo_id=repo, folder_path=folder, delete_patterns="*", commit_message=f"version {version}"
    )
    api.create_tag(repo, tag=version, revision=uploaded.oid)
    return str(uploaded.oid)


def _move_latest(api: Any, repo: str, version: str) -> bool:
    """Let ``latest_version`` name this version if none is higher; return whether it does."""
    tagged = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
    if newest_version(name for name in tagged if re.fullmatch(r"\d+\.\d+\.\d+", name)) != version:
        return False
    if tagged.get(LATEST_TAG) != tagged[version]:
        if LATEST_TAG in tagged:  # the Hub cannot move a tag
            api.delete_tag(repo, tag=LATEST_TAG)
        api.create_tag(repo, tag=LATEST_TAG, revision=version)
    return True


def _differing_files(api: Any, repo: str, revision: str, folder: Path) -> list[str]:
    """Return the files that a revision and a folder do not share byte for byte."""
    there = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in api.list_repo_tree(repo, recursive=True, revision=revision)
        if hasattr(entry, "blob_id") and entry.path != ".gitattributes"
    }
    here = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return sorted(
        name for name in there.keys() | here.keys() if name not in here or there.get(name) not in _ids(here[name])
    )


def _ids(path: Path) -> set[str]:
    """Return what the Hub may call a file's content: its sha256, or its git id."""
    content = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return {hashlib.sha256(content).hexdigest(), git.hexdigest()}


def _metadata(bundle: Path) -> dict[str, Any]:
    path = bundle / METADATA
    if not path.is_file():
        raise FileNotFoundError(f"'{bundle}' has no {METADATA}; give the folder of a bundle")
    metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in ("version", "license"):
        if not isinstance(metadata.get(key), str):
            raise ValueError(f"'{path}' has {key} {metadata.get(key)!r}; a repository needs it as text")
    return metadata


def _links_from_root(card: str) -> str:
    """Rewrite the relative links of docs/README.md for the folder above it."""

    def moved(match: re.Match[str]) -> str:
        link = match[1]
        if re.match(r"[a-z]+:|#|/", link):
            return match[0]
        return f"]({os.path.normpath(os.path.join('docs', link))})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, card)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
