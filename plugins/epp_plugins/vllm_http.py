"""vllmhttp-parser: reads requests of vLLM's own API for prompts that are tokens already.

What it does
    Claims `inference/v1/generate`. The prompt is `token_ids`, word for word; where `features` names pictures or sounds
    (`mm_hashes`, `mm_placeholders`), their hashes take the place of the ids that stand for them, since those are the
    same for every picture. Nothing else of the body enters.

Reads
    The request's body, and the response's body if the body mode shows it.

Writes
    `Body`: `model` (if there is one), one prompt, `cache_salt`, `stream`, and `max_tokens` out of `sampling_params`.
    `Usage`: from the `usage` of a JSON answer or an event stream.

Parameters
    None.

Example:
    plugins:
    - type: vllmhttp-parser
    requestHandler:
      parsers:
      - pluginRef: vllmhttp-parser

Where it departs from llm-d, and why
    A request without a model passes: vLLM has one base model and serves it then. Its token limit is read.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct
from xxhash import xxh3_128_digest

from epp.plugin import BadRequest, Body, ResponseReader, formats

text = formats.text


class _Request(Struct, gc=False):
    token_ids: list[Any] | None = None
    model: Any = None
    stream: Any = None
    cache_salt: Any = None
    features: Any = None
    sampling_params: Any = None


_decode = msgspec.json.Decoder(_Request).decode


class VllmHttpParser:
    """Reads requests of vLLM's own API for prompts that are tokens already."""

    paths: tuple[str, ...] = ("inference/v1/generate",)
    model_paths = (("model",),)

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Body:
        """Reads a request; BadRequest says what no engine could take."""
        try:
            request = _decode(body.removeprefix(text.BOM))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise text.unreadable(body, error) from error
        if not request.token_ids:
            raise BadRequest("invalid generate request: must have token_ids field")
        prompt, places = text.ids(request.token_ids), tuple(_placeholders(request.features))
        if places:
            prompt = text.with_media(prompt, places)
        return Body(
            model=text.string(request.model),
            prompts=(prompt,),
            media=tuple(xxh3_128_digest(identity) for _, _, identity in places),
            cache_salt=text.string(request.cache_salt),
            stream=text.flag(request.stream),
            max_tokens=text.limit(text.member(request.sampling_params, "max_tokens")),
        )

    def response(self, *, streaming: bool) -> ResponseReader:
        """A reader of a response's usage."""
        reader = formats.answers.EventUsage if streaming else formats.answers.JsonUsage
        return reader(formats.openai.USAGE)


def _placeholders(features: Any) -> Iterator[tuple[int, int, bytes]]:
    """(offset, length, identity) of each picture, sound or video."""
    places = text.member(features, "mm_placeholders")
    hashes = text.member(features, "mm_hashes")
    if not isinstance(places, dict) or not isinstance(hashes, dict):
        return
    for modality, own in places.items():
        names = hashes.get(modality)
        if not isinstance(own, list) or not isinstance(names, list):
            continue
        for place, name in zip(own, names, strict=False):
            offset, length = text.member(place, "offset"), text.member(place, "length")
            if isinstance(offset, int) and isinstance(length, int):
                yield offset, length, f"{modality}:{name}".encode()
