"""Headers and body into a `Request`, by the parser that claims the path. Pure."""

import re
from collections.abc import Mapping
from functools import lru_cache

from epp.errors import BadRequest
from epp.extproc.events import Arrival
from epp.objects import Objects
from epp.plugin import Body, Plugged, Request, Router
from epp.schedule import Guard

AGENT = "agent-identity/"
"""How the key of the attribute begins that stands in for a fairness id."""

LONGEST_PATH = 256
"""The parser of a longer path isn't remembered: clients choose their paths."""


def read(router: Router, arrival: Arrival, request_id: str, guard: Guard, objects: Objects) -> Request:
    """Turns headers and body into a request; a body that the mode doesn't show is scheduled by load.

    Raises:
        BadRequest: no parser claims the path, or the parser can't read the body.
    """
    headers = arrival.headers
    path = path_of(headers)
    body, size, name = Body(), 0, ""
    if arrival.body:
        known = parser_for if len(path) <= LONGEST_PATH else parser_for.__wrapped__
        parser = known(router.parsers, path)
        body, size, name = _parsed(parser, path, arrival), len(arrival.body), parser.name
    attributes = _attributes(router, headers, guard) if router.header_readers else {}
    objective = _first(headers, "x-llm-d-inference-objective", "x-gateway-inference-objective")
    return Request(
        id=request_id,
        path=path,
        headers=headers,
        body=body,
        size=size,
        parser=name,
        priority=objects.priority(objective, body.model),
        objective=objective,
        fairness_id=_first(headers, "x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
        or next((value for key, value in attributes.items() if key.startswith(AGENT)), "")
        or "default-flow",
        attributes=attributes,
    )


def _attributes(router: Router, headers: Mapping[str, str], guard: Guard) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for plugged in router.header_readers:
        said = guard.call("RequestHeader", plugged, plugged.plugin.attributes, headers) or {}
        if isinstance(said, Mapping) and all(isinstance(text, str) for item in said.items() for text in item):
            found |= said
        else:
            guard.fault("RequestHeader", plugged, "shape", "texts by key are due")
    return found


def _parsed(parser: Plugged, path: str, arrival: Arrival) -> Body:
    try:
        body: Body = parser.plugin.parse(path, arrival.headers, arrival.body)
    except BadRequest:
        if arrival.partial:
            return Body()
        raise
    return body


def _first(headers: Mapping[str, str], name: str, alias: str) -> str:
    return headers.get(name) or headers.get(alias) or ""


def path_of(headers: Mapping[str, str]) -> str:
    """The URL's path without the query; the names that gateways keep it under when they rewrite it come later."""
    path = headers.get(":path") or _first(headers, "x-original-path", "x-forwarded-path") or "/v1/completions"
    return path.partition("?")[0].rstrip("/")


@lru_cache(maxsize=1024)
def parser_for(parsers: tuple[Plugged, ...], path: str) -> Plugged:
    """The parser with the longest suffix that the path ends with, at a segment's boundary; else the fallback.

    Raises:
        BadRequest: there is neither.
    """
    best, length = None, -1
    for parser in parsers:
        suffixes = parser.plugin.paths
        matching = [len(suffix) for suffix in suffixes if path == suffix or path.endswith("/" + suffix)]
        longest = max(matching, default=-1) if suffixes else 0
        if longest > length:
            best, length = parser, longest
    if best is None:
        raise BadRequest(f"no parser registered matching path suffix for: {path}")
    return best


_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


def preferences(header: str) -> set[str]:
    """The names in a `Prefer` header, in small letters: a list, each with a value and parameters that don't matter."""
    listed = _QUOTED.sub('""', header).split(",")  # what is quoted may have any character
    return {re.split("[;=]", each, maxsplit=1)[0].strip().lower() for each in listed} - {""}
