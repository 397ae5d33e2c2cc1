"""Where endpoints and the numbers about them come from, as a configuration says it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ENGINES = ("vllm", "sglang", "trtllm-serve", "triton-tensorrt-llm", "triton")
"""The engines whose metrics are known without being configured."""

ENGINE_LABELS = ("llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type")
"""The labels of an endpoint that name its engine; the first that is there counts."""

_NAME = re.compile(r"\s*([A-Za-z_:][\w:]*)\s*(?:\{(.*)\}\s*)?", re.DOTALL)
_MATCHER = re.compile(r'\s*([A-Za-z_]\w*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^"=,{}]*?))\s*(?:,|$)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """The metrics page of every endpoint; see `epp.data.client.ScrapeOptions`.

    Attributes:
        interval: seconds between two scrapes of one endpoint; None for the command line's.
        at_node: whether a polled page is asked for at the address of the endpoint's node, where one is known.
    """

    scheme: str = "http"
    path: str = "/metrics"
    port: int | None = None
    insecure: bool = True
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    interval: float | None = None
    at_node: bool = False


@dataclass(frozen=True, slots=True)
class PageReader:
    """What an extractor makes of a polled page: columns of an endpoint, by key."""

    name: str
    type: str
    columns: Callable[[Any, bytes], Mapping[Any, float]]


@dataclass(frozen=True, slots=True)
class Poll:
    """A page of every endpoint that is fetched beside the metrics.

    Attributes:
        name, type: of the plugin that says so.
        page: the page.
        readers: the extractors that read it.
    """

    name: str
    type: str
    page: Page
    readers: tuple[PageReader, ...] = ()


Notice = Literal["added", "changed", "deleted"]


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """A kind of object in Kubernetes; the core's group is ""."""

    group: str
    version: str
    kind: str

    def __str__(self) -> str:
        return f"{self.kind}.{self.version}.{self.group}".rstrip(".")


@dataclass(frozen=True, slots=True)
class ObjectReader:
    """An extractor that hears of objects: what has become of one, and the object as Kubernetes has it."""

    name: str
    type: str
    notified: Callable[[Notice, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class ObjectWatch:
    """Objects of a kind that are followed.

    Attributes:
        name, type: of the plugin that says so.
        kind: which.
        readers: the extractors that hear of them.
    """

    name: str
    type: str
    kind: ObjectKind
    readers: tuple[ObjectReader, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """The metrics of one kind of engine, as selectors (see `parse_selector`); "" where there is none.

    One of `ENGINES`' names stands for that engine's, with what is given here in their place.

    Attributes:
        cache_info: the info metric about the cache; its labels are `block_size_label` and `blocks_label`.
        block_size, blocks: the same as gauges.
        custom: names of the operator's choice with their selectors.
    """

    name: str
    waiting: str = ""
    running: str = ""
    kv_usage: str = ""
    lora: str = ""
    cache_info: str = ""
    block_size_label: str = "block_size"
    blocks_label: str = "num_gpu_blocks"
    block_size: str = ""
    blocks: str = ""
    custom: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Extraction:
    """How pages are read.

    Attributes:
        name: of the plugin that says so.
        engines: besides `ENGINES`, or in place of those of the same name.
        default: the engine of endpoints whose labels name none, or an unknown one.
        labels: of an endpoint, that name its engine.
    """

    name: str
    engines: tuple[EngineMetrics, ...] = ()
    default: str = "vllm"
    labels: tuple[str, ...] = ENGINE_LABELS


@dataclass(frozen=True, slots=True)
class EndpointsFile:
    """A file that names the endpoints.

    Attributes:
        watch: whether it is read again when it changes.
        clusters: whether the entries are gateways of clusters, whose labels may say where their metrics are.
    """

    path: Path
    watch: bool = False
    clusters: bool = False


@dataclass(frozen=True, slots=True)
class Sources:
    """All of it; None for what the configuration doesn't say.

    Attributes:
        scraped: whether the endpoints' metrics are scraped at all.
        models: the page on which engines say what they serve.
        read_models: what each says of its models, by the model's name, out of that page.
        polls: the pages that are fetched beside these; a change of them is taken over at once.
        watches: the kinds of object in Kubernetes that are followed; a change of them is taken over at once.
        wiring: the names of all sources that are in force, each with those of its extractors.
    """

    page: Page | None = None
    extraction: Extraction | None = None
    file: EndpointsFile | None = None
    scraped: bool = True
    models: Page | None = None
    read_models: Callable[[bytes], Mapping[str, Any]] | None = field(default=None, compare=False)
    polls: tuple[Poll, ...] = field(default=(), compare=False)
    watches: tuple[ObjectWatch, ...] = field(default=(), compare=False)
    wiring: tuple[tuple[str, tuple[str, ...]], ...] = field(default=(), compare=False)


def parse_selector(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The metric's name and the values of its labels, from `name` or `name{label=value,...}`, values quoted or not.

    Raises:
        ValueError: the text is neither.
    """
    whole = _NAME.fullmatch(text)
    if whole is None:
        raise ValueError(f"metric {text!r}: write name or name{{label=value,...}}")
    return whole[1], _matchers(text, whole[2] or "")


def _matchers(text: str, block: str) -> tuple[tuple[str, str], ...]:
    found, position = [], 0
    while block[position:].strip():
        matcher = _MATCHER.match(block, position)
        if matcher is None:
            raise ValueError(f"metric {text!r}: {block[position:].strip()!r} is not label=value")
        quoted = matcher[2]
        found.append((matcher[1], matcher[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)))
        position = matcher.end()
    return tuple(found)
