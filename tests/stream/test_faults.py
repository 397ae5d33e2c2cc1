"""A plugin that fails in whatever way is counted and left out; the request goes on without it."""

import json
import math
from typing import Any

import pytest

from epp.extproc.events import BodyMode
from tests.stream.conftest import Start
from tests.stream.envoy import send_request, send_response
from tests.stream.messages import CHAT, destination, response_headers, set_headers
from tests.stream.picker import Picker, config

FULL = BodyMode.FULL_DUPLEX_STREAMED


async def one_request(picker: Picker, **head: Any) -> str:
    """One request there and back; its destination."""
    async with picker.stream() as stream:
        sent = await send_request(stream, FULL, **head)
        await send_response(stream, FULL, b"{}")
        assert await stream.rest() == []
    await picker.settled()
    return destination(sent.route)


# What each kind says, and the fault that it counts as; None for what is none.
SHAPES = ("nothing", "short", "long", "scalar", "object", "ragged")
SAID: dict[str, dict[str, str | None]] = {
    "filter": {"raise": "raised", "nan": "shape", "text": "shape", "integers": "shape"}
    | dict.fromkeys(SHAPES, "shape"),
    "scorer": {"raise": "raised", "nan": "nan", "text": "shape", "infinite": None, "integers": None, "bools": None}
    | dict.fromkeys(SHAPES, "shape"),
    "picker": {"raise": "raised", "nothing": "shape", "scalar": "shape", "object": "shape", "nan": "shape"}
    | dict.fromkeys(("text", "ragged", "infinite", "integers", "long"), "shape"),
    "producer": {"raise": "raised", "text": "shape", "nan": "nan"} | dict.fromkeys(SHAPES, "shape"),
    "fetcher": {"raise": "raised", "text": "shape", "nan": "nan"} | dict.fromkeys(SHAPES, "shape"),
    "screener": {"raise": "raised", "nan": "shape", "text": "shape"}
    | dict.fromkeys(SHAPES, "shape")
    | {"nothing": None},
    "header-reader": {"raise": "raised", "nothing": None, "object": "shape", "text": "shape", "numbers": "shape"},
    "handler": {"raise": "raised", "nothing": None, "scalar": "shape", "text": "shape", "object": "shape"},
}
POINTS = {
    "filter": "Filter",
    "scorer": "Scorer",
    "picker": "Picker",
    "producer": "DataProducer",
    "fetcher": "DataProducer",
    "screener": "Screener",
    "header-reader": "RequestHeader",
    "handler": "ProfilePicker",
}
CASES = [(kind, say, fault) for kind, says in SAID.items() for say, fault in says.items()]


def odd(kind: str, say: str) -> str:
    """A profile that prefers the less busy of two endpoints, with an odd plugin in it."""
    name = f"odd-{kind}"
    parameters = {name.replace("-", "_"): {"say": say}}
    if kind in {"producer", "fetcher"}:
        reader = {"column_scorer": {"of": name}}
        return config("active-request-scorer", "column-scorer", others=[name, "recorder"], **parameters, **reader)
    if kind in {"handler", "screener", "header-reader"}:
        return config("active-request-scorer", others=[name, "recorder"], **parameters)
    return config("active-request-scorer", name, others=["recorder"], **parameters)


@pytest.mark.parametrize(("kind", "say", "fault"), CASES, ids=[f"{kind}-{say}" for kind, say, _ in CASES])
async def test_an_odd_plugin_is_left_out(start: Start, kind: str, say: str, fault: str | None) -> None:
    """The other plugins decide: the second request goes where the first is not; each fault is counted once."""
    picker = await start(odd(kind, say))
    async with picker.stream() as first:
        taken = destination((await send_request(first, FULL)).route)
        other = await one_request_beside(picker)
        await first.rest()
    if kind != "picker":
        assert other != taken
    faults = {key: count for key, count in picker.faults().items() if key[1] != "column-scorer"}
    expected = "Scorer" if (kind, fault) == ("scorer", "nan") else POINTS[kind]
    if kind in {"producer", "fetcher"} and fault == "nan":
        assert faults == {}  # to say "unknown" is no fault of a producer's
    else:
        assert faults == ({} if fault is None else {(expected, f"odd-{kind}", fault): 2.0})


async def one_request_beside(picker: Picker) -> str:
    async with picker.stream() as stream:
        sent = await send_request(stream, FULL)
        await send_response(stream, FULL, b"{}")
        await stream.rest()
    return destination(sent.route)


@pytest.mark.parametrize("kind", ["producer", "fetcher"])
async def test_a_column_that_did_not_come_is_unknown(start: Start, kind: str) -> None:
    """Who reads it finds NaN, not an exception."""
    picker = await start(odd(kind, "raise"))
    await one_request(picker)
    scorer = picker.decisions.find("r-1")["profiles"][0]["scorers"][1]
    assert scorer["plugin"] == "column-scorer"
    assert scorer["scores"]["default/pod-0"] == {"raw": None, "weighted": 0.0}


async def test_a_profile_that_doesnt_exist_is_no_way_out(start: Start) -> None:
    """A handler that names a profile that never ran: the first one's pick counts."""
    picker = await start(odd("handler", "text"))
    assert await one_request(picker) in {"10.0.0.1:8000", "10.0.0.2:8000"}
    assert picker.decisions.find("r-1")["profile"] == "default"


async def test_an_observer_that_fails_everywhere(start: Start) -> None:
    """Each time it is asked it is counted; the other observers hear all of it."""
    picker = await start(
        config("active-request-scorer", others=["odd-observer", "recorder"], odd_observer={"say": "raise"})
    )
    await one_request(picker)
    assert picker.faults() == {
        ("PreRequest", "odd-observer", "raised"): 1,
        ("ResponseReceived", "odd-observer", "raised"): 1,
        ("ResponseComplete", "odd-observer", "raised"): 2,
    }
    assert [entry[0] for entry in picker.heard()] == ["picked", "response_headers", "first_byte", "done"]


HEADERS: dict[str, tuple[Any, Any, bool]] = {
    "fine": ("x-mine", "a value", True),
    "beyond ASCII": ("x-mine", "caf\u00e9", True),
    "empty value": ("x-mine", "", True),
    "number": ("x-mine", 1, False),
    "list": ("x-mine", ["a"], False),
    "name that is none": ("x mine", "v", False),
    "empty name": ("", "v", False),
    "name of another type": (5, "v", False),
    "line break": ("x-mine", "a\r\nset-cookie: b", False),
    "nul": ("x-mine", "a\0", False),
}


@pytest.mark.parametrize(("name", "value", "settable"), HEADERS.values(), ids=HEADERS)
async def test_response_headers_of_a_plugin(start: Start, name: Any, value: Any, settable: bool) -> None:
    """They are set; those that Envoy would end the stream for are left out and counted, and other plugins' are set."""
    text = config(
        "session-affinity-scorer", others=["response-headers"], response_headers={"name": name, "value": value}
    )
    picker = await start(text)
    async with picker.stream() as stream:
        await send_request(stream, FULL)
        said = set_headers(await stream.ask(response_headers()))
        await stream.rest()
    assert "x-session-token" in said
    assert said.get(name) == (value if settable else None)
    assert picker.faults() == ({} if settable else {("ResponseReceived", "response-headers", "shape"): 1})


@pytest.mark.parametrize("say", ["nothing", "object", "ragged"])
async def test_response_headers_that_are_none(start: Start, say: str) -> None:
    """None is no header; anything but a mapping is a fault."""
    picker = await start(config("active-request-scorer", others=["odd-observer"], odd_observer={"say": say}))
    async with picker.stream() as stream:
        await send_request(stream, FULL)
        assert set_headers(await stream.ask(response_headers())) == {}
        await stream.rest()
    assert picker.faults() == ({} if say == "nothing" else {("ResponseReceived", "odd-observer", "shape"): 1})


HOOKS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a destination that is a number": ({"destination": 5}, "PreRequest", "shape"),
    "a destination that is a list": ({"destination": ["10.0.0.1:8000"]}, "PreRequest", "shape"),
    "a destination without a port": ({"destination": "10.0.0.1"}, "PreRequest", "shape"),
    "a destination of two lines": ({"destination": "10.0.0.1:80\r\nx: y:1"}, "PreRequest", "shape"),
    "tokens that are none": ({"tokens": "many"}, "PreRequest", "shape"),
    "tokens below nothing": ({"tokens": -1}, "PreRequest", "shape"),
    "tokens without an end": ({"tokens": math.inf}, "PreRequest", "shape"),
    "tokens that are unknown": ({"tokens": math.nan}, "PreRequest", "shape"),
    "headers that are none": ({"headers": ["a"]}, "PreRequest", "shape"),
    "a header of two lines": ({"headers": {"a": "b\r\nc: d"}}, "PreRequest", "shape"),
    "metadata that is none": ({"metadata": [1]}, "ResponseComplete", "shape"),
    "metadata without a name": ({"metadata": {"envoy.lb": [1]}}, "ResponseComplete", "shape"),
    "metadata that is no number": ({"metadata": {"envoy.lb": {"a": "b"}}}, "ResponseComplete", "shape"),
}


@pytest.mark.parametrize(("said", "point", "fault"), HOOKS.values(), ids=HOOKS)
async def test_what_a_hook_says_that_is_of_no_use(start: Start, said: dict[str, Any], point: str, fault: str) -> None:
    """It is counted and left out: the request goes to its pick, and nothing of it stays charged."""
    picker = await start(config("active-request-scorer", others=["odd-hooks", "recorder"], odd_hooks=said))
    async with picker.stream() as stream:
        sent = await send_request(stream, FULL)
        assert destination(sent.route) in {"10.0.0.1:8000", "10.0.0.2:8000"}
        assert list(picker.inflight().values()) == [(1, 5.75)]
        await send_response(stream, FULL, b"{}")
        assert await stream.rest() == []
    await picker.settled()
    assert picker.faults() == {(point, "odd-hooks", fault): 1}


READERS = {"response": 1, "feed": 1, "usage": 1, "kind": 1}


@pytest.mark.parametrize("at", READERS)
async def test_a_parser_that_cant_read_the_response(start: Start, at: str) -> None:
    """The response passes, its usage is unknown, and it is counted once however many pieces there are."""
    text = json.loads(config("active-request-scorer", others=["odd-parser", "recorder"], odd_parser={"at": at}))
    text["requestHandler"] = {"parsers": [{"pluginRef": "odd-parser"}]}
    picker = await start(json.dumps(text))
    async with picker.stream() as stream:
        await send_request(stream, FULL, headers=CHAT | {":path": "/v1/odd"})
        assert (await send_response(stream, FULL, b"x" * 200_000)).body == b"x" * 200_000
        assert await stream.rest() == []
    await picker.settled()
    assert picker.faults() == {("ResponseParsing", "odd-parser", "raised"): READERS[at]}
    assert [picker.log()[0][field] for field in ("tokens", "prompt_tokens", "cached_tokens")] == [None] * 3
    assert picker.heard("done")
