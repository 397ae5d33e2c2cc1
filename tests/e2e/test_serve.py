"""`epp serve` as a process: what it says of its health, how it ends, and what it makes of wrong arguments."""

import asyncio
import re
import signal
import sys
from contextlib import asynccontextmanager

import aiohttp
import grpc
import pytest
from envoy.config.core.v3.base_pb2 import HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

pytestmark = pytest.mark.e2e

DEADLINE = 30.0
PORTS = ("--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--grpc-bind-address=127.0.0.1")
SERVING = re.compile(r"ext_proc on (\d+) \(\w+\), health on (\d+), metrics on (\S+):(\d+),")
ENDPOINT = "127.0.0.1:9"  # nobody listens there, and one failure alone takes nobody out


class Picker:
    """A running `epp serve`, its ports, and what it has written so far."""

    def __init__(self, process):
        self.process = process
        self.log = []

    async def until_serving(self):
        async with asyncio.timeout(DEADLINE):
            while not (found := SERVING.search(await self._line())):
                pass
        self.grpc, self.health, self.bound, self.metrics = found.groups()

    async def _line(self):
        line = (await self.process.stderr.readline()).decode()
        assert line, "".join(self.log)
        self.log.append(line)
        return line

    async def end(self):
        """Waits for the end; the exit status."""
        rest, status = await asyncio.wait_for(asyncio.gather(self.process.stderr.read(), self.process.wait()), DEADLINE)
        self.log.append(rest.decode())
        return status


@asynccontextmanager
async def serve(*arguments):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "epp", "serve", "--endpoints", ENDPOINT, *PORTS, *arguments),
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
