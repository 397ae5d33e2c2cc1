"""The OpenAI-compatible wire as vLLM speaks it: reading requests, and answers that are no generated text. No I/O."""

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
from epp.engine.text import Text
from epp.engine.tokens import TOKEN_BYTES, answer_length, answer_token, chat_tokens, text_tokens, token_text
from epp.engine.tools import ToolCall, ToolChoiceError, choose_call

EMBEDDING_SIZE = 384
_KINDS = {400: "BadRequestError", 404: "NotFoundError", 429: "RateLimitError"}


class ApiError(Exception):
    """An answer other than 200, in the form of vLLM's."""

    def __init__(self, status: int, message: str, param: str | None = None, kind: str | None = None) -> None:
        """``param`` names the field of the request that is wrong, ``kind`` the type of error if it is no usual one."""
        super().__init__(message)
        self.status = status
        kind = kind or _KINDS.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


Body = TypeVar("Body", bound=msgspec.Struct)
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class StreamOptions(msgspec.Struct):
    """Of a streamed request."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Body(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: _Positive | None = None
    min_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = 1
    ignore_eos: bool = False
    return_token_ids: bool = False
    cache_salt: str | None = None
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool = False
    echo: bool = False

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def usage_in_each(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        return self.with_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def check(self) -> None:
        """Refuses what vLLM refuses, and what isn't modelled.

        Raises:
            ApiError: it is.
        """
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "Stream options can only be defined when `stream=True`.", "stream_options")
        if "" in self.stops:
            raise ApiError(400, "stop cannot contain an empty string.", "stop")
        if self.echo:
            raise ApiError(400, "echo is not modelled: this engine never repeats the prompt. Leave it out.", "echo")


class ChatBody(_Body, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Positive | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None

    def prompts(self) -> "list[array[int]]":
        """The prompt after the chat template."""
        return [chat_tokens(self.messages, self.tools)]

    def call(self, seed: int) -> ToolCall | None:
        """The tool that an answer calls.

        Raises:
            ApiError: the tools can't be followed.
        """
        try:
            return choose_call(self.tools, self.tool_choice, self.messages, seed)
        except ToolChoiceError as error:
            raise ApiError(400, str(error), "tool_choice") from error

    def limit(self) -> int | None:
        """The most tokens to generate; None = as many as the context has room for."""
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(_Body, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[Any]

    def prompts(self) -> "list[array[int]]":
        """The prompts, each given as a text or as token ids."""
        return read_inputs(self.prompt, "prompt")

    def call(self, seed: int) -> ToolCall | None:
        """Completions call no tools."""
        return None

    def limit(self) -> int | None:
        """OpenAI's default is 16."""
        return self.max_tokens or 16


class TokenizeBody(msgspec.Struct, kw_only=True):
    """``POST /tokenize``: a prompt, or a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[Any] | None = None

    def tokens(self) -> "array[int]":
        """The tokens that a request with this prompt or chat would have.

        Raises:
            ApiError: there is neither.
        """
        if self.messages:
            return chat_tokens(self.messages, self.tools)
        if self.prompt is None:
            raise ApiError(400, "prompt or messages must be given", "prompt")
        return text_tokens(self.prompt)


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """``POST /detokenize``."""

    tokens: list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]]
    model: str | None = None


class LoraBody(msgspec.Struct, kw_only=True):
    """``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``."""

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False


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
    """What the engine holds a request against: context in tokens, mean length of an answer, seed, tokens a block."""

    max_model_len: int
    answer_tokens: int
    seed: int
    block_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One of the answers asked for: what the model computes, its text, and the tool that it calls.

    Attributes:
        call_tokens: how many tokens the call takes, the end of the message included; fewer may be produced, if the
            answer is cut.
        stop: the text that ends the answer, if one does.
        shown: how many bytes of the answer's text the client gets; None for all.
    """

    request: Request
    text: Text
    call: ToolCall | None = None
    call_tokens: int = 0
    stop: str | None = None
    shown: int | None = None


def to_choices(body: ChatBody | CompletionBody, request_id: str, lora: str | None, limits: Limits) -> "list[Choice]":
    """What the engine has to compute for a chat or a completion: ``n`` answers for each prompt, prompts in order.

    Raises:
        ApiError: the context is too short, or the tools can't be followed.
    """
    body.check()
    choices: list[Choice] = []
    for prompt in body.prompts():
        limit = _limit(body, len(prompt), limits)
        for _ in range(body.n or 1):
            name = f"{request_id}-{len(choices)}"
            seed = xxhash.xxh3_64_intdigest(prompt, seed=limits.seed + len(choices))
            choices.append(_choice(body, name, prompt, limit, seed, lora, limits))
    return choices


def _limit(body: ChatBody | CompletionBody, prompt_tokens: int, limits: Limits) -> int:
    room = limits.max_model_len - prompt_tokens
    asked = body.limit()
    if (asked or 1) > room:
        raise ApiError(
            400,
            f"This model's maximum context length is {limits.max_model_len} tokens, but the request has "
            f"{prompt_tokens} tokens of prompt and asks for {asked or 1} more. Shorten one of them.",
            "max_tokens",
        )
    return asked or room


def _choice(
    body: ChatBody | CompletionBody,
    name: str,
    prompt: "array[int]",
    limit: int,
    seed: int,
    lora: str | None,
    limits: Limits,
) -> Choice:
    call = body.call(seed)
    answer = text_tokens(msgspec.json.encode([call]).decode()) if call else None
    natural = len(answer) + 1 if answer else max(answer_length(seed, limits.answer_tokens), body.min_tokens)
    ends_itself = natural <= limit if answer else not body.ignore_eos and natural < limit
    output = natural if ends_itself else limit
    words = _words(seed, output - ends_itself) if body.stops and not answer else b""
    stop = _first_stop(words, body)
    shown = None
    if stop is not None:
        at, ended_by = stop
        shown = at + len(ended_by) * body.include_stop_str_in_output
        output, ends_itself = -(-(at + len(ended_by)) // TOKEN_BYTES), False
    text = Text(
        prompt,
        limits.block_size,
        output,
        seed=seed,
        ends_itself=ends_itself,
        answer=answer,
        lora=lora,
        cache_salt=body.cache_salt,
    )
    request = Request(name, len(prompt), output, text, ends_itself or stop is not None, lora, limit)
    ended = stop[1].decode() if stop else None
    return Choice(request, text, call, len(answer) + 1 if answer else 0, ended, shown)


def _words(seed: int, tokens: int) -> bytes:
    return b"".join([token_text(answer_token(seed, position)) for position in range(tokens)])


def _first_stop(text: bytes, body: _Body) -> tuple[int, bytes] | None:
    """Where the text that ends an answer first is complete begins, and which it is; not before `min_tokens`."""
    least = body.min_tokens * TOKEN_BYTES
    stops = [stop.encode() for stop in body.stops]
    found = [(at, stop) for stop in stops if (at := text.find(stop, max(0, least - len(stop) + 1))) >= 0]
    return min(found, key=lambda each: each[0] + len(each[1]), default=None)


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
    for card in cards:
        card["permission"] = [_permission(card["id"], created)]
    return _json({"object": "list", "data": cards})


def _permission(model: str, created: int) -> dict[str, Any]:
    allowed = {"create_engine": False, "sampling": True, "logprobs": True, "search_indices": False, "view": True}
    return {
        "id": f"modelperm-{xxhash.xxh3_64_hexdigest(model.encode())}",
        "object": "model_permission",
        "created": created,
        **{f"allow_{what}": whether for what, whether in allowed.items()},
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
