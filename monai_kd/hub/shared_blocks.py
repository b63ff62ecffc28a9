"""Keep bundles in step with their sources: copies of protocol sections, the generated infer.json, checksums."""

from __future__ import annotations

import json
import re
from pathlib import Path

from monai.bundle import ConfigParser

from monai_kd.hub.checksums import CHECKSUMS, checksums_text, write_checksums

__all__ = ["infer_json", "shared_sections", "sync_bundles"]

_SECTION = re.compile(r"^# >>> section: (\S+)\n(.*?)^# <<< section$", re.MULTILINE | re.DOTALL)
_COPY = re.compile(r"^( *)# >>> shared: (\S+)/(\S+)\n(.*?)^ *# <<< shared$", re.MULTILINE | re.DOTALL)


def shared_sections(source: str | Path) -> dict[str, str]:
    """Return the sections of a file in ``bundles/_shared`` by name."""
    sections = dict(_SECTION.findall(Path(source).read_text(encoding="utf-8")))
    if not sections:
        raise ValueError(f"'{source}' holds no '# >>> section: NAME' ... '# <<< section'")
    return sections


def infer_json(bundle: str | Path) -> str:
    """Return the text of ``configs/infer.json``, what ``monai.bundle.load`` needs, from inference.yaml."""
    config = ConfigParser.load_config_file(str(Path(bundle) / "configs" / "inference.yaml"))
    return json.dumps({key: config[key] for key in ("bundle_root", "device", "network_def")}, indent=2) + "\n"


def sync_bundles(bundles_dir: str | Path, check: bool = False) -> list[str]:
    """Bring every bundle's shared blocks, infer.json and checksums in line with their sources.

    Args:
        bundles_dir: folder with ``_shared`` and the bundles.
        check: change nothing, only report.

    Returns:
        The files that differed (and, unless ``check``, were rewritten).

    Raises:
        ValueError: a block names a source or section that does not exist, or weights are not those of their record.
    """
    folder = Path(bundles_dir)
    sources = {path.stem: shared_sections(path) for path in sorted((folder / "_shared").glob("*.yaml"))}
    wanted = {path: _with_sections(path, sources) for path in sorted(folder.glob("[!_]*/configs/*.yaml"))}
    wanted.update({path.with_name("infer.json"): infer_json(path.parent.parent) for path in _inference_files(folder)})
    changed = []
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            changed.append(str(path))
            if not check:
                path.write_text(text, encoding="utf-8")
    return changed + _sync_checksums(folder, check)


def _sync_checksums(folder: Path, check: bool) -> list[str]:
    """List the sha256 of every file in ``models/`` anew where weights lie there; return the lists that differed."""
    changed = []
    for weights in sorted(folder.glob("[!_]*/models/model.pt")):
        bundle = weights.parent.parent
        path = bundle / CHECKSUMS
        if not path.is_file() or path.read_text(encoding="utf-8") != checksums_text(bundle):
            changed.append(str(path))
            if not check:
                write_checksums(bundle)
    return changed


def _inference_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!_]*/configs/inference.yaml"))


def _with_sections(path: Path, sources: dict[str, dict[str, str]]) -> str:
    """Return the file's text with every shared block replaced by its source."""

    def fresh(match: re.Match[str]) -> str:
        indent, source, section = match.group(1), match.group(2), match.group(3)
        if section not in sources.get(source, {}):
            known = [f"{name}/{part}" for name, parts in sources.items() for part in parts]
            raise ValueError(f"'{path}' copies '{source}/{section}'; known: {', '.join(known)}")
        return f"{indent}# >>> shared: {source}/{section}\n{sources[source][section]}{indent}# <<< shared"

    return _COPY.sub(fresh, path.read_text(encoding="utf-8"))
