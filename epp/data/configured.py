"""What the command line and the configuration say about scraping, joined: a flag that is given wins."""

from collections.abc import Iterable
from dataclasses import replace

from epp.data.client import ScrapeOptions
from epp.data.engines import ENGINES, EngineSpec, overridden
from epp.data.models import INTERVAL
from epp.data.report import Reader
from epp.options import ServeOptions
from epp.sources import EngineMetrics, Extraction, Page, Sources

MODELS = "/v1/models"


def scrape_options(options: ServeOptions, page: Page | None) -> ScrapeOptions:
    """Which page is scraped, how and how often."""
    page = page or Page()
    insecure = options.model_server_metrics_https_insecure_skip_verify
    return ScrapeOptions(
        interval=options.refresh_metrics_interval if page.interval is None else page.interval,
        scheme=options.model_server_metrics_scheme or page.scheme,
        path=options.model_server_metrics_path or page.path,
        port=options.model_server_metrics_port or page.port,
        insecure=page.insecure if insecure is None else insecure,
        ca=page.ca,
        certificate=page.certificate,
        key=page.key,
    )


def page_options(page: Page, interval: float) -> ScrapeOptions:
    """How another page than the metrics is fetched: as it says itself, whatever the command line says of those.

    Args:
        page: the page.
        interval: in seconds, where it has none of its own.
    """
    return ScrapeOptions(
        interval=interval if page.interval is None else page.interval,
        scheme=page.scheme,
        path=page.path,
        port=page.port,
        insecure=page.insecure,
        ca=page.ca,
        certificate=page.certificate,
        key=page.key,
    )


def models_options(options: ServeOptions, sources: Sources) -> ScrapeOptions:
    """How engines are asked what they serve: in the way of the metrics, unless the configuration has a way for it."""
    if sources.models is not None:
        return page_options(sources.models, INTERVAL)
    return replace(scrape_options(options, sources.page), path=MODELS, port=None, interval=INTERVAL)


def page_reader(options: ServeOptions, extraction: Extraction | None) -> Reader:
    """How the page is read.

    Raises:
        ConfigError: see `reader`.
    """
    flags = EngineMetrics(
        "vllm",
        waiting=options.total_queued_requests_metric,
        running=options.total_running_requests_metric,
        kv_usage=options.kv_cache_usage_percentage_metric,
        lora=options.lora_info_metric,
        cache_info=options.cache_info_metric,
    )
    return reader(extraction, flags)


def reader(extraction: Extraction | None, flags: EngineMetrics) -> Reader:
    """How the page is read, where `flags` win over what the configuration says.

    Raises:
        ConfigError: a metric is no selector, or the default engine isn't there.
    """
    said = extraction or Extraction("")
    engines = [overridden(engine, flags) if engine.name == flags.name else engine for engine in _engines(said)]
    return Reader(engines, said.default, said.labels)


def _engines(said: Extraction) -> Iterable[EngineSpec]:
    """Those that are configured, and then the known ones that aren't."""
    known = {engine.name: engine for engine in ENGINES}
    for metrics in said.engines:
        yield overridden(known.pop(metrics.name, EngineSpec(metrics.name, ())), metrics, said.name)
    yield from known.values()
