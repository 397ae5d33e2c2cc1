"""YAML as Kubernetes reads it: one document, no key twice, no timestamps, and the line of every place.

It differs from PyYAML's safe loader in what Go's decoder does: "1e3" is a number, "2024-01-01" and "1:30" are strings,
a null is an absent key.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from epp.errors import ConfigError
from epp.settings.problems import InvalidConfig, Path, Problem

_ENDLESS = "refers to itself, or is nested too deep"
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|0|[1-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


class _Loader(yaml.SafeLoader):
    """The safe loader with Go's scalars and JSON's keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own spelling)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in {"bool", "null", "merge"}]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:  # type: ignore[override]
        """Keys are text, whatever they look like."""
        self.flatten_mapping(node)
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError("while reading a mapping", node.start_mark, "a key is text", key.start_mark)
        return {key.value: self.construct_object(value, deep) for key, value in node.value}


for _tag, _pattern in (("int", _INT), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(rf"(?:{_pattern.pattern})$"), list("-+.0123456789"))


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A configuration's text, read.

    Attributes:
        origin: the file, or what else the text came from.
        value: mappings, lists and scalars; keys whose value is null are left out.
        root: the same as YAML nodes, which know their lines.
        twice: the keys that stand twice in one mapping, with a message; `value` has the last of them.
    """

    origin: str
    value: dict[str, Any]
    root: yaml.Node
    twice: tuple[tuple[Path, str], ...] = ()

    def line(self, path: Path) -> int | None:
        """The line of a place, or of the closest thing around it that is there; None for the empty path."""
        node, line = self.root, None
        for step in path:
            found = [child for key, child in _children(node) if key == step]
            if not found:
                break
            node, line = found[-1][1], found[-1][0].start_mark.line + 1
        return line


def read_file(file: FilePath) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: can't be read: no text in UTF-8, by its byte {error.start}") from error


def read(text: str, origin: str) -> Document:
    """Reads the text.

    Raises:
        InvalidConfig: it is not one YAML mapping, or refers to itself.
    """
    try:
        root = yaml.compose(text, _Loader)
        value = yaml.load(text, _Loader)  # noqa: S506 (a subclass of the safe loader)
    except yaml.YAMLError as error:
        raise InvalidConfig(origin, [_syntax(error)]) from None
    except RecursionError:
        raise InvalidConfig(origin, [Problem("", _ENDLESS)]) from None
    if root is None or not isinstance(value, dict):
        raise InvalidConfig(origin, [Problem("", "must be a mapping with apiVersion and kind")])
    try:
        return Document(origin, _without_nulls(value), root, tuple(_twice(root, ())))
    except RecursionError:
        raise InvalidConfig(origin, [Problem("", _ENDLESS)]) from None


def _syntax(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    message = " ".join(str(part) for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    return Problem("", f"not YAML: {message or error}", mark.line + 1 if mark else None)


def _children(node: yaml.Node) -> Iterator[tuple[str | int, tuple[yaml.Node, yaml.Node]]]:
    """Each child with its step, and the node to point at: a mapping's key, a list's element."""
    if isinstance(node, yaml.MappingNode):
        yield from ((str(key.value), (key, value)) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from ((index, (value, value)) for index, value in enumerate(node.value))


def _twice(node: yaml.Node, path: Path) -> Iterator[tuple[Path, str]]:
    seen: dict[str | int, int] = {}
    for step, (key, value) in _children(node):
        if step in seen and step != "<<":
            yield (*path, step), f"stands twice, first in line {seen[step]}"
        seen.setdefault(step, key.start_mark.line + 1)
        yield from _twice(value, (*path, step))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
