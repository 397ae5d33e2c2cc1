"""A shadow decides beside the profiles in force: on what they knew, after the answer, and without effect."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingResponse

from epp.exchange import Exchange
from epp.extproc.events import BodyMode
from epp.extproc.server import SERVICE
from epp.keys import WAITING
from epp.observe.decisions import render
from epp.observe.entries import read_log
from epp.observe.record import Comparison
from epp.plugin import Pick
from epp.shadow import compared
from tests.stream.conftest import Start
from tests.stream.envoy import send_request, send_response
from tests.stream.messages import BODY, CHAT, destination, request_body, request_headers
from tests.stream.picker import Picker, config, until
from tests.unit.observe.parts import decided

FULL = BodyMode.FULL_DUPLEX_STREAMED


def with_shadow(text: str, *profile: str, others: tuple[str, ...] = (), **parameters: Any) -> str:
    """The configuration with a shadow of these types."""
    shadow = json.loads(config(*profile, others=others, **parameters))
    section = {"plugins": shadow["plugins"], "schedulingProfiles": shadow["schedulingProfiles"]}
    return json.dumps(json.loads(text) | {"shadow": section})


LEAST_BUSY = config("active-request-scorer", others=["recorder"])
LONG = b'{"model": "m", "messages": [{"role": "user", "content": "%s"}]}' % (b"a long question " * 100)


def shown(picker: Picker) -> dict[str, Any]:
    """The latest decision, as `/debug/decisions` has it."""
    return picker.decisions.latest(1)[0]


async def test_it_sees_what_the_decision_in_force_has_seen(start: Start) -> None:
    """Not what that has charged since, whether or not the profiles in force read it."""
    picker = await start(with_shadow(config("queue-scorer"), "active-request-scorer"))
    async with AsyncExitStack() as stack:
        for _ in range(4):
            before = {endpoint: requests for endpoint, (requests, _) in picker.inflight().items()}
            stream = await stack.enter_async_context(picker.stream())
            await send_request(stream, FULL)
            scores = shown(picker)["shadow"]["profiles"][0]["scorers"][0]["scores"]
            busy = [before.get(f"10.0.0.{number + 1}:8000", 0) for number in range(2)]
            assert [scores[f"default/pod-{number}"]["raw"] for number in range(2)] == [
                1.0 if max(busy) == 0 else (max(busy) - each) / max(busy) for each in busy
            ]


async def test_the_shadow_hears_where_requests_really_went(start: Start, tmp_path: Path) -> None:
    """Its index has what the endpoints have, and its regret is the points that it would have won."""
    picker = await start(with_shadow(LEAST_BUSY, "prefix-cache-scorer=3"))
    log = picker.keep_log(tmp_path / "log")
    async with picker.stream() as first, picker.stream() as second:
        went = destination((await send_request(first, FULL, LONG)).route)
        other = destination((await send_request(second, FULL, LONG)).route)
        found = shown(picker)["shadow"]
        assert went != other
        assert (found["destination"], found["agreed"], found["regret"]) == (went, False, pytest.approx(1.0))
        assert picker.compared("shadow")["differed"] == 1
        regret = picker.metrics.families["llm_d_epp_regret"].buckets("shadow")
        assert regret.sum == pytest.approx(1.0)
        assert sum(regret.counts) == 2
    async with picker.stream() as third:
        await send_request(third, FULL, LONG)
        assert shown(picker)["shadow"]["regret"] == 0, "both have it now"
    await picker.settled()
    log.close()
    entry = next(entry for entry in read_log(tmp_path / "log") if entry.sent_to == other)
    assert entry.against_shadow == Comparison(went, agreed=False, regret=pytest.approx(1.0))
    (stage,) = entry.shadow
    assert (stage.scorers, entry.servers[stage.pick[0]].hostport) == (("shadow/prefix-cache-scorer",), went)
    assert entry.prompt_bytes == 1606
    assert [len(chain) for chain in entry.chains] == [6]


async def test_it_has_no_effect(start: Start) -> None:
    """What is charged, entered and heard is what is without it."""
    plain = await start(LEAST_BUSY, endpoints=4)
    shadowed = await start(
        with_shadow(LEAST_BUSY, "prefix-cache-scorer", "random-picker", others=("recorder",)), endpoints=4
    )
    charged = []
    for picker in (plain, shadowed):
        async with picker.stream() as one, picker.stream() as two:
            for stream in (one, two):
                await send_request(stream, FULL, LONG)
            charged.append(sorted(picker.inflight().values()))
            await send_response(one, FULL, b"{}")
        await picker.settled()
        heard = [entry[0] for entry in picker.heard()]
        assert sorted(heard) == sorted(["picked", "picked", "response_headers", "first_byte", "done", "done"])
        assert picker.faults() == {}
    assert charged[0] == charged[1]
    assert len(charged[0]) == 2
    assert plain.compared("shadow") == {}


async def test_its_observers_hear_what_really_happened(start: Start) -> None:
    """The pick in force, its first byte and its end; response headers are not asked of them."""
    picker = await start(with_shadow(LEAST_BUSY, "random-picker", others=("recorder",)))
    async with picker.stream() as stream:
        went = destination((await send_request(stream, FULL)).route)
        await send_response(stream, FULL, b"{}")
        await stream.rest()
    await picker.settled()
    heard = picker.plugin("shadow/recorder").heard
    assert [entry[0] for entry in heard] == ["picked", "first_byte", "done"]
    assert heard[0] == ("picked", "r-1", went, 2)


@contextmanager
def blocking_client(picker: Picker) -> Iterator[Any]:
    """A client whose answers come in another thread, while the picker's is busy."""
    with grpc.insecure_channel(f"127.0.0.1:{picker.port}") as channel:
        yield channel.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=ProcessingResponse.FromString,
        )


async def test_the_answer_does_not_wait(start: Start) -> None:
    """The client has all of it before the shadow begins, however long that takes then."""
    picker = await start(with_shadow(LEAST_BUSY, "odd-scorer", odd_scorer={"say": "integers"}))
    answered, order = threading.Event(), list[str]()
    scorer = picker.plugin("shadow/odd-scorer")
    score = scorer.score

    def waiting(request: Any, c: Any) -> Any:
        order.append("answered first" if answered.wait(5.0) else "nobody was answered within 5 s")
        return score(request, c)

    scorer.score = waiting

    def ask() -> None:
        with blocking_client(picker) as process:
            replies = process(iter([request_headers(), request_body(BODY)]))
            next(replies)
            next(replies)
            answered.set()
            list(replies)

    await asyncio.wait_for(asyncio.to_thread(ask), 10.0)
    await picker.settled()
    assert order == ["answered first"]


@pytest.mark.parametrize("say", ["raise", "nan", "short"])
async def test_its_plugins_may_fail(start: Start, say: str) -> None:
    """That is counted under the shadow's name, and nobody else is disturbed."""
    picker = await start(with_shadow(LEAST_BUSY, "odd-scorer", odd_scorer={"say": say}))
    async with picker.stream() as stream:
        await send_request(stream, FULL)
        await stream.rest()
    await picker.settled()
    ((point, name, _),) = picker.faults()
    assert (point, name) == ("Scorer", "shadow/odd-scorer")
    assert sum(picker.compared("shadow").values()) == 1


async def test_a_fault_of_ours_in_the_shadow(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted as failed, and the stream goes on."""
    picker = await start(with_shadow(LEAST_BUSY, "random-picker"))
    monkeypatch.setattr("epp.exchange.shadow_decision", lambda *_: 1 / 0)
    async with picker.stream() as stream:
        await send_request(stream, FULL)
        await send_response(stream, FULL, b"{}")
        await stream.rest()
    await picker.settled()
    assert picker.compared("shadow") == {"failed": 1}
    assert shown(picker)["shadow"] is None


async def test_a_shadow_that_finds_nobody(start: Start) -> None:
    """There is no regret then."""
    picker = await start(with_shadow(LEAST_BUSY, "nobody", "random-picker", nobody={"because": "kind"}))
    async with picker.stream() as stream:
        await send_request(stream, FULL)
        await stream.rest()
    found = shown(picker)["shadow"]
    assert (found["destination"], found["agreed"], found["regret"]) == (None, False, None)
    assert picker.compared("shadow") == {"nobody": 1}


async def test_a_destination_that_its_filters_drop(start: Start) -> None:
    """It differs, and what that costs can't be said."""
    text = with_shadow(
        config("queue-scorer"),
        "label-selector-filter",
        "queue-scorer",
        label_selector_filter={"matchLabels": {"kubernetes.io/hostname": "x"}},
    )
    picker = await start(text)
    slot = picker.pool.slots["default/pod-1"]
    endpoint = picker.pool.endpoints[slot]
    assert endpoint is not None
    picker.pool.add(
        type(endpoint)(endpoint.name, endpoint.address, endpoint.port, labels={"kubernetes.io/hostname": "x"})
    )
    picker.pool.column(WAITING)[slot] = 5
    async with picker.stream() as stream:
        await send_request(stream, FULL)
        await stream.rest()
    found = shown(picker)["shadow"]
    assert (found["destination"], found["agreed"], found["regret"]) == (endpoint.hostport, False, None)


async def test_chance_is_no_disagreement(start: Start) -> None:
    """Two endpoints with equal totals are a tie, which is counted apart from what differs."""
    picker = await start(with_shadow(config("queue-scorer"), "queue-scorer"))
    for _ in range(30):
        async with picker.stream() as stream:
            await send_request(stream, FULL)
            await stream.rest()
    await picker.settled()
    counted = picker.compared("shadow")
    assert set(counted) == {"agreed", "tie"}
    assert sum(counted.values()) == 30


def test_rounding_is_no_regret() -> None:
    """Totals that differ by the order of adding only."""
    decision = decided()
    (stage,) = decision.stages
    stage.totals = np.array([0.1 + 0.2, 0.3])
    last = stage.candidates.slots[-1]
    found = compared(Pick("default", (int(last),), (), 0.3), decision)
    assert (found.agreed, found.regret, found.result) == (False, 0.0, "tie")


async def test_a_refused_request_has_no_shadow(start: Start) -> None:
    """There is nothing to compare with."""
    text = with_shadow(config("nobody", nobody={"because": "load"}), "random-picker")
    picker = await start(text)
    async with picker.stream() as stream:
        await stream.ask(request_headers(), request_body(BODY))
    await picker.settled()
    assert picker.compared("shadow") == {}


async def test_a_client_that_goes_while_it_is_answered(start: Start) -> None:
    """The shadow is told all the same: its observers hear of every pick before its end."""
    picker = await start(with_shadow(LEAST_BUSY, "random-picker", others=("recorder",)))
    for _ in range(20):
        async with picker.stream() as stream:
            await stream.send(request_headers(), request_body(BODY))
            await until(picker.inflight, "it is charged")
            stream.cancel()
        await picker.settled()
    heard = [entry[0] for entry in picker.plugin("shadow/recorder").heard]
    assert heard == ["picked", "done"] * 20


async def test_no_prompt_is_kept(start: Start) -> None:
    """Once the shadow has decided, nothing of an open stream refers to it."""
    picker = await start(with_shadow(LEAST_BUSY, "random-picker"))
    opened: list[Exchange] = []
    open_exchange = picker.processor._open

    def opening() -> Any:
        opened.append(open_exchange())  # type: ignore[arg-type]
        return opened[-1]

    picker.processor._open = opening
    async with picker.stream() as stream:
        await send_request(stream, FULL, LONG, headers=CHAT)
        (exchange,) = opened
        await until(lambda: exchange.pending is None, "the shadow has decided")
        assert b"a long question" not in json.dumps(render(exchange.record)).encode()
        assert exchange.request is not None
        assert exchange.request.body.prompts == ()
