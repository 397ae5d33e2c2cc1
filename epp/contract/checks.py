"""The checks: one sentence each, and what it means in code. A check raises `Broken` where the sentence isn't true."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from epp.contract.cases import Case, refreshed, reordered
from epp.contract.subject import Subject
from epp.plugin import (
    BadRequest,
    Body,
    Candidates,
    EndpointsFile,
    Extraction,
    Key,
    ObjectKind,
    Outcome,
    Page,
    Plugged,
    Request,
    Usage,
)
from epp.schedule import decide
from epp.schedule.guard import Fault, Point, Unguarded
from epp.testing import decided


class Broken(AssertionError):
    """The plugin doesn't do what the sentence says; the message tells what it does."""


class _Guard(Unguarded):
    """Lets through what a plugin raises, and lets pass that others are asked about what is missing."""

    def fault(self, point: Point, plugged: Plugged, fault: Fault, detail: str) -> None:
        """Raises ValueError with the detail, unless it is a NaN."""
        if fault != "nan":
            super().fault(point, plugged, fault, detail)


@dataclass(frozen=True, slots=True)
class Check:
    """A sentence about all plugins of a kind."""

    kind: str
    sentence: str
    run: Callable[[Subject, Case], None]


def _due(condition: bool, message: str) -> None:
    if not condition:
        raise Broken(message)


def _column(values: Any, count: int, dtype: type, what: str) -> np.ndarray:
    """The array that was returned, if it is one of that length and type."""
    _due(values is not None, f"nothing was returned where {what} are due: is there a `return`?")
    array = np.asarray(values)
    _due(array.shape == (count,), f"{what} of shape ({count},) are due, not {array.shape}")
    _due(array.dtype == dtype, f"{what} of type {np.dtype(dtype)} are due, not {array.dtype}")
    return array


def _missing(c: Candidates) -> np.ndarray:
    """Who is stale, or lacks a value that has been read; shape (n,)."""
    missing = ~c.fresh
    for values in c.read.values():
        missing = missing | np.isnan(values)
    return missing


# --- scorers


def _scores(subject: Subject, case: Case) -> np.ndarray:
    c = subject.produce(case.request, case.candidates)
    return _column(subject.plugin.score(case.request, c), len(c), np.float64, "scores")


def _in_range(subject: Subject, case: Case) -> None:
    scores, c = _scores(subject, case), case.candidates
    unknown = np.isnan(scores)
    outside = ~((scores >= 0) & (scores <= 1) | unknown)
    _due(not outside.any(), f"scores outside of [0, 1]: {scores[outside].tolist()}")
    unfounded = unknown & ~_missing(c)
    _due(not unfounded.any(), f"NaN for endpoints {np.flatnonzero(unfounded).tolist()}, where nothing is missing")


def _missing_never_wins(subject: Subject, case: Case) -> None:
    points, c = np.nan_to_num(_scores(subject, case)), case.candidates
    lacking = np.zeros(len(c), dtype=bool)
    for key, values in c.read.items():
        if key.source == "metrics":
            lacking |= np.isnan(values)
    if not c.all_fresh:
        others_fresh = replace(case, candidates=refreshed(c))
        if not np.array_equal(points, np.nan_to_num(_scores(subject, others_fresh))):  # it goes by who is stale
            lacking |= ~c.fresh
    if lacking.any() and not lacking.all():
        best, others = float(points[lacking].max()), float(points[~lacking].max())
        what = "an endpoint that lacks a metric, or is stale,"
        _due(best <= others, f"{what} gets {best:g}, those that have all at most {others:g}")


def _scores_in_any_order(subject: Subject, case: Case) -> None:
    scores, order = _scores(subject, case), list(case.order)
    others = np.asarray(subject.plugin.score(case.request, reordered(case.candidates, order)))
    same = np.allclose(others, scores[order], atol=1e-12, equal_nan=True)
    _due(same, f"{scores.tolist()}, and in the order {order} {others.tolist()}")


def _scores_twice(subject: Subject, case: Case) -> None:
    first = _scores(subject, case)
    second = np.asarray(subject.plugin.score(case.request, case.candidates))
    _due(np.array_equal(first, second, equal_nan=True), f"first {first.tolist()}, then {second.tolist()}")


# --- filters, screeners


def _mask(subject: Subject, request: Request, c: Candidates) -> np.ndarray:
    plugin = subject.plugin
    mask = plugin.keep(request, c) if hasattr(plugin, "keep") else plugin.screen(request, c)
    if mask is None and not hasattr(plugin, "keep"):
        return np.ones(len(c), dtype=bool)  # a screener may let everybody through
    return _column(mask, len(c), np.bool_, "a mask's values")


def _masks(subject: Subject, case: Case) -> None:
    _mask(subject, case.request, subject.produce(case.request, case.candidates))


def _masks_in_any_order(subject: Subject, case: Case) -> None:
    c = subject.produce(case.request, case.candidates)
    mask, order = _mask(subject, case.request, c), list(case.order)
    others = _mask(subject, case.request, reordered(c, order))
    _due(bool((others == mask[order]).all()), f"{mask.tolist()}, and in the order {order} {others.tolist()}")


def _masks_shrink(subject: Subject, case: Case) -> None:
    c = subject.produce(case.request, case.candidates)
    decision = decide(subject.router, case.request, c, _Guard())
    for stage in decision.stages:
        before = set(c.slots.tolist())
        for _, kept in stage.kept:
            after = set(kept.slots.tolist())
            _due(after <= before, "an endpoint is back that had been filtered out")
            before = after


# --- pickers


def _picks(subject: Subject, case: Case) -> None:
    c = subject.produce(case.request, case.candidates)
    totals = np.linspace(-1.0, 3.0, len(c))[list(case.order)]
    totals.flags.writeable = False
    picked = subject.plugin.pick(case.request, c, totals)
    _due(picked is not None, "nothing was returned where indices are due")
    order = [int(index) for index in picked]
    _due(bool(order), "nobody was picked")
    _due(len(set(order)) == len(order), f"an endpoint was picked twice: {order}")
    _due(set(order) <= set(range(len(c))), f"{order} are no indices of {len(c)} candidates")


# --- producers, fetchers


def _columns(subject: Subject, columns: Any, count: int) -> None:
    _due(isinstance(columns, Mapping), f"columns by key are due, not {columns!r}")
    writes = tuple(subject.plugin.writes)
    lacking = [key for key in writes if key not in columns]
    _due(not lacking, f"{lacking} are in `writes`, and were not written")
    surplus = [key for key in columns if key not in writes]
    _due(not surplus, f"{surplus} were written, and are not in `writes`")
    for key, values in columns.items():
        shape = np.shape(values)
        _due(shape == (count,), f"{count} values are due for {key!r}, not {shape}")


def _produces(subject: Subject, case: Case) -> None:
    c = subject.produce(case.request, case.candidates, own=False)
    _columns(subject, subject.plugin.produce(case.request, c), len(c))


def _fetches(subject: Subject, case: Case) -> None:
    async def fetch() -> Mapping[Key, Any]:
        columns: Mapping[Key, Any] = await subject.plugin.fetch(case.request, case.candidates)
        return columns

    _columns(subject, asyncio.run(fetch()), len(case.candidates))


def _tokenizes(subject: Subject, case: Case) -> None:
    async def ask(data: bytes) -> Any:
        try:
            return await subject.plugin.tokenize(case.request, data)
        except ValueError:
            return None  # what it can't read, which is counted

    for data in (b"", b"{}", b'{"messages": [{"role": "user", "content": "hello"}]}'):
        said = asyncio.run(ask(data))
        _due(said is None or isinstance(said, Body), f"a Body is due, not {said!r}")


# --- profile handlers, deciders, admitters, header readers


def _decides(subject: Subject, case: Case) -> None:
    c = subject.produce(case.request, case.candidates)
    try:
        decision = decide(subject.router, case.request, c, _Guard())
    except BadRequest:
        return
    _due(decision.handler_result in subject.router.profiles, f"{decision.handler_result!r} is no profile that has run")


def _disaggregates(subject: Subject, case: Case) -> None:
    c = subject.produce(case.request, case.candidates)
    said = subject.plugin.disaggregate(case.request, c.pick("default", [0], 1.0), c)
    _due(isinstance(said, bool | np.bool_), f"true or false is due, not {said!r}")


def _admits(subject: Subject, case: Case) -> None:
    reason = subject.plugin.deny(case.request, subject.produce(case.request, case.candidates))
    _due(reason is None or isinstance(reason, str), f"a text or None is due, not {reason!r}")


def _texts(mapping: Any) -> None:
    _due(isinstance(mapping, Mapping), f"texts by name are due, not {mapping!r}")
    odd = {name: value for name, value in mapping.items() if not (isinstance(name, str) and isinstance(value, str))}
    _due(not odd, f"names and values that are texts are due, not {odd!r}")


def _reads_headers(subject: Subject, case: Case) -> None:
    _texts(subject.plugin.attributes(case.request.headers))


# --- observers


def _observes(subject: Subject, case: Case) -> None:
    plugin, request = subject.plugin, case.request
    c = subject.produce(request, case.candidates)
    decision = decided(c, case.order[0])
    if hasattr(plugin, "picked"):
        plugin.picked(request, decision, c)
    if hasattr(plugin, "request_headers"):
        _texts(plugin.request_headers(request, decision))
    if hasattr(plugin, "destination"):
        place = plugin.destination(request, decision)
        _due(place is None or isinstance(place, str), f"`ip:port` or None is due, not {place!r}")
    if hasattr(plugin, "response_headers"):
        _texts(plugin.response_headers(request, decision, decision.primary.endpoints[0]))
    if hasattr(plugin, "response_metadata"):
        for namespace, numbers in plugin.response_metadata(request, decision, Outcome()).items():
            odd = {name: number for name, number in numbers.items() if not isinstance(number, (int, float))}
            _due(isinstance(namespace, str) and not odd, f"numbers by namespace and name are due, not {odd!r}")
    if hasattr(plugin, "first_byte"):
        plugin.first_byte(request, decision, c.now)
    if hasattr(plugin, "done"):
        plugin.done(request, decision, Outcome(), c.now)


# --- parsers

_PIECES = 1000
"""Bytes of a response that are given one by one."""


def _parses(subject: Subject, case: Case) -> None:
    plugin = subject.plugin
    data = b"".join(case.request.body.prompts)
    for body in (b"", data, b"{", b"[]", b'{"prompt": 1}', b'{"model": "m", "prompt": "hello"}'):
        try:
            read = plugin.parse(case.request.path, case.request.headers, body)
        except BadRequest:
            continue
        _due(isinstance(read, Body), f"a Body or BadRequest is due, not {read!r}")


def _reads_responses(subject: Subject, case: Case) -> None:
    data = b"".join(case.request.body.prompts)[:_PIECES] or b'data: {"usage": {}}\n\n'
    for streaming in (False, True):
        reader = subject.plugin.response(streaming=streaming)
        if reader is None:
            continue
        for index in range(len(data)):
            reader.feed(data[index : index + 1], end=False)
        reader.feed(b"", end=True)
        _due(isinstance(reader.usage, Usage), f"a Usage is due, not {reader.usage!r}")


# --- where endpoints and numbers come from

_PAGES = (b"", b"up 1\n", b"<html>", b"{}", b'{"data": [{"id": "m"}, {}]}', b'DCGM_FI_DEV_GPU_UTIL{pod="a"} 50\n')
_SAYING = {
    "metrics_page": Page,
    "polled_page": Page,
    "models_page": Page,
    "watched_kind": ObjectKind,
    "engine_metrics": Extraction,
    "endpoints_file": EndpointsFile,
}
"""Methods that are asked once, and what they give."""


def _says(subject: Subject, _: Case) -> None:
    for method, due in _SAYING.items():
        ask = getattr(subject.plugin, method, None)
        if callable(ask):
            said = ask()
            _due(isinstance(said, due), f"{method}: a {due.__name__} is due, not {said!r}")


def _extracts(subject: Subject, case: Case) -> None:
    plugin, endpoint = subject.plugin, case.candidates.endpoints[0]
    pages = (*_PAGES, b"".join(case.request.body.prompts))
    for page in pages if hasattr(plugin, "columns") else ():
        try:
            found = plugin.columns(endpoint, page)
        except Exception:  # noqa: BLE001, S112 (a page that can't be read may be refused in any way)
            continue
        _due(isinstance(found, Mapping), f"values by key are due, not {found!r}")
        odd = [key for key in found if not isinstance(key, Key) or key.scope != "pool"]
        _due(not odd, f"keys of the pool's columns are due, not {odd}")
        _due(all(isinstance(value, (int, float)) for value in found.values()), f"numbers are due, not {found!r}")
    for notice in ("added", "changed", "changed", "deleted", "deleted") if hasattr(plugin, "notified") else ():
        plugin.notified(notice, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "b"}})
    if hasattr(plugin, "forget"):
        plugin.forget(int(case.candidates.slots[0]))
    if hasattr(plugin, "extract"):
        _texts(plugin.extract(endpoint))


CHECKS: tuple[Check, ...] = (
    Check("scorer", "scores are a float for each candidate in [0, 1], or NaN where something is missing", _in_range),
    Check("scorer", "a missing or stale metric never wins: others get as many points, or more", _missing_never_wins),
    Check("scorer", "a score doesn't depend on where its endpoint stands", _scores_in_any_order),
    Check("scorer", "asking twice changes nothing", _scores_twice),
    Check("filter", "a mask is a bool for each candidate", _masks),
    Check("filter", "whether an endpoint stays doesn't depend on where it stands", _masks_in_any_order),
    Check("filter", "nobody comes back in a decision who has been filtered out", _masks_shrink),
    Check("screener", "a mask is a bool for each candidate", _masks),
    Check("screener", "whether an endpoint stays doesn't depend on where it stands", _masks_in_any_order),
    Check("picker", "a pick is one or more indices of candidates, each once; totals stay as they are", _picks),
    Check("producer", "what `writes` lists is written, a value for each candidate, and nothing else", _produces),
    Check("fetcher", "what `writes` lists is fetched, a value for each candidate, and nothing else", _fetches),
    Check("tokenizer", "a Body comes back", _tokenizes),
    Check("profile handler", "the primary profile is one that has run", _decides),
    Check("decider", "the answer is true or false", _disaggregates),
    Check("admitter", "a reason is a text, None admits", _admits),
    Check("header reader", "attributes are texts", _reads_headers),
    Check("observer", "every request, decision and outcome is taken; headers are texts", _observes),
    Check("parser", "a body is read, or BadRequest says why not, whatever bytes come", _parses),
    Check("parser", "a response is read in pieces split at any byte", _reads_responses),
    Check("data source", "a page that it names is a Page", _says),
    Check("extractor", "it names metrics as an Extraction", _says),
    Check("extractor", "pages of any bytes are read into numbers by the pool's keys, or refused", _extracts),
    Check("discovery", "the file is an EndpointsFile", _says),
)
"""In the order in which they run."""
