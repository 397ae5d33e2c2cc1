"""vllmgrpc-parser: reads requests of vLLM's gRPC API, and the usage out of the answers.

What it does
    Claims the methods `Generate` and `Embed` of `vllm.grpc.engine.VllmEngine`, over HTTP/2 without TLS. The prompt is
    the token ids of `tokenized`, word for word, or else `text`. Where `mm_inputs` names pictures or other media by
    their hashes, these take the place of the ids that stand for them, as in vllmhttp-parser. Media without a place in
    the token ids (`image_data`, `media_refs`), and fields of the request that this version doesn't know, stand by their
    digest before the prompt: requests that differ in them share nothing. The ids and limits of requests don't enter,
    nor does where KV is fetched from.

    A message may be compressed with gzip, and its five bytes in front may be missing, as in Envoy's GRPC body mode.

Reads
    The request's path and body, and the response's body if the body mode shows it.

Writes
    `Body`: one prompt, its media, `stream`, `max_tokens` out of `sampling_params`. No model: an engine has one, and its
    requests don't name it. `Usage`: prompt, completion and cached tokens of the latest message, in the layout of vLLM's
    first releases or in the one since then.

Parameters
    None.

Example:
    plugins:
    - type: vllmgrpc-parser
    requestHandler:
      parsers:
      - pluginRef: vllmgrpc-parser

Where it departs from llm-d, and why
    - gzip is read: gRPC clients may compress. llm-d refuses it.
    - Other methods are nobody's here: list `passthrough-parser` too, and they are scheduled by load.
"""

from collections.abc import Iterator, Mapping

from epp_protos import vllm_engine_pb2 as messages
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from xxhash import xxh3_128_digest

from epp.plugin import BadRequest, Body, ResponseReader, Usage, formats

text = formats.text

SERVICE = "vllm.grpc.engine.VllmEngine"
_DELIMITED = 2  # the wire type of messages and bytes
_MODALITIES = {0: "image", 1: "image", 2: "audio", 3: "video"}


class VllmGrpcParser:
    """Reads requests of vLLM's gRPC API, and the usage out of the answers."""

    paths: tuple[str, ...] = (f"{SERVICE}/Generate", f"{SERVICE}/Embed")
    protocols = ("kubernetes.io/h2c",)

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Body:
        """Reads a request; BadRequest says what no engine could take."""
        message = formats.grpc.message(body)
        try:
            return _embed(message) if path.rstrip("/").endswith("/Embed") else _generate(message)
        except DecodeError as error:
            raise BadRequest(f"invalid or unsupported gRPC payload: {error}") from error

    def response(self, *, streaming: bool) -> ResponseReader:
        """A reader of a response's usage."""
        return GrpcUsage()


def _generate(message: bytes) -> Body:
    request = messages.GenerateRequest.FromString(message)
    kind = request.WhichOneof("input")
    if kind is None:
        raise BadRequest("invalid generate request: must have tokenized or text field")
    prompt = request.text.encode() if kind == "text" else text.ids(request.tokenized.input_ids)
    if not prompt:
        raise BadRequest("invalid generate request: the prompt is empty")
    places, elsewhere = _media(request)
    if kind == "tokenized":
        prompt = text.with_media(prompt, places) if places else prompt
    else:
        elsewhere += b"".join(text.media(identity) for _, _, identity in places)
        places = []
    parameters = request.sampling_params
    limit = parameters.max_tokens if parameters.HasField("max_tokens") else None
    return Body(
        prompts=(elsewhere + _unknown(request) + prompt,),
        media=(*text.media_in(elsewhere), *(xxh3_128_digest(identity) for _, _, identity in places)),
        stream=request.stream,
        max_tokens=text.limit(limit),
    )


def _embed(message: bytes) -> Body:
    request = messages.EmbedRequest.FromString(message)
    if not request.tokenized.input_ids:
        raise BadRequest("invalid embed request: must have tokenized field")
    return Body(prompts=(text.ids(request.tokenized.input_ids),))


def _media(request: messages.GenerateRequest) -> tuple[list[tuple[int, int, bytes]], bytes]:
    """(offset, length, identity) of each medium with a place among the ids; and what stands for the others."""
    places: list[tuple[int, int, bytes]] = []
    elsewhere = [text.media(f"{_name(ref.modality)}:{ref.url}".encode()) for ref in request.media_refs.items]
    for batch in (request.mm_inputs, *request.extra_mm_inputs):
        inputs = messages.MultimodalInputs.FromString(batch)
        own = list(_placeholders(inputs))
        places += own
        elsewhere += map(text.media, inputs.image_data)
        if batch and not own and not inputs.image_data:
            elsewhere.append(text.media(batch))  # tensors without hashes
    return places, b"".join(elsewhere)


def _placeholders(inputs: messages.MultimodalInputs) -> Iterator[tuple[int, int, bytes]]:
    for place, name in zip(inputs.mm_placeholders, inputs.mm_hashes, strict=False):
        yield place.offset, place.length, f"{_name(inputs.modality)}:{name}".encode()


def _name(modality: int) -> str:
    return _MODALITIES.get(modality, str(modality))


def _unknown(request: messages.GenerateRequest) -> bytes:
    """What stands for the fields that we don't know; nothing if there are none."""
    found = UnknownFieldSet(request)
    fields = [found[index] for index in range(len(found)) if found[index].wire_type == _DELIMITED]
    fields.sort(key=lambda field: field.field_number)
    return b"".join(text.media(b"%d:" % field.field_number + field.data) for field in fields)


class GrpcUsage:
    """Reads the usage out of a stream of gRPC messages: the latest counts."""

    __slots__ = ("_messages", "usage")

    def __init__(self) -> None:
        self.usage = Usage()
        self._messages = formats.grpc.Messages()

    def feed(self, data: bytes, *, end: bool) -> None:
        """The next piece of the body, split anywhere; `end` with the last one."""
        for message in self._messages.feed(data):
            self._read(message)

    def _read(self, message: bytes) -> None:
        try:
            found = _counts(message)
        except DecodeError:
            return
        if found is None:
            return
        old = self.usage
        self.usage = Usage(
            found.prompt_tokens or old.prompt_tokens,
            found.completion_tokens or old.completion_tokens,
            found.cached_tokens if found.prompt_tokens else old.cached_tokens,
        )


def _counts(message: bytes) -> messages.GenerateStreamChunk | messages.GenerateComplete | None:
    """What has the counts in an answer of either layout; see `Answer` in the messages' source."""
    answer = messages.Answer.FromString(message)
    if answer.HasField("third"):
        return messages.GenerateComplete.FromString(answer.third)
    if answer.HasField("second"):
        kind = messages.GenerateStreamChunk if answer.HasField("first") else messages.GenerateComplete
        return kind.FromString(answer.second)
    embedded = messages.EmbedResponse.FromString(message)
    if embedded.HasField("prompt_tokens"):
        return messages.GenerateStreamChunk(prompt_tokens=embedded.prompt_tokens)
    return messages.GenerateStreamChunk.FromString(answer.first) if answer.HasField("first") else None
