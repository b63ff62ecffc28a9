"""Folders of the Hugging Face cache: find the files of one revision."""

from __future__ import annotations

from pathlib import Path

__all__ = ["resolve_snapshot"]


def resolve_snapshot(root: Path) -> Path:
    """Return the snapshot folder of a ``models--owner--name`` cache folder; any other path as it is.

    Files in a snapshot are links to blobs without a suffix, so the folder is used as it stands and never resolved.

    Raises:
        FileNotFoundError: the folder holds no downloaded revision, or not the one of ``main``.
        ValueError: several revisions and none is ``main``.
    """
    if not root.name.startswith("models--") or not (root / "snapshots").is_dir():
        return root
    revisions = sorted(path.name for path in (root / "snapshots").iterdir() if path.is_dir())
    main = root / "refs" / "main"
    if main.is_file():
        revision = main.read_text(encoding="utf-8").strip()
        if revision in revisions:
            return root / "snapshots" / revision
        raise FileNotFoundError(
            f"'{root}' says that main is '{revision}', its snapshots are {', '.join(revisions) or 'none'}; download it "
            "again, or give the snapshot's own folder"
        )
    if len(revisions) == 1:
        return root / "snapshots" / revisions[0]
    if revisions:
        raise ValueError(
            f"'{root}' has the snapshots {', '.join(revisions)} and no refs/main; give one of these folders"
        )
    raise FileNotFoundError(f"'{root}' holds no snapshot; download the repository again")
