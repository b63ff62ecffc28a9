"""The command line: ``python -m monai_kd COMMAND``."""

from __future__ import annotations

import sys

import fire

from monai_kd.hub import make_teacher, sync_bundles


def sync(bundles_dir: str = "bundles", check: bool = False) -> None:
    """Bring the blocks that bundles share, and infer.json, in line with bundles/_shared and inference.yaml.

    Args:
        bundles_dir: the folder with ``_shared`` and the bundles.
        check: only report; exit code 1 if anything differs.
    """
    changed = sync_bundles(bundles_dir, check=check)
    for path in changed:
        print(f"{'differs' if check else 'rewritten'}: {path}")
    print(f"{len(changed)} files {'differ' if check else 'rewritten'}")
    if check and changed:
        sys.exit(1)


def tables(results_dir: str = "docs/results", check: bool = False) -> None:
    """Regenerate the result tables of README and model cards from the run records.

    Args:
        results_dir: folder whose ``**/run.json`` are the only source of numbers.
        check: only report; exit code 1 if a table is out of date.
    """
    from pathlib import Path

    from monai_kd.visualize.documents import write_tables

    files = [Path("README.md"), *sorted(Path("bundles").glob("[!_]*/docs/README.md"))]
    changed = write_tables(results_dir, files, check=check)
    for path in changed:
        print(f"{'out of date' if check else 'rewritten'}: {path}")
    print(f"{len(changed)} of {len(files)} files {'out of date' if check else 'rewritten'}")
    if check and changed:
        sys.exit(1)


def teacher(run_dir: str, bundle_root: str, out: str) -> None:
    """Turn a finished training run into a teacher folder for --teacher_root.

    Args:
        run_dir: folder with run.json and model.pt.
        bundle_root: the bundle that was trained.
        out: folder to write.
    """
    print(make_teacher(run_dir, bundle_root, out))


if __name__ == "__main__":
    fire.Fire({"sync": sync, "tables": tables, "teacher": teacher}, name="monai_kd")
