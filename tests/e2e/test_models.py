"""Models with a real Envoy and simulated engines: names rewritten there and back; engines with different models."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from epp.engine.options import EngineOptions
from epp.engine.server import EngineServer
from epp.envoy.options import EnvoyOptions, parse_address
from epp.envoy.process import LOOPBACK, EnvoyProcess
from tests.e2e.clients import Answer, call
from tests.e2e.harness import LIMIT, VARIANTS, Picker, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

OBJECTS = [
    {
        "apiVersion": "llm-d.ai/v1alpha2",
        "kind": "InferenceModelRewrite",
        "metadata": {"name": "canary"},
        "spec": {
            "rules": [
                {"matches": [{"model": {"value": "a-name-that-is-longer"}}], "targets": [{"modelRewrite": "llama-8b"}]},
                {"matches": [{"model": {"value": "ll"}}], "targets": [{"modelRewrite": "llama-8b"}]},
            ]
        },
    }
]
REWRITING = ("standalone", "full-duplex", "partial", "buffered", "original-dst")


def write(file: Path, addresses: list[str]) -> None:
    """The endpoints file: these engines, and the objects."""
    entries = [
        {"name": f"pod-{port}", "address": host, "port": int(port)}
        for host, _, port in (address.rpartition(":") for address in addresses)
    ]
    file.write_text(yaml.safe_dump_all([{"endpoints": entries}, *OBJECTS]))


class Gateways:
    """Engines with these models, a picker, and an Envoy for each variant."""

    def __init__(self, stack: AsyncExitStack, engines: list[EngineServer], picker: Picker) -> None:
        self.engines = engines
        self.picker = picker
        self._stack = stack
        self._started: dict[str, EnvoyProcess] = {}

    @classmethod
    async def start(cls, stack: AsyncExitStack, models: list[EngineOptions], file: Path) -> "Gateways":
        engines = [await stack.enter_async_context(EngineServer(options)) for options in models]
        write(file, [engine.address for engine in engines])
        return cls(stack, engines, await stack.enter_async_context(Picker([], "--endpoints-file", str(file))))

    async def envoy(self, variant: str) -> str:
        """The address of the Envoy of that variant; started when it is first asked for."""
        if variant not in self._started:
            endpoints = tuple(parse_address(engine.address, "engine") for engine in self.engines)
            options = EnvoyOptions(
                listen=LOOPBACK,
                endpoints=endpoints,
                picker=(self.picker.address,),
                max_request_body_bytes=LIMIT,
                **VARIANTS[variant],
            )
            self._started[variant] = await self._stack.enter_async_context(EnvoyProcess(options))
        return str(self._started[variant].address)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rewriting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateways]:
    """Two engines that serve llama-8b, and rules that clients know it by other names."""
    async with AsyncExitStack() as stack:
        yield await Gateways.start(stack, [EngineOptions()] * 2, tmp_path_factory.mktemp("models") / "endpoints.yaml")


def chat(model: str, content: str = "hello", **fields: Any) -> bytes:
    body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": content}], **fields}
    return json.dumps(body, indent=1).encode()


def names(answer: Answer) -> set[str]:
    """The models that an answer, or its events, name."""
    text = answer.body.decode()
    said = [text] if text.startswith("{") else [line[5:] for line in text.splitlines() if line.startswith("data: {")]
    return {json.loads(each)["model"] for each in said}


@pytest.mark.parametrize("variant", REWRITING)
@pytest.mark.parametrize("model", ["a-name-that-is-longer", "ll", "llama-8b"])
@pytest.mark.parametrize("length", [True, False], ids=["sized", "chunked"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "events"])
async def test_the_client_sees_the_name_it_asked_for(
    rewriting: Gateways, variant: str, model: str, length: bool, stream: bool
) -> None:
    """The engine knows one name only and answers 200; the answer comes whole, with the name that was asked for."""
    address = await rewriting.envoy(variant)
    padding = {"user": "u" * 100_000} if model == "ll" else {}
    for http in ("http1", "http2"):
        answer = await call(
            http, address, path="/v1/chat/completions", body=chat(model, stream=stream, **padding), length=length
        )
        assert (answer.status, answer.complete) == (200, True), answer.body
        assert names(answer) == {model}
        if "content-length" in answer.headers:
            assert int(answer.headers["content-length"]) == len(answer.body)


MODELS = (
    EngineOptions(model="llama-8b", loras=("tuned",)),
    EngineOptions(model="qwen-7b"),
    EngineOptions(model="llama-8b", loras=("tuned",)),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def differing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateways]:
    """Three engines with two models."""
    async with AsyncExitStack() as stack:
        yield await Gateways.start(stack, list(MODELS), tmp_path_factory.mktemp("models") / "endpoints.yaml")


@pytest.mark.parametrize("variant", ["standalone", "full-duplex"])
@pytest.mark.parametrize("model", ["llama-8b", "qwen-7b", "tuned", "ll"])
async def test_three_engines_with_two_models(differing: Gateways, variant: str, model: str) -> None:
    """Each request finds an engine that has its model, an adapter's and a rewritten one's too: none says 404."""
    address = await differing.envoy(variant)
    for _ in range(6):
        answer = await call("http1", address, path="/v1/chat/completions", body=chat(model))
        assert (answer.status, names(answer)) == (200, {model}), answer.body


@pytest.mark.parametrize("variant", ["standalone", "full-duplex"])
async def test_a_model_that_nobody_serves_and_the_list_of_those_there_are(differing: Gateways, variant: str) -> None:
    address = await differing.envoy(variant)
    answer = await call("http1", address, path="/v1/chat/completions", body=chat("lama-8b"))
    assert answer.status == 404
    assert json.loads(answer.body)["error"]["message"].endswith("did you mean `llama-8b`?")
    answer = await call("http1", address, method="GET", path="/v1/models")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    page = json.loads(answer.body)
    served, rewritten = ["llama-8b", "tuned", "qwen-7b"], ["a-name-that-is-longer", "ll"]
    assert (page["object"], [card["id"] for card in page["data"]]) == ("list", served + rewritten)
    answer = await call("http1", address, method="GET", path="/v1/models/tuned")
    assert (answer.status, json.loads(answer.body)["parent"]) == (200, "llama-8b")


async def test_no_request_is_left_behind(rewriting: Gateways) -> None:
    await rewriting.envoy("standalone")
    await until(rewriting.picker.idle, "nothing is in flight")
