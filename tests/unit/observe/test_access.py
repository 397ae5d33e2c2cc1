"""Who gets at the metrics port: bearer tokens, and TLS with or without clients' certificates."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from epp.errors import ConfigError, EppError
from epp.extproc.tls import Pair, self_signed
from epp.observe.access import Authorize, Verdict, server_tls
from epp.observe.decisions import Decisions
from epp.observe.http import application


@asynccontextmanager
async def serving(authorize: Authorize | None = None, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The metrics port; its URL."""
    app = application(CollectorRegistry(), Decisions(), {"config": dict}, authorize=authorize)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def status(url: str, token: str | None = None, tls: ssl.SSLContext | None = None) -> int:
    headers = {} if token is None else {"Authorization": token}
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls or True))
    async with session as http, http.get(url, headers=headers) as answer:
        return answer.status


async def test_tokens_are_judged_for_every_page() -> None:
    asked: list[tuple[str, str, str]] = []

    async def authorize(token: str, path: str, verb: str) -> Verdict:
        asked.append((token, path, verb))
        if token == "broken":
            raise EppError("the API server is away")
        return "allowed" if token == "good" else "forbidden" if token == "known" else "unauthenticated"

    async with serving(authorize) as url:
        for token, expected in (
            (None, 401),
            ("Basic good", 401),
            ("Bearer ", 401),
            ("Bearer bad", 401),
            ("bearer known", 403),
            ("Bearer broken", 503),
            ("Bearer good", 200),
        ):
            assert await status(f"{url}/metrics", token) == expected, token
        assert await status(f"{url}/debug/config", "Bearer known") == 403
    assert asked[-2:] == [("good", "/metrics", "get"), ("known", "/debug/config", "get")]


async def test_without_a_judge_everybody_may_read() -> None:
    async with serving() as url:
        assert await status(f"{url}/metrics") == 200


def write(folder: Path, pair: Pair) -> None:
    (folder / "tls.crt").write_bytes(pair.chain)
    (folder / "tls.key").write_bytes(pair.key)


def client(pair: Pair, own: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=pair.chain.decode())
    if own is not None:
        context.load_cert_chain(own / "tls.crt", own / "tls.key")
    return context


async def test_a_new_certificate_is_taken_and_a_broken_one_is_not(tmp_path: Path) -> None:
    first, second = (self_signed(("127.0.0.1",), datetime.now(UTC)) for _ in range(2))
    write(tmp_path, first)
    async with serving(tls=server_tls(tmp_path, None)) as url:
        assert await status(f"{url}/metrics", tls=client(first)) == 200
        write(tmp_path, second)
        assert await status(f"{url}/metrics", tls=client(second)) == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await status(f"{url}/metrics", tls=client(first))
        (tmp_path / "tls.key").write_text("half")
        assert await status(f"{url}/metrics", tls=client(second)) == 200


async def test_clients_must_show_a_certificate_of_the_authority(tmp_path: Path) -> None:
    for name in ("server", "ours", "strange"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, self_signed(("127.0.0.1",), datetime.now(UTC)))
    server = Pair(b"", (tmp_path / "server" / "tls.crt").read_bytes())
    async with serving(tls=server_tls(tmp_path / "server", tmp_path / "ours" / "tls.crt")) as url:
        assert await status(f"{url}/metrics", tls=client(server, tmp_path / "ours")) == 200
        for own in (None, tmp_path / "strange"):
            with pytest.raises(aiohttp.ClientError):
                await status(f"{url}/metrics", tls=client(server, own))


def test_files_that_cant_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TLS of the metrics port"):
        server_tls(tmp_path, None)
