"""Where endpoints and the numbers about them come from, as a configuration says it."""

import re
from dataclasses import dataclass
from pathlib import Path

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
    """

    scheme: str = "http"
    path: str = "/metrics"
    port: int | None = None
    insecure: bool = True
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    interval: float | None = None


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
    """A file that names the endpoints; `watch` for one that is read again when it changes."""

    path: Path
    watch: bool = False


@dataclass(frozen=True, slots=True)
class Sources:
    """All of it; None for what the configuration doesn't say."""

    page: Page | None = None
    extraction: Extraction | None = None
    file: EndpointsFile | None = None


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
