"""Envoy's side of a stream: what it sends when, in each body mode (measured; see docs/envoy.md)."""

from dataclasses import dataclass

from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from epp.extproc.events import BodyMode
from epp.extproc.session import AT_HEADERS, DUPLEX, PIECE_BYTES
from tests.stream.messages import (
    BODY,
    empty,
    kind,
    piece,
    pieces,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
)
from tests.stream.picker import Stream

BUFFER = 40_000
"""The size of the pieces that it sends."""


@dataclass(slots=True)
class Sent:
    """What becomes of a message: the reply with the route, and the body that goes on."""

    route: ProcessingResponse
    body: bytes = b""


async def send_request(
    stream: Stream,
    mode: BodyMode,
    body: bytes = BODY,
    *,
    trailers: bool = False,
    announced: bool = True,
    **head: object,
) -> Sent:
    """Sends a request as Envoy does in that mode: it waits for an answer where Envoy would."""
    first = request_headers(mode if announced else None, **head)
    if mode in DUPLEX:
        return await _duplex(stream, first, body, trailers=trailers)
    reply = await stream.ask(first)
    assert kind(reply) == "request_headers"
    sent = Sent(reply, body)
    if mode in AT_HEADERS:
        for data, last in pieces(body, BUFFER) if mode is BodyMode.STREAMED else ():
            assert empty(answer := await stream.ask(request_body(data, end=last and not trailers)))
            assert kind(answer) == "request_body"
    else:
        assert empty(reply)
        sent.route = await stream.ask(request_body(body, end=not trailers))
        assert kind(sent.route) == "request_body"
        assert not sent.route.request_body.response.HasField("body_mutation")
    if trailers:
        answer = await stream.ask(request_trailers())
        assert (kind(answer), empty(answer)) == ("request_trailers", True)
    return sent


async def _duplex(stream: Stream, first: ProcessingRequest, body: bytes, *, trailers: bool) -> Sent:
    await stream.send(first)
    for data, last in pieces(body, BUFFER):
        await stream.send(request_body(data, end=last and not trailers))
    if trailers:
        await stream.send(request_trailers())
    sent = Sent(await stream.receive())
    assert kind(sent.route) == "request_headers"
    await _given_back(stream, sent, "request", trailers=trailers)
    return sent


async def _given_back(stream: Stream, sent: Sent, side: str, *, trailers: bool) -> None:
    """Gathers what comes back, up to the end, or to the trailers, which come last."""
    collected = []
    while True:
        reply = await stream.receive()
        if kind(reply) == f"{side}_trailers":
            assert trailers
            break
        assert kind(reply) == f"{side}_body"
        data, last = piece(reply)
        assert len(data) <= PIECE_BYTES
        collected.append(data)
        if last:
            assert not trailers
            break
    sent.body = b"".join(collected)


async def send_response(
    stream: Stream, mode: BodyMode, body: bytes, *, ending: str = "body", head: ProcessingRequest | None = None
) -> Sent:
    """Sends a response that ends in its `headers`, its `body` or its `trailers`."""
    first = head or response_headers(end=ending == "headers")
    reply = await stream.ask(first)
    assert kind(reply) == "response_headers"
    sent = Sent(reply)
    if ending == "headers" or mode is BodyMode.NONE:
        return sent
    for data, last in pieces(body, BUFFER if mode in DUPLEX | {BodyMode.STREAMED} else len(body) or 1):
        answer = await stream.ask(response_body(data, end=last and ending == "body"))
        assert kind(answer) == "response_body"
        if mode in DUPLEX:
            back, end = piece(answer)
            assert end == (last and ending == "body")
            sent.body += back
        else:
            assert empty(answer)
            sent.body += data
    if ending == "trailers":
        answer = await stream.ask(response_trailers())
        assert (kind(answer), empty(answer)) == ("response_trailers", True)
    return sent
