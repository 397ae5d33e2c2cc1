"""served-model-filter: who serves a model, by what the engines say; and what a client is told if nobody does."""

from collections.abc import Sequence

import pytest
from epp_plugins.served_models import ServedModelFilter

from epp.errors import NotFound
from epp.keys import SERVED_MODELS
from epp.plugin import Candidates, Plugged, Profile, Request, Router
from epp.pool import Endpoint
from epp.schedule import Unguarded, screen
from epp.testing import candidates, context, pool, request

LLAMA, QWEN = ["llama-8b", "adapter"], ["qwen-7b"]

WHO = {
    "one has it": ("qwen-7b", [LLAMA, QWEN, LLAMA], [False, True, False]),
    "several have it": ("llama-8b", [LLAMA, QWEN, LLAMA], [True, False, True]),
    "an adapter": ("adapter", [LLAMA, QWEN], [True, False]),
    "who doesn't say stays": ("qwen-7b", [LLAMA, QWEN, []], [False, True, True]),
    "nobody says": ("qwen-7b", [[], []], [True, True]),
    "nobody has it": ("gpt", [LLAMA, QWEN], [False, False]),
    "all have the same": ("gpt", [QWEN, QWEN], [True, True]),
    "one says, and has another": ("gpt", [QWEN, []], [True, True]),
    "no model": ("", [LLAMA, QWEN], [True, True]),
}


def keep(model: str, c: Candidates, *, enabled: bool = True) -> list[bool]:
    mask = ServedModelFilter(ServedModelFilter.Parameters(enabled=enabled), context()).screen(
        request("a", model=model), c
    )
    return [True] * len(c) if mask is None else mask.tolist()


@pytest.mark.parametrize(("model", "models", "kept"), WHO.values(), ids=WHO)
def test_who_serves_it(model: str, models: Sequence[Sequence[str]], kept: list[bool]) -> None:
    assert keep(model, candidates(models=models)) == kept


def test_switched_off() -> None:
    assert keep("gpt", candidates(models=[LLAMA, QWEN]), enabled=False) == [True, True]


def test_what_engines_say_may_change() -> None:
    """A restart voids it, an engine that leaves takes it along, and one that says the same again is the same."""
    own = pool(models=[LLAMA, QWEN])
    assert keep("qwen-7b", candidates(of=own)) == [False, True]
    own.restarted(0)
    assert keep("qwen-7b", candidates(of=own)) == [True, True]
    own.write_set(0, SERVED_MODELS, ("", *LLAMA))
    assert keep("qwen-7b", candidates(of=own)) == [False, True]
    own.remove("default/pod-1")
    assert keep("qwen-7b", candidates(of=own)) == [True]
    own.add(Endpoint("pod-9", "10.0.0.9", 8000))
    assert keep("qwen-7b", candidates(of=own)) == [True, True]


def router(plugin: object) -> Router:
    nothing = Plugged("x", "x", None)
    plugged = Plugged("served-model-filter", "served-model-filter", plugin)
    return Router({"default": Profile("default", (), (), nothing)}, nothing, (), screeners=(plugged,))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("llama-7b", "The model `llama-7b` does not exist; did you mean `llama-8b`?"),
        ("zzz", "The model `zzz` does not exist; there are: adapter, llama-8b, qwen-7b"),
    ],
)
def test_nobody_serves_it(model: str, text: str) -> None:
    """404, with the nearest name or else all of them."""
    asked: Request = request("a", model=model)
    served = router(ServedModelFilter(ServedModelFilter.Parameters(), context()))
    with pytest.raises(NotFound) as raised:
        screen(served, asked, candidates(models=[LLAMA, QWEN]), Unguarded())
    assert raised.value.message == text
