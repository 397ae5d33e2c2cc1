"""What a request is once it has been read, and what became of it.

These are msgspec's structs: as frozen as a dataclass, and made in a tenth of the time.
"""

from collections.abc import Mapping

import msgspec

BYTES_PER_TOKEN = 4
"""The estimate that llm-d's token producer uses when no tokenizer is configured."""


class Body(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a parser reads out of a request's body.

    Attributes:
        model: the model that the client names; "" where the format has none.
        prompts: for each prompt the bytes that an engine's prefix cache depends on, in their order.
        cache_salt: separates the cache of one tenant from another's; "" for none.
        stream: whether the client asks for a streamed answer.
        max_tokens: the most tokens to generate; None if the client doesn't say.
        media: a digest of each picture, sound and video, in their order.
    """

    model: str = ""
    prompts: tuple[bytes, ...] = ()
    cache_salt: str = ""
    stream: bool = False
    max_tokens: int | None = None
    media: tuple[bytes, ...] = ()


class Request(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A request as plugins see it.

    Attributes:
        id: `x-request-id`, the client's or a generated one; not unique among concurrent requests.
        path: of the URL, without the query.
        headers: names in lower case; of several headers of one name, the last.
        body: what the parser read.
        size: bytes of the body.
        parser: the name of the parser that read it; "" for a request without a body.
        priority: negative is sheddable; 0 without an objective.
        objective: the name of the InferenceObjective that the client asks for, or "".
        fairness_id: whom the request is accounted to.
        attributes: what header readers have found, by `name/producer`.
        client_model: the model that the client names, if a rewrite has put another one in its place; "" otherwise.
    """

    id: str
    path: str
    headers: Mapping[str, str]
    body: Body = Body()
    size: int = 0
    parser: str = ""
    priority: int = 0
    objective: str = ""
    fairness_id: str = "default-flow"
    attributes: Mapping[str, str] = {}
    client_model: str = ""

    def for_model(self, target: str) -> "Request":
        """The same for another model than the client names."""
        body = msgspec.structs.replace(self.body, model=target)
        return msgspec.structs.replace(self, body=body, client_model=self.body.model)

    def with_body(self, body: Body) -> "Request":
        """The same with other prompts."""
        return msgspec.structs.replace(self, body=body)

    def without_prompts(self) -> "Request":
        """The same without its prompts, for whoever keeps it as long as its stream is open."""
        body = self.body
        light = Body(body.model, (), body.cache_salt, body.stream, body.max_tokens)
        return msgspec.structs.replace(self, body=light)

    @property
    def model(self) -> str:
        """The model that is asked: the client's, or what a rewrite has made of it; "" where the format has none."""
        return self.body.model

    @property
    def prompt_bytes(self) -> int:
        """The length of all prompts in bytes."""
        return sum(map(len, self.body.prompts))

    @property
    def prompt_tokens(self) -> float:
        """The estimated number of prompt tokens (see `BYTES_PER_TOKEN`)."""
        return self.prompt_bytes / BYTES_PER_TOKEN


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts as the engine reports them; None where it doesn't."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


class Outcome(msgspec.Struct, eq=False, gc=False):
    """What became of a request, filled in while its response passes. None means that the body mode doesn't show it.

    Attributes:
        status: the HTTP status of the response.
        served_by: `ip:port` of the endpoint that produced the response, as Envoy reports it.
        cause: how it ended: "done", "client-gone", "cut" (the engine or Envoy broke off), "refused" or "answered" (both
            by us).
        first_byte: seconds from the request's arrival to the first byte of the response's body.
        duration: seconds from the request's arrival to the end of its stream.
        response_bytes: length of the response's body.
        streaming: whether the response is an event stream.
    """

    status: int | None = None
    served_by: str | None = None
    cause: str | None = None
    first_byte: float | None = None
    duration: float | None = None
    response_bytes: int | None = None
    streaming: bool | None = None
    usage: Usage = Usage()
