"""The picker under a virtual clock: the real pipeline, with the real plugins of a real configuration.

What is left out is I/O and book-keeping that decides nothing: Envoy's messages, and the entries of metrics, log and
explanations. A request is read from its JSON body, routed by `Pipeline.route`, charged; its response passes through the
same `Exchange`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from epp.data.configured import reader
from epp.data.report import Found, Report
from epp.data.scrape import enter
from epp.errors import ConfigError, RequestError
from epp.exchange import Exchange
from epp.extproc.events import Answer, Arrival, ResponseBody, ResponseHeaders
from epp.hooks import Hooks
from epp.observe.decisions import Decisions
from epp.observe.guard import TimingGuard
from epp.observe.logs import RequestLog
from epp.observe.metrics import Metrics
from epp.observe.observability import Observability
from epp.pipeline import Pipeline
from epp.plugin import Context
from epp.pool import Endpoint, Pool
from epp.replay.policy import Policy
from epp.settings import Registry, load
from epp.sources import EngineMetrics
from epp.states import States

MODEL = "model"

_START = 1_000_000.0
"""What the picker's clock shows at the start: no plugin may mistake the first second for a process's own."""

_HEADERS = {":method": "POST", ":path": "/v1/completions", "content-type": "application/json"}
_STREAM = {":status": "200", "content-type": "text/event-stream; charset=utf-8"}
_FIRST = ResponseBody(b'data: {"choices":[{"index":0,"text":"a"}]}\n\n', end=False)
_LAST = b'data: {"choices":[],"usage":%s}\n\ndata: [DONE]\n\n'


class Clock:
    """The virtual time: `now` is seconds from the replay's start, a call tells it as the picker's clock shows it."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The picker's time."""
        return _START + self.now


@dataclass(slots=True)
class _Unnoted(Observability):
    """Enters nothing: nobody will look."""

    def note(self, function: Callable[..., object], *arguments: Any) -> None:
        """Passes over it."""


@dataclass(slots=True, eq=False)
class Routed:
    """A request that has been sent to an endpoint."""

    exchange: Exchange
    endpoint: int


class Picker:
    """One picker with its pool.

    Args:
        policy: its configuration.
        endpoints: how many there are; they are known by their index.
        clock: the virtual time.
        seed: of everything that the picker leaves to chance.

    Raises:
        ConfigError: the configuration can't be used, or it needs what can't be replayed.
    """

    def __init__(self, policy: Policy, endpoints: int, clock: Clock, seed: str) -> None:
        random = Random(seed)
        self._clock = clock
        self._pool = Pool(capacity=endpoints)
        self._metrics = Metrics(self._pool, policy.name, now=clock)
        self._router = load(
            policy.text,
            policy.origin,
            Registry.installed(),
            lambda name: Context(name, clock, random, self._pool, states=States(), counters=self._metrics.counter),
        )
        if self._router.fetchers:
            names = ", ".join(plugged.name for plugged in self._router.fetchers)
            raise ConfigError(f"{policy.name}: {names} would ask somebody over the network, which a replay can't")
        families = self._metrics.families
        self._faults = families["llm_d_epp_plugin_faults_total"]
        # Calls take no time here: the clock stands still while a decision is made.
        guard = TimingGuard(families["llm_d_epp_plugin_duration_seconds"], self._faults, None, clock)
        observe = _Unnoted(self._metrics, Decisions(), RequestLog(None, lambda *_: None), guard)
        self._pipeline = Pipeline(self._pool, Hooks.of(self._router), observe, clock, clock, random=random)
        self._reader = reader(self._router.sources.extraction, EngineMetrics("vllm"))
        self._reports: dict[int, tuple[Found, Report]] = {}
        self._slots = [self._pool.add(_endpoint(index)) for index in range(endpoints)]
        self._by_hostport = {_endpoint(index).hostport: index for index in range(endpoints)}
        self._pool.synced = True

    @property
    def scrape_interval(self) -> float | None:
        """Seconds between two scrapes of one endpoint, if the configuration says so."""
        page = self._router.sources.page
        return None if page is None else page.interval

    @property
    def scraped_names(self) -> frozenset[str]:
        """The names of the samples on a metrics page that somebody reads."""
        return self._reader.names

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the loader has to say."""
        return self._router.warnings

    @property
    def faults(self) -> Mapping[str, int]:
        """What plugins have done wrong, such as `my-scorer: raised`."""
        children = self._faults.children
        return {f"{key[2]}: {key[3]}": int(self._faults.value(*key).value) for key in children}

    def scraped(self, endpoint: int, at: float, samples: Found, fresh_for: float) -> None:
        """Enters what an endpoint's page has said, heard at that time; it counts as current for so many seconds."""
        now = _START + at
        known, report = self._reports.get(endpoint, (None, None))
        if report is None or known is not samples:
            report = self._reader.report(samples, {})
            self._reports[endpoint] = (samples, report)
        enter(self._pool, self._slots[endpoint], report, now=now, fresh_until=now + fresh_for)

    def route(self, request_id: str, prompt: bytes) -> Routed | RequestError:
        """Decides where a request goes; the error if it is refused.

        Raises:
            ConfigError: the answer can't be followed.
        """
        body = b'{"model":"%s","stream":true,"prompt":"%s"}' % (MODEL.encode(), prompt)
        exchange = self._pipeline.open()
        arrival = Arrival(_HEADERS | {"x-request-id": request_id}, body, None)
        try:
            answer = _at_once(exchange.route(arrival))
        except RequestError as error:
            exchange.refused(error)
            exchange.close("refused", complete=None)
            return error
        first = answer.destination.partition(",")[0]
        if first not in self._by_hostport:
            raise ConfigError(f"a plugin sends the request to {first}, which is no endpoint of the replay")
        return Routed(exchange, self._by_hostport[first])

    def response_headers(self, routed: Routed) -> None:
        """The response's headers pass, which an engine sends at once."""
        routed.exchange.response_headers(ResponseHeaders(_STREAM, end=False))

    def first_token(self, routed: Routed) -> None:
        """The first piece of the response's body passes."""
        routed.exchange.response_body(_FIRST)

    def last_token(self, routed: Routed, prompt: int, answer: int, cached: int) -> None:
        """The last piece passes, with the usage in it."""
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        routed.exchange.response_body(ResponseBody(_LAST % msgspec.json.encode(usage), end=True))
        if routed.exchange.reports:
            routed.exchange.response_metadata()

    def ended(self, routed: Routed, *, seen: bool) -> None:
        """The stream has ended; `seen` tells whether its body has passed."""
        routed.exchange.close("ended", complete=True if seen else None)


def _endpoint(index: int) -> Endpoint:
    return Endpoint(f"engine-{index}", f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", 8000)


def _at_once(route: Any) -> Answer:
    """The result of a coroutine that waits for nothing."""
    try:
        route.send(None)
    except StopIteration as done:
        answer: Answer = done.value
        return answer
    route.close()
    raise ConfigError("a plugin waits for something while it decides, which a replay can't")
