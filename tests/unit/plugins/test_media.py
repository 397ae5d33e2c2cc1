"""The media that parsers find in a request: by content, in order."""

import json

import pytest
from epp_plugins.anthropic import AnthropicParser
from epp_plugins.openai import OpenAIParser
from epp_plugins.vllm_http import VllmHttpParser

from epp.plugin import BadRequest


def media(parser, path, **fields):
    return parser.parse(path, {}, json.dumps({"model": "m"} | fields).encode()).media


def image(name, **extra):
    return {"type": "image_url", "image_url": {"url": f"http://{name}"}} | extra


PARSERS = [
    pytest.param(OpenAIParser(), "/v1/chat/completions", id="openai"),
    pytest.param(AnthropicParser(), "/v1/messages", id="anthropic"),
]
HALF = "is half of a surrogate pair"


@pytest.mark.parametrize(("parser", "path"), PARSERS)
@pytest.mark.parametrize(
    ("written", "lone", "offset"),
    [
        pytest.param(rb"\ud83d", r"\ud83d", 0, id="the first half"),
        pytest.param(rb"a \ude00 b", r"\ude00", 2, id="the second half"),
        pytest.param(rb"\ude00\ud83d", r"\ude00", 0, id="in the wrong order"),
        pytest.param(rb"\ud83d\ude00 \uD83D", r"\uD83D", 13, id="after a whole one"),
        pytest.param(rb"\ud83d\ud83d\ude00", r"\ud83d", 0, id="before a whole one"),
        pytest.param(rb"\\ud83d \ud83dx", r"\ud83d", 8, id="after an escaped backslash"),
        pytest.param(rb"\ud83d\n", r"\ud83d", 0, id="before another escape"),
    ],
)
def test_half_a_character(parser, path, written, lone, offset):
    """An emoji that was cut in two is refused, and the client is told where it stands."""
    body = rb'{"model": "m", "messages": [{"role": "user", "content": "%b"}]}' % written
    with pytest.raises(BadRequest) as caught:
        parser.parse(path, {}, body)
    assert f"{lone} at byte {body.index(written) + offset} {HALF}" in caught.value.message


@pytest.mark.parametrize(("parser", "path"), PARSERS)
@pytest.mark.parametrize("written", [rb"\ud83d\ude00", rb"\uD83D\uDE00\ud83d\ude00", rb"\\ud83d", rb"\u00fa"])
def test_whole_characters(parser, path, written):
    """Pairs are read, and what only looks like a half isn't one."""
    body = rb'{"model": "m", "messages": [{"role": "user", "content": "%b"}]}' % written
    assert parser.parse(path, {}, body).prompts[0].endswith(json.loads(b'"%b"' % written).encode())
    with pytest.raises(BadRequest) as caught:
        parser.parse(path, {}, body[:-1])
    assert HALF not in caught.value.message


TEXT = {"type": "text", "text": "what is this? \u00fa"}


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def chat(*parts):
    return media(OpenAIParser(), "/v1/chat/completions", messages=user(*parts))


def test_media_of_a_chat():
    """Each has its digest, the same wherever it stands, another one for another picture."""
    (first,) = chat(TEXT, image("a"))
    (second,) = chat(TEXT, image("b"))
    assert first != second
    assert chat(image("b"), TEXT, image("a"), image("b", cache_control={})) == (second, first, second)
    assert (
        chat(TEXT) == media(OpenAIParser(), "/v1/chat/completions", messages=[{"role": "user", "content": "x"}]) == ()
    )


@pytest.mark.parametrize("detail", ["low", "high", None])
def test_the_detail_of_a_picture(detail):
    """It is the same picture: engines cache its pixels, and look at no `detail`."""
    parser = OpenAIParser()
    plain, asked = ({"url": "http://a"}, {"url": "http://a", "detail": detail})
    assert chat({"type": "image_url", "image_url": asked}) == chat({"type": "image_url", "image_url": plain})
    part = {"type": "input_image", "image_url": "http://a"}
    first, second = (media(parser, "/v1/responses", input=user(each)) for each in (part, part | {"detail": detail}))
    assert first == second != ()
    assert chat({"type": "other", "detail": "low"}) != chat({"type": "other", "detail": "high"})


def test_digests_of_any_bytes():
    """A digest with the byte that begins a medium is no second one."""
    found = chat(*[image(str(number)) for number in range(2000)])
    assert len(found) == len(set(found)) == 2000
    assert any(b"\xfa" in digest for digest in found)


@pytest.mark.parametrize(
    ("path", "fields", "count"),
    [
        pytest.param("/v1/responses", {"input": user({"type": "input_image", "image_url": "u"})}, 1, id="responses"),
        pytest.param("/v1/conversations", {"items": user({"type": "input_image", "image_url": "u"})}, 1, id="items"),
        pytest.param("/v1/embeddings", {"messages": user(image("a"))}, 1, id="embeddings of messages"),
        pytest.param("/v1/embeddings", {"input": [0xFAFAFAFA] * 9, "messages": user(image("a"))}, 0, id="embeddings"),
        pytest.param("/v1/completions", {"prompt": [0xFAFAFAFA] * 9, "messages": user(TEXT)}, 0, id="token ids"),
    ],
)
def test_media_of_openai(path, fields, count):
    """Wherever a format has parts; token ids have none, whatever bytes they are."""
    assert len(media(OpenAIParser(), path, **fields)) == count


def test_media_of_anthropic():
    """Pictures by their content, those in a tool's result too; a count of tokens has no prompt."""
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    block = {"type": "image", "source": source}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [block]}
    first, second, third = media(AnthropicParser(), "/v1/messages", messages=user(block, TEXT, result, block))
    assert first == second == third
    assert media(AnthropicParser(), "/v1/messages/count_tokens", messages=user(block)) == ()


def test_media_of_vllm():
    """By the hashes that come with the token ids."""
    places = [{"offset": 1, "length": 2}, {"offset": 4, "length": 2}]
    features = {"mm_hashes": {"image": ["a", "b"]}, "mm_placeholders": {"image": places}}
    found = media(VllmHttpParser(), "/inference/v1/generate", token_ids=[1] * 8, features=features)
    assert len(set(found)) == 2
    assert media(VllmHttpParser(), "/inference/v1/generate", token_ids=[1] * 8) == ()
