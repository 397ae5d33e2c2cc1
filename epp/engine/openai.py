"""The OpenAI-compatible wire as vLLM speaks it: reading requests, writing answers and stream chunks. No I/O.

A chunk of a stream is a constant before the text and one after it, so writing one costs a concatenation; the words of
an answer never need escaping.
"""

import base64
import json
import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any, TypeVar

import msgspec
import xxhash

from epp.engine.model import Request
from epp.engine.tokens import answer_length, chat_tokens, text_tokens, token_text

EMBEDDING_SIZE = 384
FINGERPRINT = "vllm-simulated"
DONE = b"data: [DONE]\n\n"

_KINDS = {400: "BadRequestError", 404: "NotFoundError", 429: "RateLimitError"}


class ApiError(Exception):
    """An answer other than 200, in the form of vLLM's."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        """``param`` names the field of the request that is wrong."""
        super().__init__(message)
        self.status = status
        kind = _KINDS.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


Body = TypeVar("Body", bound=msgspec.Struct)
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class StreamOptions(msgspec.Struct):
    """Of a streamed request."""

    include_usage: bool = False


class _Body(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: _Positive | None = None
    min_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    n: int | None = 1
    ignore_eos: bool = False
    cache_salt: str | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(_Body, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Positive | None = None
    tools: list[Any] | None = None

    def prompt_tokens(self) -> "array[int]":
        """The prompt after the chat template."""
        return chat_tokens(self.messages, self.tools)

    def limit(self) -> int | None:
        """The most tokens to generate; None = as many as the context has room for."""
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(_Body, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[Any]

    def prompt_tokens(self) -> "array[int]":
        """The prompt, given as a text, as token ids, or as a list with one of these."""
        prompts = read_inputs(self.prompt, "prompt")
        if len(prompts) > 1:
            raise ApiError(400, "the simulated engine takes one prompt a request", "prompt")
        return prompts[0]

    def limit(self) -> int | None:
        """OpenAI's default is 16."""
        return self.max_tokens or 16


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """``POST /v1/embeddings``."""

    input: str | list[Any]
    model: str | None = None
    encoding_format: str = "float"


def read_inputs(value: str | list[Any], param: str) -> "list[array[int]]":
    """One or several texts or lists of token ids.

    Raises:
        ApiError: it is empty or of another type.
    """
    items = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    try:
        inputs = [text_tokens(item) if isinstance(item, str) else array("I", item) for item in items]
    except (TypeError, OverflowError) as error:
        raise ApiError(400, f"{param} must be text or token ids", param) from error
    if not all(inputs):
        raise ApiError(400, f"{param} is empty", param)
    return inputs


def decode(raw: bytes, kind: type[Body]) -> Body:
    """The request's body.

    Raises:
        ApiError: it isn't JSON, or a field is missing or wrong.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise ApiError(400, str(error)) from error
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: {error}") from error


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine holds a request against: context in tokens, mean length of an answer, seed of the answers."""

    max_model_len: int
    answer_tokens: int
    seed: int


def to_request(body: ChatBody | CompletionBody, request_id: str, lora: str | None, limits: Limits) -> Request:
    """What the engine has to compute for a chat or a completion.

    Raises:
        ApiError: more than one answer is asked for, or the context is too short.
    """
    if body.n not in (None, 1):
        raise ApiError(400, "the simulated engine gives one answer a request: n must be 1", "n")
    prompt = body.prompt_tokens()
    room = limits.max_model_len - len(prompt)
    asked = body.limit()
    if (asked or 1) > room:
        raise ApiError(
            400,
            f"This model's maximum context length is {limits.max_model_len} tokens, but the request has {len(prompt)} "
            f"tokens of prompt and asks for {asked or 1} more. Shorten one of them.",
            "max_tokens",
        )
    limit = asked or room
    seed = xxhash.xxh3_64_intdigest(prompt, seed=limits.seed)
    natural = max(answer_length(seed, limits.answer_tokens), body.min_tokens)
    ends_itself = not body.ignore_eos and natural < limit
    return Request(request_id, prompt, natural if ends_itself else limit, ends_itself, seed, lora, body.cache_salt)


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """The ``usage`` object of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


@dataclass(frozen=True, slots=True)
class Answer:
    """Writes one answer; ``created`` is a Unix time in whole seconds."""

    response_id: str
    model: str
    created: int
    chat: bool

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.response_id, "object": kind, "created": self.created, "model": self.model}

    def full(self, tokens: Iterable[int], finish_reason: str, used: dict[str, Any]) -> bytes:
        """The whole answer as one JSON object."""
        text = b"".join(map(token_text, tokens)).decode()
        finish = {"logprobs": None, "finish_reason": finish_reason, "stop_reason": None, "token_ids": None}
        if self.chat:
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            message.update(tool_calls=[], reasoning=None)
            head, choice = self._head("chat.completion"), {"index": 0, "message": message, **finish}
        else:
            head, choice = self._head("text_completion"), {"index": 0, "text": text, **finish}
        return _json({**head, "choices": [choice], "system_fingerprint": FINGERPRINT, "usage": used})

    def chunks(self) -> "Chunks":
        """The writer for a stream."""
        if not self.chat:
            head = _json(self._head("text_completion"))[:-1] + b',"choices":[{"index":0,"text":"'
            end = b'","logprobs":null,"finish_reason":%s,"stop_reason":null,"token_ids":null}],"usage":null}\n\n'
            return Chunks(b"", b"data: " + head, end % b"null", end)
        head = b"data: " + _json(self._head("chat.completion.chunk"))[:-1]
        first = (
            b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
            b'"prompt_token_ids":null,"prompt_text":null}\n\n'
        )
        before = b',"choices":[{"index":0,"delta":{"content":"'
        after = b'"},"logprobs":null,"finish_reason":%s,"token_ids":null}]}\n\n'
        last = b'"},"logprobs":null,"finish_reason":%s,"stop_reason":null,"token_ids":null}]}\n\n'
        return Chunks(head + first, head + before, after % b"null", last)

    def usage_chunk(self, used: dict[str, Any]) -> bytes:
        """The chunk without choices that ends a stream with ``include_usage``."""
        head = self._head("chat.completion.chunk" if self.chat else "text_completion")
        return b"data: " + _json({**head, "choices": [], "usage": used, "system_fingerprint": FINGERPRINT}) + b"\n\n"


@dataclass(frozen=True, slots=True)
class Chunks:
    """Server-sent events of one stream: ``first`` once, then ``before`` + text + ``after`` or ``last % reason``."""

    first: bytes
    before: bytes
    after: bytes
    last: bytes

    def events(self, tokens: list[int], *, opening: bool, finish_reason: str | None) -> list[bytes]:
        """One event a token, with the role before the first and the reason in the last."""
        events = [self.before + token_text(token) + self.after for token in tokens]
        if finish_reason is not None and tokens:
            events[-1] = self.before + token_text(tokens[-1]) + self.last % f'"{finish_reason}"'.encode()
        return [self.first, *events] if opening and self.first else events


def embedding(tokens: "array[int]", index: int, *, as_base64: bool) -> dict[str, Any]:
    """A unit vector that depends on the tokens only; base64 of little-endian float32, or a list."""
    rng = Random(xxhash.xxh3_64_intdigest(tokens))
    raw = [rng.gauss(0.0, 1.0) for _ in range(EMBEDDING_SIZE)]
    norm = sum(x * x for x in raw) ** 0.5
    vector = [x / norm for x in raw]
    data = base64.b64encode(struct.pack(f"<{EMBEDDING_SIZE}f", *vector)).decode() if as_base64 else vector
    return {"object": "embedding", "index": index, "embedding": data}


def models(base: str, loras: Iterable[str], max_model_len: int, created: int) -> bytes:
    """``GET /v1/models``: the model, then its adapters."""
    common = {"object": "model", "created": created, "owned_by": "vllm"}
    cards: list[dict[str, Any]] = [{"id": base, **common, "root": base, "parent": None, "max_model_len": max_model_len}]
    cards += [{"id": lora, **common, "root": lora, "parent": base, "max_model_len": None} for lora in loras]
    return _json({"object": "list", "data": cards})


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
