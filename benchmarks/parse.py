"""What the OpenAI parser costs: requests from bytes to a Body, and one chunk of a stream's usage reader.

python benchmarks/parse.py [--json] [--smoke]
"""

import argparse
import json
import timeit
from collections.abc import Callable, Mapping
from typing import Any

from epp_plugins.openai import OpenAIParser

from epp.formats import openai
from epp.formats.answers import EventUsage

TEXT = 'Once upon a time there was a "server" with a queue.\nIt was long. '
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{number}",
            "description": "Does something useful. " * 20,
            "parameters": {
                "type": "object",
                "properties": {name: {"type": "string", "description": "A parameter. " * 5} for name in "abcdef"},
                "required": ["a"],
            },
        },
    }
    for number in range(30)
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "tool_1", "arguments": '{"a":"b"}'}}
DELTA = '"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,"token_ids":null}]'
CHUNK = (
    'data: {"id":"chatcmpl-91575366086603c3","object":"chat.completion.chunk","created":1795426561,"model":"m",%s}\n\n'
)
USAGE = '"usage":{"prompt_tokens":97,"total_tokens":137,"completion_tokens":40}'


def text(size: int, *, plain: bool = False) -> str:
    """So many characters of text; `plain`: without any that JSON escapes."""
    part = TEXT.replace('"', "'").replace("\n", " ") if plain else TEXT
    return (part * (size // len(part) + 1))[:size]


def turns(count: int, size: int, **extra: Any) -> list[dict[str, Any]]:
    """A conversation; `extra` is added to every other message."""
    one, other = {"role": "user", "content": text(size)}, {"role": "assistant", "content": text(size), **extra}
    return [other if number % 2 else one for number in range(count)]


def requests() -> dict[str, tuple[str, Mapping[str, Any]]]:
    """By name the path and the fields of what is measured."""
    chat, completions = "/v1/chat/completions", "/v1/completions"
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 250_000}}
    return {
        "chat, 1 kB": (chat, {"messages": turns(1, 1000)}),
        "chat, 400 kB, nothing escaped": (chat, {"messages": [{"role": "user", "content": text(400_000, plain=True)}]}),
        "chat, 400 kB, an escape every 20 characters": (chat, {"messages": turns(1, 400_000)}),
        "chat, 100 messages of 1 kB": (chat, {"messages": turns(100, 1000)}),
        "chat, 100 messages of 1 kB, 50 tool calls": (chat, {"messages": turns(100, 1000, tool_calls=[CALL])}),
        "chat, 1 kB and 30 tools": (chat, {"messages": turns(1, 1000), "tools": TOOLS}),
        "chat, a picture of 1 MB": (chat, {"messages": [{"role": "user", "content": [picture]}]}),
        "completions, 1 kB": (completions, {"prompt": text(1000)}),
        "completions, 100,000 token ids": (completions, {"prompt": list(range(100_000))}),
        "responses, 100 items of 1 kB": ("/v1/responses", {"input": turns(100, 1000)}),
    }


def measure(call: Callable[[], object], seconds: float) -> float:
    """Microseconds a call: the best of five rounds."""
    timer = timeit.Timer(call)
    once = max(timer.timeit(1), 1e-7)
    number = max(1, int(seconds / 5 / once))
    return round(1e6 * min(timer.repeat(5, number)) / number, 2)


def measure_requests(seconds: float) -> dict[str, dict[str, float]]:
    """Bytes and microseconds of each request."""
    parser, figures = OpenAIParser(), {}
    for name, (path, fields) in requests().items():
        body = json.dumps({"model": "m", "stream": True, "max_tokens": 100, "temperature": 0.5, **fields}).encode()
        figures[name] = {
            "bytes": len(body),
            "us": measure(lambda path=path, body=body: parser.parse(path, {}, body), seconds),
        }
    return figures


def measure_chunks(seconds: float) -> dict[str, dict[str, float]]:
    """Bytes and microseconds of each kind of chunk of an event stream."""
    chunks = {
        "chunk": CHUNK % DELTA,
        "chunk with usage null": CHUNK % f'{DELTA},"usage":null',
        "chunk with usage": CHUNK % f"{DELTA},{USAGE}",
    }
    reader, figures = EventUsage(openai.USAGE), {}
    for name, chunk in chunks.items():
        data = chunk.encode()
        figures[name] = {
            "bytes": len(data),
            "us": measure(lambda data=data: reader.feed(data, end=False), seconds),
        }
    return figures


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--smoke", action="store_true", help="once, and briefly")
    arguments = parser.parse_args()
    seconds = 0.001 if arguments.smoke else 1.0
    result = {"requests": measure_requests(seconds), "responses": measure_chunks(seconds)}
    if arguments.json:
        print(json.dumps(result))
        return
    for part in result.values():
        for name, figures in part.items():
            print(f"{name:<45} {figures['bytes']:>9,} bytes {figures['us']:>9,.2f} us")


if __name__ == "__main__":
    main()
