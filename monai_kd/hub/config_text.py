"""Write changed values into the text of a YAML configuration, and leave its comments and its order alone."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["rewrite", "without_markers"]

_MARKERS = ("# >>> shared:", "# <<< shared")


def without_markers(text: str) -> str:
    """Drop the lines that mark blocks as copies of a shared source: a changed block is no copy any more."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.strip().startswith(_MARKERS))


def rewrite(text: str, wanted: dict[str, Any]) -> str:
    """Return the text of a configuration with exactly the wanted content.

    Changed values are written in place, new keys at the end of their mapping. Where the text cannot be edited so (keys
    are removed, say, inside a mapping written in one line), the content is written anew, without comments.

    Args:
        text: YAML, a mapping.
        wanted: the content, plain JSON types.
    """
    edited = without_markers(text)
    try:
        root = yaml.compose(edited)
        if isinstance(root, yaml.MappingNode):
            edits: list[tuple[int, int, str]] = []
            _compare(edited, root, _plain(edited), wanted, edits)
            for start, end, replacement in sorted(edits, reverse=True):
                edited = edited[:start] + replacement + edited[end:]
            if _plain(edited) == wanted:
                return edited
    except yaml.YAMLError:
        pass
    header = "".join(line for line in text.splitlines(keepends=True)[: _header_length(text)])
    return header + yaml.safe_dump(wanted, sort_keys=False, width=10_000, allow_unicode=True)


def _header_length(text: str) -> int:
    lines = text.splitlines()
    return next((number for number, line in enumerate(lines) if not line.startswith("# ")), len(lines))


def _plain(text: str) -> Any:
    return yaml.safe_load(text)  # as MONAI reads it: 1e-3 is a text


def _compare(text: str, node: yaml.Node, now: Any, wanted: Any, edits: list[tuple[int, int, str]]) -> None:
    """Collect ``(start, end, replacement)`` for what differs below a node."""
    if now == wanted and type(now) is type(wanted):
        return
    if isinstance(node, yaml.MappingNode) and isinstance(wanted, dict):
        _compare_mappings(text, node, now, wanted, edits)
    elif isinstance(node, yaml.SequenceNode) and isinstance(wanted, list) and len(wanted) == len(now):
        for child, before, after in zip(node.value, now, wanted, strict=True):
            _compare(text, child, before, after, edits)
    elif isinstance(node, yaml.SequenceNode) and _only_appended(node, now, wanted):
        end, indent = _line_end(text, _content_end(node)), " " * node.start_mark.column
        edits.append((end, end, "".join(f"{indent}- {_flow(item)}\n" for item in wanted[len(now) :])))
    else:
        edits.append(_replacement(text, node, wanted))


def _only_appended(node: yaml.SequenceNode, now: list[Any], wanted: Any) -> bool:
    return not node.flow_style and bool(now) and isinstance(wanted, list) and wanted[: len(now)] == now


def _compare_mappings(
    text: str, node: yaml.MappingNode, now: dict[str, Any], wanted: dict[str, Any], edits: list[tuple[int, int, str]]
) -> None:
    children = {key.value: (key, value) for key, value in node.value}
    added = [key for key in wanted if key not in now]
    removed = [key for key in now if key not in wanted]
    if node.flow_style and (added or removed):
        edits.append(_replacement(text, node, wanted))
        return
    for key in removed:
        edits.append(_whole_lines(text, *children[key]))
    for key, (_, value) in children.items():
        if key in wanted:
            _compare(text, value, now[key], wanted[key], edits)
    if added:
        last_key, last_value = node.value[-1]
        end = _line_end(text, _content_end(last_value) if last_value.value else last_key.end_mark.index)
        indent = " " * node.value[0][0].start_mark.column
        edits.append((end, end, "".join(f"{indent}{key}: {_flow(wanted[key])}\n" for key in added)))


def _replacement(text: str, node: yaml.Node, wanted: Any) -> tuple[int, int, str]:
    start, end = node.start_mark.index, _content_end(node)
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        start = len(text[:start].rstrip())  # a block begins on the line after its key
        return start, end, f" {_flow(wanted)}"
    return start, end, _flow(wanted)


def _content_end(node: yaml.Node) -> int:
    """Return where a node's last character is; a block's own end mark lies behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _content_end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _whole_lines(text: str, key: yaml.Node, value: yaml.Node) -> tuple[int, int, str]:
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    return start, _line_end(text, _content_end(value)), ""


def _line_end(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end + 1


def _flow(value: Any) -> str:
    """Write a value on one line, as JSON-like YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()
