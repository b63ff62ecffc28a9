"""Which id of a configuration fails first, and why: MONAI's own error names every id on the way to it."""

from __future__ import annotations

import difflib
from typing import Any

from monai.bundle import ConfigItem, ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties

from monai_kd.hub.bundle_folder import BundleFolder, NotReadable
from monai_kd.hub.probe import has_id, opened_workflow, quiet, reason

__all__ = ["defining_file", "evaluated", "failing_ids", "waits_for_a_file"]

_RUN_LISTS = ("initialize", "run", "finalize")


def evaluated(bundle: BundleFolder, names: tuple[str, ...]) -> dict[str, str]:
    """Evaluate a combination of a bundle's files on made-up cases; return each failing id and its reason.

    Args:
        bundle: the bundle.
        names: files in its configs folder, later ones win; for one process.
    """
    try:
        with quiet(), opened_workflow(bundle, names) as flow:
            kind = "infer" if flow.workflow_type in ("infer", "inference") else "train"
            return failing_ids(flow.parser, kind)
    except NotReadable as error:
        return {"": f"not evaluated: {error}"}
    except Exception as error:  # an overlay that sets what its base lacks
        return {"": reason(error)}


def waits_for_a_file(text: str) -> bool:
    """Tell whether an id fails for want of a file that an export or a run writes, or of an optional package."""
    return "not exist" in text or "No module named" in text


def failing_ids(parser: ConfigParser, kind: str) -> dict[str, str]:
    """Evaluate what MONAI's properties and the run lists need, item by item; return each failing id and its reason.

    What depends on a failing id is not evaluated, so only first causes are returned. The run lists themselves are not
    executed; the ids that they refer to are.

    Args:
        parser: of the merged configuration, data replaced by made-up cases.
        kind: ``train`` or ``infer``.
    """
    try:
        parser.parse(reset=True)
    except Exception as error:  # a macro that leads nowhere, say
        return {"": reason(error)}
    walk = _Walk(parser)
    properties: dict[str, Any] = InferProperties if kind == "infer" else TrainProperties
    for entry in properties.values():
        if entry["id"] not in _RUN_LISTS and has_id(parser, entry["id"]):
            walk.visit(entry["id"])
    for name in _RUN_LISTS:
        for config_id in [key for key in walk.items if key.startswith(f"{name}::")]:  # the list itself needs its items
            walk.visit_references(config_id)
    return walk.failed


class _Walk:
    """Resolve items after the items they refer to, and keep the first causes."""

    def __init__(self, parser: ConfigParser) -> None:
        self.resolver = parser.ref_resolver
        self.items: dict[str, ConfigItem] = dict(self.resolver.items)
        # MONAI puts resolved objects into an item in place of its references, so these are read first
        self.references = {
            key: list(self.resolver.find_refs_in_config(config=item.get_config(), id=key))
            for key, item in self.items.items()
        }
        self.failed: dict[str, str] = {}
        self.done: dict[str, bool] = {}

    def visit(self, config_id: str) -> bool:
        """Resolve an item; tell whether it and all it needs are fine."""
        if config_id in self.done:
            return self.done[config_id]
        self.done[config_id] = True  # a circle ends here; resolving it names it
        self.done[config_id] = self.visit_references(config_id) and self._resolve(config_id)
        return self.done[config_id]

    def visit_references(self, config_id: str) -> bool:
        fine = True
        for other in self.references[config_id]:
            if other in self.items:
                fine = self.visit(other) and fine
            else:
                near = difflib.get_close_matches(other, self.items, n=1)
                hint = f"; did you mean '@{near[0]}'?" if near else ""
                self.failed[config_id] = f"refers to '@{other}', which is not defined{hint}"
                fine = False
        return fine

    def _resolve(self, config_id: str) -> bool:
        try:
            self.resolver.get_resolved_content(config_id)
        except Exception as error:  # of any component or expression
            text = reason(error)
            self.failed[config_id] = text + (self._plain_mappings(config_id) if "'dict'" in text else "")
            return False
        return True

    def _plain_mappings(self, config_id: str) -> str:
        contents = {name: self.resolver.resolved_content.get(name) for name in self.references[config_id]}
        plain = [name for name, content in contents.items() if isinstance(content, dict)]
        return f"; '{plain[0]}' is a plain mapping: it has no _target_" if plain else ""


def defining_file(bundle: BundleFolder, names: tuple[str, ...], config_id: str) -> str:
    """Return the file that sets an id: the last that has it or one of its parents, e.g. ``configs/train.yaml``."""
    for name in reversed(names):
        keys = [str(key).lstrip("+").replace("#", "::") for key in bundle.read(bundle.root / "configs" / name)]
        if any(config_id == key or config_id.startswith(f"{key}::") for key in keys):
            return f"configs/{name}"
    return f"configs/{names[0]}"
