"""The demo's load: equal seeds give equal lists, prefixes are shared, and answers are timed and judged."""

import asyncio
import json
from dataclasses import replace

import aiohttp
import pytest

from epp.demo.load import Answer, Call, Workload, replay, send
from epp.engine.options import EngineOptions
from epp.engine.server import EngineServer
from epp.engine.tokens import chat_tokens

WORKLOAD = Workload(duration=4.0, rate=25.0, groups=5, prefix_tokens=200, question_tokens=20, answer_tokens=3)


def test_equal_workloads_are_equal_lists() -> None:
    assert WORKLOAD.calls() == WORKLOAD.calls()
    assert WORKLOAD.calls() != replace(WORKLOAD, seed=1).calls()


def test_arrivals_have_the_rate_and_the_duration_asked_for() -> None:
    times = [call.at for call in replace(WORKLOAD, duration=100.0).calls()]
    assert times == sorted(times)
    assert times[0] == 0.0
    assert times[-1] < 100.0
    assert len(times) == pytest.approx(2500, rel=0.1)


def test_groups_differ_in_their_first_block_and_members_share_the_system_prompt() -> None:
    prompts = {tuple(chat_tokens(json.loads(call.body)["messages"])) for call in WORKLOAD.calls()}
    assert len(prompts) == len(WORKLOAD.calls()), "every question is another one"
    assert len({prompt[:16] for prompt in prompts}) == len({prompt[:201] for prompt in prompts}) == WORKLOAD.groups


def test_a_share_is_streamed() -> None:
    calls = replace(WORKLOAD, duration=100.0).calls()
    assert sum(call.streamed for call in calls) / len(calls) == pytest.approx(0.8, abs=0.05)
    assert all(json.loads(call.body)["stream"] is call.streamed for call in calls)


async def test_replay_answers_every_call() -> None:
    calls = replace(WORKLOAD, duration=0.5).calls()
    answers: list[Answer] = []
    async with EngineServer(EngineOptions()) as engine:
        await asyncio.wait_for(replay(f"http://{engine.address}", calls, answers.append), 30.0)
        assert engine.metrics[0].request_success["length"] == len(calls)
    assert len(answers) == len(calls)
    assert [answer.error for answer in answers] == [None] * len(calls)
    assert all(0 < answer.ttft <= answer.duration for answer in answers)
    assert {answer.streamed for answer in answers} == {True, False}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("header", "value", "error"),
    [
        pytest.param("x-sim-fail", "503", "status 503: ", id="a status"),
        pytest.param("x-sim-die-after", "2", "", id="a connection cut"),
    ],
)
async def test_a_failure_is_a_value(streamed: bool, header: str, value: str, error: str) -> None:
    call = next(call for call in WORKLOAD.calls() if call.streamed is streamed)
    async with (
        EngineServer(EngineOptions()) as engine,
        aiohttp.ClientSession(f"http://{engine.address}", headers={header: value}) as http,
    ):
        answer = await send(http, call)
    assert answer.error
    assert answer.error.startswith(error)


async def test_no_server_is_a_failure() -> None:
    async with EngineServer(EngineOptions()) as engine:
        address = engine.address
    async with aiohttp.ClientSession(f"http://{address}") as http:
        answer = await send(http, Call(0.0, streamed=True, body=b"{}"))
    assert answer.error
    assert "Cannot connect" in answer.error
