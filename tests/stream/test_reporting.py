"""What plugins report of a response goes along with the last reply to it."""

import pytest

from epp.extproc.events import BodyMode
from epp.extproc.session import DUPLEX
from tests.stream.conftest import Start
from tests.stream.envoy import send_request
from tests.stream.messages import kind, piece, response_body, response_headers, response_trailers
from tests.stream.picker import config

COST = config(
    "active-request-scorer",
    others=["request-attribute-reporter"],
    request_attribute_reporter={
        "attributes": [{"key": {"namespace": "billing", "name": "cost"}, "expression": "usage.total_tokens * 2"}]
    },
)
ANSWER = b'{"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 12}}'
SEEN = [BodyMode.FULL_DUPLEX_STREAMED, BodyMode.STREAMED, BodyMode.BUFFERED]


@pytest.mark.parametrize("mode", SEEN, ids=lambda mode: mode.name.lower())
async def test_reported_with_the_last_piece(start: Start, mode: BodyMode) -> None:
    """(30 + 12) * 2 is with the reply to the end of the body, which passes as it is; no other reply has metadata."""
    picker = await start(COST)
    async with picker.stream() as stream:
        await send_request(stream, BodyMode.FULL_DUPLEX_STREAMED, response_mode=mode)
        replies = [await stream.ask(response_headers())]
        if mode is not BodyMode.BUFFERED:
            replies.append(await stream.ask(response_body(ANSWER[:40], end=False)))
        replies.append(await stream.ask(response_body(ANSWER[40 * (len(replies) - 1) :])))
        assert [len(reply.dynamic_metadata) for reply in replies[:-1]] == [0] * (len(replies) - 1)
        assert dict(replies[-1].dynamic_metadata["billing"]) == {"cost": 84.0}
        assert kind(replies[-1]) == "response_body"
        if mode in DUPLEX:
            assert b"".join(piece(reply)[0] for reply in replies[1:]) == ANSWER
        assert await stream.rest() == []


async def test_reported_once(start: Start) -> None:
    """A body that ends in trailers is reported with these."""
    picker = await start(COST)
    async with picker.stream() as stream:
        await send_request(stream, BodyMode.FULL_DUPLEX_STREAMED, response_mode=BodyMode.STREAMED)
        await stream.ask(response_headers())
        body = await stream.ask(response_body(ANSWER, end=False))
        assert len(body.dynamic_metadata) == 0
        trailers = await stream.ask(response_trailers())
        assert kind(trailers) == "response_trailers"
        assert dict(trailers.dynamic_metadata["billing"]) == {"cost": 84.0}


@pytest.mark.parametrize("answer", [b'{"choices": []}', b"", b"not JSON"], ids=["no usage", "empty", "not JSON"])
async def test_nothing_to_report(start: Start, answer: bytes) -> None:
    """Without a usage there is no metadata."""
    picker = await start(COST)
    async with picker.stream() as stream:
        await send_request(stream, BodyMode.FULL_DUPLEX_STREAMED, response_mode=BodyMode.STREAMED)
        await stream.ask(response_headers())
        reply = await stream.ask(response_body(answer))
        assert len(reply.dynamic_metadata) == 0


@pytest.mark.parametrize("report", [[("billing", 1)], {"billing": 1}, {"billing": {"cost": "much"}}, 1 / 3])
async def test_bad_reports(start: Start, report: object) -> None:
    """What is no numbers by name is counted and left out."""
    picker = await start(COST)
    plugged = picker.pipeline.hooks.response_metadata[0][0]
    hook = (plugged, lambda *_: report)
    object.__setattr__(picker.pipeline.hooks, "response_metadata", (hook,))
    async with picker.stream() as stream:
        await send_request(stream, BodyMode.FULL_DUPLEX_STREAMED, response_mode=BodyMode.STREAMED)
        await stream.ask(response_headers())
        reply = await stream.ask(response_body(ANSWER))
        assert len(reply.dynamic_metadata) == 0
    family = picker.metrics.families["llm_d_epp_plugin_faults_total"]
    assert [key[-1] for key in family.children] == ["shape"]
