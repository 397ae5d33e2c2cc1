"""The SDK: all that a plugin may import.

A plugin is a class with one or more of the methods below; which methods it has says what it is. Its `type` is the name
of its entry point in the group `epp.plugins`, or the path of its file in the configuration.

    class QueueScorer:
        \"\"\"Prefers endpoints with fewer waiting requests: 1 for the shortest queue, 0 for the longest.\"\"\"

        def score(self, request: Request, c: Candidates) -> Floats:
            return lower_is_better(c[WAITING])

A class with parameters declares them as a nested pydantic model named `Parameters`, and takes an instance of it as its
first argument; a class that wants its own name, the clock or randomness takes a `Context` as the argument `context`:

    class MyScorer:
        class Parameters(epp.plugin.Parameters):
            threshold: int = 128

        def __init__(self, parameters: Parameters, context: Context) -> None: ...

What the loader reads off a class beside its methods, all of it optional:

- `reads` and `writes`: the keys of request columns that it needs and that it gives, as attributes of the class or of
  the instance. Producers run in the order that these imply; a column that nobody gives is an error at load, or brings
  in the producer of that name.
- `load_based`: see `Filter.keep`.
- `mandatory = True`: for what says who *can* serve a request, such as a filter by role. It is never left out for the
  time it takes, and where it fails as a filter or screener the request is refused, since nobody else can say that.
- `stability = "alpha"`: loads with a warning. `deprecated = "write ... instead"`: loads with that warning.
- `loads_only = "has no ... yet"`: loads with that warning. `kind = "fairness policy"`: what a class without any of the
  methods is. `remarks`: an instance's warnings about its own parameters.
- `encodes`: a profile handler's, the names of the profiles that choose who encodes pictures and other media, and
  computes nothing of the prompt (see `Decision.computing`); `("encode",)` without it.
- `bind(profiles)`: a profile handler's, called with the profiles' names; raises ValueError if they don't fit, and may
  leave `remarks`.
- `state()`: plain data for `/debug/plugins/state`.
- `close()`: called once, when the configuration has been replaced and its last request has ended, or at the end.

Parameters that don't go together are a ValueError of a pydantic `model_validator(mode="after")`, one for each rule: all
of them are tried whatever else is wrong, but not those that need a field that is wrong. `WrongParameters` gives every
fault its place; a constructor and `bind` may raise it, too.

What is to outlive a change of the configuration is kept through `Context.state`.

Between two awaits a decision is one synchronous step. A plugin that raises, takes too long or returns NaN, the wrong
shape or the wrong type is counted and left out; the request goes on without it.
"""

import random
import re
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel

from epp import formats
from epp.errors import BadRequest, UnknownPlugin, WrongParameters, unknown_model
from epp.keys import (
    ACTIVE_LORAS,
    ACTIVE_MODELS,
    APPROX_PREFIX_PRODUCER,
    CACHE_BLOCK_SIZE,
    CACHE_BLOCKS,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_USAGE,
    MAX_LORAS,
    REPORTED,
    RUNNING,
    SERVED_MODELS,
    WAITING,
    WAITING_LORAS,
    WAITING_MODELS,
    Key,
    matchable_tokens,
    matched_tokens,
    pool_key,
    request_key,
)
from epp.pool import Candidates, Codes, Endpoint, Floats, Ints, Mask, Pick, Pool
from epp.prefix import Chain, Hasher, PrefixIndex
from epp.quantities import parse_duration, parse_size
from epp.request import BYTES_PER_TOKEN, Body, Outcome, Request, Usage
from epp.sources import (
    ENGINE_LABELS,
    ENGINES,
    EndpointsFile,
    EngineMetrics,
    Extraction,
    Notice,
    ObjectKind,
    Page,
    Sources,
    parse_selector,
)
from epp.states import States

T = TypeVar("T")

__all__ = [
    "ACTIVE_LORAS",
    "ACTIVE_MODELS",
    "APPROX_PREFIX_PRODUCER",
    "BYTES_PER_TOKEN",
    "CACHE_BLOCKS",
    "CACHE_BLOCK_SIZE",
    "ENGINES",
    "ENGINE_LABELS",
    "INFLIGHT_REQUESTS",
    "INFLIGHT_TOKENS",
    "KV_USAGE",
    "MAX_LORAS",
    "REPORTED",
    "RUNNING",
    "SERVED_MODELS",
    "WAITING",
    "WAITING_LORAS",
    "WAITING_MODELS",
    "Admitter",
    "BadRequest",
    "Body",
    "Candidates",
    "Chain",
    "Codes",
    "Context",
    "Counter",
    "DataSource",
    "Decider",
    "Decision",
    "Duration",
    "Endpoint",
    "EndpointDiscovery",
    "EndpointsFile",
    "EngineMetrics",
    "Extraction",
    "Extractor",
    "Fetcher",
    "Filter",
    "Floats",
    "Hasher",
    "HeaderName",
    "HeaderReader",
    "Ints",
    "Key",
    "Mask",
    "Notice",
    "ObjectKind",
    "Observer",
    "Outcome",
    "Page",
    "PageExtractor",
    "PageParameters",
    "PagePath",
    "PagePort",
    "Parameters",
    "Parser",
    "Pick",
    "Picker",
    "PolledSource",
    "Pool",
    "PositiveDuration",
    "PrefixIndex",
    "Producer",
    "ProfileHandler",
    "Request",
    "ResponseReader",
    "Run",
    "Scorer",
    "Screener",
    "Tokenizer",
    "UnknownPlugin",
    "Usage",
    "WrongParameters",
    "absent_profiles",
    "formats",
    "higher_is_better",
    "lower_is_better",
    "matchable_tokens",
    "matched_tokens",
    "parse_selector",
    "parse_size",
    "pool_key",
    "refers_to",
    "refers_to_profile",
    "request_key",
    "unknown_model",
]


class Parameters(BaseModel):
    """The base of a plugin's parameters: camelCase in the configuration, snake_case in Python, unknown ones refused.

    Numbers are finite.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    def effective(self) -> Self:
        """As they count, without what is deprecated, for `epp config show`; they load again and mean the same."""
        return self


def _seconds(value: Any) -> float:
    if not isinstance(value, str):
        raise ValueError('a duration is a string, such as "200ms" or "30s"')
    seconds = parse_duration(value)
    if seconds < 0:
        raise ValueError(f"{value!r} is negative: a duration is 0 or more")
    return seconds


def _some_seconds(value: Any) -> float:
    if (seconds := _seconds(value)) == 0:
        raise ValueError(f"must be above 0, not {value!r}")
    return seconds


SHORTEST_INTERVAL = 0.05
"""Seconds; llm-d's."""

_AS_TEXT = PlainSerializer(lambda seconds: f"{seconds:.9g}s", when_used="json")
Duration = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=str), _AS_TEXT]
"""A field that is written as Go writes durations, "200ms", and read as seconds."""

PositiveDuration = Annotated[float, BeforeValidator(_some_seconds, json_schema_input_type=str), _AS_TEXT]
"""The same, above 0."""


def _header(name: str) -> str:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):  # RFC 9110, 5.6.2
        raise ValueError(f"{name!r} is no header's name: write letters, digits and hyphens, such as x-session-id")
    return name.lower()


HeaderName = Annotated[str, AfterValidator(_header)]
"""A field with the name of a header, in any case; it is read in lower case, as `Request.headers` has it."""


def refers_to(kind: type, called: str, *optional: str) -> AfterValidator:
    """For the annotation of a field with another plugin's name, of that class or protocol; "" refers to nobody.

    The constructor gets the plugin by `Context.plugin`. Nobody need be called by an optional name.
    """

    def check(name: str, info: ValidationInfo) -> str:
        if not name or not isinstance(info.context, Context):
            return name
        try:
            found = info.context.plugin(name, kind)
        except UnknownPlugin:
            if name in optional:
                return name
            raise
        if not isinstance(found, kind):
            raise ValueError(f'"{name}" is no {called}')
        return name

    return AfterValidator(check)


def refers_to_profile(*optional: str) -> AfterValidator:
    """For the annotation of a field with a profile's name; there need not be a profile of an optional one."""

    def check(name: str, info: ValidationInfo) -> str:
        profiles = info.context.profiles if isinstance(info.context, Context) else None
        if profiles is not None and name not in (*profiles, *optional):
            raise ValueError(f'no profile is called "{name}"; there are: {", ".join(profiles)}')
        return name

    return AfterValidator(check)


def absent_profiles(context: "Context", named: Mapping[str, str], *optional: str) -> tuple[str, ...]:
    """Remarks about profiles that aren't there, for a plugin that does without; there need not be an optional one.

    Args:
        context: of the plugin.
        named: the profiles' names, by the keys of the parameters that have them.
        optional: names that need no remark.
    """
    if context.profiles is None:
        return ()
    there = ", ".join(context.profiles)
    return tuple(
        f'no profile is called "{name}", which {key} names: it has no effect; there are: {there}'
        for key, name in named.items()
        if name not in (*context.profiles, *optional)
    )


def _rooted(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


PagePath = Annotated[str, Field(min_length=1), AfterValidator(_rooted)]
"""A field with the path of a URL, with or without the slash that it begins with."""

PagePort = Annotated[Annotated[int, Field(ge=0, le=65535)] | None, AfterValidator(lambda port: port or None)]
"""A field with a port; 0 is none, as in llm-d."""


class PageParameters(Parameters):
    """The parameters of a data source that fetches a page of every endpoint.

    Attributes:
        scheme, path: of its URL; a subclass has its own defaults.
        port: None, written 0 or left out, for the one where the endpoint serves its metrics, or else its requests.
        insecure_skip_verify: with https, whether any certificate is accepted.
        ca_cert_path: certificates (PEM) to check the endpoints' against; "" for the system's.
        client_cert_path, client_key_path: our own certificate and its key (PEM).
        interval: seconds between two fetches of one page; None, written "" or left out, for the default.
    """

    scheme: Literal["http", "https"] = "http"
    path: PagePath = "/metrics"
    port: PagePort = None
    insecure_skip_verify: bool = True
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    interval: Annotated[PositiveDuration | None, BeforeValidator(lambda value: None if value == "" else value)] = None

    @model_validator(mode="after")
    def _key_of_a_certificate(self) -> Self:
        if self.client_key_path and not self.client_cert_path:
            message = "is the key of a certificate: name that as clientCertPath"
            raise WrongParameters((("clientKeyPath",), message))
        return self

    def page(self) -> Page:
        """The page; it is fetched every 50 ms at most."""
        return Page(
            scheme=self.scheme,
            path=self.path,
            port=self.port,
            insecure=self.insecure_skip_verify,
            ca=_file(self.ca_cert_path),
            certificate=_file(self.client_cert_path),
            key=_file(self.client_key_path),
            interval=None if self.interval is None else max(self.interval, SHORTEST_INTERVAL),
        )


def _file(path: str) -> Path | None:
    return Path(path) if path else None


class Counter(Protocol):
    """A counter with its label values."""

    def inc(self, amount: float = 1.0) -> None:
        """Adds so much, never less than 0."""


class _Uncounted:
    def inc(self, amount: float = 1.0) -> None:
        """Counts nowhere."""


def _uncounted(_name: str, _labels: Mapping[str, str]) -> Counter:
    return _Uncounted()


Class = type[Any]
"""A class or a protocol."""


def _nobody(name: str, _kind: Class) -> Any:
    raise UnknownPlugin(f'no plugin is called "{name}"')


@dataclass(frozen=True, slots=True)
class Context:
    """What the mechanism gives to a plugin that asks for it.

    Attributes:
        name: the name of this instance in the configuration.
        now: the injected monotonic clock, seconds.
        random: the injected source of randomness.
        pool: the pool; for producers that keep something per endpoint and must hear when a slot is void (`watch`).
        type: the plugin's type.
        profiles: the names of the configured profiles; None where they can't be told.
        states: see `state`.
        lookup: see `plugin`.
        counters: see `counter`.
    """

    name: str
    now: Callable[[], float]
    random: random.Random
    pool: Pool
    type: str = ""
    profiles: Sequence[str] | None = None
    states: States = field(default_factory=States)
    lookup: Callable[[str, Class], Any] = _nobody
    counters: Callable[[str, Mapping[str, str]], Counter] = _uncounted

    def plugin(self, name: str, kind: Class = object) -> Any:
        """Another plugin of the configuration by its name; it is made first. For constructors.

        Args:
            name: of the plugin.
            kind: a class or protocol; of the plugins that could be meant an error names those that are such.

        Raises:
            UnknownPlugin: nobody is called that, or it is being made itself and has asked for this one.
        """
        return self.lookup(name, kind)

    def counter(self, name: str, labels: Mapping[str, str]) -> Counter:
        """A counter of `/metrics`; one that isn't there is added, under the name as it is given.

        Raises:
            ValueError: there is a metric of that name with other labels, or one that is no counter.
        """
        return self.counters(name, labels)

    def state(self, key: Hashable, factory: Callable[[], T]) -> T:
        """What this instance keeps from one configuration to the next; made by the factory if there is none yet.

        Requests of the old configuration may still use it while those of the new one do.

        Args:
            key: what shapes the state, such as a tuple of parameters: under another key it begins anew. So it does
                under another name or type of the instance.
            factory: makes it. An object of a class from a plugin's own file begins anew when that file changes.
        """
        return self.states.get((self.name, self.type, key), factory)


class Run(Protocol):
    """Runs profiles for a profile handler."""

    def __call__(self, profile: str, peer: Pick | None = None) -> Pick | None:
        """Runs a profile by name; None if nobody is left. `peer` is what its plugins find as `Candidates.peer`."""
        ...

    @property
    def candidates(self) -> Candidates:
        """Whom the decision began with, with the columns that producers have written: for deciders."""
        ...


@runtime_checkable
class Filter(Protocol):
    """Says who may serve the request."""

    def keep(self, request: Request, c: Candidates) -> Mask:
        """A mask of shape (n,): true for those that stay.

        A filter whose `load_based` attribute is true judges by load: if such filters alone empty the candidates, the
        answer is 429 instead of 503.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Says who should rather serve the request."""

    def score(self, request: Request, c: Candidates) -> Floats:
        """Points of shape (n,) in [0, 1]; NaN is no points."""
        ...


@runtime_checkable
class Picker(Protocol):
    """Chooses by the weighted totals."""

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Sequence[int] | Ints:
        """Indices into the candidates, best first; the first is the target, others are fallbacks in order."""
        ...


@runtime_checkable
class ProfileHandler(Protocol):
    """Says which profiles run, in which order."""

    def decide(self, request: Request, run: Run) -> str | None:
        """Runs profiles and names the primary one, whose pick is the destination; None if there is none.

        Raises:
            BadRequest: the request asks for what there isn't; the client gets the message.
        """
        ...


@runtime_checkable
class Decider(Protocol):
    """Says for a profile handler whether a request is worth a further profile, such as one for its prefill."""

    def disaggregate(self, request: Request, pick: Pick | None, c: Candidates) -> bool:
        """Whether to run it.

        Args:
            request: the request.
            pick: what the profile before chose; None if none has run.
            c: whom the decision began with.
        """
        ...


@runtime_checkable
class Producer(Protocol):
    """Computes columns for a request before it is scheduled; pure, no I/O."""

    def produce(self, request: Request, c: Candidates) -> Mapping[Key, Floats]:
        """Request columns of shape (n,). A class attribute or property `writes` lists the keys."""
        ...


@runtime_checkable
class Fetcher(Protocol):
    """Fetches columns for a request from elsewhere, or waits: the only I/O of a decision, under a deadline.

    That is 0.4 seconds, or what the attribute `deadline` says, in seconds.
    """

    def fetch(self, request: Request, c: Candidates) -> Awaitable[Mapping[Key, Floats]]:
        """Request columns of shape (n,)."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Says which tokens a request's prompts have, where their bytes don't: first of all, and under a deadline.

    That is 0.4 seconds, or what the attribute `deadline` says, in seconds. With `media_only = True` only requests with
    pictures, sounds or videos come. Of several that are configured the first one counts.
    """

    def tokenize(self, request: Request, data: bytes) -> Awaitable[Body]:
        """The request's body with other prompts, 4 bytes a token (`formats.text.ids`, `formats.text.resized`).

        Args:
            request: as its parser has read it.
            data: the whole body as the client sent it.
        """
        ...


@runtime_checkable
class Screener(Protocol):
    """Says who may serve the request, before producers run and whatever profile runs."""

    def screen(self, request: Request, c: Candidates) -> Mask | None:
        """A mask of shape (n,); None lets everybody through. All see the same candidates; who stays is in every mask.

        A screener may have a method `refusal(request, c)`, with a text: if its mask leaves nobody, what the request
        names isn't there, and the client gets 404 with that text.
        """
        ...


@runtime_checkable
class Admitter(Protocol):
    """May turn a request away for the state that the pool is in."""

    def deny(self, request: Request, c: Candidates) -> str | None:
        """The reason for which the client gets 429; None to admit it."""
        ...


@runtime_checkable
class HeaderReader(Protocol):
    """Reads attributes out of a request's headers, for other plugins (`Request.attributes`)."""

    def attributes(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Attributes by key, `name/producer`; the key `agent-identity/...` stands in for a fairness id."""
        ...


@runtime_checkable
class PolledSource(Protocol):
    """Names a page of every endpoint that is fetched beside its metrics, for extractors to read."""

    def polled_page(self) -> Page:
        """The page; asked once. A class attribute `replaces_metrics` says that there are no metrics beside it."""
        ...


@runtime_checkable
class PageExtractor(Protocol):
    """Makes columns out of a polled page."""

    def columns(self, endpoint: Endpoint, page: bytes) -> Mapping[Key, float]:
        """The endpoint's values, by pool keys; what is left out isn't known, and nothing is if it raises.

        `formats.exposition` reads pages of metrics.
        """
        ...


@runtime_checkable
class DataSource(Protocol):
    """Says where the endpoints' metrics are fetched from."""

    def metrics_page(self) -> Page:
        """The page of every endpoint; asked once."""
        ...


@runtime_checkable
class Extractor(Protocol):
    """Says how the metrics are read."""

    def engine_metrics(self) -> Extraction:
        """The metrics by engine; asked once."""
        ...


@runtime_checkable
class EndpointDiscovery(Protocol):
    """Says who is in the pool."""

    def endpoints_file(self) -> EndpointsFile:
        """The file that names them; asked once."""
        ...


class Decision(Protocol):
    """What was decided, as observers see it."""

    @property
    def primary(self) -> Pick:
        """The pick whose endpoints are the destination."""
        ...

    @property
    def picks(self) -> Mapping[str, Pick]:
        """The pick of every profile that ran and found somebody, by the profile's name."""
        ...

    @property
    def computing(self) -> Mapping[str, Pick]:
        """Of `picks` those at whose first endpoint the prompt, or a part of it, is computed, so that its KV is there.

        All but those of the profiles that the handler's `encodes` names.
        """
        ...

    @property
    def encoding(self) -> Mapping[str, Pick]:
        """Of `picks` those whose endpoints encode pictures and other media; the others are `computing`."""
        ...


class Observer(Protocol):
    """Hears what becomes of requests. A plugin may have any of these methods."""

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """The decision is made; `c` are all candidates that it began with. Called before the next decision begins."""

    def request_headers(self, request: Request, decision: Decision) -> Mapping[str, str]:
        """Headers to set on the request, such as `x-prefiller-host-port`; a client's own copy of them never passes."""
        ...

    def destination(self, request: Request, decision: Decision) -> str | None:
        """Another destination than the primary pick, `ip:port` or a list with commas; None to leave it."""
        ...

    def response_headers(self, request: Request, decision: Decision, served: Endpoint) -> Mapping[str, str]:
        """Headers to set on the response. `served` answers: the target, or the fallback that Envoy has gone on to."""
        ...

    def response_metadata(
        self, request: Request, decision: Decision, outcome: Outcome
    ) -> Mapping[str, Mapping[str, float]]:
        """Numbers for the request's dynamic metadata, by namespace and name, when its response has ended."""
        ...

    def first_byte(self, request: Request, decision: Decision, now: float) -> None:
        """The first byte of the response's body has passed (only in body modes that show it)."""

    def done(self, request: Request, decision: Decision, outcome: Outcome, now: float) -> None:
        """The stream has ended, however; called exactly once."""


class ResponseReader(Protocol):
    """Reads the usage out of one response's body, in pieces split at any byte."""

    def feed(self, data: bytes, *, end: bool) -> None:
        """The next piece of the body; `end` with the last one."""

    @property
    def usage(self) -> Usage:
        """What has been seen so far."""
        ...


@runtime_checkable
class Parser(Protocol):
    """Reads requests of one API, by the path's suffix.

    `paths` lists the suffixes that it claims, whole segments such as "chat/completions"; a parser with none is the
    fallback for every other path. `formats` has what parsers share.

    A parser whose requests are JSON objects with the model's name in `model` may have a class attribute `model_paths`,
    the places of that name in an answer or an event, such as `(("model",), ("response", "model"))`: then the name can
    be rewritten.

    One whose API is spoken over some protocols only may have a class attribute `protocols`, such as
    `("kubernetes.io/h2c",)`: with an InferencePool of another appProtocol the picker is not ready.
    """

    paths: tuple[str, ...]

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Body:
        """Reads the body.

        Raises:
            BadRequest: it can't; the message says what is wrong with it.
        """
        ...

    def response(self, *, streaming: bool) -> ResponseReader | None:
        """A reader for one response; None if this API reports no usage."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Plugged:
    """A plugin instance with the names that logs, metrics and explanations call it by."""

    name: str
    type: str
    plugin: Any


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A scheduling profile: filters in order, scorers with their weights, a picker.

    `weights` are the scorers' as an array, shape (scorers,); totals lie within [-bound, bound].
    """

    name: str
    filters: tuple[Plugged, ...]
    scorers: tuple[tuple[Plugged, float], ...]
    picker: Plugged
    weights: Floats = field(init=False)
    bound: float = field(init=False)

    def __post_init__(self) -> None:
        weights = np.array([weight for _, weight in self.scorers], dtype=np.float64)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "bound", float(np.abs(weights).sum()))


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """One configuration, ready to route: immutable, and replaced by one assignment.

    Attributes:
        profiles: by name.
        handler: the profile handler.
        parsers: in order; see `Parser.paths`.
        fetchers: run before the decision, concurrently.
        producers: in the order of their dependencies.
        observers: all plugins with any of `Observer`'s methods.
        screeners, admitters, header_readers: in the order of the file.
        tokenizer: see `Tokenizer`; None for the estimate by bytes.
        sources: where endpoints and metrics come from.
        warnings: what the loader wants the operator to know.
        origin: where the configuration came from, for the start log.
        shadow: what decides beside this one, without effect; None for none.
    """

    profiles: Mapping[str, Profile]
    handler: Plugged
    parsers: tuple[Plugged, ...]
    fetchers: tuple[Plugged, ...] = ()
    producers: tuple[Plugged, ...] = ()
    observers: tuple[Plugged, ...] = ()
    screeners: tuple[Plugged, ...] = ()
    admitters: tuple[Plugged, ...] = ()
    header_readers: tuple[Plugged, ...] = ()
    tokenizer: Plugged | None = None
    sources: Sources = field(default_factory=Sources)
    warnings: tuple[str, ...] = ()
    origin: str = ""
    shadow: "Router | None" = None


def plugins_of(router: Router) -> tuple[Plugged, ...]:
    """Every plugin of a configuration, each once, in no particular order."""
    found: list[Plugged] = [router.handler, *router.parsers, *router.fetchers, *router.producers, *router.observers]
    found += [*router.screeners, *router.admitters, *router.header_readers]
    found += [router.tokenizer] if router.tokenizer is not None else []
    for profile in router.profiles.values():
        found += [*profile.filters, *(plugged for plugged, _ in profile.scorers), profile.picker]
    if router.shadow is not None:
        found += plugins_of(router.shadow)
    return tuple({plugged.name: plugged for plugged in found}.values())


def lower_is_better(values: Floats) -> Floats:
    """(max - x) / (max - min) over the known values, shape (n,); all equal gives 1, NaN stays NaN."""
    highest, lowest = np.fmax.reduce(values), np.fmin.reduce(values)
    if not highest > lowest:
        return np.where(np.isnan(values), np.nan, 1.0)
    return (highest - values) / (highest - lowest)  # type: ignore[no-any-return]


def higher_is_better(values: Floats) -> Floats:
    """(x - min) / (max - min) over the known values, shape (n,); all equal gives 1, NaN stays NaN."""
    return lower_is_better(-values)
