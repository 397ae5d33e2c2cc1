"""The request's path: one function, `Pipeline.route`; and what its response tells, until the stream ends.

    headers, body -> Request -> candidates -> producers -> profiles -> Decision -> charged, noted, answered

Everything between I/O is one synchronous step: no request is judged on what another one has changed meanwhile.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import unquote

import msgspec
import numpy as np

from epp.errors import NotFound, PreconditionFailed, ResourceExhausted, ServiceUnavailable, unknown_model
from epp.exchange import Exchange, Health, settable
from epp.extproc.events import Answer, Arrival, Direct
from epp.hooks import Hooks
from epp.keys import REPORTED, SERVED_MODELS
from epp.observe.observability import Observability
from epp.plugin import Candidates, Pick, Request, Router
from epp.pool import Pool
from epp.reading import path_of, preferences, read
from epp.rewriting import renamed_cards, rewriting_of, rewritten
from epp.schedule import Decision, admit, decide, enter_fetched, fetch, produce, screen, tokenized


@dataclass(frozen=True, slots=True)
class Options:
    """How requests are treated, as the command line says.

    Attributes:
        llm_d_status_codes: answer 429 wherever llm-d does, also where no endpoint fits the request.
        use_subset: honour the data plane's subset hint.
        emit_scores: publish every candidate's score in the dynamic metadata.
    """

    llm_d_status_codes: bool = False
    use_subset: bool = True
    emit_scores: bool = False


MODELS = "/v1/models"


@dataclass(slots=True)
class Pipeline:
    """Joins the parts. `hooks` are the configuration in force: immutable, replaced by one assignment.

    `models` gives what engines say of the models that they serve, by the model's name; see `epp.data.models`.
    """

    pool: Pool
    hooks: Hooks
    observe: Observability
    now: Callable[[], float]
    wall: Callable[[], float]
    options: Options = Options()
    health: Health = field(default_factory=Health)
    random: Random = field(default_factory=Random)
    models: Callable[[], Mapping[str, msgspec.Raw]] | None = None

    async def route(self, exchange: Exchange, arrival: Arrival) -> Answer:
        """The way of a request, from its arrival to its answer.

        Raises:
            RequestError: the client gets an error of ours.
        """
        router, guard = exchange.hooks.router, self.observe.guard
        objects = self.pool.objects
        request = read(router, arrival, exchange.record.id, guard, objects)
        if not arrival.observed:
            exchange.rewriting = rewriting_of(request, arrival, router.parsers, objects, self.random)
        if exchange.rewriting is not None:
            request = request.for_model(exchange.rewriting.target)
        exchange.note_request(request)
        if router.tokenizer is not None:
            request = await tokenized(router.tokenizer, request, arrival.body or b"", guard)
        candidates = self._candidates(router, request, arrival)
        if router.fetchers:
            fetched = await fetch(router, request, candidates, guard)
            candidates = enter_fetched(fetched, candidates, self._candidates(router, request, arrival), guard)
        started = self.now()
        produce(router, request, candidates, guard)
        admit(router, request, candidates, guard)
        decision = exchange.note_decision(request, decide(router, request, candidates, guard), started)
        if arrival.observed:
            return exchange.follow(request)
        pick = self._primary(decision)
        exchange.charge(decision, request)
        insist_on_cache(exchange, request)
        exchange.tell_picked(request)
        return self._answer(exchange, arrival, pick)

    def page(self, arrival: Arrival) -> Direct | None:
        """The answer to a request that needs no engine: for models, where no engine knows all that are offered.

        That is where engines have different ones, or rewrites offer one of theirs under another name.

        Raises:
            NotFound: nobody has the model that is asked about.
        """
        if self.models is None or arrival.headers.get(":method") != "GET":
            return None
        path = path_of(arrival.headers)
        _, _, model = path.partition(f"{MODELS}/")
        if not (model or path.endswith(MODELS)):
            return None
        served = self.models()
        renamed = renamed_cards(self.pool.objects, served)
        if not renamed and not self.pool.differ(SERVED_MODELS):
            return None
        offered = {**served, **renamed}
        if model:
            return self._model(unquote(model), offered)
        return Direct(msgspec.json.encode({"object": "list", "data": list(offered.values())}))

    def _model(self, name: str, models: Mapping[str, msgspec.Raw]) -> Direct | None:
        if name in models:
            return Direct(bytes(models[name]))
        told = self.pool.set_mask(SERVED_MODELS, REPORTED)
        if told is None or not told[self.pool.eligible_slots()].all():
            return None  # it may be one of those that don't say what they serve
        raise NotFound(unknown_model(name, models))

    def open(self) -> Exchange:
        """A new stream's exchange."""
        return Exchange(self)

    def _candidates(self, router: Router, request: Request, arrival: Arrival) -> Candidates:
        pool = self.pool
        slots = pool.eligible_slots()
        if arrival.subset is not None and self.options.use_subset:
            slots = slots[np.isin(slots, pool.within(arrival.subset))]
        if not len(slots):
            raise ServiceUnavailable(self._nobody(arrival), reason="rejected-no-endpoints")
        candidates = Candidates(pool, slots, self.now())
        return screen(router, request, candidates, self.observe.guard) if router.screeners else candidates

    def _nobody(self, arrival: Arrival) -> str:
        if not len(self.pool):
            return "there is no model server: the pool is empty"
        if not self.pool.eligible.any():
            return f"none of the {len(self.pool)} model servers can be reached"
        named = ", ".join(arrival.subset or ()) or "nobody"
        return f"none of the model servers that the data plane allows ({named}) can be reached"

    def _primary(self, decision: Decision) -> Pick:
        pick = decision.found()
        if pick is not None:
            return pick
        emptied = decision.emptied_by()
        name = emptied.name if emptied is not None else decision.handler_result
        message = f"no endpoints available for the given request: {name!r} has left none"
        load_based = emptied is not None and getattr(emptied.plugin, "load_based", False)
        if load_based or self.options.llm_d_status_codes:
            raise ResourceExhausted(message, reason="rejected-saturated")
        raise ServiceUnavailable(message, reason="rejected-no-endpoints")

    def _answer(self, exchange: Exchange, arrival: Arrival, pick: Pick) -> Answer:
        hooks, guard, request, decision = exchange.hooks, self.observe.guard, exchange.request, exchange.record.decision
        headers: dict[str, str] = {} if exchange.has_id else {"x-request-id": exchange.record.id}
        for plugged, ask in hooks.request_headers:
            headers |= settable(guard, "PreRequest", plugged, guard.call("PreRequest", plugged, ask, request, decision))
        destination = pick.destination
        for plugged, ask in hooks.destination:
            said = guard.call("PreRequest", plugged, ask, request, decision)
            if said and not _is_destination(said):
                guard.fault("PreRequest", plugged, "shape", f"ip:port is due, or a list with commas, not {said!r}")
            elif said:
                destination = said
        if hooks.destination and destination != pick.destination:
            exchange.redirected(destination)
        scores = self._scores(exchange) if self.options.emit_scores else None
        rewriting, body = exchange.rewriting, None
        if rewriting is not None and rewriting.changes and arrival.body:
            body = rewritten(arrival.body, rewriting)
        return Answer(destination, tuple(headers.items()), scores, body)

    def _scores(self, exchange: Exchange) -> Mapping[str, float]:
        decision = exchange.record.decision
        stage = next(s for s in reversed(decision.stages) if s.profile.name == decision.handler_result)
        hostports = [endpoint.hostport for endpoint in stage.candidates.endpoints]
        return dict(zip(hostports, map(float, stage.totals), strict=True))


_DESTINATION = re.compile(r"[^\s,]+:[0-9]+(?:,[^\s,]+:[0-9]+)*")


def _is_destination(said: Any) -> bool:
    """Whether Envoy could make something of it; a value that it can't parse fails the request."""
    return isinstance(said, str) and _DESTINATION.fullmatch(said) is not None


def insist_on_cache(exchange: Exchange, request: Request) -> None:
    """Minds `Prefer: if-available` (RFC 7240): the request is for an endpoint that has a part of its prompt, or nobody.

    Raises:
        PreconditionFailed: the pick is not known to hold any of it.
    """
    prefer = request.headers.get("prefer")
    if not prefer or not request.body.prompts or exchange.record.matched:
        return
    if "if-available" in preferences(prefer):
        raise PreconditionFailed("no decode worker has the requested KV cache")
