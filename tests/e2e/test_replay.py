"""From a real Envoy's traffic to a report: what `epp serve` has logged is run once more, on simulated engines."""

import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from epp.cli.replay import main
from epp.engine.options import EngineOptions
from epp.engine.server import EngineServer
from epp.envoy.options import EnvoyOptions, Mode, parse_address
from epp.envoy.process import LOOPBACK, EnvoyProcess
from epp.replay import recorded
from tests.e2e.harness import LIMIT, Picker

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

SESSIONS, TURNS, TOKENS = 3, 3, 20


async def talk(http: aiohttp.ClientSession, name: int) -> list[dict[str, Any]]:
    """A conversation, each turn of which repeats all before it; what the engine says of each turn's tokens."""
    messages = [{"role": "system", "content": f"You are assistant {name}. " * 60}]
    usage = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"And what of {turn}? " * 30})
        body = {"model": "llama-8b", "messages": messages, "max_tokens": TOKENS, "ignore_eos": True}
        async with http.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            answer = await response.json()
        messages.append(answer["choices"][0]["message"])
        usage.append(answer["usage"])
    return usage


async def recorded_behind(mode: Mode, log: Path) -> list[list[dict[str, Any]]]:
    """Has some conversations logged behind an Envoy in this mode; what the engines said of their tokens."""
    async with EngineServer(EngineOptions()) as one, EngineServer(EngineOptions()) as two:
        servers = (one.address, two.address)
        async with Picker(servers, f"--decision-log={log}") as picker:
            options = EnvoyOptions(
                listen=LOOPBACK,
                picker=(picker.address,),
                endpoints=tuple(parse_address(server, "server") for server in servers),
                max_request_body_bytes=LIMIT,
                mode=mode,
            )
            async with (
                EnvoyProcess(options) as gateway,
                aiohttp.ClientSession(f"http://{gateway.address}") as http,
            ):
                usage = [await talk(http, name) for name in range(SESSIONS)]
            assert await picker.end(signal.SIGTERM) == 0
    return usage


async def test_recorded_without_bodies(tmp_path: Path) -> None:
    """Behind Envoy's default mode the lengths of answers come from their durations, and it is said."""
    log = tmp_path / "decisions.log"
    await recorded_behind("standalone", log)
    found = recorded.load(log, "tiny")
    assert all(TOKENS * 0.7 <= turn.answer.tokens <= TOKENS for turn in found.turns)
    count = SESSIONS * TURNS
    (remark,) = found.remarks
    assert f"no usage for {count} of its {count} answers, their lengths are estimated: {count} by their dur" in remark


async def test_recorded_traffic_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts have the lengths that the engine counted, and share what they shared; the report is of all of them."""
    log = tmp_path / "decisions.log"
    usage = await recorded_behind("full-duplex", log)
    turns = recorded.load(log).turns
    counted = [each["prompt_tokens"] for session in usage for each in session]
    assert len(turns) == SESSIONS * TURNS
    assert [turn.prompt_tokens for turn in turns] == pytest.approx(counted, rel=0.1)
    assert {turn.answer.tokens for turn in turns} == {TOKENS}
    pace = ("--capacity=own", "--load=1,5", "--engines=2", "--profile=tiny")
    status = main([str(log), *pace, "--no-plots", "--jobs=1", f"--out={tmp_path / 'report'}"])
    assert status == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert [(row["workload"], row["load"], row["policy"]) for row in rows] == [
        ("decisions.log", load, "default") for load in (1.0, 5.0)
    ]
    cached = sum(each["prompt_tokens_details"]["cached_tokens"] for session in usage for each in session)
    assert cached > 0
    assert rows[0]["hit_ratio"] == pytest.approx(cached / sum(counted), abs=0.15), usage
