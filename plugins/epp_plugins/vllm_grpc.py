"""vllmgrpc-parser: reads requests of vLLM's gRPC API, and the usage out of the answers.

What it does
    Claims the methods `Generate` and `Embed` of `vllm.grpc.engine.VllmEngine`, over HTTP/2 without TLS. The prompt is
    the token ids of `tokenized`, word for word, or else `text`. Fields of the request that this version doesn't know,
    such as pictures and their hashes, stand by their digest before the prompt: requests that differ in them share
    nothing. The ids and limits of requests don't enter.

    A message may be compressed with gzip, and its five bytes in front may be missing, as in Envoy's GRPC body mode.

Reads
    The request's path and body, and the response's body if the body mode shows it.

Writes
    `Body`: one prompt, `stream`, `max_tokens` out of `sampling_params`. No model: an engine has one, and its requests
    don't name it. `Usage`: prompt, completion and cached tokens of the latest message.

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

from collections.abc import Mapping

from epp_protos import vllm_engine_pb2 as messages
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from epp.plugin import BadRequest, Body, ResponseReader, Usage, formats

text = formats.text

SERVICE = "vllm.grpc.engine.VllmEngine"
_DELIMITED = 2  # the wire type of messages and bytes


class VllmGrpcParser:
    """Reads requests of vLLM's gRPC API, and the usage out of the answers."""

    paths: tuple[str, ...] = (f"{SERVICE}/Generate", f"{SERVICE}/Embed")

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
    parameters = request.sampling_params
    limit = parameters.max_tokens if parameters.HasField("max_tokens") else None
    return Body(prompts=(_unknown(request) + prompt,), stream=request.stream, max_tokens=text.limit(limit))


def _embed(message: bytes) -> Body:
    request = messages.EmbedRequest.FromString(message)
    if not request.tokenized.input_ids:
        raise BadRequest("invalid embed request: must have tokenized field")
    return Body(prompts=(text.ids(request.tokenized.input_ids),))


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
        # Of an EmbedResponse the usage stands in the field that is `chunk` here, under the same number.
        try:
            response = messages.GenerateResponse.FromString(message)
        except DecodeError:
            return
        kind = response.WhichOneof("response")
        if kind is None:
            return
        found = response.chunk if kind == "chunk" else response.complete
        old = self.usage
        self.usage = Usage(
            found.prompt_tokens or old.prompt_tokens,
            found.completion_tokens or old.completion_tokens,
            found.cached_tokens if found.prompt_tokens else old.cached_tokens,
        )
