"""Writes generated answers as vLLM does, whole or as server-sent events. No I/O.

An event of a text is a constant before the text and one after it, so writing one costs a concatenation; the words of
an answer never need escaping.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from epp.engine.model import Sequence as Computed
from epp.engine.openai import Choice
from epp.engine.tokens import TOKEN_BYTES, token_text

FINGERPRINT = "vllm-simulated"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """Writes what a client gets.

    Attributes:
        created: a Unix time in whole seconds.
        answers: how many each prompt gets.
        with_ids: whether the ids of the tokens are told too (``return_token_ids``).
        with_usage: whether each event tells the usage so far (``continuous_usage_stats``).
        block_size: tokens a block.
    """

    response_id: str
    model: str
    created: int
    chat: bool
    answers: int = 1
    with_ids: bool = False
    block_size: int = 16
    with_usage: bool = False

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.response_id, "object": kind, "created": self.created, "model": self.model}

    def usage(self, computed: Sequence[Computed]) -> dict[str, Any]:
        """The ``usage`` object: a prompt counts once, however many answers it gets.

        A chat tells too how many tokens of the prompt have entered the cache.
        """
        first_of_each = computed[:: self.answers]
        prompt = sum(sequence.request.prompt_tokens for sequence in first_of_each)
        completion = sum(sequence.produced for sequence in computed)
        details = {"cached_tokens": sum(sequence.cached_tokens for sequence in first_of_each)}
        if self.chat:
            details["created_cache_tokens"] = sum(map(self._created, first_of_each))
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": details,
        }

    def _created(self, sequence: Computed) -> int:
        full_blocks = sequence.request.prompt_tokens // self.block_size * self.block_size
        return max(0, full_blocks - sequence.cached_tokens)

    def full(self, choices: Sequence[Choice], computed: Sequence[Computed]) -> bytes:
        """The whole answer as one JSON object."""
        write = self._chat_choice if self.chat else self._text_choice
        written = [write(*pair, index) for index, pair in enumerate(zip(choices, computed, strict=True))]
        used = {**self.usage(computed), "completion_tokens_details": None}
        details = used["prompt_tokens_details"]
        details.setdefault("created_cache_tokens", None)
        details["multimodal_tokens"] = None
        body = {
            **self._head("chat.completion" if self.chat else "text_completion"),
            "choices": written,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": used,
        }
        if self.chat:
            body.update(prompt_logprobs=None, prompt_token_ids=self._prompt_ids(choices[0]), prompt_text=None)
        return _json({**body, "kv_transfer_params": None, "ec_transfer_params": None, "metrics": None})

    def _prompt_ids(self, choice: Choice) -> list[int] | None:
        return choice.text.tokens(0, choice.request.prompt_tokens).tolist() if self.with_ids else None

    def _end(self, choice: Choice, sequence: Computed) -> dict[str, Any]:
        ids = choice.text.answer(0, sequence.produced).tolist() if self.with_ids else None
        reason = finish_reason(choice, sequence)
        stop = choice.stop if sequence.finish_reason == "stop" else None
        return {"logprobs": None, "finish_reason": reason, "stop_reason": stop, "token_ids": ids}

    def _text_choice(self, choice: Choice, sequence: Computed, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "text": _text(choice, range(sequence.produced)).decode(),
            **self._end(choice, sequence),
            "prompt_logprobs": None,
            "prompt_token_ids": self._prompt_ids(choice),
            "routed_experts": None,
        }

    def _chat_choice(self, choice: Choice, sequence: Computed, index: int) -> dict[str, Any]:
        text = None if choice.call else _text(choice, range(sequence.produced)).decode()
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": None}
        message.update(audio=None, function_call=None)
        if choice.call is not None:
            call = msgspec.to_builtins(choice.call)
            call["function"]["arguments"] = _arguments(choice, range(sequence.produced))
            message["tool_calls"] = [call]
        message["reasoning"] = None
        return {"index": index, "message": message, **self._end(choice, sequence), "routed_experts": None}

    def opening(self, choices: Sequence[Choice]) -> list[bytes]:
        """The events before any token: of a chat, the role of each answer."""
        if not self.chat:
            return []
        head = self._event_head()
        return [
            head + b',"choices":[{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null%s}\n\n'
            % (index, _usage_so_far(choices[index], 0) if self.with_usage else b"")
            for index in range(self.answers)
        ]

    def _event_head(self) -> bytes:
        return b"data: " + _json(self._head("chat.completion.chunk" if self.chat else "text_completion"))[:-1]

    def writer(self, choice: Choice, index: int) -> "Writer":
        """Writes the events of one of the answers."""
        before = self._event_head() + b',"choices":[{"index":%d,' % index
        if not self.chat:
            end = b',"logprobs":null,"finish_reason":%s,"stop_reason":%s,"prompt_token_ids":null,"token_ids":'
            return Writer(choice, before, b'"text":"%s"', end % (b"null", b"null"), end, self.with_ids, self.with_usage)
        delta = b'"delta":{"content":"%s"}' if choice.call is None else b'"delta":{%s}'
        end = b',"logprobs":null,"finish_reason":null,"token_ids":'
        last = b',"logprobs":null,"finish_reason":%s,"stop_reason":%s,"token_ids":'
        return Writer(choice, before, delta, end, last, self.with_ids, self.with_usage)

    def usage_event(self, computed: Sequence[Computed]) -> bytes:
        """The event without choices that ends a stream with ``include_usage``."""
        used = _json({"choices": [], "usage": self.usage(computed), "system_fingerprint": FINGERPRINT})
        return self._event_head() + b"," + used[1:] + b"\n\n"


@dataclass(frozen=True, slots=True)
class Writer:
    """Events of one streamed answer: ``before``, the new part in ``delta``, ``end``; the ``last`` has the reason."""

    choice: Choice
    before: bytes
    delta: bytes
    end: bytes
    last: bytes
    with_ids: bool
    with_usage: bool

    def events(self, tokens: range, sequence: Computed) -> list[bytes]:
        """One event a token, but none where a call has no new part; ``tokens`` are positions in the answer."""
        final = sequence.produced - 1 if sequence.finish_reason is not None else -1
        events = []
        for position in tokens:
            piece = self._piece(position)
            if not piece and self.choice.call is not None:
                if position != final and not self.with_ids:
                    continue
                piece = _call_part("")
            end = self.end
            if position == final:
                stop = self.choice.stop if sequence.finish_reason == "stop" else None
                end = self.last % (_json(finish_reason(self.choice, sequence)), _json(stop))
            ids = _json(self.choice.text.answer(position, position + 1).tolist()) if self.with_ids else b"null"
            used = _usage_so_far(self.choice, position + 1) if self.with_usage else b""
            events.append(self.before + self.delta % piece + end + ids + b"}]" + used + b"}\n\n")
        return events

    def _piece(self, position: int) -> bytes:
        write = _text if self.choice.call is None else _call_delta
        return write(self.choice, range(position, position + 1))


def _usage_so_far(choice: Choice, produced: int) -> bytes:
    prompt = choice.request.prompt_tokens
    used = {"prompt_tokens": prompt, "total_tokens": prompt + produced, "completion_tokens": produced}
    return b',"usage":' + _json(used)


def finish_reason(choice: Choice, sequence: Computed) -> str:
    """Why the answer has ended: a call that is complete has a reason of its own."""
    whole_call = choice.call is not None and sequence.finish_reason == "stop"
    return "tool_calls" if whole_call else sequence.finish_reason or ""


def _text(choice: Choice, tokens: range) -> bytes:
    text = b"".join(map(token_text, choice.text.answer(tokens.start, tokens.stop)))
    return text if choice.shown is None else text[: max(0, choice.shown - tokens.start * TOKEN_BYTES)]


def _arguments(choice: Choice, tokens: range) -> str:
    """The part of a call's arguments that these tokens of its answer stand for."""
    if choice.call is None:
        return ""
    arguments, whole = choice.call.function.arguments, choice.call_tokens
    start, stop = (min(position, whole) * len(arguments) // whole for position in (tokens.start, tokens.stop))
    return arguments[start:stop]


def _call_delta(choice: Choice, tokens: range) -> bytes:
    """The first token brings the call's id and name, each a part of the arguments, if there are enough for all."""
    call, part = choice.call, _arguments(choice, tokens)
    if call is None or (tokens.start and not part):
        return b""
    if tokens.start:
        return _call_part(part)
    head = {"id": call.id, "type": "function", "index": 0}
    function = {"name": call.function.name, "arguments": part}
    return b'"content":null,"tool_calls":[%s]' % _json({**head, "function": function})


def _call_part(arguments: str) -> bytes:
    return b'"tool_calls":[%s]' % _json({"index": 0, "function": {"arguments": arguments}})


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
