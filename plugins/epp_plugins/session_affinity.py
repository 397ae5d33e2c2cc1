"""session-affinity-scorer, session-affinity-filter: keep a session's requests on one endpoint.

What it does
    The endpoint that a session is pinned to gets 1 from the scorer and all others 0. The filter keeps that endpoint
    alone if it is among the candidates, and everybody if it isn't or there is no session; it does so whatever the
    endpoint's load, so prefer the scorer unless a session can't move.

    With the strategy `encoded_endpoint_header` the pin travels with the client: each response carries a header with the
    Base64 of the endpoint's id (`namespace/name`), and the client sends it back. It holds across restarts and replicas.
    The token is neither secret nor signed; whoever makes one up gets to choose among the candidates, and no further.

    With the strategy `session_id` the client names its session, and this process remembers the endpoint. A session is
    pinned by its first request, and anew when its endpoint is not among the candidates, has left the pool or has
    restarted. A request that goes elsewhere for other reasons leaves the pin alone and doesn't prolong it. At most
    100,000 sessions are remembered; beyond, the one that was used longest ago goes. They stay when the configuration
    changes, whatever its parameters.

    `multicluster-session-affinity-filter` is the filter where endpoints are clusters: it keeps a session's cluster.

Reads
    The request's headers, and its attributes.

Writes
    With `encoded_endpoint_header` the response header.

Parameters
    - `strategy` (`encoded_endpoint_header`): or `session_id`.
    - `encodedEndpointHeaderConfig`: `header` (`x-session-token`), of request and response.
    - `sessionIdConfig`: `sources` ([{`header`: x-session-id}]), the first with a value counts; `evictionTtlSeconds`
      (300), how long an unused session is remembered; `evictionSweepSeconds` (10), accepted: sessions that are past it
      are dropped as others come. A source may also be an attribute of the request: `attribute` and `producer`, such as
      SessionID of a `session-id-producer`.
    - `profileName` (""): the profile whose pick is pinned; "" for the one that the request goes to.

Example:
    plugins:
    - type: session-affinity-scorer
      parameters:
        strategy: session_id
        sessionIdConfig:
          sources:
          - header: x-conversation-id
          evictionTtlSeconds: 600
    - type: queue-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: session-affinity-scorer
        weight: 3
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    The sessions of an endpoint that restarts are forgotten, as its cache is. What is remembered is bounded in number
    and in bytes: session ids come from clients and are kept as digests.
"""

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

import epp.plugin
from epp.plugin import (
    Candidates,
    Context,
    Decision,
    Endpoint,
    Floats,
    HeaderName,
    HeaderReader,
    Mask,
    Pick,
    Request,
    WrongParameters,
    refers_to,
    refers_to_profile,
)

MAX_SESSIONS = 100_000
_SWEPT_AT_ONCE = 16  # a request adds one session at most, so the sweep keeps up, and none of them pays for all


class HeaderConfig(epp.plugin.Parameters):
    """`encodedEndpointHeaderConfig`."""

    header: HeaderName = "x-session-token"


class SessionSource(epp.plugin.Parameters):
    """One entry of `sessionIdConfig.sources`."""

    header: HeaderName | None = None
    attribute: Annotated[str, Field(min_length=1)] | None = None
    producer: Annotated[str, Field(min_length=1), refers_to(HeaderReader, "header reader")] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "SessionSource":
        given = self.model_fields_set
        if ("header" in given) == ("attribute" in given):
            raise ValueError("a source is either a header or an attribute")
        if "attribute" in given and "producer" not in given:
            raise WrongParameters((("producer",), "is required of a source that is an attribute"))
        if "header" in given and "producer" in given:
            raise WrongParameters((("producer",), "must not stand beside a header, which has none"))
        return self

    def read(self, request: Request) -> str:
        """The session's id by this source; "" for none."""
        if self.header is not None:
            return request.headers.get(self.header, "")
        return request.attributes.get(f"{self.attribute}/{self.producer}", "")


class SessionIdConfig(epp.plugin.Parameters):
    """`sessionIdConfig`."""

    sources: tuple[SessionSource, ...] = Field(default=(SessionSource(header="x-session-id"),), min_length=1)
    eviction_ttl_seconds: float = Field(default=300.0, gt=0)
    eviction_sweep_seconds: float = Field(default=10.0, gt=0)


class SessionParameters(epp.plugin.Parameters):
    """See the module's manual."""

    strategy: Literal["encoded_endpoint_header", "session_id"] = "encoded_endpoint_header"
    encoded_endpoint_header_config: HeaderConfig = HeaderConfig()
    session_id_config: SessionIdConfig = SessionIdConfig()
    profile_name: Annotated[str, refers_to_profile("")] = ""


class _Strategy(Protocol):
    def pinned(self, request: Request, c: Candidates) -> Mask | None:
        """The session's endpoint among the candidates, shape (n,); None without a session."""

    def pin(self, request: Request, pick: Pick, c: Candidates) -> None:
        """Remembers what was picked for the request."""

    def response_headers(self, endpoint: Endpoint) -> Mapping[str, str]:
        """What to tell the client of its endpoint."""
        ...


class _Token:
    """The pin travels with the client, as the endpoint's id in a header."""

    def __init__(self, header: str) -> None:
        self._header = header

    def pinned(self, request: Request, c: Candidates) -> Mask | None:
        token = request.headers.get(self._header)
        if not token:
            return None
        try:
            return c.named(base64.b64decode(token, validate=True).decode())
        except (binascii.Error, ValueError):
            return None

    def pin(self, request: Request, pick: Pick, c: Candidates) -> None:
        pass

    def response_headers(self, endpoint: Endpoint) -> Mapping[str, str]:
        return {self._header: base64.b64encode(endpoint.id.encode()).decode()}


class _Pins:
    """Session to slot, its epoch and the time; used longest ago first. Lives on when the configuration changes.

    A slot's epoch counts how often it has become void: a pin of an earlier one is no pin.
    """

    def __init__(self) -> None:
        self.by_session: OrderedDict[bytes, tuple[int, int, float]] = OrderedDict()
        self.epochs: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<{len(self.by_session)} sessions>"

    def forget(self, slot: int) -> None:
        """Its cache is gone, and with it the reason to come back."""
        self.epochs[slot] = self.epochs.get(slot, 0) + 1


class _Sessions:
    """The strategy `session_id`: this process remembers the pins."""

    def __init__(self, config: SessionIdConfig, now: Callable[[], float], pins: _Pins) -> None:
        self._sources = config.sources
        self._ttl = config.eviction_ttl_seconds
        self._now = now
        self._state = pins  # the pool doesn't hold it
        self._pins, self._epochs = pins.by_session, pins.epochs

    def __repr__(self) -> str:
        return f"<{len(self._pins)} sessions>"

    def _session(self, request: Request) -> bytes | None:
        named = next((value for source in self._sources if (value := source.read(request))), None)
        return hashlib.blake2b(named.encode(), digest_size=16).digest() if named else None

    def _slot(self, session: bytes | None) -> int | None:
        pin = self._pins.get(session) if session else None
        if pin is None:
            return None
        slot, epoch, seen = pin
        return slot if epoch == self._epochs.get(slot, 0) and self._now() - seen <= self._ttl else None

    def pinned(self, request: Request, c: Candidates) -> Mask | None:
        slot = self._slot(self._session(request))
        return None if slot is None else c.slots == slot

    def pin(self, request: Request, pick: Pick, c: Candidates) -> None:
        session, picked = self._session(request), pick.slots[0]
        slot = self._slot(session)
        if session and (slot in {None, picked} or not (c.slots == slot).any()):
            self._pins[session] = (picked, self._epochs.get(picked, 0), self._now())
            self._pins.move_to_end(session)
        self._sweep()

    def _sweep(self) -> None:
        for _ in range(_SWEPT_AT_ONCE):
            oldest = next(iter(self._pins), None)
            if oldest is None or (self._slot(oldest) is not None and len(self._pins) <= MAX_SESSIONS):
                return
            del self._pins[oldest]

    def response_headers(self, endpoint: Endpoint) -> Mapping[str, str]:
        return {}


class _SessionAffinity:
    """What the scorer and the filter share: whom a session is pinned to."""

    stability = "alpha"
    Parameters = SessionParameters

    def __init__(self, parameters: SessionParameters, context: Context) -> None:
        self._profile = parameters.profile_name
        if parameters.strategy == "session_id":
            pins = context.state("pins", _Pins)
            context.pool.watch(pins)
            self._strategy: _Strategy = _Sessions(parameters.session_id_config, context.now, pins)
        else:
            self._strategy = _Token(parameters.encoded_endpoint_header_config.header)

    def _pick(self, decision: Decision) -> Pick | None:
        return decision.picks.get(self._profile) if self._profile else decision.primary

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """Pins the session to what was picked."""
        pick = self._pick(decision)
        if pick is not None:
            self._strategy.pin(request, pick, c)

    def response_headers(self, request: Request, decision: Decision, served: Endpoint) -> Mapping[str, str]:
        """The token, with the strategy `encoded_endpoint_header`: of who answers, if the primary profile is pinned."""
        pick = self._pick(decision)
        if pick is None:
            return {}
        primary = pick.profile == decision.primary.profile
        return self._strategy.response_headers(served if primary else pick.endpoints[0])


class SessionAffinityScorer(_SessionAffinity):
    """Prefers the endpoint that the request's session is pinned to: 1 for it, 0 for all others."""

    def score(self, request: Request, c: Candidates) -> Floats:
        """1 for the pinned endpoint, else 0, shape (n,)."""
        pinned = self._strategy.pinned(request, c)
        return np.zeros(len(c)) if pinned is None else pinned.astype(np.float64)


class SessionAffinityFilter(_SessionAffinity):
    """Keeps the endpoint that the request's session is pinned to, or everybody if that is not a candidate."""

    def keep(self, request: Request, c: Candidates) -> Mask:
        """The pinned endpoint, if it is a candidate, shape (n,)."""
        pinned = self._strategy.pinned(request, c)
        return pinned if pinned is not None and pinned.any() else np.ones(len(c), dtype=bool)


class MulticlusterSessionAffinityFilter(SessionAffinityFilter):
    """Keeps the cluster that the request's session is pinned to, or everybody."""
