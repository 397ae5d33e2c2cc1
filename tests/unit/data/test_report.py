import math
from collections.abc import Callable, Mapping

import pytest

from epp.data.engines import ENGINES, VLLM, EngineSpec, Selector, gauge, info
from epp.data.report import Reader, restarted
from epp.errors import ConfigError
from epp.formats.exposition import Exposition, ExpositionError
from epp.keys import (
    ACTIVE_LORAS,
    CACHE_BLOCK_SIZE,
    CACHE_BLOCKS,
    FIRST_TOKEN_SECONDS,
    FIRST_TOKENS,
    KV_USAGE,
    MAX_LORAS,
    RUNNING,
    TOKEN_GAP_SECONDS,
    TOKEN_GAPS,
    WAITING,
    WAITING_LORAS,
    Key,
    attribute,
)

SGLANG = {"llm-d.ai/engine-type": "sglang"}
TRTLLM = {"llm-d.ai/engine-type": "trtllm-serve"}
TRITON = {"llm-d.ai/engine-type": "triton"}
TRITON_LLM = {"llm-d.ai/engine-type": "triton-tensorrt-llm"}

VLLM_PAGE = """\
vllm:num_requests_waiting{engine="0"} 3
vllm:num_requests_running{engine="0"} 7
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1
"""
SGLANG_PAGE = """\
sglang:num_queue_reqs{model_name="m"} 3
sglang:num_running_reqs{model_name="m"} 7
sglang:token_usage{model_name="m"} 0.25
sglang:cache_config_info{page_size="64",num_pages="500"} 1
"""
TRTLLM_PAGE = """\
trtllm_num_requests_waiting 3
trtllm_num_requests_running 7
trtllm_kv_cache_utilization 0.25
trtllm_kv_cache_tokens_per_block 32
trtllm_kv_cache_max_blocks 101
"""
TRITON_LLM_PAGE = """\
nv_trt_llm_request_metrics{model="m",request_type="waiting",version="1"} 3
nv_trt_llm_request_metrics{model="m",request_type="scheduled",version="1"} 7
nv_trt_llm_request_metrics{model="m",request_type="max",version="1"} 512
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="m"} 0.25
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="m"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="m"} 90
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="m"} 22
nv_inference_pending_request_count{model="ensemble",version="1"} 11
"""
TRITON_PAGE = """\
nv_inference_pending_request_count{model="a",version="1"} 1
nv_inference_pending_request_count{model="b",version="1"} 2
nv_inference_exec_count{model="a",version="1"} 9000
"""


def full(block_size: float, blocks: float) -> dict[Key, float]:
    return {WAITING: 3, RUNNING: 7, KV_USAGE: 0.25, CACHE_BLOCK_SIZE: block_size, CACHE_BLOCKS: blocks}


VALUES: dict[str, tuple[str, Mapping[str, str], str, dict[Key, float]]] = {
    "vllm": (VLLM_PAGE, {}, "vllm", full(16, 1000)),
    "vllm, old name of the KV usage": (VLLM_PAGE.replace("kv_cache", "gpu_cache"), {}, "vllm", full(16, 1000)),
    "vllm, both names": (VLLM_PAGE + "vllm:gpu_cache_usage_perc 0.9\n", {}, "vllm", full(16, 1000)),
    "sglang": (SGLANG_PAGE, SGLANG, "sglang", full(64, 500)),
    "sglang by the legacy label": (
        SGLANG_PAGE,
        {"inference.networking.k8s.io/engine-type": "sglang"},
        "sglang",
        full(64, 500),
    ),
    "sglang, cache as gauges": (
        SGLANG_PAGE.replace('cache_config_info{page_size="64",num_pages="500"} 1', "page_size 64\nsglang:num_pages 5"),
        SGLANG,
        "sglang",
        full(64, 5),
    ),
    "trtllm-serve": (TRTLLM_PAGE, TRTLLM, "trtllm-serve", full(32, 101)),
    "triton-tensorrt-llm": (TRITON_LLM_PAGE, TRITON_LLM, "triton-tensorrt-llm", full(64, 90)),
    "triton: executions since the start are no running requests": (TRITON_PAGE, TRITON, "triton", {WAITING: 3}),
    "no label, but a page of sglang": (SGLANG_PAGE, {}, "sglang", full(64, 500)),
    "no label, and Triton with TensorRT-LLM": (TRITON_LLM_PAGE, {}, "triton-tensorrt-llm", full(64, 90)),
    "the wrong label": (VLLM_PAGE, SGLANG, "vllm", full(16, 1000)),
    "the label decides between two": (TRITON_LLM_PAGE, TRITON, "triton", {WAITING: 11}),
    "an unknown label": (VLLM_PAGE, {"llm-d.ai/engine-type": "llama.cpp"}, "vllm", full(16, 1000)),
    "nobody's page": ("up 1\nprocess_start_time_seconds 5\n", {}, "", {}),
}


@pytest.mark.parametrize(("page", "labels", "engine", "values"), VALUES.values(), ids=VALUES.keys())
def test_values(page: str, labels: Mapping[str, str], engine: str, values: dict[Key, float]) -> None:
    """Each engine's names become the pool's columns."""
    report = Reader().read(page.encode(), labels)
    assert (report.engine, report.values) == (engine, values)


PARTS: dict[str, tuple[str, Key, float]] = {
    "queues of data-parallel ranks are added": (
        'vllm:num_requests_waiting{engine="0"} 1\nvllm:num_requests_waiting{engine="1"} 4\n',
        WAITING,
        5.0,
    ),
    "running requests of two models are added": (
        'vllm:num_requests_running{model_name="a"} 1\nvllm:num_requests_running{model_name="b"} 4\n',
        RUNNING,
        5.0,
    ),
    "the fullest cache counts, wherever it stands": (
        'vllm:kv_cache_usage_perc{engine="0"} 0.75\nvllm:kv_cache_usage_perc{engine="1"} 0.5\n',
        KV_USAGE,
        0.75,
    ),
    "blocks of the ranks are added": (
        (
            'vllm:cache_config_info{engine="0",num_gpu_blocks="10"} 1\n'
            'vllm:cache_config_info{engine="1",num_gpu_blocks="20"} 1\n'
        ),
        CACHE_BLOCKS,
        30.0,
    ),
    "a rank without blocks is passed over": (
        (
            'vllm:cache_config_info{engine="0",num_gpu_blocks="None"} 1\n'
            'vllm:cache_config_info{engine="1",num_gpu_blocks="20"} 1\n'
        ),
        CACHE_BLOCKS,
        20.0,
    ),
    "block size is not added": (
        'vllm:cache_config_info{block_size="16",engine="0"} 1\nvllm:cache_config_info{block_size="16",engine="1"} 1\n',
        CACHE_BLOCK_SIZE,
        16.0,
    ),
    "shards of one replica are not added": (
        (
            'sglang:num_queue_reqs{dp_rank="0",tp_rank="0"} 4\nsglang:num_queue_reqs{dp_rank="0",tp_rank="1"} 3\n'
            'sglang:num_queue_reqs{dp_rank="1",tp_rank="0"} 2\n'
        ),
        WAITING,
        6.0,
    ),
    "an unknown part makes the sum unknown": (
        'vllm:num_requests_waiting{engine="0"} NaN\nvllm:num_requests_waiting{engine="1"} 4\n',
        WAITING,
        math.nan,
    ),
    "an unknown part makes the highest unknown": (
        'vllm:kv_cache_usage_perc{engine="0"} 0.1\nvllm:kv_cache_usage_perc{engine="1"} NaN\n',
        KV_USAGE,
        math.nan,
    ),
    "infinity is no number of requests": ("vllm:num_requests_waiting +Inf\n", WAITING, math.nan),
}


@pytest.mark.parametrize(("page", "key", "value"), PARTS.values(), ids=PARTS.keys())
def test_several_series(page: str, key: Key, value: float) -> None:
    """Several series of one metric are parts of one engine, never one of them alone."""
    assert Reader().read(page.encode(), {}).values[key] == pytest.approx(value, nan_ok=True)


def test_no_blocks_known() -> None:
    """A label that is no number leaves the column out, so that the pool keeps what it knows."""
    report = Reader().read(b'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1\n', {})
    assert report.values == {CACHE_BLOCK_SIZE: 16}


def lora(running: str, waiting: str, value: float, engine: str = "0", limit: str = "2") -> str:
    labels = f'engine="{engine}",max_lora="{limit}",running_lora_adapters="{running}",waiting_lora_adapters="{waiting}"'
    return f"vllm:lora_requests_info{{{labels}}} {value}\n"


LORAS: dict[str, tuple[str, set[str], set[str], tuple[float, float, float]]] = {
    "one series": (lora("a,b", "c", 5), {"a", "b"}, {"c"}, (2, 1, 2)),
    "blanks": (lora(" a , b", "", 5), {"a", "b"}, set(), (2, 0, 2)),
    "the newest first": (lora("a", "", 9) + lora("b,c", "d", 5), {"a"}, set(), (1, 0, 2)),
    "the newest last": (lora("a", "", 5) + lora("b,c", "d", 9), {"b", "c"}, {"d"}, (2, 1, 2)),
    "nothing runs any more": (lora("a", "b", 5) + lora("", "", 9), set(), set(), (0, 0, 2)),
    "the newest of each rank": (
        lora("a", "", 9, "0") + lora("x", "", 1, "1") + lora("a,b", "c", 2, "1"),
        {"a", "b"},
        {"c"},
        (3, 1, 4),
    ),
}


@pytest.mark.parametrize(("page", "active", "waiting", "counts"), LORAS.values(), ids=LORAS.keys())
def test_loras(page: str, active: set[str], waiting: set[str], counts: tuple[float, float, float]) -> None:
    """The newest series of each engine says which adapters run and wait."""
    report = Reader().read(page.encode(), {})
    assert (report.active, report.waiting) == (active, waiting)
    assert tuple(report.values[key] for key in (ACTIVE_LORAS, WAITING_LORAS, MAX_LORAS)) == counts


def test_without_loras() -> None:
    """An engine that serves no adapters says nothing of them."""
    assert not {ACTIVE_LORAS, WAITING_LORAS, MAX_LORAS} & Reader().read(VLLM_PAGE.encode(), {}).values.keys()


RESTARTS: dict[str, tuple[str, str, bool]] = {
    "a counter grows": ("vllm:prompt_tokens_total 5\n", "vllm:prompt_tokens_total 6\n", False),
    "nothing happened": ("vllm:prompt_tokens_total 5\n", "vllm:prompt_tokens_total 5\n", False),
    "a counter falls": ("vllm:prompt_tokens_total 5\n", "vllm:prompt_tokens_total 4\n", True),
    "another counter falls": ("vllm:generation_tokens_total 5\n", "vllm:generation_tokens_total 0\n", True),
    "one rank's counter falls while the other's grows": (
        'vllm:prompt_tokens_total{engine="0"} 5\nvllm:prompt_tokens_total{engine="1"} 5\n',
        'vllm:prompt_tokens_total{engine="0"} 50\nvllm:prompt_tokens_total{engine="1"} 1\n',
        True,
    ),
    "a gauge falls": ("vllm:num_requests_running 5\n", "vllm:num_requests_running 0\n", False),
    "the process is a later one": ("process_start_time_seconds 5\n", "process_start_time_seconds 6\n", True),
    "the process is an earlier one, by its clock": (
        "process_start_time_seconds 6\n",
        "process_start_time_seconds 5\n",
        True,
    ),
    "a series vanishes": ('vllm:prompt_tokens_total{model_name="a"} 5\n', "", False),
    "a series appears": ("", "vllm:prompt_tokens_total 5\n", False),
}


@pytest.mark.parametrize(("before", "after", "expected"), RESTARTS.values(), ids=RESTARTS.keys())
def test_restarts(before: str, after: str, expected: bool) -> None:
    """A counter that falls, or another start time of the process, is a restart."""
    reader = Reader()
    marks = [reader.read((VLLM_PAGE + page).encode(), {}).marks for page in (before, after)]
    assert restarted(*marks) is expected


COUNTERS = [(engine, counter) for engine in ENGINES for counter in engine.restarts]


@pytest.mark.parametrize(("engine", "counter"), COUNTERS, ids=[f"{e.name}-{c}" for e, c in COUNTERS])
def test_every_engine_has_counters_that_show_a_restart(engine: EngineSpec, counter: str) -> None:
    """Each engine's own counters are marks, and an engine without any would restart unseen."""
    selector = engine.readings[0].selector
    labels = ",".join(f'{label}="{value}"' for label, value in selector.labels)
    gauge_line = f"{selector.name}{{{labels}}} 1\n"
    marks = [Reader().read(f"{gauge_line}{counter} {n}\n".encode(), {}).marks for n in (2, 1)]
    assert restarted(*marks)


def test_capture_of_an_idle_vllm(capture: Callable[[str], bytes]) -> None:
    """A real page just after the start."""
    report = Reader().read(capture("vllm-0.32-metrics-idle.txt"), {})
    expected = {WAITING: 0, RUNNING: 0, KV_USAGE: 0, CACHE_BLOCK_SIZE: 32, CACHE_BLOCKS: 16384}
    expected |= {
        FIRST_TOKENS: 3,
        FIRST_TOKEN_SECONDS: 0.0451359748840332,
        TOKEN_GAPS: 21,
        TOKEN_GAP_SECONDS: 0.0560903519999556,
    }
    assert (report.engine, report.values, report.active) == ("vllm", expected, frozenset())


def test_captures_are_of_one_process(capture: Callable[[str], bytes]) -> None:
    """The counters grew from one capture to the next, so in this order there is no restart, and in the other one."""
    idle, loaded = (Reader().read(capture(f"vllm-0.32-metrics-{which}.txt"), {}).marks for which in ("idle", "loaded"))
    assert set(idle) == set(loaded)
    assert {mark[0] for mark in loaded} == {*VLLM.restarts, "process_start_time_seconds"}
    assert not restarted(idle, loaded)
    assert restarted(loaded, idle)


SELECTORS: dict[str, tuple[str, Selector]] = {
    "name": ("vllm:num_requests_waiting", Selector("vllm:num_requests_waiting")),
    "blanks": (" up { } ", Selector("up")),
    "label": ("up{a=b}", Selector("up", (("a", "b"),))),
    "quoted": ('up{a="b"}', Selector("up", (("a", "b"),))),
    "several": ('up{a=b, c = "d,e" ,}', Selector("up", (("a", "b"), ("c", "d,e")))),
    "escapes": (r'up{a="\"\\"}', Selector("up", (("a", '"\\'),))),
    "empty value": ("up{a=}", Selector("up", (("a", ""),))),
}


@pytest.mark.parametrize(("text", "expected"), SELECTORS.values(), ids=SELECTORS.keys())
def test_selectors(text: str, expected: Selector) -> None:
    """`name` or `name{label=value,...}`, values quoted or not."""
    assert Selector.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "1up", "up{", "up}", "up{a}", "up{a=b c=d}", 'up{a="b}', "up{=b}", "up{a!=b}", "a b"]
)
def test_selectors_that_cant_be_used(text: str) -> None:
    """Anything else is refused with the text in the message."""
    with pytest.raises(ConfigError, match="metric"):
        Selector.parse(text)


def test_selector_wants_all_labels() -> None:
    """Every label must agree; others don't matter."""
    page = b'up{a="1",b="2",c="3"} 1\nup{a="1",b="0"} 2\nup{a="1"} 3\n'
    samples = Exposition(["up"]).read(page)["up"]
    assert [sample.value for sample in samples if Selector.parse("up{a=1,b=2}").matches(sample)] == [1.0]


def test_custom_engine() -> None:
    """An engine of the operator's own, with a metric that the pool has no name for."""
    key = attribute("batch_age")
    spec = EngineSpec(
        "mine", (gauge(WAITING, "my_queue{kind=all}"), gauge(key, "my_age", "max"), info(RUNNING, "i", "n"))
    )
    page = b'my_queue{kind="all"} 2\nmy_queue{kind="vip"} 9\nmy_age{r="0"} 1\nmy_age{r="1"} 3\ni{n="4"} 1\n'
    report = Reader((*ENGINES, spec), default="mine").read(page, {})
    assert (report.engine, report.values) == ("mine", {WAITING: 2, key: 3, RUNNING: 4})
    assert attribute("batch_age") is key
    assert math.isnan(key.missing)


def test_engines_must_have_names_of_their_own() -> None:
    """Two engines of one name, or a default that isn't there, are refused."""
    with pytest.raises(ConfigError, match="two engines"):
        Reader((VLLM, VLLM))
    with pytest.raises(ConfigError, match="'vlm' is none of vllm"):
        Reader((VLLM,), default="vlm")


def test_a_page_that_is_none() -> None:
    """What the exposition refuses, the reader refuses."""
    with pytest.raises(ExpositionError):
        Reader().read(b"<html>", {})
