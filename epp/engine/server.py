"""A simulated vLLM behind HTTP, in real time."""

import asyncio
import contextlib
import time
from itertools import count, zip_longest
from random import Random
from types import TracebackType
from typing import Self
from uuid import uuid4

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from epp.engine import faults, openai
from epp.engine.answers import DONE, Answer
from epp.engine.driver import Driver, EngineStoppedError, Stream
from epp.engine.http_metrics import HttpMetrics
from epp.engine.kv_events import KvEventPublisher
from epp.engine.metrics import EngineMetrics
from epp.engine.model import Model, Request
from epp.engine.openai import ApiError, Choice
from epp.engine.options import EngineOptions
from epp.engine.page import CONTENT_TYPE, EngineInfo, Page
from epp.engine.text import Text
from epp.engine.tokens import token_text

MAX_BODY = 64 * 2**20
KEEP_ALIVE = 3600.0
RANK_HEADER = "x-data-parallel-rank"
VERSION = "0.32.0"
"""The vLLM whose behaviour is modelled."""


class EngineServer:
    """One engine: ``async with EngineServer(EngineOptions()) as engine: ... engine.address``.

    Attributes:
        models: the scheduler of each data-parallel rank, for a look at its queues and blocks.
        metrics: the counters behind ``/metrics``, of each rank.
        publishers: of KV events, one a rank, if they were asked for.
        address: ``host:port``, once entered.
    """

    def __init__(self, options: EngineOptions) -> None:
        """Builds the engine; nothing listens yet.

        Raises:
            ValueError: the options don't fit together.
        """
        config = options.config()
        self.options = options
        ranks = options.ranks()
        self.models = [Model(config, Random(options.seed + rank)) for rank in ranks]
        self.metrics = [EngineMetrics(config.max_model_len) for _ in ranks]
        self.address = ""
        self._started = time.time()
        self._loras = {name: number for number, name in enumerate(options.loras, start=1)}
        self.publishers = [
            KvEventPublisher(options.kv_events, rank, options.kv_events_format, self._loras)
            for rank in ranks
            if options.kv_events is not None and options.kv_events.enabled
        ]
        publish = [publisher.publish for publisher in self.publishers]
        self._drivers = [Driver(*parts) for parts in zip_longest(self.models, self.metrics, publish)]
        self._page = Page(
            EngineInfo(
                options.model,
                config.block_size,
                config.num_blocks,
                config.max_model_len,
                config.max_loras,
                self._started,
                ranks,
            )
        )
        self._http_metrics = HttpMetrics()
        self._limits = openai.Limits(
            config.max_model_len, options.named_profile().answer_tokens, options.seed, config.block_size
        )
        self._faults = faults.Faults(options.failure_rate, options.failure_statuses, Random(options.seed))
        self._numbers = count()
        self._runner = web.AppRunner(
            self._app(),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=KEEP_ALIVE,
            shutdown_timeout=1.0,
        )
        self._open = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def model(self) -> Model:
        """The first rank's scheduler."""
        return self.models[0]

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._http_metrics.middleware(), _errors])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        app.router.add_post("/v1/load_lora_adapter", self._load_lora)
        app.router.add_post("/v1/unload_lora_adapter", self._unload_lora)
        app.router.add_post("/reset_prefix_cache", self._reset_prefix_cache)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/version", self._version)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics_page)
        return app

    async def __aenter__(self) -> Self:
        """Listens, and starts stepping.

        Raises:
            OSError: an address can't be had.
        """
        try:
            for publisher in self.publishers:
                await self._open.enter_async_context(publisher)
            await self._runner.setup()
            self._open.push_async_callback(self._runner.cleanup)
            await web.TCPSite(self._runner, self.options.host, self.options.port).start()
        except OSError:
            await self._open.aclose()
            raise
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"
        self._tasks = [asyncio.create_task(driver.run(), name=f"engine {self.address}") for driver in self._drivers]
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
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._open.aclose()

    async def drained(self) -> None:
        """Waits until no request is in the engine."""
        for driver in self._drivers:
            await driver.drained()

    async def _health(self, _: web.Request) -> web.Response:
        alive = bool(self._tasks) and not any(task.done() for task in self._tasks)
        return web.Response(status=200 if alive else 503)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def _metrics_page(self, _: web.Request) -> web.Response:
        gauges = [driver.gauges() for driver in self._drivers]
        page = self._page.render(self.metrics, gauges, self._http_metrics.render())
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE})

    async def _list_models(self, _: web.Request) -> web.Response:
        body = openai.models(self.options.model, self._loras, self._limits.max_model_len, int(self._started))
        return web.Response(body=body, content_type="application/json")

    async def _tokenize(self, http: web.Request) -> web.Response:
        body = openai.decode(await http.read(), openai.TokenizeBody)
        self._adapter(body.model)
        tokens = body.tokens().tolist()
        return web.json_response(
            {
                "count": len(tokens),
                "max_model_len": self._limits.max_model_len,
                "tokens": tokens,
                "token_strs": None,
            }
        )

    async def _detokenize(self, http: web.Request) -> web.Response:
        body = openai.decode(await http.read(), openai.DetokenizeBody)
        text = b"".join(map(token_text, body.tokens)).rstrip(b"\0").decode(errors="replace")
        return web.json_response({"prompt": text})

    async def _load_lora(self, http: web.Request) -> web.Response:
        body = openai.decode(await http.read(), openai.LoraBody)
        name = body.lora_name
        if not self.model.config.max_loras:
            raise ApiError(400, "this engine takes no adapters: start it with --max-loras", kind="InvalidUserInput")
        if not name or not body.lora_path:
            raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.", kind="InvalidUserInput")
        if name == self.options.model or (name in self._loras and not body.load_inplace):
            message = f"The lora adapter '{name}' has already been loaded."
            raise ApiError(400, message, kind="InvalidUserInput")
        self._loras[name] = max(self._loras.values(), default=0) + 1
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_lora(self, http: web.Request) -> web.Response:
        name = openai.decode(await http.read(), openai.LoraBody).lora_name
        if not name:
            raise ApiError(400, "'lora_name' needs to be provided to unload a LoRA adapter.", kind="InvalidUserInput")
        if self._loras.pop(name, None) is None:
            raise ApiError(404, f"The lora adapter '{name}' cannot be found.")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _reset_prefix_cache(self, _: web.Request) -> web.Response:
        cleared = [driver.clear_cache() for driver in self._drivers]
        if not all(cleared):
            raise ApiError(500, "the prefix cache is in use: wait until no request runs")
        return web.json_response({"success": True})

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(http, openai.ChatBody, "chatcmpl")

    async def _completion(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(http, openai.CompletionBody, "cmpl")

    async def _generate(
        self, http: web.Request, kind: type[openai.ChatBody] | type[openai.CompletionBody], prefix: str
    ) -> web.StreamResponse:
        fault = await self._faults.met(http)
        body = openai.decode(await http.read(), kind)
        driver = self._driver(http)
        name = http.headers.get("x-request-id") or uuid4().hex
        lora = self._adapter(body.model)
        choices = openai.to_choices(body, f"{name}/{next(self._numbers)}", lora, self._limits)
        chat, answers = kind is openai.ChatBody, body.n or 1
        served = body.model or self.options.model
        answer = Answer(
            f"{prefix}-{name}",
            served,
            int(time.time()),
            chat,
            answers,
            body.return_token_ids,
            self._limits.block_size,
            body.usage_in_each,
        )
        stream = driver.submit(*(choice.request for choice in choices), answers=answers)
        try:
            if body.stream:
                return await _stream(http, answer, choices, stream, with_usage=body.with_usage, fault=fault)
            await stream.all()
            await fault.before_whole(http)
            full = answer.full(choices, stream.sequences)
            return web.Response(body=full, content_type="application/json")
        finally:
            driver.abort(stream)

    async def _embeddings(self, http: web.Request) -> web.Response:
        await self._faults.met(http)
        body = openai.decode(await http.read(), openai.EmbeddingBody)
        driver = self._driver(http)
        lora = self._adapter(body.model)
        inputs = openai.read_inputs(body.input, "input")
        if max(map(len, inputs)) > self._limits.max_model_len:
            raise ApiError(400, f"an input is longer than {self._limits.max_model_len} tokens", "input")
        texts = [Text(one, self._limits.block_size, lora=lora) for one in inputs]
        requests = [Request(f"embd/{next(self._numbers)}", text.prompt_tokens, 0, text, lora=lora) for text in texts]
        stream = driver.submit(*requests)
        try:
            await stream.all()
        finally:
            driver.abort(stream)
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

    def _driver(self, http: web.Request) -> Driver:
        """The rank that the request names, or the one with the least to do."""
        named = http.headers.get(RANK_HEADER)
        if named is None:
            return min(self._drivers, key=len)
        ranks = [str(rank) for rank in self.options.ranks()]
        if named not in ranks:
            raise ApiError(400, f"{RANK_HEADER}: {named!r} is none of the ranks {', '.join(ranks)}")
        return self._drivers[ranks.index(named)]

    def _adapter(self, model: str | None) -> str | None:
        """The adapter of that name; None for the base model or if the request names nothing."""
        if model in (None, self.options.model):
            return None
        if model not in self._loras:
            names = ", ".join([self.options.model, *self._loras])
            raise ApiError(404, f"The model `{model}` does not exist. Valid aliases: {names}.", "model")
        return model


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return web.json_response(error.body, status=error.status)
    except EngineStoppedError:
        return web.json_response(ApiError(503, "the engine is shutting down").body, status=503)


async def _stream(
    http: web.Request, answer: Answer, choices: list[Choice], stream: Stream, *, with_usage: bool, fault: faults.Fault
) -> web.StreamResponse:
    """Sends the headers at once, then one write a step with everything that the step brought."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(http)
    writers = [answer.writer(choice, index) for index, choice in enumerate(choices)]
    events: list[bytes] = []
    opened = False
    while not stream.done:
        if events:
            await response.write(b"".join(events))
        try:
            taken = await stream.more()
        except EngineStoppedError:
            await faults.cut(http)
        events = [] if opened else answer.opening(choices)
        opened = True
        for writer, tokens, sequence in zip(writers, taken, stream.sequences, strict=True):
            events += writer.events(tokens, sequence)
        await fault.in_stream(http, response, events)
    if with_usage:
        events.append(answer.usage_event(stream.sequences))
    await response.write_eof(b"".join([*events, DONE]))
    return response
