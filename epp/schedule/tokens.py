"""The tokenizer: before anything is decided it may say better than bytes do which tokens a request's prompts have."""

import asyncio

from epp.plugin import Body, Plugged, Request
from epp.schedule.fetch import deadline_of
from epp.schedule.guard import Guard


async def tokenized(tokenizer: Plugged, request: Request, data: bytes, guard: Guard) -> Request:
    """The request with the prompts that the tokenizer makes; as it is, where that fails or takes too long.

    Args:
        tokenizer: see `epp.plugin.Tokenizer`.
        request: as it was read.
        data: the request's body.
        guard: counts what fails.
    """
    plugin = tokenizer.plugin
    if not request.body.prompts or (getattr(plugin, "media_only", False) and not request.body.media):
        return request
    deadline = deadline_of(tokenizer)
    try:
        async with asyncio.timeout(deadline):
            body = await guard.wait("DataProducer", tokenizer, plugin.tokenize, request, data)
    except TimeoutError:
        guard.fault("DataProducer", tokenizer, "raised", f"no answer within {deadline:g} s")
        return request
    if body is None:
        return request
    if not isinstance(body, Body):
        guard.fault("DataProducer", tokenizer, "shape", f"a Body is due, not {body!r:.100}")
        return request
    return request.with_body(body)
