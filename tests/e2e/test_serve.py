"""`epp serve` as a process: what it says of its health, how it ends, and what it makes of wrong arguments."""

import asyncio
import json
import re
import signal
import ssl
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aiohttp
import grpc
import pytest
from envoy.config.core.v3.base_pb2 import HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from epp.extproc.tls import self_signed
from tests.e2e.harness import free_port
from tests.e2e.process import DEADLINE, PORTS, Picker
from tests.e2e.upstream import Upstream

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def serve(*arguments):
    """A picker of one server that is there."""
    async with Upstream() as upstream:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "epp", "serve", "--endpoints", upstream.address, *PORTS, *arguments),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield Picker(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def check(port, service):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        reply = await ask(HealthCheckRequest(service=service), timeout=DEADLINE)
    return HealthCheckResponse.ServingStatus.Name(reply.status)


def open_stream(channel):
    call = channel.stream_stream(
        "/envoy.service.ext_proc.v3.ExternalProcessor/Process",
        request_serializer=ProcessingRequest.SerializeToString,
        response_deserializer=ProcessingResponse.FromString,
    )
    return call(timeout=DEADLINE)


def headers_only():
    message = ProcessingRequest()
    message.request_headers.end_of_stream = True
    message.request_headers.headers.headers.append(HeaderValue(key=":path", raw_value=b"/v1/models"))
    return message


@pytest.mark.parametrize("service", ["", "readiness", "liveness", "inference-extension"])
async def test_health_on_both_ports(service):
    """Whoever asks under whatever name is told that it serves."""
    async with serve("--secure-serving=false") as picker:
        await picker.until_serving()
        assert await check(picker.health, service) == "SERVING"
        assert await check(picker.grpc, service) == "SERVING"


async def test_sigterm_drains():
    """It is no longer ready at once, stays alive, finishes the stream that is open, takes new ones, and ends with 0."""
    async with serve("--secure-serving=false", "--drain-timeout=20s") as picker:
        await picker.until_serving()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.grpc}") as channel:
            stream = open_stream(channel)
            await stream.write(headers_only())
            assert (await stream.read()).HasField("request_headers")
            picker.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(DEADLINE):
                while await check(picker.health, "readiness") != "NOT_SERVING":
                    pass
            assert await check(picker.health, "liveness") == "SERVING"
            late = open_stream(channel)
            await late.write(headers_only())
            assert (await late.read()).HasField("request_headers")
            for each in (stream, late):
                await each.done_writing()
                assert await each.read() is grpc.aio.EOF
                assert await each.code() is grpc.StatusCode.OK
        assert await picker.end() == 0


async def test_drain_ends():
    """A stream that doesn't end is cut off when the time is over, and not with OK."""
    async with serve("--secure-serving=false", "--drain-timeout=200ms") as picker:
        await picker.until_serving()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.grpc}") as channel:
            stream = open_stream(channel)
            await stream.write(headers_only())
            await stream.read()
            picker.process.send_signal(signal.SIGTERM)
            assert await picker.end() == 0
            assert await stream.code() is not grpc.StatusCode.OK


async def test_a_second_sigterm_ends_at_once():
    """Whoever can't wait needn't, and the status is 0 all the same."""
    async with serve("--secure-serving=false", "--drain-timeout=300s") as picker:
        await picker.until_serving()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.grpc}") as channel:
            stream = open_stream(channel)
            await stream.write(headers_only())
            await stream.read()
            picker.process.send_signal(signal.SIGTERM)
            await picker.until(re.compile("draining: 1 streams in flight"))
            picker.process.send_signal(signal.SIGTERM)
            assert await picker.end() == 0


BOUND = {"by default": ((), "127.0.0.1"), "without authentication": (("--metrics-endpoint-auth=false",), "*")}


@pytest.mark.parametrize(("arguments", "bound"), BOUND.values(), ids=BOUND.keys())
async def test_where_metrics_are_served(arguments, bound):
    """On loopback only, until whoever runs it says that nobody need identify himself."""
    async with serve("--secure-serving=false", *arguments) as picker:
        await picker.until_serving()
        assert picker.bound == bound
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{picker.metrics}/metrics") as page:
            assert "llm_d_epp_ready_endpoints" in await page.text()


async def test_tls_by_default():
    """Without files a certificate is made up; a client that speaks no TLS gets nowhere."""
    async with serve() as picker:
        await picker.until_serving()
        with pytest.raises(grpc.aio.AioRpcError):
            await check(picker.grpc, "")
        assert await check(picker.health, "") == "SERVING"


def certificate(port):
    """The certificate that a client gets; it connects anew for each."""
    return ssl.get_server_certificate(("127.0.0.1", int(port)), timeout=DEADLINE).encode()


async def test_tls_from_files(tmp_path):
    """A certificate that is replaced is in use from the next handshake on; one that can't be used isn't."""

    def write(pair):
        (tmp_path / "tls.key").write_bytes(pair.key)
        (tmp_path / "tls.crt").write_bytes(pair.chain)

    first, second = (self_signed([name], datetime.now(UTC)) for name in ("first", "second"))
    write(first)
    async with serve(f"--cert-path={tmp_path}") as picker:
        await picker.until_serving()
        assert await asyncio.to_thread(certificate, picker.grpc) == first.chain
        write(second)
        assert await asyncio.to_thread(certificate, picker.grpc) == second.chain
        (tmp_path / "tls.crt").write_text("no certificate")
        assert await asyncio.to_thread(certificate, picker.grpc) == second.chain
        await picker.until(re.compile("the old certificate stays in use"))


async def test_no_certificate(tmp_path):
    """The error names the folder."""
    async with serve(f"--cert-path={tmp_path}") as picker:
        assert await picker.end() == 1
        assert str(tmp_path) in picker.log[-1]


@pytest.mark.parametrize(("verbosity", "lines"), [(0, 0), (1, 0), (2, 1), (4, 1)])
async def test_request_lines(verbosity, lines):
    """One a request, from verbosity 2 on."""
    port = free_port()
    async with serve("--secure-serving=false", f"--grpc-port={port}", "-v", str(verbosity)) as picker:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), DEADLINE)
            stream = open_stream(channel)
            await stream.write(headers_only())
            assert (await stream.read()).HasField("request_headers")
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
        picker.process.send_signal(signal.SIGTERM)
        assert await picker.end() == 0
    written = [json.loads(line) for line in "".join(picker.log).splitlines() if line.startswith("{")]
    assert [line["message"] for line in written].count("request") == lines


async def test_taken_port():
    """The error names the flag."""
    async with serve("--secure-serving=false") as first:
        await first.until_serving()
        async with serve("--secure-serving=false", f"--grpc-port={first.grpc}") as second:
            assert await second.end() == 1
            assert "--grpc-port" in second.log[-1]


async def test_every_problem_of_a_configuration(tmp_path):
    """Status 1, and all that is wrong, not only the first."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorrer\n"
        "schedulingProfiles:\n- name: default\n  plugins:\n  - {pluginRef: nobody, weight: 1}\n"
    )
    async with serve(f"--config-file={file}") as picker:
        assert await picker.end() == 1
    assert "queue-scorer" in picker.log[-1]
    assert "nobody" in picker.log[-1]
