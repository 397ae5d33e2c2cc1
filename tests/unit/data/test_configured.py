"""What the command line and the configuration say about scraping, together."""

from pathlib import Path

import pytest

from epp.cli.flags import parse
from epp.data.client import ScrapeOptions
from epp.data.configured import page_reader, scrape_options
from epp.data.engines import ENGINES
from epp.errors import ConfigError
from epp.keys import (
    ACTIVE_LORAS,
    CACHE_BLOCK_SIZE,
    CACHE_BLOCKS,
    KV_USAGE,
    MAX_LORAS,
    RUNNING,
    WAITING,
    WAITING_LORAS,
    attribute,
)
from epp.options import ServeOptions
from epp.sources import ENGINES as NAMES
from epp.sources import EngineMetrics, Extraction, Page


def flags(*arguments: str) -> ServeOptions:
    return parse(["--endpoints=10.0.0.1:8000", *arguments], {})


PAGE = Page("https", "/m", 9000, False, Path("ca"), Path("crt"), Path("key"), 0.2)


@pytest.mark.parametrize(
    ("arguments", "page", "expected"),
    [
        pytest.param([], None, ScrapeOptions(), id="defaults"),
        pytest.param(
            [],
            PAGE,
            ScrapeOptions(
                interval=0.2,
                scheme="https",
                path="/m",
                port=9000,
                insecure=False,
                ca=Path("ca"),
                certificate=Path("crt"),
                key=Path("key"),
            ),
            id="configured",
        ),
        pytest.param(
            [
                "--model-server-metrics-scheme=http",
                "--model-server-metrics-path=/flag",
                "--model-server-metrics-port=1",
                "--model-server-metrics-https-insecure-skip-verify=true",
            ],
            PAGE,
            ScrapeOptions(
                interval=0.2,
                path="/flag",
                port=1,
                insecure=True,
                ca=Path("ca"),
                certificate=Path("crt"),
                key=Path("key"),
            ),
            id="flags win",
        ),
        pytest.param(
            ["--refresh-metrics-interval=1s"],
            Page(),
            ScrapeOptions(interval=1.0),
            id="the flag's interval is everyone's",
        ),
        pytest.param(
            ["--refresh-metrics-interval=1s"], PAGE, scrape_options(flags(), PAGE), id="the source's own interval"
        ),
    ],
)
def test_scrape_options(arguments: list[str], page: Page | None, expected: ScrapeOptions) -> None:
    """A flag that is given wins over the configuration, but for the interval, which is the source's own."""
    assert scrape_options(flags(*arguments), page) == expected


VLLM_PAGE = (
    b'q{a="b"} 1\nq{a="c"} 2\nvllm:num_requests_waiting 9\nvllm:num_requests_running 3\nkv{e="0"} 0.5\nkv 0.25\n'
    b'cache{block_size="8",num_gpu_blocks="7",size="4",count="5"} 1\nage 12\nblock 2\nblocks 3\n'
    b'adapters{max_lora="1",running_lora_adapters="x",waiting_lora_adapters=""} 1\n'
)
LORAS = {ACTIVE_LORAS: 1, WAITING_LORAS: 0, MAX_LORAS: 1}


@pytest.mark.parametrize(
    ("arguments", "engine", "values"),
    [
        pytest.param([], EngineMetrics("vllm"), {WAITING: 9, RUNNING: 3}, id="nothing"),
        pytest.param([], EngineMetrics("vllm", waiting="q{a=b}"), {WAITING: 1, RUNNING: 3}, id="one, the rest stays"),
        pytest.param(
            [],
            EngineMetrics("vllm", running="q", kv_usage="kv", lora="adapters", cache_info="cache"),
            {WAITING: 9, RUNNING: 3, KV_USAGE: 0.5, CACHE_BLOCK_SIZE: 8, CACHE_BLOCKS: 7} | LORAS,
            id="all",
        ),
        pytest.param(
            [],
            EngineMetrics("vllm", cache_info="cache", block_size_label="size", blocks_label="count"),
            {WAITING: 9, RUNNING: 3, CACHE_BLOCK_SIZE: 4, CACHE_BLOCKS: 5},
            id="labels",
        ),
        pytest.param(
            [],
            EngineMetrics("vllm", block_size="block", blocks="blocks", custom=(("batch_age", "age"),)),
            {WAITING: 9, RUNNING: 3, CACHE_BLOCK_SIZE: 2, CACHE_BLOCKS: 3, attribute("batch_age", "mine"): 12},
            id="gauges, custom",
        ),
        pytest.param(
            ["--total-queued-requests-metric=q{a=c}"],
            EngineMetrics("vllm", waiting="q{a=b}", running="kv"),
            {WAITING: 2, RUNNING: 0.75},
            id="a flag wins",
        ),
        pytest.param(
            ["--lora-info-metric=adapters", "--cache-info-metric=cache", "--kv-cache-usage-percentage-metric=kv"],
            EngineMetrics("other", waiting="other"),
            {WAITING: 9, RUNNING: 3, KV_USAGE: 0.5, CACHE_BLOCK_SIZE: 8, CACHE_BLOCKS: 7} | LORAS,
            id="flags alone",
        ),
    ],
)
def test_page_reader(arguments: list[str], engine: EngineMetrics, values: dict) -> None:
    """What is given takes the place of what is known, metric by metric."""
    report = page_reader(flags(*arguments), Extraction("mine", (engine,))).read(VLLM_PAGE, {})
    assert (report.engine, report.values) == ("vllm", values)


def test_engines() -> None:
    """An engine of one's own, its label, and the default."""
    extraction = Extraction("e", (EngineMetrics("mine", waiting="q{a=b}"),), default="mine", labels=("engine",))
    reader = page_reader(flags(), extraction)
    assert reader.read(VLLM_PAGE, {}).values == {WAITING: 1}
    assert reader.read(VLLM_PAGE, {"engine": "vllm"}).values == {WAITING: 9, RUNNING: 3}
    assert reader.read(VLLM_PAGE, {"llm-d.ai/engine-type": "vllm"}).engine == "mine"
    assert reader.read(VLLM_PAGE, {"engine": "unknown"}).engine == "mine"


def test_without_configuration() -> None:
    """The known engines, with their labels."""
    reader = page_reader(flags(), None)
    assert reader.read(b"sglang:num_queue_reqs 4\n", {"llm-d.ai/engine-type": "sglang"}).engine == "sglang"


def test_flags_that_are_no_metric() -> None:
    """A flag is checked when it is used."""
    with pytest.raises(ConfigError, match="metric '1st': write name"):
        page_reader(flags("--total-queued-requests-metric=1st"), None)


def test_names_of_engines() -> None:
    """The names that configurations may refer to are those of the engines."""
    assert tuple(engine.name for engine in ENGINES) == NAMES
