"""Every way of asking the picker, with a real Envoy: what passes, and what is refused, is the same in all of them."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from epp.envoy.process import EnvoyProcess
from tests.e2e.clients import Answer, call, request
from tests.e2e.harness import LIMIT, VARIANTS, Stage, completion, until
from tests.e2e.upstream import Seen

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

DESTINATION = "x-gateway-destination-endpoint"
STRAY_HEADERS = (
    (DESTINATION + "-subset", "192.0.2.1:1"),
    (DESTINATION + "-served", "192.0.2.1:1"),
    ("x-prefiller-host-port", "192.0.2.1:1"),
    ("x-encoder-hosts-ports", "192.0.2.1:1"),
    ("x-data-parallel-host-port", "192.0.2.1:1"),
    ("x-kv-cache-source-host-port", "192.0.2.1:1"),
)
HTTP = ("http1", "http2")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    """Each variant in turn."""
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="session")
async def gateway(stage: Stage, variant: str) -> AsyncIterator[EnvoyProcess]:
    """Its Envoy; whatever a test did, nothing is left under way on it."""
    process = await stage.gateway(variant)
    stage.forget()
    yield process
    await until(lambda: stage.idle(process), "no stream is open any more")


def only(stage: Stage, answer: Answer) -> Seen:
    """The one request that reached the pool since the last look, at the server that the answer names."""
    seen = [(upstream.address, request) for upstream in stage.upstreams for request in upstream.seen]
    for upstream in stage.upstreams:
        upstream.seen.clear()
    assert [address for address, _ in seen] == [answer.headers["x-served-by"]]
    return seen[0][1]


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("size", [200, 400_000])
@pytest.mark.parametrize("pieces", [0, 40])
async def test_a_body_passes_byte_for_byte(
    stage: Stage, gateway: EnvoyProcess, variant: str, http: str, size: int, pieces: int
) -> None:
    """There and back, in one piece or streamed; and the pick is where the request went."""
    body = completion(size)
    steer = [("x-pieces", str(pieces))] if pieces else []
    answer = await call(http, str(gateway.address), body=body, headers=[*steer, ("x-request-id", "me")])
    assert (answer.status, answer.complete) == (200, True)
    seen = only(stage, answer)
    assert seen.body == body
    assert answer.body == body
    assert seen.header(DESTINATION) == answer.headers["x-served-by"]
    assert seen.header("content-length") in {str(size), None}
    assert seen.header("x-request-id") == ("me" if variant != "original-dst" else seen.header("x-request-id"))


@pytest.mark.parametrize("http", HTTP)
async def test_a_body_of_unknown_length(stage: Stage, gateway: EnvoyProcess, http: str) -> None:
    """Chunks over HTTP/1.1, frames over HTTP/2."""
    body = completion(100_000)
    answer = await call(http, str(gateway.address), body=body, length=False)
    assert (answer.status, answer.complete, answer.body == body) == (200, True, True)
    assert only(stage, answer).body == body


@pytest.mark.parametrize("http", HTTP)
async def test_trailers_of_request_and_response(stage: Stage, gateway: EnvoyProcess, variant: str, http: str) -> None:
    """Both pass; llm-d's Envoy drops those of HTTP/1.1, and even so neither side is left waiting."""
    body = completion(70_000)
    answer = await call(http, str(gateway.address), body=body, headers=[("x-trailers", "yes")], trailers=[("x-a", "b")])
    assert (answer.status, answer.complete, answer.body == body) == (200, True, True)
    seen = only(stage, answer)
    assert seen.body == body
    if variant != "original-dst":
        assert seen.trailers == [(b"x-a", b"b")]
        assert answer.trailers == {"x-length": str(len(body))}


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_a_request_without_a_body(stage: Stage, gateway: EnvoyProcess, http: str, method: str) -> None:
    """Goes to an endpoint of the pool, as GET /v1/models."""
    answer = await call(http, str(gateway.address), method=method, path="/v1/models?x=1")
    assert answer.status == 200
    seen = only(stage, answer)
    assert (seen.method, seen.path, seen.body) == (method, "/v1/models?x=1", b"")
    assert seen.header(DESTINATION) == answer.headers["x-served-by"]


@pytest.mark.parametrize("http", HTTP)
async def test_a_response_without_a_body(stage: Stage, gateway: EnvoyProcess, http: str) -> None:
    """204 has neither body nor trailers."""
    answer = await call(http, str(gateway.address), body=completion(200), headers=[("x-status", "204")])
    assert (answer.status, answer.complete, answer.body) == (204, True, b"")
    only(stage, answer)


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("body", [None, completion(300)], ids=["get", "post"])
async def test_a_clients_routing_headers_go_nowhere(
    stage: Stage, gateway: EnvoyProcess, http: str, body: bytes | None
) -> None:
    """They neither steer the pick nor reach the engine, which sees the picker's own destination alone."""
    method = "POST" if body else "GET"
    steering = [(DESTINATION, stage.outsider.address), *STRAY_HEADERS]
    answer = await call(http, str(gateway.address), method=method, path="/v1/completions", body=body, headers=steering)
    assert answer.status == 200
    seen = only(stage, answer)
    assert seen.header(DESTINATION) == answer.headers["x-served-by"]
    assert [seen.header(name) for name, _ in STRAY_HEADERS] == [None] * len(STRAY_HEADERS)
    assert stage.outsider.seen == []


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("length", [True, False], ids=["known", "unknown"])
async def test_the_longest_body_passes(stage: Stage, gateway: EnvoyProcess, http: str, length: bool) -> None:
    """Exactly --max-request-body-bytes."""
    body = completion(LIMIT)
    answer = await call(http, str(gateway.address), body=body, length=length)
    assert (answer.status, answer.complete, answer.body == body) == (200, True, True)
    assert only(stage, answer).body == body


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("length", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("over", [1, 6 << 20], ids=["by-a-byte", "by-far"])
async def test_a_longer_body_is_refused(
    stage: Stage, gateway: EnvoyProcess, variant: str, http: str, length: bool, over: int
) -> None:
    """413 in OpenAI's form, by the picker or, where Envoy has to buffer the body, by Envoy."""
    if variant == "headers-only" and not length:
        pytest.skip("nobody in front of the engine sees this body")
    answer = await call(http, str(gateway.address), body=completion(LIMIT + over), length=length)
    assert (answer.status, answer.headers.get("content-type")) == (413, "application/json")
    assert error(answer)["code"] == "PayloadTooLarge"
    assert error(answer)["request_id"]
    stage.forget()


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_a_client_that_reads_only_after_sending(
    stage: Stage, gateway: EnvoyProcess, variant: str, http2: bool
) -> None:
    """Most clients are like that: they get the 413, too, if the body is only a little too long."""
    if variant in {"headers-only", "streamed"}:
        pytest.skip("the picker decides before it sees the body")
    async with httpx.AsyncClient(http1=not http2, http2=http2, timeout=30.0) as client:
        url = f"http://{gateway.address}/v1/completions"
        answer = await client.post(url, content=completion(LIMIT + 1), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "PayloadTooLarge"
    stage.forget()


def error(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.body)["error"]
    return found


@pytest.mark.parametrize("http", HTTP)
async def test_a_request_that_cant_be_read_is_refused(
    stage: Stage, gateway: EnvoyProcess, variant: str, http: str
) -> None:
    """The picker's own answer passes Envoy as it is."""
    if variant in {"headers-only", "streamed"}:
        pytest.skip("the picker decides before it sees the body")
    answer = await call(http, str(gateway.address), body=b'{"model": "m", "prompt"', headers=[("x-request-id", "r1")])
    assert (answer.status, answer.headers.get("content-type")) == (400, "application/json")
    assert (error(answer)["type"], error(answer)["code"]) == ("invalid_request_error", "BadRequest")
    assert [upstream.seen for upstream in stage.upstreams] == [[], []]


async def test_an_upgrade_is_answered(stage: Stage, gateway: EnvoyProcess) -> None:
    """A WebSocket's bytes pass both ways although its request never ends."""
    host, port = gateway.address
    reader, writer = await asyncio.open_connection(host, port)
    head = "GET /v1/realtime HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    try:
        async with asyncio.timeout(20):
            writer.write(head.encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            for message in (b"one", b"two" * 100_000, b"three"):
                writer.write(message)
                assert await reader.readexactly(len(message)) == message
    finally:
        writer.transport.abort()
    stage.forget()


@pytest.mark.parametrize("http", HTTP)
async def test_a_client_that_leaves_while_it_is_answered(
    stage: Stage, gateway: EnvoyProcess, variant: str, http: str
) -> None:
    """The engine learns of it, and no stream stays open."""
    if variant in {"buffered", "partial"}:
        pytest.skip("Envoy holds the response back until it is whole")
    aborted = sum(upstream.aborted for upstream in stage.upstreams)
    body = completion(100_000)
    steer = [("x-pieces", "10"), ("x-hold", "yes")]
    async with request(http, str(gateway.address), body=body, headers=steer) as exchange:
        await exchange.until_bytes(10_000)
    await until(lambda: sum(u.aborted for u in stage.upstreams) > aborted, "the engine knows that the client is gone")
    only(stage, exchange.answer)


@pytest.mark.parametrize("http", HTTP)
async def test_an_engine_that_dies_mid_stream(stage: Stage, gateway: EnvoyProcess, variant: str, http: str) -> None:
    """The client has what came, and can tell that it isn't all; the next request is served."""
    body = completion(100_000)
    steer = [("x-pieces", "10"), ("x-die", "3"), ("x-hold", "yes")]
    async with request(http, str(gateway.address), body=body, headers=steer) as exchange:
        if variant not in {"buffered", "partial"}:  # which hold the response back
            await exchange.until_bytes(10_000)
        for upstream in stage.upstreams:
            upstream.gate.set()
        answer = await exchange.finish()
    for upstream in stage.upstreams:
        upstream.gate.clear()
    stage.forget()
    assert (answer.status, answer.complete) in {(200, False), (502, True), (503, True)}
    if variant not in {"buffered", "partial"}:
        assert answer.status == 200
        assert 10_000 <= len(answer.body) <= 30_000  # pieces that were with the picker may be lost
        assert body.startswith(answer.body)
    again = await call(http, str(gateway.address), body=body)
    assert (again.status, again.body == body) == (200, True)
    only(stage, again)


@pytest.mark.parametrize("http", HTTP)
async def test_an_engine_that_dies_before_it_answers(
    stage: Stage, gateway: EnvoyProcess, variant: str, http: str
) -> None:
    """The client is told, in OpenAI's form except by llm-d's Envoy; the request is not tried on another engine."""
    answer = await call(http, str(gateway.address), body=completion(300), headers=[("x-die", "0")])
    assert (answer.status, answer.complete) == (503, True)
    assert sum(len(upstream.seen) for upstream in stage.upstreams) == 1
    if variant != "original-dst":
        assert error(answer)["code"] == "ServiceUnavailable"
