"""Keep bundles in step with their sources: copies of protocol sections, the generated infer.json, checksums."""

from __future__ import annotations

import json
import re
from pathlib import Path

from monai.bundle import ConfigParser

from monai_kd.hub.checksums import CHECKSUMS, checksums_text, write_checksums

__all__ = ["infer_json", "shared_sections", "sync_bundles"]

_SECTION = re.compile(r"^# >>> section: (\S+)\n(.*?)^# <<< section$", re.MULTILINE | re.DOTALL)
_INFER_IDS = ("bundle_root", "device", "network_def")
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
    if missing := [key for key in _INFER_IDS if key not in config]:
        raise ValueError(f"'{bundle}/configs/inference.yaml' lacks {', '.join(missing)}, which infer.json holds")
    return json.dumps({key: config[key] for key in _INFER_IDS}, indent=2) + "\n"


def sync_bundles(bundles_dir: str | Path, check: bool = False) -> list[str]:
    """Bring every bundle's shared blocks, infer.json and checksums in line with their sources.

    Args:
        bundles_dir: folder with bundles, and ``_shared`` where they share blocks; or one bundle. Without ``_shared``
            beside them the blocks stay as they are.
        check: change nothing, only report.

    Returns:
        The files that differed (and, unless ``check``, were rewritten).

    Raises:
        FileNotFoundError: there is no bundle.
        ValueError: a block names a source or section that does not exist, inference.yaml lacks what infer.json holds,
            or weights are not those of their record.
    """
    folder = Path(bundles_dir)
    alone = (folder / "configs").is_dir()
    bundles = [folder] if alone else sorted(path.parent for path in folder.glob("[!_]*/configs"))
    if not bundles:
        raise FileNotFoundError(f"'{folder}' is no bundle and holds none (a folder with configs/)")
    shared = (folder.resolve().parent if alone else folder) / "_shared"
    sources = {path.stem: shared_sections(path) for path in sorted(shared.glob("*.yaml"))}
    wanted: dict[Path, str] = {}
    for bundle in bundles:
        if shared.is_dir():
            configs = sorted(bundle.glob("configs/**/*.yaml"))
            wanted.update({path: _with_sections(path, sources) for path in configs})
        if (bundle / "configs" / "inference.yaml").is_file():
            wanted[bundle / "configs" / "infer.json"] = infer_json(bundle)
    changed = []
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            changed.append(str(path))
            if not check:
                path.write_text(text, encoding="utf-8")
    return changed + [path for bundle in bundles for path in _sync_checksums(bundle, check)]


def _sync_checksums(bundle: Path, check: bool) -> list[str]:
    """List the sha256 of every file in ``models/`` anew where weights lie there; return the list if it differed."""
    path = bundle / CHECKSUMS
    if not (bundle / "models" / "model.pt").is_file():
        return []
    if path.is_file() and path.read_text(encoding="utf-8") == checksums_text(bundle):
        return []
    if not check:
        write_checksums(bundle)
    return [str(path)]


def _with_sections(path: Path, sources: dict[str, dict[str, str]]) -> str:
    """Return the file's text with every shared block replaced by its source."""

    def fresh(match: re.Match[str]) -> str:
        indent, source, section = match.group(1), match.group(2), match.group(3)
        if section not in sources.get(source, {}):
            known = [f"{name}/{part}" for name, parts in sources.items() for part in parts]
            raise ValueError(f"'{path}' copies '{source}/{section}'; known: {', '.join(known)}")
        return f"{indent}# >>> shared: {source}/{section}\n{sources[source][section]}{indent}# <<< shared"

    return _COPY.sub(fresh, path.read_text(encoding="utf-8"))
