"""The composition root: builds everything, passes it in, and drains on SIGTERM. Nothing else knows all the parts."""

import asyncio
import logging
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import uvloop
from aiohttp import web

from epp import memory
from epp.cluster import Cluster, name_of
from epp.configuration import Configuration, Source
from epp.data.client import check
from epp.data.configured import models_options, page_reader, scrape_options
from epp.data.declared import parse_static
from epp.data.discovery import Discovery, DiscoveryOptions
from epp.data.models import Models
from epp.data.polls import Polls
from epp.data.scrape import Scraper
from epp.errors import ConfigError
from epp.exchange import Health
from epp.extproc.events import BodyMode, Modes
from epp.extproc.health import HealthService
from epp.extproc.server import ExternalProcessor
from epp.extproc.tls import server_credentials
from epp.formats.openai import models
from epp.hooks import Hooks
from epp.observe.access import server_tls
from epp.observe.decision_log import DecisionLog, Later, LogOptions
from epp.observe.decisions import Decisions
from epp.observe.guard import Budget, TimingGuard
from epp.observe.http import application
from epp.observe.logs import RequestLog, configure
from epp.observe.metrics import Metrics
from epp.observe.observability import Observability
from epp.options import ServeOptions, listen_address
from epp.pipeline import Options, Pipeline
from epp.plugin import Context, Router, plugins_of
from epp.pool import Endpoint, Pool
from epp.reading import parser_for
from epp.sources import ObjectReader, ObjectWatch, PageReader, Poll
from epp.states import States

log = logging.getLogger("epp")

MOST_PENDING = 1 << 20
"""Streams that may wait to be taken up; what limits them is Envoy's circuit breaker."""

IDLE = 1.0
"""Seconds without a stream after which a draining picker is done: Envoy has learnt from its health by then."""


def run(options: ServeOptions) -> int:
    """Serves until SIGTERM or SIGINT; the exit status.

    Raises:
        ConfigError: something that the options name can't be used; the message says what to do.
    """
    configure(options.verbosity)
    _allow_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(options))


def _allow_files() -> None:
    """As many open files as the system allows: every endpoint and every Envoy worker has a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(options: ServeOptions) -> int:
    stop, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        (at_once if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    async with AsyncExitStack() as stack:
        app = App(options)
        loop.add_signal_handler(signal.SIGHUP, app.configuration.ask)
        await app.start(stack)
        await stop.wait()
        await app.drain(at_once)
    app.flush()
    log.info("stopped")
    return 0


class App:
    """All parts of one picker; the ports that it listens on are known once it has started."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._random = random.Random()
        self.pool = Pool()
        self.metrics = Metrics(
            self.pool,
            name_of(options, os.environ) or "default",
            streams=options.enable_grpc_stream_metrics,
            sizes=self._index_sizes,
            staleness=options.metrics_staleness_threshold,
        )
        self.observe = self._observability()
        self.configuration = self._configuration()
        sources = self.configuration.router.sources
        self._fixed = (sources.file, sources.scraped)
        self.cluster = self._cluster()
        self.discovery = self._discovery() if self.cluster is None else self.cluster.discovery
        self.scraper = self._scraper()
        self.models = self._models()
        self.polls = Polls(self.pool, self._poll_failed)
        self.pipeline = self._pipeline()
        elects = self.cluster is not None and options.ha_enable_leader_election
        self.health = HealthService(self._ready, self._leads if elects else None)
        sent = options.grpc_max_send_msg_size
        self._grpc = self._grpc_server(
            ("grpc.max_receive_message_length", options.grpc_max_recv_msg_size),
            ("grpc.max_send_message_length", -1 if sent is None else sent),
        )
        self._health_grpc = self._grpc_server()
        self.grpc_port = self.health_port = self.metrics_port = 0

    def __repr__(self) -> str:
        return f"<App: {self.pool!r}, ext_proc on {self.grpc_port}>"

    async def start(self, stack: AsyncExitStack) -> None:
        """Starts everything; what has to be stopped is left to the stack.

        Raises:
            ConfigError: a port is taken, a file can't be used.
        """
        for warning in (*self._options.warnings, *self.configuration.router.warnings):
            log.warning("%s", warning)
        self.configuration.start()
        stack.push_async_callback(self.configuration.stop)
        await self.discovery.start()
        stack.push_async_callback(self.discovery.stop if self.cluster is None else self.cluster.stop)
        sources = self.configuration.router.sources
        if sources.scraped:
            await self.scraper.start()
            stack.push_async_callback(self.scraper.stop)
        stack.push_async_callback(self.polls.stop)
        self.polls.follow(sources.polls)
        self._follow_objects(sources.watches)
        await self.models.start()
        stack.push_async_callback(self.models.stop)
        await self._start_metrics(stack)
        await self._start_grpc(stack)
        if self.cluster is not None:
            self.cluster.campaign(self.health_port)
        memory.settle()
        log.info(
            "serving: ext_proc on %d (%s), health on %d, metrics on %s:%d, %d endpoints, configuration: %s",
            self.grpc_port,
            "TLS" if self._options.secure_serving else "plaintext",
            self.health_port,
            self._options.metrics_host(reviewed=self._reviewed) or "*",
            self.metrics_port,
            len(self.pool),
            self.configuration.router.origin,
        )

    async def drain(self, at_once: asyncio.Event) -> None:
        """Is no longer ready, and goes on serving until no stream has come for a while, `drain_timeout` at most.

        Args:
            at_once: ends it before that.
        """
        if self.cluster is not None:
            await self.cluster.release()
        self.health.set_ready(False)
        end = time.monotonic() + self._options.drain_timeout
        log.info("draining: %d streams in flight", self._streams())
        quiet_since = time.monotonic()
        while (now := time.monotonic()) < end and now - quiet_since < IDLE and not at_once.is_set():
            if self._streams():
                quiet_since = now
            await asyncio.sleep(0.02)
        self.health.close()

    def flush(self) -> None:
        """Writes what is still to be written."""
        self.observe.settle()
        self.observe.requests.flush()
        if self.observe.log is not None:
            self.observe.log.close()

    def _streams(self) -> int:
        return int(self.metrics.streams_inflight.value)

    # --- the parts

    def _configuration(self) -> Configuration:
        return Configuration(
            Source.of(self._options),
            self._context,
            reloads=self.metrics.families["llm_d_epp_config_reloads_total"],
            swap=self._swap,
            ended=self._ended,
            wall=time.time,
        )

    def _context(self, name: str, states: States) -> Context:
        counters = self.metrics.counter
        return Context(name, time.monotonic, self._random, self.pool, states=states, counters=counters)

    def _swap(self, hooks: Hooks) -> None:
        sources, before = hooks.router.sources, self.pipeline.hooks.router.sources
        scraping, asking = scrape_options(self._options, sources.page), models_options(self._options, sources)
        reader = page_reader(self._options, sources.extraction)
        for each in (scraping, asking):
            check(each)
        self.polls.follow(sources.polls)  # nothing that could fail comes after it
        if (sources.page, sources.extraction) != (before.page, before.extraction):
            self.scraper.follow(scraping, reader)
        self.models.follow(asking, sources.read_models or models)
        if (sources.file, sources.scraped) != self._fixed:
            log.warning("where endpoints come from, and whether they are scraped, is taken over at the next start only")
        self._follow_objects(sources.watches)
        self.pipeline.hooks = hooks

    def _ended(self, router: Router) -> None:
        self.observe.guard.forget(plugins_of(router))
        parser_for.cache_clear()

    def _guard(self) -> TimingGuard:
        families, seconds = self.metrics.families, self._options.plugin_time_budget
        overruns, bypasses = families["llm_d_epp_plugin_overruns_total"], families["llm_d_epp_plugin_bypasses_total"]
        budget = Budget(seconds, overruns, bypasses) if seconds else None
        durations, faults = families["llm_d_epp_plugin_duration_seconds"], families["llm_d_epp_plugin_faults_total"]
        return TimingGuard(durations, faults, budget)

    def _observability(self) -> Observability:
        stream = None if self._options.verbosity < 2 else sys.stderr.buffer
        later = asyncio.get_running_loop().call_later
        return Observability(
            self.metrics, Decisions(), RequestLog(stream, later), self._guard(), later, self._decision_log(later)
        )

    def _decision_log(self, later: Later) -> DecisionLog | None:
        options = self._options
        if not options.decision_log:
            return None
        limits = (options.decision_log_max_bytes, options.decision_log_max_files, options.decision_log_candidates)
        rows = self.metrics.families["llm_d_epp_decision_log_rows_total"]
        return DecisionLog(LogOptions(Path(options.decision_log), *limits), rows, later, time.time, self._random)

    def _index_sizes(self) -> Mapping[tuple[str, str], int]:
        router = self.configuration.router
        producers = (*router.producers, *(router.shadow.producers if router.shadow is not None else ()))
        indexed = [plugged for plugged in producers if hasattr(plugged.plugin, "index")]
        return {(plugged.name, plugged.type): len(plugged.plugin.index) for plugged in indexed}

    def _plugins(self) -> dict[str, Any]:
        """What calls of each plugin have cost, and how many have failed."""
        shown = self.observe.guard.shown
        plugins = sorted(plugins_of(self.configuration.router), key=lambda plugged: plugged.name)
        calls = [{"name": each.name, "type": each.type, "points": shown(each)} for each in plugins]
        return {"time_budget_ms": self._options.plugin_time_budget * 1e3 or None, "plugins": calls}

    def _plugin_states(self) -> dict[str, Any]:
        """llm-d's `/debug/plugins/state`: what each plugin that has a `state` method says of itself."""
        states = {}
        for plugged in plugins_of(self.configuration.router):
            entry = {"name": plugged.name, "type": plugged.type}
            state = getattr(plugged.plugin, "state", None)
            detail = {"state": state()} if callable(state) else {"message": "keeps no state that it shows"}
            states[plugged.name] = entry | detail
        return {"timestamp": time.time(), "plugins": states}

    # --- Kubernetes

    def _cluster(self) -> Cluster | None:
        discovery = self.configuration.router.sources.file is not None
        if not self._options.in_kubernetes(discovery=discovery):
            if self._options.ha_enable_leader_election:
                log.warning("--ha-enable-leader-election has no effect without Kubernetes: every replica is ready")
            return None
        changed = self._cluster_changed
        return Cluster(
            *(self._options, self.pool, self._random),
            on_pool=self._pool_changed,
            on_state=changed,
            on_fault=self._notice_failed,
        )

    def _follow_objects(self, watches: Sequence[ObjectWatch]) -> None:
        if self.cluster is not None:
            self.cluster.notifications.follow(watches)
            return
        for watch in watches:
            log.warning(
                "%s watches %s in Kubernetes, which needs --pool-name or --endpoint-selector: it sees nothing",
                *(watch.name, watch.kind),
            )

    def _notice_failed(self, watch: ObjectWatch, reader: ObjectReader, reason: str) -> None:
        self.metrics.families["llm_d_epp_datalayer_extract_errors_total"].value(watch.type, reader.type).inc()
        log.debug("%s of %s: %s", reader.name, watch.kind, reason)

    def _cluster_changed(self) -> None:
        if self.cluster is not None:
            self.metrics.families["llm_d_epp_discovery_stale"].value().set(self.cluster.discovery.stale)
            self.metrics.families["llm_d_epp_discovery_unread"].value().set(self.cluster.discovery.unread)
            self.metrics.families["llm_d_epp_leader"].value().set(self.cluster.leads)
            self.health.changed()

    def _leads(self) -> bool:
        return self.cluster is None or self.cluster.leads

    def _ready(self) -> bool:
        """The pool is known, and every parser that speaks only some protocols speaks the pool's."""
        protocol = "" if self.cluster is None else self.cluster.discovery.protocol
        spoken = [getattr(plugged.plugin, "protocols", ()) for plugged in self.configuration.router.parsers]
        return self.pool.synced and (not protocol or all(protocol in each for each in spoken if each))

    @property
    def _reviewed(self) -> bool:
        return self.cluster is not None and self.cluster.reviewer is not None

    # --- the endpoints

    def _discovery(self) -> Discovery:
        options = self._options
        said = self.configuration.router.sources.file
        path = said.path if said else options.endpoints_file
        file = Path(path) if path else None
        return Discovery(
            self.pool,
            parse_static(options.endpoints),
            file,
            DiscoveryOptions(watch=said is None or said.watch, clusters=said is not None and said.clusters),
            on_error=lambda message: log.error("%s", message),
            on_pool=self._pool_changed,
            pool_name=options.pool_name,
        )

    def _pool_changed(self, added: Sequence[str], removed: Sequence[str]) -> None:
        for endpoint_id in removed:
            self.metrics.forget_endpoint(endpoint_id.partition("/")[2])
        log.info("endpoints: added %s, removed %s", ", ".join(added) or "none", ", ".join(removed) or "none")

    def _scraper(self) -> Scraper:
        options = self._options
        sources = self.configuration.router.sources
        return Scraper(
            self.pool,
            scrape_options(options, sources.page),
            now=time.monotonic,
            random=self._random,
            reader=page_reader(options, sources.extraction),
            on_scrape=self._scraped,
            on_change=self._endpoint_changed,
        )

    def _models(self) -> Models:
        def failed(endpoint: Endpoint, reason: str) -> None:
            self.metrics.families["llm_d_epp_datalayer_poll_errors_total"].value("models-data-source").inc()
            log.debug("models of %s (%s): %s", endpoint.id, endpoint.hostport, reason)

        sources = self.configuration.router.sources
        read = sources.read_models or models
        return Models(self.pool, models_options(self._options, sources), now=time.monotonic, read=read, on_fault=failed)

    def _poll_failed(self, poll: Poll, reader: PageReader | None, endpoint: Endpoint, reason: str) -> None:
        families = self.metrics.families
        if reader is None:
            families["llm_d_epp_datalayer_poll_errors_total"].value(poll.type).inc()
        else:
            families["llm_d_epp_datalayer_extract_errors_total"].value(poll.type, reader.type).inc()
        log.debug("%s of %s (%s): %s", (reader or poll).name, endpoint.id, endpoint.hostport, reason)

    def _scraped(self, endpoint: Endpoint, seconds: float, error: str | None) -> None:
        if error is not None:
            self.metrics.families["llm_d_epp_datalayer_poll_errors_total"].value("metrics-data-source").inc()
            log.debug("scrape of %s (%s) failed after %.3f s: %s", endpoint.id, endpoint.hostport, seconds, error)

    def _endpoint_changed(self, endpoint: Endpoint, state: str) -> None:
        self.metrics.families["llm_d_epp_endpoint_changes_total"].value(state).inc()
        log.warning("endpoint %s (%s): %s", endpoint.id, endpoint.hostport, _STATES[state])

    def _pipeline(self) -> Pipeline:
        options = self._options
        return Pipeline(
            self.pool,
            self.configuration.hooks,
            self.observe,
            now=time.monotonic,
            wall=time.time,
            options=Options(
                llm_d_status_codes=options.llm_d_status_codes,
                use_subset=not options.disable_endpoint_subset_filter,
                emit_scores=options.emit_endpoint_scores,
            ),
            random=self._random,
            models=self.models.cards,
            health=Health(self.scraper.connection_failed, self.scraper.suspected),
        )

    # --- the servers

    def _grpc_server(self, *settings: tuple[str, int]) -> grpc.aio.Server:
        # Without so_reuseport two pickers on one port are an error, not a lottery. By default gRPC drops streams at
        # random once 1,000 wait to be taken up, which a burst of clients does.
        pending = [("grpc.server.max_pending_requests", MOST_PENDING)]
        pending += [("grpc.server.max_pending_requests_hard_limit", MOST_PENDING)]
        return grpc.aio.server(options=[("grpc.so_reuseport", 0), *pending, *settings])

    async def _start_grpc(self, stack: AsyncExitStack) -> None:
        options = self._options
        mode = BodyMode[options.default_body_mode]
        processor = ExternalProcessor(
            self.pipeline.open, Modes(mode, mode), options.max_request_body_bytes, self._crashed
        )
        self._grpc.add_generic_rpc_handlers((processor.handler(), self.health.handler()))
        self._health_grpc.add_generic_rpc_handlers((self.health.handler(),))
        address = listen_address(options.grpc_bind_address, options.grpc_port)
        self.grpc_port = _bind(self._grpc, address, "--grpc-port", server_credentials(options, log.warning))
        health_address = listen_address(options.grpc_bind_address, options.grpc_health_port)
        self.health_port = _bind(self._health_grpc, health_address, "--grpc-health-port", None)
        for server in (self._health_grpc, self._grpc):
            await server.start()
            stack.push_async_callback(server.stop, 0.5)

    def _crashed(self, error: BaseException) -> None:
        log.error("a request failed on a fault of the endpoint picker's", exc_info=error)

    async def _start_metrics(self, stack: AsyncExitStack) -> None:
        options = self._options
        pages = {"plugins": self._plugins, "plugins/state": self._plugin_states, "config": self.configuration.shown}
        authorize = None
        if self.cluster is not None:
            pages |= {"kubernetes": self.cluster.shown}
            authorize = self.cluster.reviewer.verdict if self.cluster.reviewer is not None else None
        app = application(self.metrics.registry, self.observe.decisions, pages, self.observe.settle, authorize)
        host = options.metrics_host(reviewed=self._reviewed)
        if options.metrics_endpoint_auth and authorize is None and host not in _LOOPBACK:
            log.warning("without Kubernetes nobody checks who reads the metrics on %s", host or "all interfaces")
        client_ca = Path(options.metrics_client_ca_file) if options.metrics_client_ca_file else None
        tls = server_tls(Path(options.metrics_cert_dir), client_ca) if options.metrics_cert_dir else None
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, host or None, options.metrics_port, shutdown_timeout=1.0, ssl_context=tls)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"--metrics-port {options.metrics_port}: {error.strerror or error}") from error
        self.metrics_port = runner.addresses[0][1]


_LOOPBACK = ("127.0.0.1", "::1")

_STATES = {
    "out": "taken out after failures in a row; it comes back when a scrape works",
    "in": "back in",
    "restarted": "has restarted: what it had cached is forgotten",
}


def _bind(server: grpc.aio.Server, address: str, flag: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is None:
            port: int = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(f"{flag}: {address} can't be listened on, is it taken? ({error})") from error
    return port
