"""YAML documents, read and written without touching a scalar: only comments, anchors' names and layout are lost.

Nothing is interpreted. `8000`, `"8000"`, `yes`, `1:30` and `2024-01-01` come out as they went in, quotes included,
whatever this or another YAML version takes them for.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Self

import yaml

from epp.errors import ConfigError

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_MERGE = "tag:yaml.org,2002:merge"
_STR = "tag:yaml.org,2002:str"
_SEQ = "tag:yaml.org,2002:seq"
_MAP = "tag:yaml.org,2002:map"


class Scalar(str):
    """A scalar's text, with how it was written.

    Attributes:
        line: in the file, from 1; 0 for one that no file has.
        style: None for plain, else one of `'`, `"`, `|`, `>`.
        tag: in full, as YAML resolves it.
    """

    __slots__ = ("line", "style", "tag")

    line: int
    style: str | None
    tag: str

    def __new__(cls, text: str, line: int = 0, style: str | None = None, tag: str = _STR) -> Self:
        """Plain text of no file, unless told otherwise."""
        made = super().__new__(cls, text)
        made.line, made.style, made.tag = line, style, tag
        return made

    @property
    def null(self) -> bool:
        """Whether it stands for an absent value."""
        return self.style is None and self in _NULLS


class Mapping(dict[str, Any]):
    """A mapping in its order; its keys are `Scalar` where a file has them."""

    def __init__(self, items: Iterable[tuple[str, Any]] = (), line: int = 0) -> None:
        super().__init__(items)
        self.line = line


class Sequence(list[Any]):
    """A sequence."""

    def __init__(self, items: Iterable[Any] = (), line: int = 0) -> None:
        super().__init__(items)
        self.line = line


def text(value: str) -> Scalar:
    """A scalar of ours that is text, quoted where it could be taken for something else."""
    return Scalar(value)


def number(value: int) -> Scalar:
    """A scalar of ours that is a number."""
    return Scalar(str(value), tag="tag:yaml.org,2002:int")


def read(source: str, file: str) -> list[Mapping]:
    """The documents of a file; empty ones are left out.

    Args:
        source: YAML or JSON, any number of documents.
        file: for messages.

    Raises:
        ConfigError: it is no YAML, a key stands twice, or a document is no mapping.
    """
    try:
        nodes = list(yaml.compose_all(source, yaml.SafeLoader))
        return list(_documents(nodes, file))
    except yaml.YAMLError as error:
        raise ConfigError(_syntax(error, file, source)) from None
    except RecursionError:
        raise ConfigError(f"{file}: nested too deep") from None


def write(documents: Iterable[Mapping]) -> str:
    """The documents as YAML, each with a line of dashes before it; "" for none."""
    nodes = [_node(document, {}) for document in documents]
    endless = 1 << 30  # or long lines are folded
    return yaml.serialize_all(nodes, Dumper=yaml.SafeDumper, explicit_start=True, allow_unicode=True, width=endless)


def _syntax(error: yaml.YAMLError, file: str, source: str) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{file}:{mark.line + 1}" if mark else file
    problem = getattr(error, "problem", None) or str(error)
    remedy = "; render the template first (helm template, kubectl kustomize)" if "{{" in source else ""
    return f"{place}: not YAML: {problem}{remedy}"


def _documents(nodes: list[Any], file: str) -> Iterator[Mapping]:
    for node in nodes:
        value = _Reader(file).value(node)
        if isinstance(value, Mapping):
            yield value
        elif not (isinstance(value, Scalar) and value.null):
            raise ConfigError(f"{file}:{value.line}: a Kubernetes object is a mapping with apiVersion and kind")


class _Reader:
    """Makes values of one document's nodes; what is referred to by an alias stays one value."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._made: dict[yaml.Node, Any] = {}

    def value(self, node: yaml.Node) -> Any:
        if node not in self._made:
            self._made[node] = None
            self._made[node] = self._make(node)
        elif self._made[node] is None:
            raise ConfigError(f"{self._place(node)}: refers to itself")
        return self._made[node]

    def _make(self, node: yaml.Node) -> Mapping | Sequence | Scalar:
        line = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return Mapping(self._pairs(node), line)
        if isinstance(node, yaml.ScalarNode):
            return Scalar(node.value, line, node.style, node.tag)
        return Sequence((self.value(item) for item in node.value), line)

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[str, Any]]:
        """What a mapping has, what is merged into it first, so that its own keys count."""
        seen: dict[str, yaml.Node] = {}
        own: list[tuple[str, Any]] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                yield from self._merged(value)
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{self._place(key)}: a key is text")
            if key.value in seen:
                first = seen[key.value].start_mark.line + 1
                raise ConfigError(f"{self._place(key)}: {key.value!r} stands twice, first in line {first}; keep one")
            seen[key.value] = key
            own.append((self.value(key), self.value(value)))
        yield from own

    def _merged(self, node: yaml.Node) -> Iterator[tuple[str, Any]]:
        several = isinstance(node, yaml.SequenceNode)
        for part in reversed(node.value) if several else [node]:  # of several the first counts
            value = self.value(part)
            if not isinstance(value, Mapping):
                raise ConfigError(f"{self._place(part)}: only a mapping can be merged with <<")
            yield from value.items()

    def _place(self, node: yaml.Node) -> str:
        return f"{self._file}:{node.start_mark.line + 1}"


def _node(value: Any, made: dict[int, yaml.Node]) -> yaml.Node:
    """The node of a value; a collection that is met again is the same node, which is written as an alias."""
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, Mapping):
        pairs = [(_node(key, {}), _node(item, made)) for key, item in value.items()]
        made[id(value)] = yaml.MappingNode(_MAP, pairs, flow_style=not pairs)
    elif isinstance(value, Sequence):
        items = [_node(item, made) for item in value]
        made[id(value)] = yaml.SequenceNode(_SEQ, items, flow_style=not items)
    else:
        scalar = value if isinstance(value, Scalar) else Scalar(value)
        return yaml.ScalarNode(scalar.tag, str(scalar), style=scalar.style)
    return made[id(value)]
