"""One request's life beside its path: what it was charged, what its response showed, how it ended."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from epp.errors import RequestError, ServiceUnavailable
from epp.extproc.events import Answer, Arrival, Direct, ResponseBody, ResponseHeaders
from epp.extproc.server import Ending
from epp.extproc.session import DESTINATION_HEADER
from epp.hooks import Hook
from epp.keys import Key
from epp.observe.metrics import RequestSeries
from epp.observe.record import Record
from epp.plugin import Candidates, Pick, Plugged, Request, ResponseReader, Usage
from epp.pool import Endpoint, Leg
from epp.rewriting import Rewriting
from epp.schedule import Decision
from epp.schedule.guard import Guard, Point
from epp.shadow import compared, remember, shadow_decision, taken_elsewhere
from epp.splice import Renamer

if TYPE_CHECKING:
    from epp.pipeline import Pipeline


LONGEST = 256
"""Characters of a model's name or a fairness id that records keep: clients choose them, and a body may be one name."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Health:
    """Whom to tell what the responses say about the endpoints; both take `ip:port`."""

    connection_failed: Callable[[str], None] = lambda _: None
    suspected: Callable[[str], None] = lambda _: None


class Exchange:
    """One request's life: what it was charged, what its response showed; `close` settles it exactly once."""

    __slots__ = (
        "_encoded",
        "_last",
        "_leg",
        "_parser",
        "_pipeline",
        "_reader",
        "_renamer",
        "_reported",
        "_sent_to",
        "_series",
        "_side_legs",
        "has_id",
        "hooks",
        "pending",
        "record",
        "request",
        "rewriting",
    )

    def __init__(self, pipeline: "Pipeline") -> None:
        self.hooks = pipeline.hooks  # for good: a request sees one configuration from its start to its end
        self.hooks.users.count += 1
        self.record = Record("", pipeline.wall(), pipeline.now())
        self.request: Request | None = None
        self.rewriting: Rewriting | None = None
        self.pending: Request | None = None  # for the shadow, until it has decided
        self.has_id = False
        self._encoded = False
        self._pipeline = pipeline
        self._leg: Leg | None = None  # at the primary pick's endpoint
        self._side_legs: list[Leg] = []  # at those of other profiles, such as one for the prefill
        self._sent_to = ""  # instead of the primary pick, where a plugin says so
        self._series: RequestSeries | None = None
        self._parser: Plugged | None = None
        self._reader: ResponseReader | None = None
        self._reported = False
        self._renamer: Renamer | None = None
        self._last: float | None = None
        pipeline.observe.metrics.streams_inflight.inc()

    def __repr__(self) -> str:
        return f"<Exchange {self.record.id!r}: {len(self._side_legs) + (self._leg is not None)} legs in flight>"

    def begin(self, headers: Mapping[str, str]) -> None:
        """The request's headers have come: from now on it has an id."""
        if not self.record.id:
            given = headers.get("x-request-id", "")
            self.has_id = bool(given)
            self.record.id = given or str(uuid4())

    async def route(self, arrival: Arrival) -> Answer | Direct:
        """Decides where the request goes; see `Pipeline.route`."""
        self.begin(arrival.headers)
        if arrival.body == b"" and not arrival.observed and (page := self._pipeline.page(arrival)) is not None:
            self.record.outcome.status = page.status
            return page
        if arrival.observed:
            self.record.observed = arrival.headers.get(DESTINATION_HEADER, "").partition(",")[0].strip()
        answer = await self._pipeline.route(self, arrival)
        self.record.processed_in = self._pipeline.now() - self.record.started
        observe = self._pipeline.observe
        self._series = observe.metrics.of(self.record)
        observe.note(observe.metrics.routed, self.record, self._series)
        observe.note(observe.decisions.keep, self.record)
        return answer

    # --- what the path notes

    def note_request(self, request: Request) -> Request:
        """Notes what was read; keeps it without its prompts, since a stream may be open for an hour."""
        record = self.record
        record.target_model, record.fairness_id = request.model[:LONGEST], request.fairness_id[:LONGEST]
        record.model = request.client_model[:LONGEST] or record.target_model
        record.rewrite = self.rewriting.rule if self.rewriting is not None else ""
        record.priority = request.priority
        record.size = request.size if request.parser else None
        observe = self._pipeline.observe
        if observe.log is not None:
            observe.note(observe.log.see, record, request)
        self.request = request.without_prompts()
        return request

    def note_decision(self, request: Request, decision: Decision, started: float) -> Decision:
        """Notes what was decided, also where nobody was found."""
        self.record.decision = decision
        self.record.decided_in = self._pipeline.now() - started
        if self.hooks.shadow is not None:
            remember(self.hooks.shadow, decision.candidates)
            self.pending = request
        return decision

    def follow(self, request: Request) -> Answer:
        """Another picker has sent the request somewhere: notes that as what was decided, and ours beside it.

        Raises:
            ServiceUnavailable: that is none of our endpoints.
        """
        record, pool = self.record, self._pipeline.pool
        record.ours, record.decision = record.decision, None
        sent_to = record.observed or ""
        slot = pool.slot_at(sent_to)
        if slot is None:
            raise ServiceUnavailable(f"another picker has sent the request to {sent_to!r}, which isn't ours")
        record.decision = taken_elsewhere(record.ours, pool, slot)
        record.against_ours = compared(record.decision.primary, record.ours)
        self.charge(record.decision, request)
        self.tell_picked(request)
        return Answer(sent_to)

    def tell_picked(self, request: Request) -> None:
        """Tells the observers of the decision, before the next one begins."""
        decision = self.record.decision
        for plugged, picked in self.hooks.picked:
            self._pipeline.observe.guard.call("PreRequest", plugged, picked, request, decision, decision.candidates)

    def answered(self) -> None:
        """The answer has been handed over: time for the shadow."""
        request, self.pending = self.pending, None
        record, shadow, observe = self.record, self.hooks.shadow, self._pipeline.observe
        if request is None or shadow is None or record.error is not None:
            return
        try:
            record.shadow = shadow_decision(shadow, request, record.decision, observe.guard)
            record.against_shadow = compared(record.decision.primary, record.shadow)
        except Exception:
            log.exception("the shadow of a request could not be told")
        observe.note(observe.metrics.compared, "shadow", record.against_shadow)

    def charge(self, decision: Decision, request: Request) -> None:
        """Charges every pick to its first endpoint: the tokens that it isn't known to hold, perhaps the answer's."""
        tokens, c, hooks = request.prompt_tokens, decision.candidates, self.hooks
        for pick in decision.picks.values():
            index = _index(c, pick.slots[0])
            matched = _at(c, hooks.matched, index)
            uncached = _at(c, hooks.uncached, index)
            uncached = max(tokens - (matched or 0.0), 0.0) if uncached is None else uncached
            if hooks.answer_tokens is not None and pick.profile == decision.handler_result:
                uncached += self._answer_tokens(request, *hooks.answer_tokens)
            leg = self._pipeline.pool.charge(pick.slots[0], 1.0, uncached)
            if pick.profile != decision.handler_result:
                self._side_legs.append(leg)
                continue
            self._leg = leg
            self.record.matched = matched
            self.record.matchable = _at(c, hooks.matchable, index)
            self.record.indexer = hooks.indexer

    def _answer_tokens(self, request: Request, plugged: Plugged, ask: Callable[[Request], Any]) -> float:
        guard = self._pipeline.observe.guard
        said = guard.call("PreRequest", plugged, ask, request)
        if isinstance(said, int | float) and 0.0 <= said < inf:
            return float(said)
        if said is not None:
            guard.fault("PreRequest", plugged, "shape", f"a number of tokens is due, not {said!r}")
        return 0.0

    # --- what the server notes

    def refused(self, error: RequestError) -> str:
        """Notes that the client gets this error; the request's id."""
        self.begin({})
        error.__traceback__ = error.__cause__ = error.__context__ = None  # the frames hold the request's body
        self.record.error = error
        self.pending = None
        observe = self._pipeline.observe
        if self._series is None:
            observe.note(observe.decisions.keep, self.record)
        observe.note(observe.metrics.refused, self.record)
        return self.record.id

    def response_headers(self, event: ResponseHeaders) -> Sequence[tuple[str, str]]:
        """Notes the response's headers; headers to set on it."""
        outcome, headers = self.record.outcome, event.headers
        status = headers.get(":status", "")
        outcome.status = int(status) if status.isdigit() else None
        outcome.streaming = "text/event-stream" in headers.get("content-type", "")
        self._encoded = headers.get("content-encoding", "identity") != "identity"
        decision = self.record.decision
        if decision is None or decision.found() is None:
            return ()
        served = self._served(event, decision.primary)
        return self._ask_observers(decision, served) if self.hooks.response_headers else ()

    def _ask_observers(self, decision: Decision, served: Endpoint) -> list[tuple[str, str]]:
        added: list[tuple[str, str]] = []
        guard = self._pipeline.observe.guard
        for plugged, ask in self.hooks.response_headers:
            found = guard.call("ResponseReceived", plugged, ask, self.request, decision, served)
            added += settable(guard, "ResponseReceived", plugged, found).items()
        return added

    def _served(self, event: ResponseHeaders, pick: Pick) -> Endpoint:
        """Learns from Envoy who really answered: a pick that was passed over has refused the connection."""
        health, target, pool = self._pipeline.health, pick.endpoints[0], self._pipeline.pool
        sent_to = self._sent_to or target.hostport
        slot = pool.slot_at(event.served_by) if event.served_by is not None else None
        served = pool.endpoints[slot] if slot is not None else None
        if event.unreachable or (served is not None and served.hostport != sent_to):
            health.connection_failed(sent_to)
        elif self.record.outcome.status == 503:
            health.suspected(sent_to)
        if slot is None or served is None:
            return target
        self.record.outcome.served_by = served.hostport
        if self._sent_to:
            return target  # which has been reached through another one
        self._move(slot)
        return served

    def _move(self, served: int) -> None:
        """The request is at a fallback: so is its load. Other profiles' picks have none."""
        leg, pool = self._leg, self._pipeline.pool
        if leg is not None and leg.slot != served:
            requests, tokens = leg.requests, leg.tokens
            pool.release(leg)
            self._leg = pool.charge(served, requests, tokens)

    def redirected(self, destination: str) -> None:
        """Notes that a plugin has the request sent there, `ip:port` or a list, instead of to the primary pick."""
        self._sent_to = destination.partition(",")[0]

    def _release(self) -> None:
        """Gives back what was charged and is left of it."""
        for leg in (*self._side_legs, *([] if self._leg is None else [self._leg])):
            self._pipeline.pool.release(leg)

    def response_body(self, event: ResponseBody, *, whole: bool = False, fixed: bool = False) -> bytes | None:
        """Notes a piece of the response's body; gives another one where a name is to be changed in it."""
        outcome, now = self.record.outcome, self._pipeline.now()
        if outcome.response_bytes is None:
            outcome.response_bytes = 0
            self._reader = self._new_reader()
            self._renamer = self._new_renamer(fixed=fixed)
        outcome.response_bytes += len(event.data)
        if event.data:
            if self._last is None:
                self._first_byte(now)
            elif outcome.streaming and self._series is not None:
                self._series.itl.observe(now - self._last)
            self._last = now
        if self._reader is not None:
            self._feed(self._reader, event)
        if self._renamer is None:
            return None
        data = self._renamer.feed(event.data, end=whole or event.end)
        return None if data == event.data else data

    @property
    def reports(self) -> bool:
        """Whether plugins may have something to report; they are asked once."""
        return bool(self.hooks.response_metadata) and not self._reported

    def response_metadata(self) -> Mapping[str, Mapping[str, float]]:
        """The response has ended: what plugins report of it."""
        self._reported = True
        decision, guard, found = self.record.decision, self._pipeline.observe.guard, dict[str, dict[str, float]]()
        if decision is None or decision.found() is None:
            return found
        outcome = self.record.outcome
        if self._reader is not None:
            outcome.usage = self._parse(_usage, self._reader) or outcome.usage
        for plugged, ask in self.hooks.response_metadata:
            said = guard.call("ResponseComplete", plugged, ask, self.request, decision, outcome)
            try:
                for namespace, numbers in (said or {}).items():
                    checked = {_text(name): float(value) for name, value in numbers.items()}
                    found.setdefault(_text(namespace), {}).update(checked)
            except (AttributeError, TypeError, ValueError) as error:
                guard.fault("ResponseComplete", plugged, "shape", f"numbers by namespace and name are due: {error}")
        return found

    def response_rest(self) -> bytes:
        """What has been held back when the body has ended in trailers."""
        if self._reader is not None:
            self._feed(self._reader, ResponseBody(b"", end=True))
        return b"" if self._renamer is None else self._renamer.feed(b"", end=True)

    @property
    def renames(self) -> bool:
        """Whether the response has the engine's name of the model where the client knows another one."""
        rewriting = self.rewriting
        return rewriting is not None and rewriting.changes and rewriting.client != "" and not self._encoded

    def _new_renamer(self, *, fixed: bool) -> Renamer | None:
        rewriting = self.rewriting
        if rewriting is None or fixed or not self.renames:
            return None
        events = bool(self.record.outcome.streaming)
        return Renamer(rewriting.paths, rewriting.target, rewriting.client, events=events)

    def _feed(self, reader: ResponseReader, event: ResponseBody) -> None:
        try:  # not through the guard: pieces are too many to time each
            reader.feed(event.data, end=event.end)
        except Exception as error:  # noqa: BLE001 (a plugin may raise anything; it is counted and left out)
            self._reader = None
            if self._parser is not None:
                self._pipeline.observe.guard.fault("ResponseParsing", self._parser, "raised", repr(error))

    def _new_reader(self) -> ResponseReader | None:
        if self._encoded or self.request is None:
            return None
        parsers, name = self.hooks.router.parsers, self.request.parser
        self._parser = next((plugged for plugged in parsers if plugged.name == name), None)
        if self._parser is None:
            return None
        streaming = bool(self.record.outcome.streaming)
        reader: ResponseReader | None = self._parse(partial(self._parser.plugin.response, streaming=streaming))
        return reader

    def _parse(self, function: Callable[..., Any], *arguments: Any) -> Any:
        assert self._parser is not None  # noqa: S101 (there is a reader, or soon will be)
        return self._pipeline.observe.guard.call("ResponseParsing", self._parser, function, *arguments)

    def _first_byte(self, now: float) -> None:
        record = self.record
        record.outcome.first_byte = now - record.started
        pool = self._pipeline.pool
        if self._leg is not None and self.hooks.answer_tokens is None:
            pool.release(self._leg, tokens_only=True)  # the prompt has been computed, and nothing else is charged
        for leg in self._side_legs:
            pool.release(leg)  # a prefill, or an encoding, has ended
        if self._series is not None:
            self._series.ttft("true" if record.outcome.streaming else "false").observe(record.outcome.first_byte)
        if record.decision is not None and record.decision.found() is not None:
            self._tell(self.hooks.first_byte, now)

    def _tell(self, hooks: tuple[Hook, ...], *arguments: Any) -> None:
        for plugged, told in hooks:
            guard, decision = self._pipeline.observe.guard, self.record.decision
            guard.call("ResponseComplete", plugged, told, self.request, decision, *arguments)

    def close(self, ending: Ending, *, complete: bool | None) -> None:
        """The stream has ended, however: settles what was charged and notes the end. Called exactly once."""
        pipeline, record, outcome = self._pipeline, self.record, self.record.outcome
        now = pipeline.now()
        if self.pending is not None:
            self.answered()
        self._release()
        outcome.duration = now - record.started
        outcome.cause = self._cause(ending, complete=complete)
        if self._reader is not None:
            outcome.usage = self._parse(_usage, self._reader) or outcome.usage
        observe = pipeline.observe
        observe.metrics.streams_inflight.inc(-1)
        observe.note(observe.metrics.stream_ended, _CODES[ending], outcome.duration)
        if self._series is not None:
            observe.note(observe.metrics.finished, record, self._series)
            self._tell(self.hooks.done, outcome, now)
        if record.id:
            observe.note(observe.requests.write, record)
            if observe.log is not None:
                observe.note(observe.log.write, record)
        self.hooks.users.leave()

    def _cause(self, ending: Ending, *, complete: bool | None) -> str | None:
        if ending == "refused":
            return "refused" if self.record.error is not None else "answered"
        if complete:
            return "done"
        if complete is None and self.record.outcome.status is not None and ending != "failed":
            return None  # the response has begun, and nothing tells whether it has ended
        if self._series is None and self.record.outcome.status is None and ending == "ended":
            return "client-gone"  # before its request was whole
        if ending == "cancelled":
            return "client-gone"
        # Envoy closes in the same way whatever happened; only a body that we follow tells that its end is missing.
        return "cut" if ending == "failed" or self.record.outcome.response_bytes is not None else None


_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSENDABLE = frozenset("\r\n\0")

_CODES: Mapping[Ending, str] = {"ended": "OK", "refused": "OK", "cancelled": "Canceled", "failed": "Internal"}


def _usage(reader: ResponseReader) -> Usage:
    usage = reader.usage
    if not isinstance(usage, Usage):
        raise TypeError(f"a Usage is due, not {usage!r}")
    return usage


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a name is due, not {name!r}")
    return name


def settable(guard: Guard, point: Point, plugged: Plugged, headers: Any) -> Mapping[str, str]:
    """A plugin's headers, none if Envoy doesn't take them: one of those would end the stream."""
    if not headers:
        return {}
    if isinstance(headers, Mapping) and all(_fits(name, value) for name, value in headers.items()):
        return headers
    guard.fault(point, plugged, "shape", "names and values of headers are due")
    return {}


def _fits(name: Any, value: Any) -> bool:
    texts = isinstance(name, str) and isinstance(value, str)
    return texts and _NAME.fullmatch(name) is not None and _UNSENDABLE.isdisjoint(value)


def _index(c: Candidates, slot: int) -> int | None:
    """Where the slot stands among them; None if another picker has taken one that isn't."""
    index = c.index(slot)
    return index if c.slots[index] == slot else None


def _at(c: Candidates, key: Key | None, index: int | None) -> float | None:
    if key is None or index is None:
        return None
    value = float(c[key][index])
    return value if isfinite(value) else None
