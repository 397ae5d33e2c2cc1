"""Plugins of these tests: one that records what it hears, and others that fail in every way."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

import epp.plugin
from epp.plugin import (
    BadRequest,
    Body,
    Candidates,
    Decision,
    Endpoint,
    Floats,
    Key,
    Outcome,
    Request,
    ResponseReader,
    Run,
    Usage,
    request_key,
)
from epp.settings import Registry


def column(producer: str) -> Key:
    """The key of the column that this plugin writes."""
    return request_key("column", producer)


class Recorder:
    """Records what observers hear, in order."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        self.heard.append(("picked", request.id, decision.primary.destination, len(c)))

    def response_headers(self, request: Request, decision: Decision, served: Endpoint) -> Mapping[str, str]:
        self.heard.append(("response_headers", request.id, served.hostport))
        return {}

    def first_byte(self, request: Request, decision: Decision, now: float) -> None:
        self.heard.append(("first_byte", request.id, now))

    def done(self, request: Request, decision: Decision, outcome: Outcome, now: float) -> None:
        self.heard.append(("done", request.id, outcome, now))


RESULTS: Mapping[str, Callable[[int], Any]] = {
    "nothing": lambda n: None,
    "nan": lambda n: np.full(n, np.nan),
    "short": lambda n: np.ones(n - 1),
    "long": lambda n: np.ones(n + 1),
    "scalar": lambda n: 0.5,
    "text": lambda n: ["good"] * n,
    "object": lambda n: object(),
    "ragged": lambda n: [[1.0], [1.0, 2.0]],
    "infinite": lambda n: np.full(n, np.inf),
    "integers": lambda n: np.ones(n, dtype=np.int64),
    "bools": lambda n: np.zeros(n, dtype=bool),
}


class Saying(epp.plugin.Parameters):
    """What the plugin says: an entry of `RESULTS`, or "raise"."""

    say: str


class Odd:
    """Says what it was told to, whatever is due."""

    Parameters = Saying

    def __init__(self, parameters: Saying) -> None:
        self._say = parameters.say

    def result(self, n: int) -> Any:
        if self._say == "raise":
            raise ZeroDivisionError("as told")
        return RESULTS[self._say](n)


class OddFilter(Odd):
    """A filter."""

    def keep(self, request: Request, c: Candidates) -> Any:
        return self.result(len(c))


class OddScorer(Odd):
    """A scorer."""

    def score(self, request: Request, c: Candidates) -> Any:
        return self.result(len(c))


class OddPicker(Odd):
    """A picker."""

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Any:
        return self.result(len(c))


class OddHandler(Odd):
    """A profile handler."""

    def decide(self, request: Request, run: Run) -> Any:
        return self.result(1)


class OddProducer(Odd):
    """A producer of a column."""

    writes = (column("odd-producer"),)

    def produce(self, request: Request, c: Candidates) -> Any:
        said = self.result(len(c))
        return said if said is None or self._say == "object" else dict.fromkeys(self.writes, said)


class OddFetcher(Odd):
    """A fetcher of a column."""

    writes = (column("odd-fetcher"),)

    async def fetch(self, request: Request, c: Candidates) -> Any:
        await asyncio.sleep(0)
        said = self.result(len(c))
        return said if said is None or self._say == "object" else dict.fromkeys(self.writes, said)


class OddObserver(Odd):
    """An observer that fails wherever it is asked."""

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        self.result(1)

    def response_headers(self, request: Request, decision: Decision, served: Endpoint) -> Any:
        return self.result(1)

    def first_byte(self, request: Request, decision: Decision, now: float) -> None:
        self.result(1)

    def done(self, request: Request, decision: Decision, outcome: Outcome, now: float) -> None:
        self.result(1)


class OddScreener(Odd):
    """A screener."""

    def screen(self, request: Request, c: Candidates) -> Any:
        return self.result(len(c))


class OddHeaderReader(Odd):
    """A reader of request headers."""

    def attributes(self, headers: Mapping[str, str]) -> Any:
        return self.result(1) if self._say != "numbers" else {"a": 1}


class OddHooks:
    """Says what it is told to, wherever the request's way asks."""

    writes = ()
    charges_answers = True

    class Parameters(epp.plugin.Parameters):
        destination: Any = ""
        tokens: Any = 0
        metadata: Any = None
        headers: Any = None

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def produce(self, request: Request, c: Candidates) -> Mapping[Key, Floats]:
        return {}

    def destination(self, request: Request, decision: Decision) -> Any:
        return self._parameters.destination

    def answer_tokens(self, request: Request) -> Any:
        return self._parameters.tokens

    def response_metadata(self, request: Request, decision: Decision, outcome: Outcome) -> Any:
        return self._parameters.metadata

    def request_headers(self, request: Request, decision: Decision) -> Any:
        return self._parameters.headers


class ColumnScorer:
    """Scores by the column that a producer or fetcher writes."""

    class Parameters(epp.plugin.Parameters):
        of: str

    def __init__(self, parameters: Parameters) -> None:
        self.reads = (column(parameters.of),)

    def score(self, request: Request, c: Candidates) -> Floats:
        return c[self.reads[0]]


class SilentFetcher:
    """Never answers; notes that it was cut off."""

    writes = (column("silent-fetcher"),)

    def __init__(self) -> None:
        self.started = self.cut_off = 0

    async def fetch(self, request: Request, c: Candidates) -> Mapping[Key, Floats]:
        self.started += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cut_off += 1
            raise
        raise AssertionError("nobody sets the event")


class GatedFetcher:
    """Answers when `gate` is set: it prefers the first candidate to the second, and so on."""

    writes = (column("gated-fetcher"),)

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.started = 0

    async def fetch(self, request: Request, c: Candidates) -> Mapping[Key, Floats]:
        self.started += 1
        await self.gate.wait()
        return {self.writes[0]: np.linspace(1.0, 0.5, len(c))}


class PlainFetcher:
    """Forgets to be a coroutine."""

    writes = (column("plain-fetcher"),)

    def fetch(self, request: Request, c: Candidates) -> Any:
        return {self.writes[0]: np.ones(len(c))}


class CancelledFetcher:
    """Waits for something that is cancelled."""

    writes = (column("cancelled-fetcher"),)

    async def fetch(self, request: Request, c: Candidates) -> Any:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future


class Nobody:
    """A filter that leaves nobody, for whatever reason."""

    class Parameters(epp.plugin.Parameters):
        because: Literal["load", "kind"]

    def __init__(self, parameters: Parameters) -> None:
        self.load_based = parameters.because == "load"

    def keep(self, request: Request, c: Candidates) -> Any:
        return np.zeros(len(c), dtype=bool)


class ResponseHeaders:
    """Sets one response header, whatever it is told."""

    class Parameters(epp.plugin.Parameters):
        name: Any
        value: Any

    def __init__(self, parameters: Parameters) -> None:
        self._headers = {parameters.name: parameters.value}

    def response_headers(self, request: Request, decision: Decision, served: Endpoint) -> Any:
        return self._headers


class OddParser:
    """Fails at one step."""

    paths = ("odd",)

    class Parameters(epp.plugin.Parameters):
        at: Literal["parse", "response", "feed", "usage", "kind"]

    def __init__(self, parameters: Parameters) -> None:
        self._at = parameters.at

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Body:
        if body.startswith(b"bad"):
            raise BadRequest("it is bad") from ValueError(body)
        if self._at == "parse":
            raise KeyError("a fault of the parser's")
        return Body(model="m", prompts=(body,))

    def response(self, *, streaming: bool) -> ResponseReader:
        if self._at == "response":
            raise KeyError("no reader")
        return OddReader(self._at)


class OddReader:
    """Reads a usage, or fails."""

    def __init__(self, at: str) -> None:
        self._at = at

    def feed(self, data: bytes, *, end: bool) -> None:
        if self._at == "feed":
            raise KeyError("no food")

    @property
    def usage(self) -> Any:
        if self._at == "usage":
            raise KeyError("no usage")
        return {"prompt_tokens": 1} if self._at == "kind" else Usage(1, 2, 3)


OWN: Mapping[str, type] = {
    "recorder": Recorder,
    "odd-filter": OddFilter,
    "odd-scorer": OddScorer,
    "odd-picker": OddPicker,
    "odd-handler": OddHandler,
    "odd-producer": OddProducer,
    "odd-fetcher": OddFetcher,
    "odd-observer": OddObserver,
    "odd-screener": OddScreener,
    "odd-header-reader": OddHeaderReader,
    "odd-hooks": OddHooks,
    "odd-parser": OddParser,
    "column-scorer": ColumnScorer,
    "silent-fetcher": SilentFetcher,
    "gated-fetcher": GatedFetcher,
    "plain-fetcher": PlainFetcher,
    "cancelled-fetcher": CancelledFetcher,
    "nobody": Nobody,
    "response-headers": ResponseHeaders,
}


def registry(installed: Registry) -> Registry:
    """The installed plugins and these."""

    def found(type_name: str) -> Any:
        return installed.find(type_name).cls

    def own(cls: type) -> type:
        return cls

    loaders = {name: partial(found, name) for name in installed.types}
    return Registry(loaders | {name: partial(own, cls) for name, cls in OWN.items()})
