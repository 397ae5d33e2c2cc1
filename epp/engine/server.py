"""A simulated vLLM behind HTTP, in real time."""

import asyncio
import contextlib
import time
from itertools import count
from random import Random
from types import TracebackType
from typing import Self
from uuid import uuid4

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from epp.engine import faults, openai
from epp.engine.driver import Driver, EngineStoppedError, Stream
from epp.engine.metrics import CONTENT_TYPE, EngineInfo, EngineMetrics
from epp.engine.model import Model, Request
from epp.engine.openai import Answer, ApiError
from epp.engine.options import EngineOptions

MAX_BODY = 64 * 2**20
KEEP_ALIVE = 3600.0


class EngineServer:
    """One engine: ``async with EngineServer(EngineOptions()) as engine: ... engine.address``.

    Attributes:
        model: the scheduler, for a look at its queues and blocks.
        metrics: the counters behind ``/metrics``.
        address: ``host:port``, once entered.
    """

    def __init__(self, options: EngineOptions) -> None:
        """Builds the engine; nothing listens yet.

        Raises:
            ValueError: the options don't fit together.
        """
        config = options.config()
        self.options = options
        self.model = Model(config, Random(options.seed))
        max_loras = config.max_loras if options.loras else 0
        self._started = time.time()
        info = EngineInfo(
            options.model, config.block_size, config.num_blocks, config.max_model_len, max_loras, self._started
        )
        self.metrics = EngineMetrics(info)
        self.address = ""
        self._driver = Driver(self.model, self.metrics)
        self._limits = openai.Limits(config.max_model_len, options.named_profile().answer_tokens, options.seed)
        self._rng = Random(options.seed)
        self._numbers = count()
        self._runner = web.AppRunner(
            self._app(),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=KEEP_ALIVE,
            shutdown_timeout=1.0,
        )
        self._task: asyncio.Task[None] | None = None

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def __aenter__(self) -> Self:
        """Listens, and starts stepping.

        Raises:
            OSError: the address can't be had.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.options.host, self.options.port).start()
        except OSError:
            await self._runner.cleanup()
            raise
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"
        self._task = asyncio.create_task(self._driver.run(), name=f"engine {self.address}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes no more connections, waits ``grace`` for the running requests, cuts the rest."""
        for site in self._runner.sites:
            await site.stop()
        if self.options.grace > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.drained(), self.options.grace)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._runner.cleanup()

    async def drained(self) -> None:
        """Waits until no request is in the engine."""
        await self._driver.drained()

    async def _health(self, _: web.Request) -> web.Response:
        alive = self._task is not None and not self._task.done()
        return web.Response(status=200 if alive else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        page = self.metrics.render(self._driver.gauges())
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE})

    async def _models(self, _: web.Request) -> web.Response:
        options = self.options
        body = openai.models(options.model, options.loras, self.model.config.max_model_len, int(self._started))
        return web.Response(body=body, content_type="application/json")

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(http, openai.ChatBody, "chatcmpl")

    async def _completion(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(http, openai.CompletionBody, "cmpl")

    async def _generate(
        self, http: web.Request, kind: type[openai.ChatBody] | type[openai.CompletionBody], prefix: str
    ) -> web.StreamResponse:
        faults.maybe_fail(http, self.options.failure_rate, self._rng)
        die_after = faults.die_after(http)
        body = openai.decode(await http.read(), kind)
        name = http.headers.get("x-request-id") or uuid4().hex
        lora = self._adapter(body.model)
        request = openai.to_request(body, f"{name}/{next(self._numbers)}", lora, self._limits)
        answer = Answer(f"{prefix}-{name}", body.model or self.options.model, int(time.time()), kind is openai.ChatBody)
        stream = self._driver.submit(request)
        try:
            if body.stream:
                return await _stream(http, answer, stream, with_usage=body.with_usage, die_after=die_after)
            tokens = await stream.all()
            if die_after is not None:
                await faults.cut(http)
            full = answer.full(tokens, stream.finish_reason or "", _usage(stream))
            return web.Response(body=full, content_type="application/json")
        finally:
            self._driver.abort(stream)

    async def _embeddings(self, http: web.Request) -> web.Response:
        faults.maybe_fail(http, self.options.failure_rate, self._rng)
        body = openai.decode(await http.read(), openai.EmbeddingBody)
        lora = self._adapter(body.model)
        inputs = openai.read_inputs(body.input, "input")
        if max(map(len, inputs)) > self.model.config.max_model_len:
            raise ApiError(400, f"an input is longer than {self.model.config.max_model_len} tokens", "input")
        streams = [self._driver.submit(Request(f"embd/{next(self._numbers)}", one, 0, lora=lora)) for one in inputs]
        try:
            for stream in streams:
                await stream.all()
        finally:
            for stream in streams:
                self._driver.abort(stream)
        total = sum(map(len, inputs))
        as_base64 = body.encoding_format == "base64"
        answer = {
            "id": f"embd-{http.headers.get('x-request-id') or uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": body.model or self.options.model,
            "data": [openai.embedding(one, index, as_base64=as_base64) for index, one in enumerate(inputs)],
            "usage": {"prompt_tokens": total, "total_tokens": total},
        }
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    def _adapter(self, model: str | None) -> str | None:
        """The adapter of that name; None for the base model or if the request names nothing."""
        if model in (None, self.options.model):
            return None
        if model not in self.options.loras:
            raise ApiError(404, f"The model `{model}` does not exist.", "model")
        return model


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return web.json_response(error.body, status=error.status)
    except EngineStoppedError:
        return web.json_response(ApiError(503, "the engine is shutting down").body, status=503)


def _usage(stream: Stream) -> dict[str, object]:
    return openai.usage(len(stream.request.prompt), stream.produced, stream.cached_tokens)


async def _stream(
    http: web.Request, answer: Answer, stream: Stream, *, with_usage: bool, die_after: int | None
) -> web.StreamResponse:
    """Sends the headers at once, then one write a step with everything that the step brought."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(http)
    chunks = answer.chunks()
    events: list[bytes] = []
    sent = 0
    while not stream.done:
        if events:
            await response.write(b"".join(events))
        try:
            tokens = await stream.more()
        except EngineStoppedError:
            await faults.cut(http)
        events = chunks.events(tokens, opening=not sent, finish_reason=stream.finish_reason)
        sent += len(events)
        if die_after is not None and sent >= die_after:
            events = events[: len(events) - (sent - die_after)]
            await response.write(b"".join(events))
            await faults.cut(http)
    if with_usage:
        events.append(answer.usage_chunk(_usage(stream)))
    await response.write_eof(b"".join([*events, openai.DONE]))
    return response
