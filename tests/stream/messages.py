"""What Envoy says and what it is answered, as the real protobuf messages."""

from collections.abc import Iterator, Mapping, Sequence

from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, Metadata
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)

from epp.extproc.events import BodyMode

MODES = tuple(BodyMode)
DESTINATION = "x-gateway-destination-endpoint"
SUBSET = "x-gateway-destination-endpoint-subset"
SERVED = "x-gateway-destination-endpoint-served"
CHAT = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json", "x-request-id": "r-1"}
MODELS = {":method": "GET", ":path": "/v1/models", "x-request-id": "r-1"}
BODY = b'{ "model" : "m",  "messages": [{"role": "user", "content": "What is \\u0061 picker?"}] }'


def _map(headers: Mapping[str, str]) -> HeaderMap:
    return HeaderMap(headers=[HeaderValue(key=key, raw_value=value.encode()) for key, value in headers.items()])


def _hint(subset: Sequence[str] | str | None) -> Metadata | None:
    if subset is None:
        return None
    metadata = Metadata()
    metadata.filter_metadata["envoy.lb.subset_hint"][SUBSET] = subset if isinstance(subset, str) else list(subset)
    return metadata


def request_headers(
    mode: BodyMode | None = BodyMode.FULL_DUPLEX_STREAMED,
    headers: Mapping[str, str] = CHAT,
    *,
    end: bool = False,
    subset: Sequence[str] | str | None = None,
    response_mode: BodyMode | None = None,
) -> ProcessingRequest:
    """The first message; `mode` is of both bodies unless `response_mode` says otherwise, None announces none."""
    config = None
    if mode is not None:
        config = ProtocolConfiguration(
            request_body_mode=mode.value, response_body_mode=(mode if response_mode is None else response_mode).value
        )
    said = HttpHeaders(headers=_map(headers), end_of_stream=end)
    return ProcessingRequest(request_headers=said, protocol_config=config, metadata_context=_hint(subset))


def observed(message: ProcessingRequest) -> ProcessingRequest:
    """The same as Envoy sends it where another picker routes."""
    copy = ProcessingRequest()
    copy.CopyFrom(message)
    copy.observability_mode = True
    return copy


def request_body(data: bytes, *, end: bool = True, subset: Sequence[str] | str | None = None) -> ProcessingRequest:
    """A piece of the request's body."""
    return ProcessingRequest(request_body=HttpBody(body=data, end_of_stream=end), metadata_context=_hint(subset))


def request_trailers() -> ProcessingRequest:
    """The request's trailers."""
    return ProcessingRequest(request_trailers=HttpTrailers(trailers=_map({"x-checksum": "1"})))


def response_headers(
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    end: bool = False,
    served: str | None = None,
    attributes: Mapping[str, str | float] | None = None,
) -> ProcessingRequest:
    """The response's headers; `served` is what Envoy reports as metadata, `attributes` what its filter may add."""
    said = HttpHeaders(headers=_map({":status": str(status), **(headers or {})}), end_of_stream=end)
    message = ProcessingRequest(response_headers=said)
    if served is not None:
        message.metadata_context.filter_metadata["envoy.lb"][SERVED] = served
    for name, value in (attributes or {}).items():
        message.attributes["envoy.filters.http.ext_proc"][name] = value
    return message


def response_body(data: bytes, *, end: bool = True) -> ProcessingRequest:
    """A piece of the response's body."""
    return ProcessingRequest(response_body=HttpBody(body=data, end_of_stream=end))


def response_trailers() -> ProcessingRequest:
    """The response's trailers."""
    return ProcessingRequest(response_trailers=HttpTrailers())


def pieces(data: bytes, size: int) -> Iterator[tuple[bytes, bool]]:
    """The data in pieces of that size, each with whether it is the last."""
    for start in range(0, len(data) or 1, size):
        yield data[start : start + size], start + size >= len(data)


# --- what the picker answers


def kind(reply: ProcessingResponse) -> str:
    """Which message it answers, or `immediate_response`."""
    return str(reply.WhichOneof("response"))


def set_headers(reply: ProcessingResponse) -> dict[str, str]:
    """The headers that it sets."""
    part = getattr(reply, kind(reply))
    mutation = part.headers if kind(reply) == "immediate_response" else part.response.header_mutation
    assert not any(option.header.value for option in mutation.set_headers), "Envoy refuses value beside raw_value"
    return {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}


def removed(reply: ProcessingResponse) -> set[str]:
    """The headers that it removes."""
    return set(getattr(reply, kind(reply)).response.header_mutation.remove_headers)


def destination(reply: ProcessingResponse) -> str:
    """Where the request goes; header, metadata and what belongs to them agree."""
    said = set_headers(reply)[DESTINATION]
    assert reply.dynamic_metadata["envoy.lb"][DESTINATION] == said
    assert getattr(reply, kind(reply)).response.clear_route_cache
    assert DESTINATION not in removed(reply)
    return said


def empty(reply: ProcessingResponse) -> bool:
    """Whether it lets a message pass and says nothing else."""
    bare = ProcessingResponse()
    getattr(bare, kind(reply)).SetInParent()
    return bool(reply == bare)


def piece(reply: ProcessingResponse) -> tuple[bytes, bool]:
    """The piece of a body that it gives back, and whether it is the last."""
    streamed = getattr(reply, kind(reply)).response.body_mutation.streamed_response
    return streamed.body, streamed.end_of_stream
