"""The prefix cache's events over ZeroMQ, as vLLM publishes them.

A batch is three frames: topic, sequence number from 0 (8 bytes, big-endian), msgpack ``[time, events, rank]``. The
socket binds if the endpoint has a ``*`` or ``::`` or is ``ipc`` or ``inproc``, otherwise it connects. Whoever has
missed batches asks the replay socket (ROUTER) with the first number wanted, and gets what the ring still holds, then
an end.

Two formats: ``map`` is that of vLLM since 0.24 (events as maps, the topic in replies since 0.26), ``array`` the one
before (events as arrays with all fields, replies without the topic).
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import zmq
import zmq.asyncio

from epp.engine.blocks import BlockRemoved, BlockStored, KvEvent
from epp.engine.text import Text

Format = Literal["map", "array"]

_END = b"\xff" * 8
_MEDIUM = "GPU"
_KIND = "full_attention"


class KvEventsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's ``--kv-events-config``, as JSON."""

    enable_kv_cache_events: bool = True
    publisher: Literal["zmq", "null"] = "zmq"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""

    @classmethod
    def read(cls, text: str) -> "KvEventsConfig":
        """The configuration in a JSON object.

        Raises:
            ValueError: it is not JSON, or a field is unknown or wrong.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise ValueError(f"--kv-events-config: {error}") from error

    @property
    def enabled(self) -> bool:
        """Whether anything is to be published."""
        return self.enable_kv_cache_events and self.publisher != "null"


def for_rank(endpoint: str, rank: int) -> str:
    """Where a data-parallel rank binds or connects: TCP ports count up, ``inproc`` names get a suffix.

    Raises:
        ValueError: there is nothing to count up.
    """
    if not rank:
        return endpoint
    if endpoint.startswith("inproc://"):
        return f"{endpoint}_dp{rank}"
    base, colon, port = endpoint.rpartition(":")
    if port in ("0", "*"):
        return endpoint
    if not endpoint.startswith("tcp://") or not port.isdigit():
        raise ValueError(f"KV events: {endpoint!r} has no port to count up for rank {rank}")
    return f"{base}{colon}{int(port) + rank}"


def encode_event(event: KvEvent, form: Format, lora_ids: dict[str, int]) -> Any:
    """An event as what msgpack is to write."""
    if isinstance(event, BlockStored):
        return _stored(event, form, lora_ids)
    if isinstance(event, BlockRemoved):
        if form == "array":
            return ["BlockRemoved", [event.content], _MEDIUM, 0]
        return {"type": "BlockRemoved", "block_hashes": [event.content], "medium": _MEDIUM, "group_idx": 0}
    return ["AllBlocksCleared"] if form == "array" else {"type": "AllBlocksCleared"}


def _stored(event: BlockStored, form: Format, lora_ids: dict[str, int]) -> Any:
    text = event.contents
    if not isinstance(text, Text):
        raise TypeError("only blocks of a text can be published: an event tells their tokens")
    size = text.block_size
    fields = {
        "block_hashes": event.hashes,
        "parent_block_hash": event.parent,
        "token_ids": text.tokens(event.start * size, event.stop * size).tolist(),
        "block_size": size,
        "lora_id": lora_ids.get(text.lora) if text.lora else None,
        "medium": _MEDIUM,
        "lora_name": text.lora,
        "extra_keys": [_extra_keys(text, index) for index in range(event.start, event.stop)],
        "group_idx": 0,
        "kv_cache_spec_kind": _KIND,
    }
    if form == "array":
        return ["BlockStored", *fields.values(), None]
    return {"type": "BlockStored", **fields}


def _extra_keys(text: Text, block: int) -> list[str] | None:
    """What besides tokens went into a block's hash: the adapter, and of the first block the cache salt."""
    keys = [text.lora, text.cache_salt if block == 0 else None]
    return [key for key in keys if key] or None


def _bound(socket: "zmq.Socket[Any]") -> str:
    """Where it listens, with the port that it got if it asked for any."""
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


class KvEventPublisher:
    """Publishes the events of one rank: ``async with KvEventPublisher(...) as publisher``.

    Attributes:
        endpoint, replay_endpoint: where it binds or connects; once entered, with the port that it got.

    State: the two sockets, the next sequence number, and the ring of batches for replay.
    """

    def __init__(self, config: KvEventsConfig, rank: int, form: Format, lora_ids: dict[str, int]) -> None:
        """Nothing is open yet; ``lora_ids`` is looked into when an adapter's blocks are published.

        Raises:
            ValueError: see ``for_rank``.
        """
        self._config = config
        self._rank = rank
        self.endpoint = for_rank(config.endpoint, rank)
        self.replay_endpoint = for_rank(config.replay_endpoint, rank) if config.replay_endpoint else ""
        self._form: Format = form
        self._lora_ids = lora_ids
        self._topic = config.topic.encode()
        self._number = 0
        self._ring: deque[tuple[bytes, bytes]] = deque(maxlen=config.buffer_steps)
        self._encoder = msgspec.msgpack.Encoder()
        self._context: zmq.asyncio.Context | None = None
        self._publish: zmq.Socket[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Binds or connects.

        Raises:
            OSError: an endpoint can't be had.
        """
        self._context = zmq.asyncio.Context()
        try:
            self._publish = zmq.Socket(self._context, zmq.PUB)
            self._publish.set_hwm(self._config.hwm)
            if "*" in self.endpoint or "::" in self.endpoint or self.endpoint.startswith(("ipc://", "inproc://")):
                self._publish.bind(self.endpoint)
                self.endpoint = _bound(self._publish)
            else:
                self._publish.connect(self.endpoint)
            if self.replay_endpoint:
                self._open_replay(self._context)
        except zmq.ZMQError as error:
            await self.__aexit__(None, None, None)
            raise OSError(error.errno, f"KV events on {self._config.endpoint}: {error}") from error
        return self

    def _open_replay(self, context: zmq.asyncio.Context) -> None:
        router = context.socket(zmq.ROUTER)
        router.bind(self.replay_endpoint)
        self.replay_endpoint = _bound(router)
        self._task = asyncio.create_task(self._serve_replay(router), name=f"KV events on {self.replay_endpoint}")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the sockets; what is not sent yet is lost."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._publish is not None:
            self._publish.close(linger=0)
        if self._context is not None:
            self._context.destroy(linger=0)

    def publish(self, events: Iterable[KvEvent]) -> None:
        """Sends one batch; a subscriber that doesn't keep up loses it, and may ask for it again."""
        encoded = [encode_event(event, self._form, self._lora_ids) for event in events]
        payload = self._encoder.encode([time.time(), encoded, self._rank])
        number = self._number.to_bytes(8, "big")
        self._number += 1
        self._ring.append((number, payload))
        if self._publish is None:
            return
        with contextlib.suppress(zmq.Again):
            self._publish.send_multipart((self._topic, number, payload), zmq.NOBLOCK)

    async def _serve_replay(self, router: zmq.asyncio.Socket) -> None:
        """Answers requests of the form client, empty, first number."""
        topic = [self._topic] if self._form == "map" else []
        end = [b""] if self._form == "map" else []
        try:
            while True:
                frames = await router.recv_multipart()
                if len(frames) != 3 or len(frames[2]) != 8:
                    continue
                client, _, first = frames
                for number, payload in list(self._ring):
                    if number >= first:
                        await router.send_multipart([client, b"", *topic, number, payload])
                await router.send_multipart([client, b"", *end, _END, b""])
        finally:
            router.close(linger=0)
