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
from epp.engine.tokens import token_text

FINGERPRINT = "vllm-simulated"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """Writes what a client gets; ``created`` is a Unix time in whole seconds, ``answers`` the number a prompt."""

    response_id: str
    model: str
    created: int
    chat: bool
    answers: int = 1

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.response_id, "object": kind, "created": self.created, "model": self.model}

    def usage(self, computed: Sequence[Computed]) -> dict[str, Any]:
        """The ``usage`` object: a prompt counts once, however many answers it gets."""
        first_of_each = computed[:: self.answers]
        prompt = sum(sequence.request.prompt_tokens for sequence in first_of_each)
        completion = sum(sequence.produced for sequence in computed)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": sum(sequence.cached_tokens for sequence in first_of_each)},
        }

    def full(self, choices: Sequence[Choice], computed: Sequence[Computed]) -> bytes:
        """The whole answer as one JSON object."""
        head = self._head("chat.completion" if self.chat else "text_completion")
        written = [self._choice(*pair, index) for index, pair in enumerate(zip(choices, computed, strict=True))]
        return _json({**head, "choices": written, "system_fingerprint": FINGERPRINT, "usage": self.usage(computed)})

    def _choice(self, choice: Choice, sequence: Computed, index: int) -> dict[str, Any]:
        end = {
            "logprobs": None,
            "finish_reason": finish_reason(choice, sequence),
            "stop_reason": None,
            "token_ids": None,
        }
        if not self.chat:
            more = {"prompt_logprobs": None, "prompt_token_ids": None}
            return {"index": index, "text": _text(choice, range(sequence.produced)).decode(), **end, **more}
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        message.update(annotations=None, audio=None, function_call=None, tool_calls=[], reasoning=None)
        if choice.call is None:
            message["content"] = _text(choice, range(sequence.produced)).decode()
        else:
            call = msgspec.to_builtins(choice.call)
            call["function"]["arguments"] = _arguments(choice, range(sequence.produced))
            message["tool_calls"] = [call]
        return {"index": index, "message": message, **end}

    def opening(self) -> list[bytes]:
        """The events before any token: of a chat, the role of each answer."""
        if not self.chat:
            return []
        head = b"data: " + _json(self._head("chat.completion.chunk"))[:-1]
        return [
            head + b',"choices":[{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}\n\n' % index
            for index in range(self.answers)
        ]

    def writer(self, choice: Choice, index: int) -> "Writer":
        """Writes the events of one of the answers."""
        head = self._head("chat.completion.chunk" if self.chat else "text_completion")
        before = b"data: " + _json(head)[:-1] + b',"choices":[{"index":%d,' % index
        if not self.chat:
            after = b',"logprobs":null,"finish_reason":%s,"stop_reason":null,"token_ids":null}],"usage":null}\n\n'
            return Writer(choice, before, b'"text":"%s"', after % b"null", after)
        after = b',"logprobs":null,"finish_reason":%s,"token_ids":null}]}\n\n'
        last = b',"logprobs":null,"finish_reason":%s,"stop_reason":null,"token_ids":null}]}\n\n'
        delta = b'"delta":{"content":"%s"}' if choice.call is None else b'"delta":{"tool_calls":[%s]}'
        return Writer(choice, before, delta, after % b"null", last)

    def usage_event(self, computed: Sequence[Computed]) -> bytes:
        """The event without choices that ends a stream with ``include_usage``."""
        head = self._head("chat.completion.chunk" if self.chat else "text_completion")
        body = {**head, "choices": [], "usage": self.usage(computed), "system_fingerprint": FINGERPRINT}
        return b"data: " + _json(body) + b"\n\n"


@dataclass(frozen=True, slots=True)
class Writer:
    """Events of one streamed answer: ``before``, the new part in ``delta``, ``after``; the ``last`` has the reason."""

    choice: Choice
    before: bytes
    delta: bytes
    after: bytes
    last: bytes

    def events(self, tokens: range, sequence: Computed) -> list[bytes]:
        """One event a token; ``tokens`` are positions in the answer."""
        piece = _text if self.choice.call is None else _call_delta
        events = [self.before + self.delta % piece(self.choice, range(i, i + 1)) + self.after for i in tokens]
        if events and sequence.finish_reason is not None and tokens.stop == sequence.produced:
            reason = b'"%s"' % finish_reason(self.choice, sequence).encode()
            events[-1] = events[-1].removesuffix(self.after) + self.last % reason
        return events


def finish_reason(choice: Choice, sequence: Computed) -> str:
    """Why the answer has ended: a call that is complete has a reason of its own."""
    whole_call = choice.call is not None and sequence.finish_reason == "stop"
    return "tool_calls" if whole_call else sequence.finish_reason or ""


def _text(choice: Choice, tokens: range) -> bytes:
    return b"".join(map(token_text, choice.text.answer(tokens.start, tokens.stop)))


def _arguments(choice: Choice, tokens: range) -> str:
    """The part of a call's arguments that these tokens of its answer stand for."""
    if choice.call is None:
        return ""
    arguments, whole = choice.call.function.arguments, choice.call_tokens
    start, stop = (min(position, whole) * len(arguments) // whole for position in (tokens.start, tokens.stop))
    return arguments[start:stop]


def _call_delta(choice: Choice, tokens: range) -> bytes:
    """The first token brings the call's id and name, each a part of the arguments."""
    function: dict[str, Any] = {"arguments": _arguments(choice, tokens)}
    if tokens.start or choice.call is None:
        return _json({"index": 0, "function": function})
    head = {"id": choice.call.id, "type": "function", "index": 0}
    return _json({**head, "function": {"name": choice.call.function.name, **function}})


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
