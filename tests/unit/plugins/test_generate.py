"""The parsers of vLLM's and SGLang's own HTTP APIs: prompts that are tokens already."""

import json
import struct
from typing import Any

import pytest
from epp_plugins.sglang_http import SglangHttpParser
from epp_plugins.vllm_http import VllmHttpParser

from epp.plugin import BadRequest, Body, Plugged, Usage
from epp.reading import parser_for

VLLM, SGLANG = "/inference/v1/generate", "/generate"
IDS = [5, 6, 7, 7, 7, 8]
PACKED = struct.pack("<6I", *IDS)


def vllm(**fields: Any) -> Body:
    return VllmHttpParser().parse(VLLM, {}, json.dumps({"token_ids": IDS, **fields}).encode())


def sglang(**fields: Any) -> Body:
    return SglangHttpParser().parse(SGLANG, {}, json.dumps(fields).encode())


def features(*hashes: str, offset: int = 2) -> dict[str, Any]:
    """A picture of three tokens for each hash."""
    places = [{"offset": offset + 3 * index, "length": 3} for index in range(len(hashes))]
    return {"mm_hashes": {"image": list(hashes)}, "mm_placeholders": {"image": places}}


def test_vllm_reads_tokens() -> None:
    """The ids stand in the prompt as they are; the limit is in the sampling parameters."""
    body = vllm(model="m", stream=True, cache_salt="s", sampling_params={"max_tokens": 9, "temperature": 0})
    assert (body.model, body.stream, body.cache_salt, body.max_tokens) == ("m", True, "s", 9)
    assert body.prompts == (PACKED,)
    assert vllm().model == ""


def test_vllm_pictures_take_the_place_of_their_tokens() -> None:
    """What stands before a picture is shared by requests with different ones; the length stays."""
    one, other = (vllm(features=features(name)).prompts[0] for name in ("a", "b"))
    assert (len(one), one[:8], one[20:]) == (len(PACKED), PACKED[:8], PACKED[20:])
    assert one[:8] == other[:8]
    assert one != other
    assert vllm(features=features("a")).prompts[0] == one


@pytest.mark.parametrize(
    "odd",
    [
        features("a", offset=6),
        features("a", offset=-1),
        {"mm_hashes": {"image": ["a"]}},
        {"mm_hashes": ["a"], "mm_placeholders": ["b"]},
        {"mm_hashes": {"image": "a"}, "mm_placeholders": {"image": [{"offset": 0, "length": 1}]}},
        {"mm_hashes": {"image": ["a"]}, "mm_placeholders": {"image": [{"offset": "0", "length": 1}]}},
        "features",
    ],
    ids=["behind", "before", "no places", "lists", "text", "odd offset", "no object"],
)
def test_vllm_features_that_fit_nowhere_change_nothing(odd: Any) -> None:
    assert vllm(features=odd).prompts == (PACKED,)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "error unmarshaling"),
        (b"{}", "must have token_ids"),
        (b'{"token_ids":[]}', "must have token_ids"),
        (b'{"token_ids":"a"}', "error unmarshaling"),
        (b'{"token_ids":["a"]}', "invalid token ids"),
        (b'{"token_ids":[-1]}', "invalid token ids"),
        (b'{"prompt":"a"}', "must have token_ids"),
    ],
    ids=["cut off", "none", "empty", "text", "texts", "negative", "prompt"],
)
def test_vllm_refuses(body: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        VllmHttpParser().parse(VLLM, {}, body)


PROMPTS = {
    "ids": ({"input_ids": IDS}, (PACKED,)),
    "text": ({"text": "hello"}, (b"hello",)),
    "batch of ids": ({"input_ids": [IDS, IDS[:1]]}, (PACKED, PACKED[:4])),
    "batch of texts": ({"text": ["a", "b"]}, (b"a", b"b")),
    "both": ({"input_ids": IDS, "text": "hello"}, (PACKED,)),
    "others": ({"text": "hello", "sampling_params": {"temperature": 1}, "rid": "1", "user": "u"}, (b"hello",)),
}


@pytest.mark.parametrize(("fields", "prompts"), PROMPTS.values(), ids=PROMPTS)
def test_sglang_prompts(fields: dict[str, Any], prompts: tuple[bytes, ...]) -> None:
    assert sglang(**fields).prompts == prompts


def test_sglang_reads_the_rest() -> None:
    """The extra key separates caches, as an adapter does; limits are those of the sampling parameters."""
    body = sglang(text="a", stream=True, extra_key="tenant", sampling_params={"max_new_tokens": 5})
    assert (body.model, body.stream, body.cache_salt, body.max_tokens) == ("", True, "tenant", 5)
    assert sglang(text=["a"], sampling_params=[{"max_new_tokens": 5}]).max_tokens == 5
    salts = {sglang(text="a", **own).cache_salt for own in ({}, {"extra_key": "x"}, {"lora_path": "x"})}
    assert len(salts) == 3


def test_sglang_media_change_the_prompt() -> None:
    """Requests with different pictures share nothing, and the same picture is the same however it is sent again."""
    found = {
        sglang(text="a", **own).prompts[0]
        for own in ({}, {"image_data": "x"}, {"image_data": "y"}, {"audio_data": "x"})
    }
    assert len(found) == 4
    assert sglang(text="a", image_data=None).prompts == (b"a",)
    assert sglang(text="a", image_data=None).media == ()
    assert sglang(image_data="x", text="a").prompts == sglang(text="a", image_data="x").prompts


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param({"image_data": ["x", "y"], "video_data": "x"}, id="a list, and one"),
        pytest.param({"image_data": [["x"], ["y"]], "video_data": ["x"], "audio_data": []}, id="a batch"),
        pytest.param({"image_data": ["x", None, "y"], "video_data": ["x"], "audio_data": None}, id="gaps"),
    ],
)
def test_sglang_media(sent: dict[str, Any]) -> None:
    """Each has its own digest, by what it is and by its content."""
    (picture,), (other,), (video,) = (
        sglang(text="a", **own).media for own in ({"image_data": "x"}, {"image_data": "y"}, {"video_data": "x"})
    )
    assert len({picture, other, video}) == 3
    assert sglang(text="a", **sent).media == (picture, other, video)


@pytest.mark.parametrize(
    "body", [b"{", b"{}", b'{"input_ids":[]}', b'{"text":1}', b'{"input_ids":["a"]}', b'{"input_ids":[[1],"a"]}', b"[]"]
)
def test_sglang_refuses(body: bytes) -> None:
    with pytest.raises(BadRequest):
        SglangHttpParser().parse(SGLANG, {}, body)


META = {"prompt_tokens": 10, "completion_tokens": 3, "cached_tokens": 8, "finish_reason": None}
ANSWERS = {
    "one": ({"text": "a", "meta_info": META}, Usage(10, 3, 8)),
    "batch": ([{"meta_info": META}, {"meta_info": {"prompt_tokens": 1, "completion_tokens": 1}}], Usage(11, 4, 8)),
    "none": ({"text": '"meta_info":{"prompt_tokens":1}'}, Usage()),
    "empty batch": ([], Usage()),
    "odd": ({"meta_info": []}, Usage()),
}


@pytest.mark.parametrize(("answer", "usage"), ANSWERS.values(), ids=ANSWERS)
def test_sglang_usage_of_an_answer(answer: Any, usage: Usage) -> None:
    reader = SglangHttpParser().response(streaming=False)
    data = json.dumps(answer).encode()
    for place in range(len(data)):
        reader.feed(data[place : place + 1], end=place == len(data) - 1)
    assert reader.usage == usage


def test_sglang_usage_of_an_event_stream() -> None:
    """Every event reports what has come so far; the last one counts."""
    events = [{"text": "a", "meta_info": {**META, "completion_tokens": count}} for count in (1, 2, 3)]
    data = b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"
    for size in (1, 7, len(data)):
        reader = SglangHttpParser().response(streaming=True)
        for place in range(0, len(data), size):
            reader.feed(data[place : place + size], end=place + size >= len(data))
        assert reader.usage == Usage(10, 3, 8)


def test_vllm_usage() -> None:
    reader = VllmHttpParser().response(streaming=False)
    reader.feed(b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}', end=True)
    assert reader.usage == Usage(5, 2)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/generate", "sglang"),
        ("/inference/v1/generate", "vllm"),
        ("/x/inference/v1/generate", "vllm"),
        ("/x/generate", None),
    ],
)
def test_who_claims_which_path(path: str, name: str | None) -> None:
    """SGLang's is the path itself, not its end."""
    parsers = (Plugged("sglang", "", SglangHttpParser()), Plugged("vllm", "", VllmHttpParser()))
    if name is None:
        with pytest.raises(BadRequest):
            parser_for(parsers, path)
    else:
        assert parser_for(parsers, path).name == name
