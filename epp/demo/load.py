"""The demo's load: a seeded list of chats that share system prompts, and a client that replays it and takes times.

There are more system prompts than fit into one engine's KV cache, and fewer than fit into all of them together: a
picker that sends a prompt where its prefix is finds it there, one that doesn't makes every engine evict and recompute.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import aiohttp

CHAT = "/v1/chat/completions"
MODEL = "llama-8b"
TIMEOUT = 60.0
_TOKEN = 4  # characters; the simulated engine's tokens have four bytes

_SUBJECTS = ("The clerk", "A sailor", "Our cook", "The judge", "A baker", "The nurse", "Some poet", "One miner")
_VERBS = ("sorts", "copies", "reads", "finds", "sends", "keeps", "opens", "counts", "checks", "moves")
_OBJECTS = (
    "old letters",
    "small boxes",
    "long lists",
    "blue maps",
    "good bread",
    "new rules",
    "red lamps",
    "big ships",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of the engines.

    Attributes:
        duration: of the arrivals, in seconds.
        rate: requests a second on average; the gaps are exponential.
        groups: distinct system prompts, equally likely.
        prefix_tokens: length of a system prompt.
        question_tokens: length of what follows it, different in every request.
        answer_tokens: length of every answer.
        streamed: share of the requests that are streamed.
    """

    duration: float = 15.0
    rate: float = 20.0
    groups: int = 24
    prefix_tokens: int = 1600
    question_tokens: int = 60
    answer_tokens: int = 32
    streamed: float = 0.8
    seed: int = 0

    def calls(self) -> "list[Call]":
        """The requests in the order of their times; equal workloads give equal lists, of one request at least."""
        rng = Random(self.seed)
        prompts = [_prose(rng, self.prefix_tokens) for _ in range(self.groups)]
        calls: list[Call] = []
        at = 0.0
        while at < self.duration:
            streamed = rng.random() < self.streamed
            prompt, question = rng.choice(prompts), _prose(rng, self.question_tokens)
            calls.append(Call(at, streamed, self._body(prompt, question, streamed=streamed)))
            at += rng.expovariate(self.rate)
        return calls

    def _body(self, prompt: str, question: str, *, streamed: bool) -> bytes:
        body = {
            "model": MODEL,
            "messages": [{"role": "system", "content": prompt}, {"role": "user", "content": question}],
            "max_tokens": self.answer_tokens,
            "ignore_eos": True,
            "stream": streamed,
        }
        return json.dumps(body).encode()


def _prose(rng: Random, tokens: int) -> str:
    sentences: list[str] = []
    length = 0
    while length < tokens * _TOKEN:
        sentences.append(f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)}. ")
        length += len(sentences[-1])
    return "".join(sentences)[: tokens * _TOKEN]


@dataclass(frozen=True, slots=True)
class Call:
    """One request: when it is sent, in seconds from the start, and its body."""

    at: float
    streamed: bool
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call; times in seconds from sending it.

    Attributes:
        ttft: until the first byte of the body. A stream's headers come before its first token and don't count; an
            answer in one piece has its first byte when all of it is there.
        error: why it counts as failed, or None.
    """

    streamed: bool
    ttft: float
    duration: float
    error: str | None = None


async def replay(url: str, calls: list[Call], answered: Callable[[Answer], None]) -> None:
    """Sends every call at its time, whether or not earlier ones are answered, and waits for all answers.

    Args:
        url: of the gateway.
        calls: in the order of their times.
        answered: told of each answer as it ends.
    """
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as http, asyncio.TaskGroup() as group:
        start = time.monotonic()
        for call in calls:
            await asyncio.sleep(start + call.at - time.monotonic())
            group.create_task(_tell(http, call, answered))


async def _tell(http: aiohttp.ClientSession, call: Call, answered: Callable[[Answer], None]) -> None:
    answered(await send(http, call))


async def send(http: aiohttp.ClientSession, call: Call) -> Answer:
    """Sends one call and reads its answer to the end; a failure is a value, too."""
    start = time.monotonic()
    first = 0.0
    body = bytearray()
    error = None
    try:
        async with http.post(CHAT, data=call.body, headers={"Content-Type": "application/json"}) as response:
            async for piece in response.content.iter_any():
                first = first or time.monotonic()
                body += piece
            error = _fault(response.status, bytes(body), streamed=call.streamed)
    except (aiohttp.ClientError, TimeoutError) as exception:
        error = f"{type(exception).__name__}: {exception}".rstrip(": ")
    end = time.monotonic()
    return Answer(call.streamed, (first or end) - start, end - start, error)


def _fault(status: int, body: bytes, *, streamed: bool) -> str | None:
    if status != 200:
        return f"status {status}: {body[:200].decode(errors='replace')}"
    whole = body.endswith(b"data: [DONE]\n\n") if streamed else body.endswith(b"}")
    return None if whole else f"the answer stops after {len(body)} bytes"
