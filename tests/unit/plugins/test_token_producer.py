"""token-producer: media by their sizes, worked out by hand; and a real server that renders prompts."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from epp_plugins.anthropic import AnthropicParser
from epp_plugins.openai import OpenAIParser
from epp_plugins.token_producer import TokenParameters, TokenProducer
from epp_plugins.vllm_http import VllmHttpParser
from pydantic import ValidationError

from epp.formats import text
from epp.plugin import Request

CHAT, COMPLETION, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"


def made(**parameters: Any) -> TokenProducer:
    return TokenProducer(TokenParameters.model_validate(parameters))


def read(path: str, body: Any, **headers: str) -> tuple[Request, bytes]:
    data = json.dumps(body).encode()
    parser = AnthropicParser() if path == MESSAGES else OpenAIParser()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("r", path, named, parser.parse(path, named, data), len(data)), data


def chat(*parts: Any, **headers: str) -> tuple[Request, bytes]:
    return read(CHAT, {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}, **headers)


def tokens_of(made_of: TokenProducer, sent: tuple[Request, bytes]) -> float:
    """The tokens of the media: those of the prompt beyond the text's."""
    request, data = sent
    body = asyncio.run(made_of.tokenize(request, data))
    assert body.media == request.body.media
    texts = len(request.body.prompts[0]) - len(request.body.media) * (1 + text.MEDIA_BYTES)
    return (len(body.prompts[0]) - texts) / 4


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08\x06\0\0\0"


def jpeg(width: int, height: int) -> bytes:
    """With a comment before its frame, and a table of Huffman codes, whose marker looks like a frame's."""
    comment, table = b"\xff\xfe\0\x06abcd", b"\xff\xc4\0\x04ab"
    return b"\xff\xd8" + comment + table + struct.pack(">HHBHH", 0xFFC2, 17, 8, height, width) + b"\x03rest"


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height)


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image(link: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": link}}


TEXT = {"type": "text", "text": "what is this?"}
VIDEO = {"type": "video_url", "video_url": {"url": "http://a/b.mp4"}}
STRIDED = {"frames": {"mode": "strided", "strided": {"frameStride": 8}}}
CASES: dict[str, tuple[dict[str, Any], tuple[Request, bytes], float]] = {
    # 640 * 360 / 1024 is 225.
    "a picture that isn't there": ({}, chat(image("http://a/b.png")), 225),
    "PNG: 1024 * 512 / 1024": ({}, chat(TEXT, image(url(png(1024, 512)))), 512),
    "JPEG: 800 * 600 / 1024": ({}, chat(image(url(jpeg(800, 600))), TEXT), 468),
    "GIF: 320 * 200 / 1024": ({}, chat(image(url(gif(320, 200)))), 62),
    "a small one has 5": ({}, chat(image(url(png(8, 8)))), 5),
    "no picture": ({}, chat(image(url(b"nonsense"))), 225),
    "no base64": ({}, chat(image("data:image/png;base64,***")), 225),
    "a factor": ({"image": {"dynamic": {"factor": 784}}}, chat(image(url(png(784, 10)))), 10),
    "another size for unknown ones": (
        {"image": {"defaultResolution": {"width": 1024, "height": 100}}},
        chat(image("http://a")),
        100,
    ),
    "static": ({"image": {"mode": "static", "static": {"staticToken": 77}}}, chat(image(url(png(9, 9)))), 77),
    "two": ({}, chat(image(url(png(1024, 10))), TEXT, image(url(png(1024, 20)))), 30),
    # 10 s at 2 frames a second of 225 tokens.
    "a video": ({}, chat(VIDEO), 20 * 225),
    "a video of which the client tells": (
        {},
        chat(VIDEO, x_llm_d_video_duration_seconds="3", x_llm_d_video_resolution="1024x100"),
        6 * 100,
    ),
    "what it tells is nonsense": (
        {},
        chat(VIDEO, x_llm_d_video_duration_seconds="-1", x_llm_d_video_resolution="0x5"),
        20 * 225,
    ),
    # 10 s * 24 / 8
    "strided": ({"video": STRIDED}, chat(VIDEO), 30 * 225),
    "strided at the client's rate": ({"video": STRIDED}, chat(VIDEO, x_llm_d_video_fps="16"), 20 * 225),
    "frames within bounds, two at a time": (
        {"video": {"frames": {"maxFrames": 10, "sampled": {"temporalPatchSize": 2}}}},
        chat(VIDEO),
        5 * 225,
    ),
    "at least so many frames": ({"video": {"frames": {"minFrames": 40}}}, chat(VIDEO), 40 * 225),
    "at most so many frames, whatever the least is": (
        {"video": {"frames": {"minFrames": 40, "maxFrames": 10}}},
        chat(VIDEO),
        10 * 225,
    ),
    "so many tokens a frame, and no more": (
        {"video": {"tokensPerFrame": {"mode": "static", "static": {"numTokensPerFrame": 64}}, "maxVideoTokens": 1000}},
        chat(VIDEO),
        1000,
    ),
    # 40 characters of data and "wav"
    "a sound": ({}, chat({"type": "input_audio", "input_audio": {"data": "A" * 40, "format": "wav"}}), 11),
    "something else": ({}, chat({"type": "file", "file": {"file_id": "f"}}), 224),
    "Anthropic's": (
        {},
        read(
            MESSAGES,
            {
                "model": "m",
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "n", "input": {}}]},
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image",
                                "source": {"type": "base64", "data": base64.b64encode(png(1024, 40)).decode()},
                            },
                            {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url"}}]},
                        ],
                    },
                ],
            },
        ),
        40 + 225,
    ),
}


@pytest.mark.parametrize(("estimate", "sent", "tokens"), CASES.values(), ids=CASES)
def test_media(estimate: Any, sent: tuple[Request, bytes], tokens: float) -> None:
    """Media have the tokens of their size, the texts around them stay."""
    assert tokens_of(made(estimate=estimate), sent) == tokens


def test_the_same_picture_is_the_same() -> None:
    """Wherever the rest differs, and another one of the same size is another one."""
    producer, bodies = made(), []
    for data, after in ((png(64, 64) + b"1", "a"), (png(64, 64) + b"1", "b"), (png(64, 64) + b"2", "a")):
        request, raw = chat(image(url(data)), {"type": "text", "text": after})
        bodies.append(asyncio.run(producer.tokenize(request, raw)).prompts[0])
    assert bodies[0][:-1] == bodies[1][:-1]
    assert bodies[0] != bodies[2]
    assert len(bodies[0]) == len(bodies[2])


def test_who_comes() -> None:
    """Without a server only requests with media; a body without any stays as it is."""
    assert made().media_only
    assert not made(vllm={}, modelName="m").media_only
    request, data = chat(TEXT)
    assert asyncio.run(made().tokenize(request, data)) is request.body


# --- a server


class Server:
    """A server that renders prompts: what it was asked, and what it says next."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.says: Any = {"token_ids": [1, 2, 3]}
        self.status = 200
        self.gate: asyncio.Event | None = None
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.json()))
        if self.gate is not None:
            await self.gate.wait()
        return web.json_response(self.says, status=self.status)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    own, app = Server(), web.Application()
    app.router.add_post("/{path:.*}", own.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    own.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield own
    if own.gate is not None:
        own.gate.set()
    await runner.cleanup()


Made = Callable[..., Awaitable[TokenProducer]]


@pytest.fixture
async def asking(server: Server) -> AsyncIterator[Callable[..., TokenProducer]]:
    """Makes producers that ask the server."""
    producers: list[TokenProducer] = []

    def make(**vllm: Any) -> TokenProducer:
        producers.append(made(modelName="base", vllm={"url": server.url + "/", **vllm}))
        return producers[-1]

    yield make
    for producer in producers:
        producer.close()
    await asyncio.sleep(0)


def ids(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


async def test_a_chat(server: Server, asking: Any) -> None:
    """The server gets the request with its own model, and its ids are the prompt, 4 bytes a token."""
    request, data = read(
        CHAT, {"model": "tuned", "seed": 9007199254740993, "messages": [{"role": "user", "content": "a"}]}
    )
    body = await asking().tokenize(request, data)
    assert (body.prompts, body.model) == ((ids(1, 2, 3),), "tuned")
    assert request.with_body(body).prompt_tokens == 3
    assert server.asked == [("/v1/chat/completions/render", json.loads(data) | {"model": "base"})]


async def test_completions(server: Server, asking: Any) -> None:
    """Each text of several is a prompt; ids are not rendered."""
    server.says = [{"token_ids": [1, 2]}, {"token_ids": [3]}]
    body = await asking().tokenize(*read(COMPLETION, {"model": "m", "prompt": ["a", "b"]}))
    assert body.prompts == (ids(1, 2), ids(3))
    assert server.asked[0][0] == "/v1/completions/render"
    request, data = read(COMPLETION, {"model": "m", "prompt": [7, 8]})
    assert await asking().tokenize(request, data) is request.body
    assert len(server.asked) == 1


async def test_media_in_ids(server: Server, asking: Any) -> None:
    """By the server's hashes, as vllmhttp-parser reads them: the picture's ids don't matter."""
    features = {"mm_hashes": {"image": ["cat"]}, "mm_placeholders": {"image": [{"offset": 1, "length": 2}]}}
    server.says = {"token_ids": [5, 9, 9, 6], "features": features}
    body = await asking().tokenize(*chat(image("http://a")))
    same = json.dumps({"token_ids": [5, 8, 8, 6], "features": features}).encode()
    generated = VllmHttpParser().parse("/inference/v1/generate", {}, same)
    assert (body.prompts, body.media) == (generated.prompts, generated.media)


async def test_what_it_does_not_render(server: Server, asking: Any) -> None:
    """The sizes of media are estimated then."""
    request, data = read(MESSAGES, {"model": "m", "messages": [{"role": "user", "content": "hello"}]})
    assert await asking().tokenize(request, data) is request.body
    assert server.asked == []


@pytest.mark.parametrize(
    ("says", "status"),
    [({"error": "no"}, 500), ({"tokens": []}, 200), ([], 404), ({"token_ids": ["a"]}, 200)],
    ids=["status 500", "no ids", "status 404", "ids that are none"],
)
async def test_a_server_that_fails(server: Server, asking: Any, says: Any, status: int) -> None:
    """It raises, which is counted."""
    server.says, server.status = says, status
    with pytest.raises((RuntimeError, ValueError)):
        await asking().tokenize(*chat(TEXT))


@pytest.mark.parametrize(("part", "slow"), [(TEXT, True), (image("http://a"), False)], ids=["a text", "a picture"])
async def test_its_time(server: Server, asking: Any, part: Any, slow: bool) -> None:
    """Requests with media have more of it; the deadline covers both."""
    server.gate = asyncio.Event()
    producer = asking(timeout="10ms", mmTimeout="20s")
    assert producer.deadline == pytest.approx(20.1)
    asked = asyncio.create_task(producer.tokenize(*chat(part)))
    if slow:
        with pytest.raises(TimeoutError):
            await asked
        return
    server.gate.set()
    assert (await asked).prompts == (ids(1, 2, 3),)


@pytest.mark.parametrize(
    "parameters",
    [
        {"vllm": {}},
        {"modelName": "m", "vllm": {"url": "localhost:8000"}},
        {"modelName": "m", "vllm": {"timeout": "0s"}},
        {"modelName": "m", "vllm": {}, "estimate": {}},
        {"estimate": {"image": {"mode": "other"}}},
        {"estimate": {"image": {"dynamic": {"factor": 0}}}},
        {"estimate": {"video": {"frames": {"sampled": {"sampleFPS": 0}}}}},
        {"estimate": {"video": {"frame": {}}}},
    ],
    ids=str,
)
def test_invalid_parameters(parameters: Any) -> None:
    with pytest.raises(ValidationError):
        TokenParameters.model_validate(parameters)


@pytest.mark.parametrize(
    ("written", "server"),
    [
        ({"backend": "vllm"}, "http://localhost:8000"),
        ({"backend": "vllm", "vllm": {"url": "http://a:1"}}, "http://a:1"),
        ({"vllm": {"http": "http://a:1"}}, "http://a:1"),
        ({"vllm": {"http": "http://a:1", "url": "http://b:2"}}, "http://b:2"),
        ({"backend": "estimate"}, None),
        ({}, None),
    ],
)
def test_old_spellings(written: dict[str, Any], server: str | None) -> None:
    """`backend` names what the keys say, `http` is `url`; both are shown as they are written now."""
    parameters = TokenParameters.model_validate({"modelName": "m", **written})
    assert (parameters.render.server if parameters.render else None) == server
    shown = parameters.effective().model_dump(by_alias=True, exclude_none=True)
    assert "backend" not in shown
    assert shown.get("vllm", {}).get("url") == server


def test_another_backend() -> None:
    """One that isn't the one whose parameters are given."""
    with pytest.raises(ValidationError, match="backend: is vllm, and the parameters are those of estimate"):
        TokenParameters.model_validate({"modelName": "m", "backend": "vllm", "estimate": {}})
