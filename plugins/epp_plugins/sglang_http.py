"""sglanghttp-parser: reads requests of SGLang's own API, and the usage out of the answers.

What it does
    Claims the path `/generate`, exactly: others end in `generate` too. The prompt is `input_ids`, word for word, or
    else `text`; a list of either is a batch with a prompt each. Pictures, sounds and videos (`image_data`,
    `audio_data`, `video_data`) stand by their digests before the prompt, since where they belong in it only the model
    knows: requests with different ones share nothing.

Reads
    The request's body, and the response's body if the body mode shows it.

Writes
    `Body`: the prompts, their media, `stream`, `max_tokens` from `sampling_params.max_new_tokens`, `cache_salt` from
    `extra_key` and `lora_path`, which keep caches apart. No model: the format has none. `Usage`: from `meta_info` of a
    JSON answer, the sum over a batch, or of the latest event of a stream.

Parameters
    None.

Example:
    plugins:
    - type: sglanghttp-parser
    - type: openai-parser
    requestHandler:
      parsers:
      - pluginRef: openai-parser
      - pluginRef: sglanghttp-parser

Where it departs from llm-d, and why
    - Prompts that are texts, and batches, are read: SGLang takes them. llm-d refuses them.
    - Media and LoRA adapters change the prompt: SGLang keeps their caches apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from epp.plugin import BadRequest, Body, ResponseReader, Usage, formats

text = formats.text


class _Request(Struct, gc=False):
    input_ids: Any = None
    text: Any = None
    stream: Any = None
    extra_key: Any = None
    lora_path: Any = None
    sampling_params: Any = None
    image_data: Raw = Raw()
    audio_data: Raw = Raw()
    video_data: Raw = Raw()


_decode = msgspec.json.Decoder(_Request).decode


class SglangHttpParser:
    """Reads requests of SGLang's own API, and the usage out of the answers."""

    paths: tuple[str, ...] = ("/generate",)

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Body:
        """Reads a request; BadRequest says what no engine could take."""
        try:
            request = _decode(body.removeprefix(text.BOM))
            media = b"".join(_media(request.image_data, request.audio_data, request.video_data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise text.unreadable(body, error) from error
        prompts = _prompts(request)
        if media:
            prompts = tuple(media + prompt for prompt in prompts)
        parameters = request.sampling_params
        if isinstance(parameters, list):
            parameters = parameters[0] if parameters else None
        limit = text.limit(text.member(parameters, "max_new_tokens"))
        return Body(
            prompts=prompts,
            media=text.media_in(media),
            cache_salt=_salt(request),
            stream=text.flag(request.stream),
            max_tokens=limit,
        )

    def response(self, *, streaming: bool) -> ResponseReader:
        """A reader of a response's usage."""
        reader = formats.answers.EventUsage if streaming else formats.answers.JsonUsage
        return reader(USAGE)


def _prompts(request: _Request) -> tuple[bytes, ...]:
    ids, said = request.input_ids, request.text
    if isinstance(ids, list) and ids:
        return tuple(map(text.ids, ids)) if isinstance(ids[0], list) else (text.ids(ids),)
    if isinstance(said, str):
        return (said.encode(),)
    if isinstance(said, list) and said:
        return tuple(map(text.text, said))
    raise BadRequest("invalid generate request: must have input_ids or text field")


def _media(*kinds: Raw) -> Iterator[bytes]:
    """What stands for each picture, sound and video: one, a list of them, or for a batch a list of such."""
    for kind, raw in enumerate(kinds):
        for item in _flat(text.decode(bytes(raw))) if raw else ():
            yield text.media(bytes([kind]) + text.text(item))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    elif value:
        yield value


def _salt(request: _Request) -> str:
    """What keeps caches apart; the parts are kept apart by a character that none of them has."""
    keys, adapter = text.text(request.extra_key).decode(), text.text(request.lora_path).decode()
    return f"{keys}\0{adapter}" if adapter else keys


class UsageReport(Struct, gc=False):
    """The `meta_info` of an answer or an event."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    def over(self, old: Usage) -> Usage:
        """What this report says, and the older one where it says nothing."""
        return Usage(
            text.known(self.prompt_tokens, old.prompt_tokens),
            text.known(self.completion_tokens, old.completion_tokens),
            text.known(self.cached_tokens, old.cached_tokens),
        )


class _Reply(Struct, gc=False):
    meta_info: UsageReport | None = None


_decode_reply = msgspec.json.Decoder(_Reply | list[_Reply]).decode


def usage(reply: bytes) -> UsageReport | None:
    """The usage in an answer or an event; None if there is none or it can't be read."""
    try:
        found: _Reply | list[_Reply] = _decode_reply(reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(found, list):
        return found.meta_info
    return _sum([each.meta_info for each in found if each.meta_info])


def _sum(reports: Sequence[UsageReport]) -> UsageReport | None:
    if not reports:
        return None
    totals = {}
    for name in UsageReport.__struct_fields__:
        known = [value for value in (getattr(report, name) for report in reports) if value is not None]
        totals[name] = sum(known) if known else None
    return UsageReport(**totals)


def _converted(value: Any) -> UsageReport:
    return msgspec.convert(value, UsageReport)


USAGE = formats.answers.Format("meta_info", usage, _converted)
