"""Beside another picker: nothing is ever answered, and what we would have done is held against what was done."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from epp.extproc.events import BodyMode
from epp.extproc.session import PATIENCE_BYTES
from epp.keys import WAITING
from epp.observe.entries import read_log
from epp.observe.record import Comparison
from tests.stream.conftest import Start
from tests.stream.messages import (
    BODY,
    CHAT,
    DESTINATION,
    MODELS,
    observed,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
)
from tests.stream.picker import LIMIT, Picker, Stream, config, until

STREAMED, NONE, FULL = BodyMode.STREAMED, BodyMode.NONE, BodyMode.FULL_DUPLEX_STREAMED
HERE, THERE = "10.0.0.1:8000", "10.0.0.2:8000"
QUEUES = config("queue-scorer=4", others=["recorder", "approx-prefix-cache-producer"])


def sent_to(destination: str, headers: dict[str, str] = CHAT) -> dict[str, str]:
    """The headers of a request that another picker has routed."""
    return headers | {DESTINATION: destination}


REQUESTS: dict[str, list[Any]] = {
    "whole": [request_headers(STREAMED, sent_to(THERE)), request_body(BODY)],
    "pieces": [
        request_headers(STREAMED, sent_to(THERE)),
        *(request_body(BODY[at : at + 10], end=at + 10 >= len(BODY)) for at in range(0, len(BODY), 10)),
    ],
    "empty last": [request_headers(STREAMED, sent_to(THERE)), request_body(BODY, end=False), request_body(b"")],
    "trailers": [request_headers(STREAMED, sent_to(THERE)), request_body(BODY, end=False), request_trailers()],
    "unannounced": [request_headers(None, sent_to(THERE)), request_body(BODY)],
    "full duplex": [request_headers(FULL, sent_to(THERE)), request_body(BODY)],
    "a list": [request_headers(STREAMED, sent_to(f"{THERE},{HERE}")), request_body(BODY)],
}
RESPONSES: dict[str, list[Any]] = {
    "body": [response_headers(), response_body(b'{"usage": {"prompt_tokens": 5}}')],
    "pieces": [response_headers(), response_body(b'{"usage": {"pro', end=False), response_body(b'mpt_tokens": 5}}')],
    "trailers": [response_headers(), response_body(b'{"usage": {"prompt_tokens": 5}}', end=False), response_trailers()],
}


async def finished(stream: Stream, picker: Picker) -> None:
    """Waits until the picker ends the stream, with OK, and has answered nothing."""
    replies, code, _ = await stream.ended()
    assert (replies, code) == ([], grpc.StatusCode.OK)
    await picker.settled()


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
async def test_nothing_is_answered(start: Start, tmp_path: Path, request_: list[Any], response: list[Any]) -> None:
    """The request counts where it has gone, our own choice is noted beside it; the stream ends with the response."""
    picker = await start(QUEUES)
    log = picker.keep_log(tmp_path / "log")
    picker.pool.column(WAITING)[:2] = [0.0, 3.0]
    async with picker.stream() as stream:
        await stream.send(*map(observed, request_))
        await until(picker.inflight, "it is charged")
        assert picker.inflight() == {THERE: (1.0, 5.75)}
        await stream.send(*map(observed, response))
        await finished(stream, picker)
    assert picker.compared("picker") == {"differed": 1}
    assert picker.heard("picked") == [("picked", "r-1", THERE, 2)]
    assert [entry[0] for entry in picker.heard()] == ["picked", "response_headers", "first_byte", "done"]
    found = picker.decisions.latest(1)[0]
    assert found["observed"] == {"destination": THERE, "agreed": False, "regret": 1.0}
    assert (found["destination"], found["profile"], found["score"]) == (HERE, "default", 4.0)
    log.close()
    (entry,) = read_log(tmp_path / "log")
    assert (entry.kind, entry.sent_to, entry.error) == ("observed", THERE, None)
    assert entry.against_ours == Comparison(HERE, agreed=False, regret=1.0)
    assert entry.servers[entry.stages[0].pick[0]].hostport == HERE
    assert (entry.outcome.status, entry.outcome.cause, entry.outcome.usage.prompt_tokens) == (200, "done", 5)
    assert entry.prompt_bytes == 23
    (line,) = picker.log()
    assert (line["endpoint"], line["score"], line["profile"]) == (THERE, None, "observed")


async def test_our_index_has_what_the_endpoints_have(start: Start) -> None:
    """Prompts are entered where they have gone, so that the next decision knows."""
    picker = await start(config("prefix-cache-scorer"))
    long = b'{"model": "m", "messages": [{"role": "user", "content": "%s"}]}' % (b"a long question " * 100)
    for expected in ({"agreed": 1.0}, {"agreed": 2.0}):
        async with picker.stream() as stream:
            await stream.send(*map(observed, [request_headers(STREAMED, sent_to(THERE)), request_body(long)]))
            await until(picker.inflight, "it is charged")
            await stream.rest()
        await picker.settled()
        counted = picker.compared("picker")
        # The first one is a tie; from then on one endpoint has the prompt.
        assert counted == expected or (sum(counted.values()), counted.get("tie")) == (sum(expected.values()), 1)
    totals = picker.decisions.latest(1)[0]["profiles"][0]["totals"]
    assert totals["default/pod-1"] > totals["default/pod-0"] == 0


async def test_where_both_choose_the_same(start: Start) -> None:
    """They agree, and there is nothing to regret."""
    picker = await start(QUEUES)
    picker.pool.column(WAITING)[:2] = [3.0, 0.0]
    async with picker.stream() as stream:
        await stream.send(*map(observed, REQUESTS["whole"]))
        await until(picker.inflight, "it is charged")
        await stream.rest()
    assert picker.compared("picker") == {"agreed": 1}
    assert picker.decisions.latest(1)[0]["observed"]["regret"] == 0


async def test_a_client_that_goes(start: Start) -> None:
    """What was charged is given back when Envoy lets the stream go."""
    for how in ("cancelled", "closed"):
        picker = await start(QUEUES)
        async with picker.stream() as stream:
            await stream.send(*map(observed, REQUESTS["whole"]), observed(response_headers()))
            await until(picker.inflight, "it is charged")
            if how == "cancelled":
                stream.cancel()
            else:
                assert await stream.rest() == []
        await picker.settled()


async def test_a_request_without_a_body(start: Start) -> None:
    """Nor is it answered with a page of ours, where engines have different models."""
    picker = await start(QUEUES)
    for slot, model in enumerate("ab"):
        picker.pool.write_set(slot, "models", (model,))
    assert picker.pool.differ("models")
    async with picker.stream() as stream:
        await stream.send(observed(request_headers(NONE, sent_to(THERE, MODELS), end=True)))
        await until(picker.inflight, "it is charged")
        await stream.send(observed(response_headers(end=True)))
        await finished(stream, picker)
    assert sum(picker.compared("picker").values()) == 1


UNKNOWN = "10.9.9.9:8000"
ODD: dict[str, tuple[list[Any], str]] = {
    "unknown endpoint": (
        [request_headers(STREAMED, sent_to(UNKNOWN)), request_body(BODY)],
        f"another picker has sent the request to '{UNKNOWN}', which isn't ours",
    ),
    "no destination": ([request_headers(STREAMED), request_body(BODY)], "has sent the request to '', which isn't ours"),
    "no JSON": ([request_headers(STREAMED, sent_to(THERE)), request_body(b"{")], "unmarshaling"),
    "too long": (
        [
            request_headers(STREAMED, sent_to(THERE)),
            *(request_body(b"x" * (LIMIT // 2), end=False) for _ in range(2 + 2 * PATIENCE_BYTES // LIMIT)),
            *(request_body(b"x" * 1000, end=end) for end in (False, False, True)),
        ],
        "longer than",
    ),
}


@pytest.mark.parametrize(("sent", "message"), ODD.values(), ids=ODD)
async def test_what_we_could_not_have_routed(start: Start, tmp_path: Path, sent: list[Any], message: str) -> None:
    """It is noted once, and disturbs nobody."""
    picker = await start(QUEUES)
    log = picker.keep_log(tmp_path / "log")
    async with picker.stream() as stream:
        await stream.send(*map(observed, sent))
        await stream.send(observed(response_headers()), observed(response_body(b"{}")))
        await finished(stream, picker)
    assert picker.heard() == []
    assert (picker.failed, picker.suspected) == ([], [])
    (shown,) = picker.decisions.latest(5)
    assert message in shown["error"]["message"]
    assert picker.compared("picker") == {}
    log.close()
    (entry,) = read_log(tmp_path / "log")
    assert entry.error is not None
    assert (entry.outcome.status, entry.against_ours) == (200, None)
    assert entry.kind == ("refused" if message == "longer than" else "observed"), "of a part nothing is known"


async def test_a_fault_of_ours(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even that is answered."""
    picker = await start(QUEUES)
    monkeypatch.setattr("epp.exchange.compared", lambda *_: 1 / 0)
    async with picker.stream() as stream:
        await stream.send(*map(observed, REQUESTS["whole"]))
        await until(lambda: picker.crashes, "it has failed")
        await stream.send(*map(observed, RESPONSES["body"]))
        await finished(stream, picker)
    assert [type(crash) for crash in picker.crashes] == [ZeroDivisionError]
    picker.crashes.clear()


async def test_an_endpoint_that_we_would_not_take(start: Start) -> None:
    """It isn't in play here: what it costs can't be said, and it is charged all the same."""
    picker = await start(QUEUES, endpoints=3)
    picker.pool.eligible[1] = False
    async with picker.stream() as stream:
        await stream.send(*map(observed, REQUESTS["whole"]))
        await until(picker.inflight, "it is charged")
        assert picker.inflight() == {THERE: (1.0, 5.75)}
        await stream.rest()
    assert picker.compared("picker") == {"differed": 1}
    assert picker.decisions.latest(1)[0]["observed"]["regret"] is None


async def test_a_shadow_beside_it(start: Start) -> None:
    """Its decision is held against the other picker's, too."""
    text = (
        QUEUES[:-1] + ', "shadow": {"schedulingProfiles": [{"name": "s", "plugins": [{"pluginRef": "queue-scorer"}]}]}}'
    )
    picker = await start(text)
    picker.pool.column(WAITING)[:2] = [0.0, 3.0]
    async with picker.stream() as stream:
        await stream.send(*map(observed, REQUESTS["whole"]))
        await until(lambda: picker.compared("shadow"), "the shadow has decided")
        await stream.rest()
    assert picker.compared("shadow") == {"differed": 1}
    assert picker.decisions.latest(1)[0]["shadow"]["destination"] == HERE
