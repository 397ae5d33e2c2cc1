"""What clients send is neither written nor kept: prompts, credentials, and names of any length."""

import json
import logging

import pytest

from epp.extproc.events import BodyMode
from tests.stream.conftest import Start
from tests.stream.envoy import send_request, send_response
from tests.stream.messages import BODY, CHAT, request_body, request_headers
from tests.stream.picker import config

MARKER = "s3cret-of-the-client"
FULL = BodyMode.FULL_DUPLEX_STREAMED

BODIES = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": MARKER}]},
    "chat of parts": {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": MARKER}]}]},
    "tools": {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [{"name": MARKER}]},
    "salt": {"model": "m", "messages": [{"role": "user", "content": "hi"}], "cache_salt": MARKER},
    "no model": {"messages": [{"role": "user", "content": MARKER}]},
    "a model of another type": {"model": [MARKER], "messages": [{"role": "user", "content": MARKER}]},
    "messages of another type": {"model": "m", "messages": MARKER},
    "a role of another type": {"model": "m", "messages": [{"role": {"x": MARKER}, "content": MARKER}]},
}
RAW = {name: json.dumps(body).encode() for name, body in BODIES.items()} | {
    "no JSON": b'{"model": "m", "messages": "' + MARKER.encode(),
    "no UTF-8": b'{"model": "m", "messages": "' + MARKER.encode() + b'\xff"}',
}


@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
async def test_a_prompt_is_not_written(start: Start, caplog: pytest.LogCaptureFixture, body: bytes) -> None:
    """Neither to the log nor into the explanation, whether the request is served or refused, at any verbosity."""
    caplog.set_level(logging.DEBUG)
    picker = await start(config("active-request-scorer", "prefix-cache-scorer", others=["recorder"]))
    secrets = {"authorization": MARKER, "cookie": MARKER}
    async with picker.stream() as stream:
        await stream.send(request_headers(headers=CHAT | secrets), request_body(body))
        if (reply := await stream.receive()).HasField("request_headers"):
            await stream.receive()
            await send_response(stream, FULL, MARKER.encode())
        else:
            assert MARKER.encode() not in reply.immediate_response.body
        assert await stream.rest() == []
    await picker.settled()
    assert len(picker.log()) == 1
    assert MARKER not in json.dumps(picker.log())
    assert MARKER not in caplog.text
    assert MARKER not in json.dumps(picker.decisions.find("r-1"))


async def test_a_name_of_any_length_is_kept_short(start: Start) -> None:
    """A client can make a megabyte of a model's name; logs, metrics and explanations have the beginning of it."""
    picker = await start()
    body = BODY.replace(b'"m"', b'"' + b"m" * 500_000 + b'"')
    headers = CHAT | {"x-llm-d-inference-fairness-id": "f" * 5000}
    async with picker.stream() as stream:
        assert (await send_request(stream, FULL, body, headers=headers)).body == body
        assert await stream.rest() == []
    await picker.settled()
    assert picker.log()[0]["model"] == picker.decisions.find("r-1")["model"] == "m" * 256
    (labels,) = picker.metrics.families["llm_d_epp_request_total"].children
    assert labels == ("m" * 256, "m" * 256, "f" * 256, "0")
