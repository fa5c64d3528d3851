"""Reading one YAML file: YAML 1.2 scalars, no duplicate keys, errors with file and line.

PyYAML resolves scalars by YAML 1.1, where ``no`` is false, ``1e9`` is text and ``12:30`` is 750.
Only its parser is used here; scalars follow the core schema of YAML 1.2.2 (section 10.3.2).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from foretile.hwmodels.problems import ChipError

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is optional in PyYAML builds

_INT = re.compile(r"[-+]?[0-9]+")
_OCT_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_PLAIN, _TEXT = "plain", "text"
_MAX_DEPTH = 32  # deeper than any chip file; also ends anchors that contain themselves


class _Composer(_BASE):  # type: ignore[misc]  # one of two parsers, whichever PyYAML was built with
    """The parser with scalar resolution left to `_scalar`: a node only says plain or quoted."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _TEXT
        return "map" if kind is yaml.MappingNode else "seq"


def _scalar(text: str) -> Any:
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _OCT_HEX.fullmatch(text):
        return int(text, 0)
    return text


def _fail(name: str, node: yaml.Node, message: str) -> ChipError:
    return ChipError(f"{name}: line {node.start_mark.line + 1}: {message}")


def _build(name: str, node: yaml.Node, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise _fail(name, node, f"nested deeper than {_MAX_DEPTH} levels")
    if isinstance(node, yaml.ScalarNode):
        if node.tag == _PLAIN:
            return _scalar(node.value)
        if node.tag in (_TEXT, "tag:yaml.org,2002:str"):
            return node.value
    elif isinstance(node, yaml.SequenceNode) and node.tag == "seq":
        return [_build(name, item, depth + 1) for item in node.value]
    elif isinstance(node, yaml.MappingNode) and node.tag == "map":
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _fail(name, key_node, "a key must be text")
            key = key_node.value
            if key in mapping:
                raise _fail(name, key_node, f"duplicate key '{key}'")
            mapping[key] = _build(name, value_node, depth + 1)
        return mapping
    raise _fail(name, node, f"tag {node.tag} is not allowed in a chip file")


def parse_yaml(text: str, name: str) -> Any:
    """The value of one YAML document.

    Raises:
        ChipError: broken YAML, duplicate keys, a tag other than ``!!str``; names ``name`` and the line.
    """
    try:
        composer = _Composer(text)
        try:
            node = composer.get_single_node()
        finally:
            composer.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ChipError(f"{name}: {line}broken YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise ChipError(f"{name}: broken YAML: {' '.join(str(error).split())}") from None
    return None if node is None else _build(name, node)


def read_mapping(path: Path) -> dict[str, Any]:
    """The top-level mapping of a YAML file.

    Raises:
        ChipError: the file is missing, unreadable, not UTF-8, not YAML or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ChipError(f"{path.name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except FileNotFoundError:
        raise ChipError(f"{path}: no such file") from None
    except OSError as error:
        raise ChipError(f"{path}: {error.strerror or error}") from None
    data = parse_yaml(text, path.name)
    if not isinstance(data, dict):
        found = "an empty file" if data is None else f"a {type(data).__name__}"
        raise ChipError(f"{path.name}: {found} is not a chip; expected a mapping that begins with 'id:'")
    return data
