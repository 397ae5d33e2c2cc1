"""KV events over real ZeroMQ sockets, and against what a real vLLM has sent."""

import asyncio
import base64
import json
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
import zmq.asyncio

from epp.engine.blocks import AllBlocksCleared, BlockRemoved, BlockStored
from epp.engine.kv_events import Format, KvEventPublisher, KvEventsConfig, encode_event, for_rank
from epp.engine.options import EngineOptions
from epp.engine.server import EngineServer
from epp.engine.text import Text

DATA = Path(__file__).parents[4] / "shared" / "data"
CAPTURE = "vllm-0.32-kv-events.jsonl"
DEADLINE = 10.0
TOPIC = "kv@127.0.0.1:8101@llama-8b"
TEXT = Text(array("I", range(12)), 4, 4, lora="poet", cache_salt="s")


def captured() -> list[list[bytes]]:
    """The messages of a real vLLM, frame by frame."""
    path = DATA / CAPTURE
    if not path.exists():
        pytest.skip(f"no captures of a real vLLM: {CAPTURE} is not in ../shared/data")
    return [[base64.b64decode(frame) for frame in json.loads(line)] for line in path.read_text().splitlines()]


@contextmanager
def subscribed(endpoint: str) -> Iterator[zmq.asyncio.Socket]:
    """A subscriber that binds, so that it is there before anybody publishes."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"")
    socket.bind(endpoint)
    try:
        yield socket
    finally:
        context.destroy(linger=0)


async def replayed(endpoint: str, first: int) -> list[list[bytes]]:
    """What the replay socket answers, up to and with the end."""
    context = zmq.asyncio.Context()
    try:
        socket = context.socket(zmq.DEALER)
        socket.connect(endpoint)
        await socket.send_multipart([b"", first.to_bytes(8, "big")])
        answers: list[list[bytes]] = []
        async with asyncio.timeout(DEADLINE):
            while not answers or answers[-1][-2] != b"\xff" * 8:
                answers.append(await socket.recv_multipart())
        return answers
    finally:
        context.destroy(linger=0)


async def received(socket: zmq.asyncio.Socket, count: int) -> list[list[bytes]]:
    async with asyncio.timeout(DEADLINE):
        return [await socket.recv_multipart() for _ in range(count)]


def shape(event: dict[str, Any]) -> dict[str, str]:
    """The fields of an event in order, with their types."""
    return {name: type(value).__name__ for name, value in event.items()}


@pytest.mark.parametrize(
    ("form", "event", "expected"),
    [
        (
            "map",
            BlockStored(TEXT, 0, 2),
            {
                "type": "BlockStored",
                "block_hashes": TEXT[:2],
                "parent_block_hash": None,
                "token_ids": list(range(8)),
                "block_size": 4,
                "lora_id": 7,
                "medium": "GPU",
                "lora_name": "poet",
                "extra_keys": [["poet", "s"], ["poet"]],
                "group_idx": 0,
                "kv_cache_spec_kind": "full_attention",
            },
        ),
        ("map", BlockRemoved(5), {"type": "BlockRemoved", "block_hashes": [5], "medium": "GPU", "group_idx": 0}),
        ("map", AllBlocksCleared(), {"type": "AllBlocksCleared"}),
        (
            "array",
            BlockStored(TEXT, 3, 4),
            [
                *("BlockStored", [TEXT[3]], TEXT[2], TEXT.tokens(12, 16).tolist(), 4, 7, "GPU", "poet"),
                *([["poet"]], 0, "full_attention", None),
            ],
        ),
        ("array", BlockRemoved(5), ["BlockRemoved", [5], "GPU", 0]),
        ("array", AllBlocksCleared(), ["AllBlocksCleared"]),
    ],
)
def test_an_event_in_both_formats(form: Format, event: Any, expected: Any) -> None:
    assert encode_event(event, form, {"poet": 7}) == expected
    if isinstance(expected, dict):
        assert list(encode_event(event, form, {"poet": 7})) == list(expected), "fields in vLLM's order"


def test_a_plain_block_has_no_extra_keys() -> None:
    encoded = encode_event(BlockStored(Text(array("I", range(8)), 4), 0, 2), "map", {})
    assert (encoded["extra_keys"], encoded["lora_id"], encoded["lora_name"]) == ([None, None], None, None)


async def test_the_messages_are_those_of_a_real_engine() -> None:
    """The same prompts as in the capture bring the same stores: how many blocks, after which, in as many messages."""
    real = captured()
    with subscribed("tcp://127.0.0.1:*") as socket:
        config = KvEventsConfig(endpoint=socket.getsockopt_string(zmq.LAST_ENDPOINT), topic=TOPIC)
        options = EngineOptions(block_size=32, max_model_len=2048, kv_events=config)
        async with EngineServer(options) as engine, aiohttp.ClientSession(f"http://{engine.address}") as http:
            await connected(engine.publishers[0], socket)
            ours = []
            for prompt, stored in prompts(real):
                body = {"prompt": prompt, "max_tokens": 40, "ignore_eos": True}
                async with http.post("/v1/completions", json=body) as response:
                    assert response.status == 200
                ours += await received(socket, stored)
    theirs, mine = batches(real), batches(ours)
    assert [topic for topic, _, _, _ in theirs] == [topic for topic, _, _, _ in mine]
    assert [number for _, number, _, _ in theirs] == [number - mine[0][1] for _, number, _, _ in mine]
    for (_, _, their_events, their_rank), (_, _, my_events, my_rank) in zip(theirs, mine, strict=True):
        assert their_rank == my_rank == 0
        assert [shape(event) for event in their_events] == [shape(event) for event in my_events]
        for their_event, my_event in zip(their_events, my_events, strict=True):
            assert len(their_event["block_hashes"]) == len(my_event["block_hashes"])
            assert len(their_event["token_ids"]) == len(my_event["token_ids"])
    assert places(theirs) == places(mine)


def batches(messages: list[list[bytes]]) -> list[tuple[bytes, int, list[dict[str, Any]], int]]:
    decoded = []
    for topic, number, payload in messages:
        when, events, rank = msgspec.msgpack.decode(payload)
        assert isinstance(when, float)
        decoded.append((topic, int.from_bytes(number, "big"), events, rank))
    return decoded


def places(decoded: list[tuple[bytes, int, list[dict[str, Any]], int]]) -> list[list[int]]:
    """Each stored block and its parent by the order in which they first appear: equal for equal trees."""
    names: dict[int | None, int] = {None: 0}
    return [
        [names.setdefault(content, len(names)) for content in (event["parent_block_hash"], *event["block_hashes"])]
        for _, _, events, _ in decoded
        for event in events
    ]


def prompts(real: list[list[bytes]]) -> Iterator[tuple[list[int], int]]:
    """The prompts behind the capture, as far as their blocks tell, each with the number of its messages.

    A message that is not followed by another one on its last block was a prompt with its answer's first tokens.
    """
    known: dict[int, list[int]] = {}
    waiting: list[int] | None = None
    for _, _, events, _ in batches(real):
        (event,) = events
        parent = known.get(event["parent_block_hash"], [])
        tokens = [*parent, *event["token_ids"]]
        size = event["block_size"]
        for index, content in enumerate(event["block_hashes"], start=1):
            known[content] = tokens[: len(parent) + index * size]
        if waiting is not None and tokens[: len(waiting)] == waiting and len(tokens) == len(waiting) + size:
            yield [*waiting, 0], 2
            waiting = None
        else:
            assert waiting is None, "each prompt of the capture has an answer that fills one more block"
            waiting = tokens


async def connected(publisher: KvEventPublisher, socket: zmq.asyncio.Socket) -> None:
    """Publishes until the subscriber hears it: a connection takes its time, and what is sent before it is lost."""
    async with asyncio.timeout(DEADLINE):
        while True:
            publisher.publish([])
            if await socket.poll(50):
                break
        publisher.publish([AllBlocksCleared()])
        while msgspec.msgpack.decode((await socket.recv_multipart())[2])[1] == []:
            pass


@pytest.mark.parametrize("form", ["map", "array"])
async def test_missed_batches_are_replayed(form: Format) -> None:
    config = KvEventsConfig(
        endpoint="tcp://127.0.0.1:*", replay_endpoint="tcp://127.0.0.1:*", topic="t", buffer_steps=3
    )
    async with KvEventPublisher(config, 1, form, {}) as publisher:
        for content in range(5):
            publisher.publish([BlockRemoved(content)])
        answers = {first: await replayed(publisher.replay_endpoint, first) for first in (0, 3, 9)}
    head = [b"", b"t"] if form == "map" else [b""]
    end = [b"", b"", b"\xff" * 8, b""] if form == "map" else [b"", b"\xff" * 8, b""]
    for first, kept in ((0, [2, 3, 4]), (3, [3, 4]), (9, [])):
        *batch_frames, last = answers[first]
        assert last == end
        assert [frames[:-2] for frames in batch_frames] == [head] * len(kept)
        assert [int.from_bytes(frames[-2], "big") for frames in batch_frames] == kept
        contents = [msgspec.msgpack.decode(frames[-1]) for frames in batch_frames]
        expected = [encode_event(BlockRemoved(content), form, {}) for content in kept]
        assert [events for _, events, _ in contents] == [[event] for event in expected]
        assert all(rank == 1 for _, _, rank in contents)


async def test_nonsense_on_the_replay_socket_is_passed_over() -> None:
    config = KvEventsConfig(endpoint="tcp://127.0.0.1:*", replay_endpoint="tcp://127.0.0.1:*")
    async with KvEventPublisher(config, 0, "map", {}) as publisher:
        context = zmq.asyncio.Context()
        try:
            socket = context.socket(zmq.DEALER)
            socket.connect(publisher.replay_endpoint)
            for nonsense in ([b"x"], [b"", b"1234567"], [b"", b"", b""]):
                await socket.send_multipart(nonsense)
            assert await replayed(publisher.replay_endpoint, 0) == [[b"", b"", b"\xff" * 8, b""]]
            assert not await socket.poll(0)
        finally:
            context.destroy(linger=0)


async def test_an_engine_tells_what_it_evicts_and_that_it_was_emptied() -> None:
    with subscribed("tcp://127.0.0.1:*") as socket:
        config = KvEventsConfig(endpoint=socket.getsockopt_string(zmq.LAST_ENDPOINT))
        options = EngineOptions(block_size=8, blocks=3, kv_events=config)
        async with EngineServer(options) as engine, aiohttp.ClientSession(f"http://{engine.address}") as http:
            await connected(engine.publishers[0], socket)
            for path, letter in (("/v1/completions", "a"), ("/v1/completions", "b"), ("/reset_prefix_cache", "")):
                async with http.post(path, json={"prompt": letter * 64, "max_tokens": 1}) as response:
                    assert response.status == 200
            async with http.post("/v1/completions", json={"prompt": "c" * 32, "max_tokens": 1}) as response:
                assert response.status == 200
            messages = batches(await received(socket, 3))
    kinds = [[event["type"] for event in events] for _, _, events, _ in messages]
    assert kinds == [["BlockStored"], ["BlockRemoved", "BlockStored"], ["AllBlocksCleared", "BlockStored"]]
    first, removed = messages[0][2][0]["block_hashes"], messages[1][2][0]["block_hashes"]
    assert removed == first[1:], "the tail goes first"


@pytest.mark.parametrize(
    ("endpoint", "rank", "expected"),
    [
        ("tcp://*:5557", 0, "tcp://*:5557"),
        ("tcp://*:5557", 3, "tcp://*:5560"),
        ("tcp://*:0", 3, "tcp://*:0"),
        ("tcp://127.0.0.1:*", 3, "tcp://127.0.0.1:*"),
        ("inproc://kv", 2, "inproc://kv_dp2"),
    ],
)
def test_where_a_rank_publishes(endpoint: str, rank: int, expected: str) -> None:
    assert for_rank(endpoint, rank) == expected


def test_a_rank_needs_a_port_to_count_from() -> None:
    with pytest.raises(ValueError, match="no port to count up for rank 1"):
        for_rank("ipc:///tmp/kv", 1)


async def test_each_rank_publishes_on_its_own_socket() -> None:
    config = KvEventsConfig(endpoint="inproc://ranks")
    async with EngineServer(EngineOptions(data_parallel_size=2, kv_events=config)) as engine:
        assert [publisher.endpoint for publisher in engine.publishers] == ["inproc://ranks", "inproc://ranks_dp1"]


async def test_an_endpoint_that_cannot_be_had_is_an_error() -> None:
    config = KvEventsConfig(endpoint="tcp://127.0.0.1:*")
    async with KvEventPublisher(config, 0, "map", {}) as taken:
        second = KvEventsConfig(endpoint="tcp://127.0.0.1:*", replay_endpoint=taken.endpoint)
        with pytest.raises(OSError, match="KV events"):
            await KvEventPublisher(second, 0, "map", {}).__aenter__()


def test_a_configuration_may_switch_them_off() -> None:
    assert not KvEventsConfig.read('{"publisher": "null"}').enabled
    assert not KvEventsConfig.read('{"enable_kv_cache_events": false}').enabled
    assert EngineServer(EngineOptions(kv_events=KvEventsConfig(publisher="null"))).publishers == []
