"""token-producer: which tokens a prompt has.

What it does
    Without it tokens are estimated from the prompt's bytes, 4 to a token; a picture, a sound and a video count as 224
    tokens each, whatever their size.

    With `estimate` texts are estimated in the same way, and media by their size:

    - a picture as width * height / `factor`, at least 1. The size is read out of the data of PNG, JPEG and GIF in a
      data URL; for others it is `defaultResolution`. With `mode: static` it is `staticToken`.
    - a video as frames * tokens a frame, at most `maxVideoTokens`. `sampled` frames are duration * `sampleFPS`, between
      `minFrames` and `maxFrames`, `temporalPatchSize` of them taken together; `strided` ones are duration *
      `defaultSourceFPS` / `frameStride`, between the same. Tokens a frame are width * height / `factor`, or
      `numTokensPerFrame`. Duration, rate and resolution are what the client says, or else the defaults.
    - a sound as its data's length and format's, 4 bytes to a token.

    With `vllm` a server that renders prompts (`vllm launch render MODEL`) is asked for the token ids of chats and of
    completions that are texts, before anything is decided. The ids take the place of the bytes: lengths are exact, and
    prefixes are the engines' own. Media stand in them by the hashes that the server gives. If the server fails or takes
    longer than `timeout`, with media `mmTimeout`, the estimate stands in, and the fault is counted. Other requests are
    estimated.

Reads
    - the request's body.
    - the request's headers `x-llm-d-video-duration-seconds`, `x-llm-d-video-fps`, `x-llm-d-video-resolution` (`WxH`).

Writes
    The request's prompts: what every other plugin takes for them.

Parameters
    - `estimate` (this one, if none of the others is given):
      `image`: `mode` (dynamic, or static), `defaultResolution` (`width` 640, `height` 360), `static.staticToken` (0),
      `dynamic.factor` (1024);
      `video`: `defaultResolution` (as above), `defaultDuration` (10, in seconds), `tokensPerFrame` with `mode`
      (dynamic, or static), `static.numTokensPerFrame` (0), `dynamic.factor` (1024); `frames` with `mode` (sampled, or
      strided), `minFrames` (0), `maxFrames` (0: no limit), which wins, `sampled` with `sampleFPS` (2) and
      `temporalPatchSize` (1), `strided` with `defaultSourceFPS` (24) and `frameStride` (1); `maxVideoTokens` (0: no
      limit).
    - `vllm`: `url` (http://localhost:8000), `timeout` (5s), `mmTimeout` (30s); `http`, deprecated, for `url`.
    - `modelName` (""): the model that the server renders for; required with `vllm`.
    - `backend`: deprecated; `estimate` or `vllm`, which with its defaults needs no key of its own then.
    - `udsTokenizerConfig`: deprecated, and has no effect: tokens are estimated.

    Of `estimate`, `vllm` and `udsTokenizerConfig` one may be given.

Example:
    plugins:
    - type: token-producer
      parameters:
        estimate:
          image: {dynamic: {factor: 784}}
    - type: prefix-cache-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: prefix-cache-scorer

Where it departs from llm-d, and why
    - It isn't added to a configuration without it: a picture then counts as 224 tokens unread, instead of 225 or by the
      size that its data says.
    - A server that fails leaves the estimate; there the request has no tokens, and plugins that need some fail.
    - A medium has 5 tokens at least: fewer don't hold its digest.
    - The server isn't warmed up before the first request; Anthropic's messages are estimated, not converted.
"""

import asyncio
import base64
import binascii
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Raw
from pydantic import AfterValidator, Field, model_validator
from xxhash import xxh3_128_digest

import epp.plugin
from epp.plugin import Body, PositiveDuration, Request, WrongParameters, formats

text = formats.text

HEADER_BYTES = 64 * 1024
"""Of a picture's data, in which its size must stand."""

UNKNOWN_TOKENS = text.MEDIA_BYTES // text.TOKEN_BYTES
GRACE = 0.1
"""Seconds beyond the server's time that a request waits."""


class Resolution(epp.plugin.Parameters):
    """`defaultResolution`."""

    width: int = Field(default=640, gt=0)
    height: int = Field(default=360, gt=0)


class StaticImage(epp.plugin.Parameters):
    """`static` of pictures."""

    static_token: int = Field(default=0, ge=0)


class Dynamic(epp.plugin.Parameters):
    """`dynamic`: pixels a token."""

    factor: float = Field(default=1024, gt=0)


class Image(epp.plugin.Parameters):
    """`image`."""

    mode: Literal["dynamic", "static"] = "dynamic"
    default_resolution: Resolution = Resolution()
    static: StaticImage = StaticImage()
    dynamic: Dynamic = Dynamic()

    def tokens(self, width: int, height: int) -> int:
        """Of a picture of that size, in pixels."""
        if self.mode == "static":
            return self.static.static_token
        return max(1, int(width * height / self.dynamic.factor))


class StaticFrame(epp.plugin.Parameters):
    """`static` of frames."""

    num_tokens_per_frame: int = Field(default=0, ge=0)


class PerFrame(epp.plugin.Parameters):
    """`tokensPerFrame`."""

    mode: Literal["dynamic", "static"] = "dynamic"
    static: StaticFrame = StaticFrame()
    dynamic: Dynamic = Dynamic()


class Sampled(epp.plugin.Parameters):
    """`sampled`."""

    sample_fps: float = Field(default=2, gt=0, alias="sampleFPS")
    temporal_patch_size: int = Field(default=1, gt=0)


class Strided(epp.plugin.Parameters):
    """`strided`."""

    default_source_fps: float = Field(default=24, gt=0, alias="defaultSourceFPS")
    frame_stride: int = Field(default=1, gt=0)


class Frames(epp.plugin.Parameters):
    """`frames`."""

    mode: Literal["sampled", "strided"] = "sampled"
    min_frames: int = Field(default=0, ge=0)
    max_frames: int = Field(default=0, ge=0)
    sampled: Sampled = Sampled()
    strided: Strided = Strided()

    def of(self, duration: float, fps: float | None) -> int:
        """How many frames a video of so many seconds has that count."""
        if self.mode == "sampled":
            return self._within(int(duration * self.sampled.sample_fps)) // self.sampled.temporal_patch_size
        rate = self.strided.default_source_fps if fps is None else fps
        return self._within(int(duration * rate) // self.strided.frame_stride)

    def _within(self, frames: int) -> int:
        frames = max(frames, self.min_frames)
        return min(frames, self.max_frames or frames)


class Video(epp.plugin.Parameters):
    """`video`."""

    default_resolution: Resolution = Resolution()
    default_duration: float = Field(default=10, gt=0)
    tokens_per_frame: PerFrame = PerFrame()
    frames: Frames = Frames()
    max_video_tokens: int = Field(default=0, ge=0)

    def tokens(self, headers: Mapping[str, str]) -> int:
        """Of a video about which the request says this, or nothing."""
        duration = _number(headers.get("x-llm-d-video-duration-seconds")) or self.default_duration
        frames = self.frames.of(duration, _number(headers.get("x-llm-d-video-fps")))
        size = _resolution(headers.get("x-llm-d-video-resolution"))
        width, height = size or (self.default_resolution.width, self.default_resolution.height)
        each = self.tokens_per_frame
        per_frame = each.static.num_tokens_per_frame
        if each.mode == "dynamic":
            per_frame = max(1, int(width * height / each.dynamic.factor))
        tokens = frames * per_frame
        return min(tokens, self.max_video_tokens or tokens)


class Estimate(epp.plugin.Parameters):
    """`estimate`."""

    image: Image = Image()
    video: Video = Video()


def _is_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is no URL: write it as http://localhost:8000")
    return url.rstrip("/")


Url = Annotated[str, AfterValidator(_is_url)]


class Render(epp.plugin.Parameters):
    """`vllm`."""

    url: Url = "http://localhost:8000"
    http: Url | None = Field(default=None, deprecated='write "url"')
    timeout: PositiveDuration = 5.0
    mm_timeout: PositiveDuration = 30.0

    @property
    def server(self) -> str:
        """Its address; the old spelling counts where the new one isn't given."""
        old: str | None = dict(self)["http"]  # the attribute would warn of itself
        return self.url if "url" in self.model_fields_set or old is None else old

    def effective(self) -> Self:
        """In the new spelling."""
        return self.model_copy(update={"url": self.server, "http": None})


class TokenParameters(epp.plugin.Parameters):
    """See the module's manual."""

    backend: Literal["estimate", "vllm"] | None = Field(default=None, deprecated="the key of that name says it")
    estimate: Estimate | None = None
    vllm: Render | None = None
    model_name: str = ""
    uds_tokenizer_config: dict[str, Any] | None = Field(default=None, deprecated='write "vllm"')

    @model_validator(mode="after")
    def _one_backend(self) -> "TokenParameters":
        given = [name for name in ("estimate", "vllm", "uds_tokenizer_config") if name in self.model_fields_set]
        if len(given) > 1:
            raise ValueError("one of estimate, vllm and udsTokenizerConfig may be given")
        backend = dict(self)["backend"]  # the attribute would warn of itself
        if backend is not None and given and given != [backend]:
            raise WrongParameters((("backend",), f"is {backend}, and the parameters are those of {given[0]}"))
        return self

    @model_validator(mode="after")
    def _named_model(self) -> "TokenParameters":
        if self.render is not None and not self.model_name:
            raise WrongParameters((("modelName",), "is required by vllm"))
        return self

    @property
    def render(self) -> Render | None:
        """The server that renders prompts, if one is to."""
        return Render() if self.vllm is None and dict(self)["backend"] == "vllm" else self.vllm

    def effective(self) -> Self:
        """With the backend under its own key."""
        render = self.render
        return self.model_copy(update={"backend": None, "vllm": None if render is None else render.effective()})


class TokenProducer:
    """Says which tokens a request's prompts have: by the sizes of its media, or by a server that renders prompts.

    State: the HTTP session, opened with the first request that needs it.
    """

    Parameters = TokenParameters

    def __init__(self, parameters: TokenParameters) -> None:
        self._estimate = parameters.estimate or Estimate()
        self._render = parameters.render
        self._model = parameters.model_name
        self._session: aiohttp.ClientSession | None = None
        self.media_only = self._render is None
        if self._render is not None:
            self.deadline = max(self._render.timeout, self._render.mm_timeout) + GRACE
        uds = dict(parameters)["uds_tokenizer_config"] is not None
        self.remarks = ("a tokenizer at a socket isn't asked: tokens are estimated, 4 bytes each",) if uds else ()

    async def tokenize(self, request: Request, data: bytes) -> Body:
        """The request's body with the server's token ids, or with its media at their sizes."""
        path = _render_path(request, data) if self._render is not None else None
        if path is not None:
            return await self._rendered(request, data, path)
        return estimated(request, data, self._estimate) if request.body.media else request.body

    def close(self) -> None:
        """Closes the connections to the server."""
        session, self._session = self._session, None
        if session is not None:
            closing = asyncio.get_running_loop().create_task(session.close())
            _CLOSING.add(closing)
            closing.add_done_callback(_CLOSING.discard)

    async def _rendered(self, request: Request, data: bytes, path: str) -> Body:
        assert self._render is not None  # noqa: S101 (there is a path only with it)
        if self._session is None:
            self._session = aiohttp.ClientSession(headers={"Content-Type": "application/json", "User-Agent": "epp"})
        seconds = self._render.mm_timeout if request.body.media else self._render.timeout
        fields = msgspec.json.decode(data.removeprefix(text.BOM), type=dict[str, Raw])
        sent = msgspec.json.encode(fields | {"model": Raw(msgspec.json.encode(self._model))})
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with self._session.post(self._render.server + path, data=sent, timeout=timeout) as answer:
            if answer.status != 200:
                raise RuntimeError(f"HTTP status {answer.status} from {self._render.server}{path}")
            prompts = _prompts(await answer.read())
        media = tuple(digest for prompt in prompts for digest in prompt.media)
        return msgspec.structs.replace(request.body, prompts=tuple(each.data for each in prompts), media=media)


_CLOSING: set["asyncio.Task[None]"] = set()
"""Sessions that are being closed: a task that nobody holds may be collected before it has ended."""


# --- a server that renders


def _render_path(request: Request, data: bytes) -> str | None:
    """Where the server renders such a request; None for what it doesn't, and for ids, which need no rendering."""
    path = request.path
    if path.endswith("/chat/completions"):
        return "/v1/chat/completions/render"
    if path.endswith("/completions"):
        prompt = msgspec.json.decode(data.removeprefix(text.BOM), type=_Completion).prompt
        texts = isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(each, str) for each in prompt))
        return "/v1/completions/render" if texts else None
    return None


class _Completion(msgspec.Struct, gc=False):
    prompt: Any = None


class _Rendered(msgspec.Struct, gc=False):
    token_ids: list[int]
    features: Any = None


@dataclass(frozen=True, slots=True)
class _Prompt:
    data: bytes
    media: tuple[bytes, ...]


_decode_rendered = msgspec.json.Decoder(_Rendered | list[_Rendered]).decode


def _prompts(answer: bytes) -> list[_Prompt]:
    found: _Rendered | list[_Rendered] = _decode_rendered(answer)
    return [_prompt(each) for each in (found if isinstance(found, list) else [found])]


def _prompt(rendered: _Rendered) -> _Prompt:
    places = list(_placeholders(rendered.features))
    data = text.ids(rendered.token_ids)
    media = tuple(xxh3_128_digest(identity) for _, _, identity in places)
    return _Prompt(text.with_media(data, places) if places else data, media)


def _placeholders(features: Any) -> Iterator[tuple[int, int, bytes]]:
    """(offset, length, identity) of each picture, sound or video."""
    hashes = text.member(features, "mm_hashes") or {}
    for modality, places in (text.member(features, "mm_placeholders") or {}).items():
        for place, name in zip(places, hashes.get(modality) or (), strict=False):
            yield place["offset"], place["length"], f"{modality}:{name}".encode()


# --- the estimate


def estimated(request: Request, data: bytes, estimate: Estimate) -> Body:
    """The body with its media at their sizes; as it is where the parser has counted others than are found here."""
    body = request.body
    if len(body.prompts) != 1:
        return body
    parts = list(_parts(text.decode(data.removeprefix(text.BOM))))
    media = parts if len(parts) == len(body.media) else [part for part in parts if part.get("type") in _DOCUMENTS]
    if len(media) != len(body.media):
        return body
    tokens = [_tokens(part, request.headers, estimate) for part in media]
    return msgspec.structs.replace(body, prompts=(text.resized(body.prompts[0], tokens),))


_DOCUMENTS = frozenset({"image", "document"})  # what Anthropic's parser takes for media


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """The parts of messages that aren't texts, in the order in which they are rendered."""
    for name in ("system", "messages", "input", "items"):
        items = text.member(value, name)
        for item in items if isinstance(items, list) else ():
            content = [item] if name == "system" else text.member(item, "content")
            yield from _of_content(content)


def _of_content(content: Any) -> Iterator[Mapping[str, Any]]:
    for part in content if isinstance(content, list) else ():
        kind = text.member(part, "type") or "text"
        if kind == "tool_result":
            yield from _of_content(part.get("content"))
        elif isinstance(part, dict) and not isinstance(part.get(formats.openai.TEXTS.get(kind, "")), str):
            yield part


def _tokens(part: Mapping[str, Any], headers: Mapping[str, str], estimate: Estimate) -> int:
    kind = str(part.get("type"))
    if "video" in kind:
        return estimate.video.tokens(headers)
    if "audio" in kind:
        own = part.get(kind)
        said = own.values() if isinstance(own, dict) else (own,)
        return math.ceil(sum(len(each) for each in said if isinstance(each, str)) / text.TOKEN_BYTES)
    if "image" in kind:
        default = estimate.image.default_resolution
        return estimate.image.tokens(*(_size(_data(part)) or (default.width, default.height)))
    return UNKNOWN_TOKENS


def _data(part: Mapping[str, Any]) -> bytes:
    """The beginning of a picture's data; b"" where it isn't in the request."""
    source = part.get("source")
    if isinstance(source, dict):
        encoded = text.string(source.get("data"))
    else:
        url = part.get("image_url")
        url = text.string(url if isinstance(url, str) else text.member(url, "url"))
        encoded = url.partition(";base64,")[2] if url.startswith("data:") else ""
    with suppress(binascii.Error, ValueError):
        return base64.b64decode(encoded[: HEADER_BYTES // 3 * 4])
    return b""


def _size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG, GIF or JPEG."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data.startswith((b"GIF87a", b"GIF89a")) and len(data) >= 10:
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    return _size_of_jpeg(data) if data.startswith(b"\xff\xd8") else None


def _size_of_jpeg(data: bytes) -> tuple[int, int] | None:
    """By the first start of a frame; segments before it are skipped (ITU-T T.81, B.1)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            height, width = data[at + 5 : at + 7], data[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _number(said: str | None) -> float | None:
    with suppress(ValueError):
        number = float(said or "")
        return number if 0 < number < math.inf else None
    return None


def _resolution(said: str | None) -> Sequence[int] | None:
    width, _, height = (said or "").lower().partition("x")
    return (int(width), int(height)) if width.isdecimal() and height.isdecimal() and int(width) * int(height) else None
