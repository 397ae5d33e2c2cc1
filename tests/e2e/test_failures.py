"""What Envoy answers when the picker, or an engine, is gone: the tables of docs/envoy.md."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from epp.envoy.options import Address, parse_address
from epp.envoy.process import EnvoyProcess
from tests.e2e.clients import Answer, call, request
from tests.e2e.harness import VARIANTS, Picker, Stage, completion, free_port, until
from tests.e2e.load import Load

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

DESTINATION = "x-gateway-destination-endpoint"
BODY = completion(1000)


@asynccontextmanager
async def one_gateway(variant: str = "standalone", size: int = 2, **changes: Any) -> AsyncIterator[Any]:
    """A pool, a picker and an Envoy that a test may break."""
    async with Stage(size) as stage, EnvoyProcess(stage.options(**VARIANTS[variant], **changes)) as gateway:
        yield stage, gateway
        assert gateway.alive, gateway.log_tail()


async def picked(stage: Stage, gateway: EnvoyProcess) -> bool:
    """Whether the picker decides where a request goes."""
    stage.forget()
    answer = await call("http1", str(gateway.address), body=BODY)
    seen = [found for upstream in stage.upstreams for found in upstream.seen]
    return answer.status == 200 and seen[0].header(DESTINATION) == answer.headers["x-served-by"]


async def test_nothing_is_lost_when_the_picker_is_killed_and_restarted_under_load() -> None:
    """In standalone mode Envoy goes on by itself, and follows the picker again when it is back."""
    async with one_gateway() as (stage, gateway), Load(gateway) as load:
        await load.more(100)
        await stage.picker.end(signal.SIGKILL)
        await load.more(200)
        await stage.picker.start()
        await until(lambda: picked(stage, gateway), "the picker picks again")
        await load.more(100)
    assert load.lost == []
    assert load.outcomes.total() >= 400


async def test_nothing_is_lost_when_the_picker_ends_gracefully_under_load() -> None:
    """SIGTERM: streams that are open go on, new ones go past the picker."""
    async with one_gateway() as (stage, gateway), Load(gateway) as load:
        await load.more(100)
        assert await stage.picker.end(signal.SIGTERM) == 0
        await load.more(100)
    assert load.lost == []


async def test_nothing_is_lost_with_a_third_of_the_pool_and_the_picker_gone() -> None:
    """Retries find a live engine, also where nobody knows which one that is."""
    async with one_gateway(size=3) as (stage, gateway):
        await until(lambda: picked(stage, gateway), "the picker picks")
        await stage.upstreams[0].close()
        await stage.picker.end(signal.SIGKILL)
        async with Load(gateway) as load:
            await load.more(300)
    assert load.lost == []


async def test_an_engine_that_is_gone_costs_nothing_while_the_picker_doesnt_know() -> None:
    """The connection fails before anything is sent: Envoy tries the next one."""
    async with one_gateway(size=3) as (stage, gateway):
        await until(lambda: picked(stage, gateway), "the picker picks")
        await stage.upstreams[0].close()
        async with Load(gateway) as load:
            await load.more(200)
    assert load.lost == []


@pytest.mark.parametrize("variant", ["full-duplex", "original-dst"])
async def test_an_engine_that_is_gone_is_soon_avoided(variant: str) -> None:
    """Where nothing is retried, requests fail until the picker knows: from its scrapes, or from Envoy's reports."""
    async with one_gateway(variant) as (stage, gateway):
        await stage.upstreams[0].close()

        async def served(times: int = 20) -> bool:
            answers = [await call("http1", str(gateway.address), body=BODY) for _ in range(times)]
            assert {answer.status for answer in answers} <= {200, 503}
            return all(answer.status == 200 for answer in answers)

        await until(served, "the dead engine is avoided")


@pytest.mark.parametrize(
    ("variant", "allow", "post", "get", "under_way"),
    [
        pytest.param("standalone", True, {200}, 200, "goes on", id="standalone-open"),
        pytest.param("standalone", False, {503}, 503, "is cut", id="standalone-closed"),
        # Envoy goes on without the picker only if it knows before any of the body has come.
        pytest.param("full-duplex", True, {200, 503}, 200, "is cut", id="full-duplex-open"),
        pytest.param("full-duplex", False, {503}, 503, "is cut", id="full-duplex-closed"),
        pytest.param("original-dst", True, {500, 503}, 503, "is cut", id="original-dst-open"),
        pytest.param("original-dst", False, {500}, 500, "is cut", id="original-dst-closed"),
    ],
)
async def test_what_is_answered_without_a_picker(
    variant: str, allow: bool, post: set[int], get: int, under_way: str
) -> None:
    """To a POST, to a GET, and to a request whose answer is under way; after a restart all is as before."""
    async with one_gateway(variant, failure_mode_allow=allow) as (stage, gateway):
        address = str(gateway.address)
        steer = [("x-pieces", "10"), ("x-hold", "yes")]
        async with request("http1", address, body=BODY, headers=steer) as exchange:
            await exchange.until_bytes(100)
            await stage.picker.end(signal.SIGKILL)
            if under_way == "goes on":
                for upstream in stage.upstreams:
                    upstream.gate.set()
            answer = await exchange.finish()
        assert (answer.status, answer.complete) == (200, under_way == "goes on")
        for http in ("http1", "http2"):
            posted = await call(http, address, body=BODY)
            got = await call(http, address, method="GET", path="/v1/models")
            assert posted.status in post
            assert got.status == get
            for refused in (posted, got):
                assert refused.status == 200 or variant == "original-dst" or says_why(refused)
        await stage.picker.start()
        await until(lambda: picked(stage, gateway), "the picker picks again")


def says_why(answer: Answer) -> bool:
    """In OpenAI's form."""
    said = b'"message":"the endpoint picker can\'t be reached"' in answer.body
    return said and answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("allow", "status"), [(True, 200), (False, 504)], ids=["open", "closed"])
async def test_a_picker_that_hangs_costs_the_message_timeout(allow: bool, status: int) -> None:
    """A stopped process still has its connections; what ends the wait is the timer."""
    async with one_gateway(failure_mode_allow=allow, message_timeout=0.2) as (stage, gateway):
        await until(lambda: picked(stage, gateway), "the picker picks")
        stage.picker.signal(signal.SIGSTOP)
        answer = await call("http1", str(gateway.address), body=BODY)
        stage.picker.signal(signal.SIGCONT)
        assert answer.status == status
        if status == 504:
            assert b'"message":"the endpoint picker took too long"' in answer.body
        await until(lambda: picked(stage, gateway), "the picker picks again")
        await until(lambda: stage.idle(gateway), "nothing is left in flight")


async def test_a_clients_destination_is_not_followed_without_a_picker() -> None:
    """It is stripped, so that Envoy's own choice is one of the pool."""
    async with one_gateway() as (stage, gateway):
        await stage.picker.end(signal.SIGKILL)
        for http in ("http1", "http2"):
            answer = await call(http, str(gateway.address), body=BODY, headers=[(DESTINATION, stage.outsider.address)])
            assert (answer.status, answer.headers["x-served-by"] in stage.addresses) == (200, True)
        assert stage.outsider.seen == []


async def test_names_are_looked_up_by_envoy_and_the_picker_alike() -> None:
    """The address that the picker answers is one that Envoy has for the same name."""
    async with Stage() as stage:
        names = tuple(replace_host(address, "localhost") for address in stage.addresses)
        async with Picker([str(name) for name in names]) as picker:
            options = replace(stage.options(), endpoints=names, picker=(Address("localhost", picker.address.port),))
            async with EnvoyProcess(options) as gateway:
                assert await picked(stage, gateway)


def replace_host(address: str, host: str) -> Address:
    return Address(host, parse_address(address, "upstream").port)


async def test_tls_to_the_picker(tmp_path: Path) -> None:
    """Any certificate is taken, or only those of an authority; the health port is plain text."""
    own, other = certificate(tmp_path / "own"), certificate(tmp_path / "other")
    async with Stage() as stage, Picker(stage.addresses, f"--cert-path={own.parent}", secure=True) as picker:
        base = replace(stage.options(), picker=(picker.address,), secure_picker=True, failure_mode_allow=False)
        async with EnvoyProcess(base) as gateway:
            assert await picked(stage, gateway)
        checked = replace(base, picker_ca=str(own), picker_health_port=picker.health.port)
        async with EnvoyProcess(checked) as gateway:
            assert await picked(stage, gateway)
            assert (await gateway.stats("cluster.picker.health_check.healthy"))[
                "cluster.picker.health_check.healthy"
            ] == 1
        async with EnvoyProcess(replace(base, picker_ca=str(other))) as gateway:
            assert (await call("http1", str(gateway.address), body=BODY)).status == 503


def certificate(directory: Path) -> Path:
    """A self-signed certificate as `tls.crt`, and its key as `tls.key`."""
    directory.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, directory.name)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = directory / "tls.crt"
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    (directory / "tls.key").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
    return path


async def test_a_picker_that_never_was_there() -> None:
    """Envoy starts and serves before its picker does."""
    async with Stage() as stage:
        absent = replace(stage.options(), picker=(Address("127.0.0.1", free_port()),))
        async with EnvoyProcess(absent) as gateway:
            assert (await call("http1", str(gateway.address), body=BODY)).status == 200
