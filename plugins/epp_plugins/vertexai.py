"""vertexai-parser: reads requests of Vertex AI's PredictionService, which wrap OpenAI's in gRPC.

What it does
    Claims the methods `ChatCompletions`, `RawPredict` and `StreamRawPredict`. The request is a gRPC message with an
    HTTP body in it, whose JSON is read as openai-parser reads it: as a chat if it has `messages` or comes to
    `ChatCompletions`, else as a completion. The message may be compressed with gzip.

Reads
    The request's path and body, and the response's body if the body mode shows it.

Writes
    `Body` as openai-parser does; the model may be missing, since the path of an endpoint stands for it. `Usage`: from
    the JSON or the events in the HTTP bodies of the answer.

Parameters
    None.

Example:
    plugins:
    - type: vertexai-parser
    requestHandler:
      parsers:
      - pluginRef: vertexai-parser

Where it departs from llm-d, and why
    - gzip is read: gRPC clients may compress. llm-d refuses it.
    - Paths match by whole segments, so the service is claimed under its full names, of v1 and v1beta1, and its short
      one.
    - Other methods are nobody's here: list `passthrough-parser` too, and they are scheduled by load.
"""

from collections.abc import Mapping

from epp_protos import vertex_prediction_pb2 as messages
from google.protobuf.message import DecodeError

from epp.plugin import BadRequest, Body, ResponseReader, Usage, formats

PACKAGES = ("", "google.cloud.aiplatform.v1.", "google.cloud.aiplatform.v1beta1.")
METHODS = ("ChatCompletions", "RawPredict", "StreamRawPredict")

_CHAT = formats.openai.KINDS["chat/completions"]._replace(model=False)
_COMPLETIONS = formats.openai.KINDS["completions"]._replace(model=False)


class VertexAIParser:
    """Reads requests of Vertex AI's PredictionService, which wrap OpenAI's in gRPC."""

    paths: tuple[str, ...] = tuple(f"{each}PredictionService/{method}" for each in PACKAGES for method in METHODS)

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Body:
        """Reads a request; BadRequest says what no engine could take."""
        try:
            data = messages.PredictRequest.FromString(formats.grpc.message(body)).http_body.data
        except DecodeError as error:
            raise BadRequest(f"invalid or unsupported gRPC payload: {error}") from error
        if not data:
            raise BadRequest("invalid prediction request: must have http_body field")
        chat = path.rstrip("/").endswith("/ChatCompletions") or _has_messages(data)
        return formats.openai.body(data, _CHAT if chat else _COMPLETIONS)

    def response(self, *, streaming: bool) -> ResponseReader:
        """A reader of a response's usage."""
        return HttpBodyUsage()


def _has_messages(data: bytes) -> bool:
    if b'"messages"' not in data:
        return False
    try:
        return "messages" in formats.text.decode(data)
    except (ValueError, TypeError, RecursionError):
        return False


class HttpBodyUsage:
    """Reads the usage out of gRPC messages that carry the pieces of an HTTP body: JSON documents, or events."""

    __slots__ = ("_events", "_messages", "_usage")

    def __init__(self) -> None:
        self._usage = Usage()
        self._messages = formats.grpc.Messages()
        self._events = formats.answers.EventUsage(formats.openai.USAGE)

    @property
    def usage(self) -> Usage:
        """What has been seen so far."""
        events = self._events.usage
        return events if events != Usage() else self._usage

    def feed(self, data: bytes, *, end: bool) -> None:
        """The next piece of the body, split anywhere; `end` with the last one."""
        for message in self._messages.feed(data):
            try:
                piece = messages.HttpBody.FromString(message).data
            except DecodeError:
                continue
            if piece.lstrip().startswith(b"{") and (found := formats.openai.usage(piece)):
                self._usage = found.over(self._usage)
            else:
                self._events.feed(piece, end=False)
        if end:
            self._events.feed(b"", end=True)
