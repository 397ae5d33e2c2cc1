"""Between Envoy's protobuf messages and the session's values. Header values: `raw_value` preferred, `value` fallback.

Answers that recur, such as the ones to response headers and the route to one destination, are encoded once and kept.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import HttpHeaders, ProcessingRequest, ProcessingResponse

from epp.extproc.events import (
    BodyMode,
    Continue,
    Direct,
    Event,
    Immediate,
    Modes,
    Piece,
    Replace,
    Reply,
    Reporting,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Route,
)
from epp.extproc.session import DESTINATION_HEADER

SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET_KEY = "x-gateway-destination-endpoint-subset"
LB_NAMESPACE = "envoy.lb"
SERVED_KEY = "x-gateway-destination-endpoint-served"
SCORES_KEY = "x-gateway-destination-endpoint-scores"
RESPONSE_HEADERS = frozenset({":status", "content-type", "content-encoding", "content-length"})

CONNECTION_FAILURE = 0x20
"""The bit of Envoy's `response.flags` that its access log shows as UF."""

DROPPED_HEADER = "x-llm-d-request-dropped-reason"


def decode(message: ProcessingRequest) -> Event:
    """One message of Envoy's as an event.

    Raises:
        ValueError: the message is of a kind that this version doesn't know.
    """
    decoder = _DECODERS.get(message.WhichOneof("request"))
    if decoder is None:
        raise ValueError("a message without a request or response part")
    return decoder(message)


def _headers(headers: HttpHeaders) -> dict[str, str]:
    # Envoy sends names in lower case, as HTTP/2 does.
    return {
        header.key: header.raw_value.decode("utf-8", "replace") or header.value for header in headers.headers.headers
    }


def _wanted(headers: HttpHeaders) -> dict[str, str]:
    """Of a response's headers those that are read, since nobody sees the others."""
    return {
        header.key: header.raw_value.decode("utf-8", "replace") or header.value
        for header in headers.headers.headers
        if header.key in RESPONSE_HEADERS
    }


def _modes(message: ProcessingRequest) -> Modes | None:
    if not message.HasField("protocol_config"):
        return None
    config = message.protocol_config
    return _announced(config.request_body_mode, config.response_body_mode)


@cache
def _announced(request: int, response: int) -> Modes:
    return Modes(BodyMode(request), BodyMode(response))


def _subset(message: ProcessingRequest) -> Sequence[str] | None:
    """The subset hint, as a list of strings or as one comma-separated string; None if there is none."""
    if not message.HasField("metadata_context"):
        return None
    namespace = message.metadata_context.filter_metadata.get(SUBSET_NAMESPACE)
    if namespace is None or SUBSET_KEY not in namespace.fields:
        return None
    value = namespace.fields[SUBSET_KEY]
    if value.WhichOneof("kind") == "list_value":
        return [item.string_value.strip() for item in value.list_value.values if item.string_value.strip()]
    return [part.strip() for part in value.string_value.split(",") if part.strip()]


def _request_headers(message: ProcessingRequest) -> Event:
    headers = message.request_headers
    observed = message.observability_mode
    return RequestHeaders(_headers(headers), headers.end_of_stream, _modes(message), _subset(message), observed)


def _request_body(message: ProcessingRequest) -> Event:
    body = message.request_body
    bare = body.end_of_stream_without_message
    return RequestBody(body.body, body.end_of_stream or bare, _subset(message), bare, body.grpc_message_compressed)


def _request_trailers(message: ProcessingRequest) -> Event:
    return RequestTrailers(_subset(message))


def _response_headers(message: ProcessingRequest) -> Event:
    headers, modes = message.response_headers, _modes(message)
    served, unreachable = _attributes(message) if message.attributes else (None, False)
    if message.HasField("metadata_context"):
        reported = message.metadata_context.filter_metadata.get(LB_NAMESPACE)
        if reported is not None and SERVED_KEY in reported.fields:
            served = reported.fields[SERVED_KEY].string_value or served
    return ResponseHeaders(_wanted(headers), headers.end_of_stream, served, unreachable, modes)


def _attributes(message: ProcessingRequest) -> tuple[str | None, bool]:
    """The endpoint that answered, and whether the connection failed, where the filter asks for these attributes."""
    served, unreachable = None, False
    for attributes in message.attributes.values():
        fields = attributes.fields
        if "upstream.address" in fields:
            served = fields["upstream.address"].string_value or None
        if "response.flags" in fields:
            unreachable = bool(int(fields["response.flags"].number_value) & CONNECTION_FAILURE)
    return (None if unreachable else served), unreachable


def _response_body(message: ProcessingRequest) -> Event:
    body = message.response_body
    bare = body.end_of_stream_without_message
    return ResponseBody(body.body, body.end_of_stream or bare, bare, body.grpc_message_compressed)


_DECODERS: dict[str | None, Callable[[ProcessingRequest], Event]] = {
    "request_headers": _request_headers,
    "request_body": _request_body,
    "request_trailers": _request_trailers,
    "response_headers": _response_headers,
    "response_body": _response_body,
    "response_trailers": lambda _: ResponseTrailers(),
}


def encode(reply: Reply) -> bytes:
    """One reply as the bytes of a ProcessingResponse."""
    if isinstance(reply, Piece):
        return _piece(reply)
    if isinstance(reply, Continue):
        return _continue(reply)
    if isinstance(reply, Route):
        # A generated request id, like scores, is never seen again.
        return _route_message(reply).SerializeToString() if reply.unique else _route(reply)
    if isinstance(reply, Replace):
        return _replace(reply)
    if isinstance(reply, Direct):
        return _direct(reply)
    return _reporting(reply) if isinstance(reply, Reporting) else _immediate(reply)


def _direct(reply: Direct) -> bytes:
    response = ProcessingResponse()
    immediate = response.immediate_response
    immediate.status.code = reply.status
    immediate.body = reply.body
    immediate.headers.set_headers.append(_option("content-type", reply.content_type))
    encoded: bytes = response.SerializeToString()
    return encoded


def _reporting(reply: Reporting) -> bytes:
    response = ProcessingResponse()
    for namespace, numbers in reply.metadata.items():
        response.dynamic_metadata[namespace] = dict(numbers)
    # Messages one after the other are one message with the fields of both.
    encoded: bytes = encode(reply.reply) + response.SerializeToString()
    return encoded


def _replace(reply: Replace) -> bytes:
    response = ProcessingResponse()
    common = getattr(response, reply.phase).response
    common.body_mutation.body = reply.data
    for name, value in reply.set_headers:
        common.header_mutation.set_headers.append(_option(name, value))
    encoded: bytes = response.SerializeToString()
    return encoded


def _piece(reply: Piece) -> bytes:
    response = ProcessingResponse()
    streamed = getattr(response, reply.phase).response.body_mutation.streamed_response
    streamed.body = reply.data
    if reply.bare:
        streamed.end_of_stream_without_message = True
    elif reply.end:
        streamed.end_of_stream = True
    if reply.compressed:
        streamed.grpc_message_compressed = True
    encoded: bytes = response.SerializeToString()
    return encoded


def _option(name: str, value: str) -> HeaderValueOption:
    # With append and append_action unset Envoy overwrites; key and raw_value only, since it refuses both values.
    return HeaderValueOption(header=HeaderValue(key=name, raw_value=value.encode()))


@lru_cache(maxsize=1024)
def _continue(reply: Continue) -> bytes:
    response = ProcessingResponse()
    part = getattr(response, reply.phase)
    part.SetInParent()
    for name, value in reply.set_headers:
        part.response.header_mutation.set_headers.append(_option(name, value))
    if reply.streamed:
        response.mode_override.response_body_mode = BodyMode.STREAMED
        response.mode_override.response_trailer_mode = ProcessingMode.SEND
        part.response.header_mutation.remove_headers.append("content-length")  # of a body that is about to change
    encoded: bytes = response.SerializeToString()
    return encoded


@lru_cache(maxsize=4096)
def _route(reply: Route) -> bytes:
    encoded: bytes = _route_message(reply).SerializeToString()
    return encoded


def _route_message(reply: Route) -> ProcessingResponse:
    response = ProcessingResponse()
    common = getattr(response, reply.phase).response
    common.clear_route_cache = True
    mutation = common.header_mutation
    mutation.set_headers.append(_option(DESTINATION_HEADER, reply.answer.destination))
    for name, value in reply.answer.set_headers:
        mutation.set_headers.append(_option(name, value))
    mutation.remove_headers.extend(reply.remove)
    if reply.answer.body is not None:
        common.body_mutation.body = reply.answer.body
    metadata = response.dynamic_metadata
    metadata[LB_NAMESPACE] = {DESTINATION_HEADER: reply.answer.destination}
    if reply.answer.scores is not None:
        metadata[LB_NAMESPACE][SCORES_KEY] = dict(reply.answer.scores)
    return response


def _immediate(reply: Immediate) -> bytes:
    response = ProcessingResponse()
    immediate = response.immediate_response
    error = reply.error
    immediate.status.code = error.status
    immediate.body = error.payload(reply.request_id)
    immediate.headers.set_headers.append(_option("content-type", "application/json"))
    if error.reason is not None:
        immediate.headers.set_headers.append(_option(DROPPED_HEADER, error.reason))
    encoded: bytes = response.SerializeToString()
    return encoded
