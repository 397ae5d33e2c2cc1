"""What a scrape in virtual time finds is what the engine's page says."""

from random import Random

import pytest

from epp.data.report import Reader
from epp.engine.model import ModelConfig, Request
from epp.engine.page import EngineInfo, Page
from epp.engine.profiles import PROFILES
from epp.engine.virtual import VirtualEngine
from epp.formats.exposition import Exposition
from epp.replay.scrapes import _COUNTERS, _GAUGES, _HISTOGRAMS, Pages

CONFIG = ModelConfig.of(PROFILES["tiny"])
EVERY = frozenset(
    [*_COUNTERS, *_GAUGES, "vllm:prompt_tokens_by_source_total", "vllm:cache_config_info"]
    + [f"{name}_{part}" for name in _HISTOGRAMS for part in ("sum", "count")]
)
"""All that a scrape has at hand."""


@pytest.fixture
def engine() -> VirtualEngine:
    """In the middle of its work, some of which it has found in its cache."""
    made = VirtualEngine(CONFIG, Random(0))
    for number in range(40):
        made.advance(now := number * 0.01)
        made.add(Request(f"r-{number}", 100, 20 + number, tuple(range(number % 4, number % 4 + 7))), now)
    made.advance(0.45)
    return made


def numbers(found, names):
    """Values by name and labels; those of `source` by themselves, where the page has some that are always 0."""
    return {(n, tuple(sorted(s.labels.items()))): s.value for n in names for s in found.get(n, ()) if s.value}


def scraped(pages: Pages, engine: VirtualEngine, now: float):
    return pages.found(engine, pages.read(engine, now))


def page_of(engine: VirtualEngine) -> bytes:
    info = EngineInfo("m", CONFIG.block_size, CONFIG.num_blocks, CONFIG.max_model_len, 0, 0.0)
    gauges = engine.observe(0.45)
    return Page(info).render([engine.metrics], [gauges])


def test_names_labels_and_values_are_those_of_the_page(engine):
    at_hand = numbers(scraped(Pages("m", CONFIG, EVERY), engine, 0.45), EVERY)
    assert at_hand == numbers(Exposition(EVERY).read(page_of(engine)), EVERY)
    assert len(at_hand) > 20


def test_what_is_not_at_hand_comes_off_the_page(engine):
    names = EVERY | {"vllm:request_success_total", "vllm:num_requests_waiting_by_reason", "sglang:num_queue_reqs"}
    found = numbers(scraped(Pages("m", CONFIG, names), engine, 0.45), names)
    assert found == numbers(Exposition(names).read(page_of(engine)), names)
    assert any(name == "vllm:request_success_total" for name, _ in found)


def test_only_what_is_read_is_there(engine):
    found = scraped(Pages("m", CONFIG, frozenset({"vllm:num_requests_running"})), engine, 0.45)
    assert set(found) == {"vllm:num_requests_running", "vllm:cache_config_info"}


def test_what_has_not_changed_is_the_same_object(engine):
    """So that nobody reads it again; another engine's is another one's."""
    pages = Pages("m", CONFIG, EVERY)
    first = scraped(pages, engine, 0.45)
    assert scraped(pages, engine, 0.45) is first
    engine.advance(0.6)
    assert scraped(pages, engine, 0.6) is not first


def test_all_that_the_picker_reads_of_vllm_is_at_hand():
    """Nothing of the usual configuration needs the whole page."""
    names = {name for name in Reader().names if name.startswith("vllm:")}
    assert names - EVERY <= {"vllm:lora_requests_info", "vllm:gpu_cache_usage_perc"}
