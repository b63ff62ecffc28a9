"""Does a bundle hold what the model zoo and MONAI's consumers demand of one that is shared?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from monai_kd.hub import verify_configs, verify_files, verify_network
from monai_kd.hub.bundle_folder import BundleFolder, NotReadable
from monai_kd.hub.probe import quiet, reason

__all__ = ["Check", "verify_bundle"]


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: what, in words.
        passed: whether it holds.
        detail: what is wrong and what would be right; empty if it passed.
    """

    name: str
    passed: bool
    detail: str = ""


_Question = Callable[[BundleFolder], list[str]]
_QUESTIONS: dict[str, _Question] = {
    "files": verify_files.missing_files,
    "name": verify_files.name_problems,
    "version": verify_files.version_problems,
    "code": verify_files.code_files,
    "file sizes": verify_files.large_files,
    "personal paths": verify_files.personal_paths,
    "checksums": verify_files.checksum_problems,
    "checkpoints": verify_network.unsafe_checkpoints,
    "weights": verify_network.misfits,
    "yaml": verify_configs.yaml_problems,
    "network_def": verify_configs.network_differences,
    "infer.json": verify_configs.stale_infer_json,
    "stock inference": verify_configs.foreign_targets,
    "logging": verify_configs.logging_problems,
    "properties": verify_configs.missing_properties,
    "network input and output": verify_network.shape_problems,
    "export": verify_network.export_problems,
}


def verify_bundle(
    bundle: str | Path, index_file: str | Path | None = None, data_schema: str | Path | None = None
) -> list[Check]:
    """Check a bundle; every check is made, also when others fail.

    Evaluates the bundle's configurations, so verify bundles you trust. Its weights are read without running code.

    Args:
        bundle: the bundle's folder.
        index_file: the download index; the bundle's version may not stand in it with other bytes.
        data_schema: a local copy of a metadata schema; None checks ``metadata_schema.json`` of this package.

    Returns:
        One check each, in a fixed order.

    Raises:
        FileNotFoundError: no such bundle, index or schema.
    """
    folder = BundleFolder(bundle)
    for path in (index_file, data_schema):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"'{path}' does not exist")
    questions = {**_QUESTIONS, "metadata": verify_configs.against_schema(data_schema)}
    if index_file is not None:
        questions["index"] = verify_files.against_index(index_file)
    return [_answer(name, question, folder) for name, question in questions.items()]


def _answer(name: str, question: _Question, folder: BundleFolder) -> Check:
    try:
        with quiet():
            problems = question(folder)
    except NotReadable as error:
        problems = [f"not checked: {error}"]
    except ImportError:
        raise
    except Exception as error:  # a bundle's own code may raise anything; here that is the answer
        problems = [reason(error)]
    return Check(name, not problems, "; ".join(" ".join(problem.split()) for problem in problems))
