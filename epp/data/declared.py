"""Endpoints as an operator writes them down: `--endpoints`, and the endpoints file.

    endpoints:
      - name: llama-0
        address: 10.0.0.1          # IPv4, IPv6 or a host name; one endpoint for each address of a name
        port: 8000                 # or ports: [8000, 8001], which makes llama-0-rank-0 and llama-0-rank-1
        labels: {llm-d.ai/role: decode}
        namespace: default         # the default
        metricsPort: 9100          # the default is the port itself

The file is YAML or JSON. Documents of Kubernetes' kinds in it are read by `epp.data.objects`, those of other kinds are
left out. What can't be used is a `ConfigError` that names the place and the remedy.
"""

import difflib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from epp.data.objects import PoolSpec, read_objects
from epp.errors import ConfigError
from epp.objects import Objects

_FIELDS = ("name", "namespace", "address", "port", "ports", "labels", "metricsPort")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_HOST = re.compile(r"(?=.*[A-Za-z])(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?\.?)+")
_STATIC = re.compile(r"(?:([^=\[\]:]*)=)?(?:\[([^\[\]]*)\]|([^:\[\]]*)):(\d+)")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it is there, reads ten times faster


@dataclass(frozen=True, slots=True)
class Declared:
    """One entry.

    Attributes:
        name: as given; "" for one that is called after its address.
        host: an IP address, IPv6 without brackets, or a host name.
        ports: one endpoint each.
        ranked: whether the endpoints' names end in `-rank-<i>`.
        metrics_port: None for the port itself.
        place: where it is written, for messages.
    """

    name: str
    host: str
    ports: tuple[int, ...]
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    metrics_port: int | None = None
    ranked: bool = False
    place: str = ""

    @property
    def is_address(self) -> bool:
        """Whether the host is an IP address, and not a name to be resolved."""
        return _as_address(self.host) is not None


def parse_static(text: str | Sequence[str]) -> tuple[Declared, ...]:
    """Reads `--endpoints`: `host:port` or `name=host:port`, IPv6 in brackets, separated by commas.

    Raises:
        ConfigError: an entry is not of that form, or one is there twice.
    """
    items = text.split(",") if isinstance(text, str) else [item for part in text for item in part.split(",")]
    declared = tuple(_static(item.strip()) for item in items if item.strip())
    check_unique(declared)
    return declared


def _static(item: str) -> Declared:
    match = _STATIC.fullmatch(item)
    if match is None:
        raise ConfigError(f"--endpoints: {item!r} is not host:port, [IPv6]:port or name=host:port")
    place = f"--endpoints: {item!r}"
    name = "" if match[1] is None else _name(match[1].strip(), place)
    host = _host(match[2] if match[3] is None else match[3], place)
    return Declared(name, host, (_port(match[4], place),), place=place)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file says.

    Attributes:
        declared: the endpoints that its InferencePool selects; all of them if it has none.
        objects: the objectives and model rewrites.
        warnings: what of it has no effect.
    """

    declared: tuple[Declared, ...]
    objects: Objects
    warnings: tuple[str, ...] = ()


def parse_file(data: bytes, file: str, pool_name: str = "") -> Contents:
    """Reads a file's content.

    Args:
        data: the content.
        file: what messages call it.
        pool_name: of the pool that this picker is for; "" if it has no name.

    Raises:
        ConfigError: it can't be read, has neither `endpoints` nor objects, or an entry can't be used.
    """
    documents = [document for document in _documents(data, file) if document is not None]
    placed = [(_document_place(file, number, documents), each) for number, each in enumerate(documents, 1)]
    objects, pool, warnings = read_objects(placed, pool_name, file)
    ours = [document for document in documents if not _of_another_kind(document)]
    if not ours and objects == Objects() and pool is None:
        raise ConfigError(f"{file}: there is no `endpoints:` in it (an empty pool is `endpoints: []`)")
    declared = tuple(entry for document in ours for entry in _entries(document, file, pool))
    check_unique(declared)
    selected = _selected(declared, pool)
    if declared and not selected and pool is not None:
        wanted = ", ".join(f"{label}={value}" for label, value in pool.labels.items())
        told = (
            f"{file}: none of the {len(declared)} endpoints has the labels that the InferencePool's selector asks for"
        )
        warnings += (f"{told} ({wanted}): the pool is empty",)
    return Contents(selected, objects, warnings)


def _document_place(file: str, number: int, documents: Sequence[Any]) -> str:
    return file if len(documents) == 1 else f"{file}: document {number}"


def _selected(declared: tuple[Declared, ...], pool: PoolSpec | None) -> tuple[Declared, ...]:
    if pool is None or not pool.labels:
        return declared
    return tuple(entry for entry in declared if pool.labels.items() <= entry.labels.items())


def check_unique(declared: Iterable[Declared]) -> None:
    """Refuses two entries of one name, or of one address and port.

    Raises:
        ConfigError: names both places.
    """
    seen: dict[tuple[str, ...], str] = {}
    for entry in declared:
        keys = [("address", f"{entry.host}:{port}") for port in entry.ports]
        names = [f"{entry.name}-rank-{rank}" for rank in range(len(entry.ports))] if entry.ranked else [entry.name]
        named = [("name", entry.namespace, name) for name in names if name]
        for key in (*keys, *named):
            if key in seen:
                raise ConfigError(f"{entry.place}: its {key[0]} {key[-1]} is also that of {seen[key]}; remove one")
            seen[key] = entry.place


def _documents(data: bytes, file: str) -> list[Any]:
    try:
        text = data.decode()
        if text.lstrip().startswith(("{", "[")):
            return [json.loads(text)]
        return list(yaml.load_all(text, _LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise ConfigError(f"{file}:{where} not YAML: {error.problem}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: neither YAML nor JSON: {error}") from error


def _of_another_kind(document: Any) -> bool:
    return isinstance(document, dict) and "kind" in document and "endpoints" not in document


def _entries(document: Any, file: str, pool: PoolSpec | None) -> Iterable[Declared]:
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: expected `endpoints:` with a list, found {_kind_of(document)}")
    _known(document, ("endpoints", "kind", "apiVersion", "metadata"), file)
    entries = document.get("endpoints")
    if not isinstance(entries, list):
        raise ConfigError(f"{file}: endpoints: expected a list, found {_kind_of(entries)}; write [] for an empty pool")
    for index, entry in enumerate(entries):
        yield _entry(entry, f"{file}: endpoints[{index}]", pool.ports if pool else ())


def _entry(entry: Any, place: str, usual_ports: tuple[int, ...]) -> Declared:
    if not isinstance(entry, dict):
        raise ConfigError(f"{place}: expected name, address and port, found {_kind_of(entry)}")
    _known(entry, _FIELDS, place)
    for required in ("name", "address"):
        if required not in entry:
            raise ConfigError(f"{place}: {required} is missing")
    ranked = "port" not in entry
    ports = usual_ports if ranked and usual_ports and "ports" not in entry else _ports(entry, place)
    metrics_port = _port(entry["metricsPort"], f"{place}.metricsPort") if "metricsPort" in entry else None
    if metrics_port is not None and len(ports) > 1:
        raise ConfigError(f"{place}.metricsPort: each port must have metrics of its own; write an entry for each port")
    return Declared(
        name=_name(entry["name"], f"{place}.name"),
        host=_host(entry["address"], f"{place}.address"),
        ports=ports,
        namespace=_name(entry.get("namespace", "default"), f"{place}.namespace"),
        labels=_labels(entry.get("labels") or {}, f"{place}.labels"),
        metrics_port=metrics_port,
        ranked=ranked,
        place=place,
    )


def _ports(entry: Mapping[str, Any], place: str) -> tuple[int, ...]:
    if ("port" in entry) == ("ports" in entry):
        raise ConfigError(f"{place}: write either port, or ports with a list")
    if "port" in entry:
        return (_port(entry["port"], f"{place}.port"),)
    ports = entry["ports"]
    if not isinstance(ports, list) or not ports:
        raise ConfigError(f"{place}.ports: expected a list of at least one port, found {_kind_of(ports)}")
    return tuple(_port(port, f"{place}.ports[{index}]") for index, port in enumerate(ports))


def _port(value: Any, place: str) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isascii() or not text.isdecimal() or not 1 <= int(text[:6]) <= 65535:
        raise ConfigError(f"{place}: {value!r} is not a port between 1 and 65535")
    return int(text)


def _name(value: Any, place: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigError(f"{place}: {value!r} is not a name (letters, digits, and . _ - between them; quote numbers)")
    return value


def _host(value: Any, place: str) -> str:
    text = value.strip() if isinstance(value, str) else ""
    address = _as_address(text.removeprefix("[").removesuffix("]"))
    if address is not None:
        return address
    if len(text) > 253 or not _HOST.fullmatch(text):
        raise ConfigError(f"{place}: {value!r} is neither an IP address nor a host name")
    return text.rstrip(".").lower()


def _as_address(text: str) -> str | None:
    try:
        return ipaddress.ip_address(text).compressed
    except ValueError:
        return None


def _labels(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected label: value, found {_kind_of(value)}")
    for label, text in value.items():
        if not isinstance(label, str) or not isinstance(text, str):
            raise ConfigError(f"{place}: {label}: {text!r} is not text; put it in quotes")
    return dict(value)


def _known(mapping: Mapping[Any, Any], allowed: Sequence[str], place: str) -> None:
    for name in mapping:
        if name not in allowed:
            near = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
            raise ConfigError(f"{place}: unknown field {name!r}; {hint}")


def _kind_of(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)
