"""A tokenizer gives a request other prompts; where it can't, the request stays as it is."""

import asyncio

import pytest

from epp.plugin import Body, Plugged, Request
from epp.schedule import tokenized
from epp.testing import request
from tests.unit.schedule.parts import Noting


class Guard(Noting):
    async def wait(self, point, plugged, function, *arguments):
        try:
            return await function(*arguments)
        except ZeroDivisionError:
            self.faults.append((point, plugged.name, "raised"))


class Says:
    """A tokenizer that does as it is told, and notes what it gets."""

    def __init__(self, says, *, media_only=False, deadline=None):
        self._says, self.media_only, self.asked = says, media_only, []
        if deadline is not None:
            self.deadline = deadline

    async def tokenize(self, sent, data):
        self.asked.append(data)
        if self._says == "raises":
            raise ZeroDivisionError
        if self._says == "hangs":
            await asyncio.Event().wait()
        return self._says


BODY = Body("model", (b"\1\0\0\0",))


async def ask(tokenizer, sent):
    guard = Guard()
    found = await tokenized(Plugged("mine", "test", tokenizer), sent, b"data", guard)
    return found, [fault for _, _, fault in guard.faults]


async def test_other_prompts():
    """All but the prompts stays, and the body is what the client sent."""
    sent, says = request("a prompt", headers={"a": "b"}), Says(BODY)
    found, faults = await ask(says, sent)
    assert (found.body, found.headers, found.id, found.prompt_tokens) == (BODY, {"a": "b"}, sent.id, 1)
    assert (says.asked, faults) == ([b"data"], [])


@pytest.mark.parametrize(
    ("says", "faults"),
    [("raises", ["raised"]), ("hangs", ["raised"]), (b"bytes", ["shape"]), (None, [])],
    ids=["raises", "hangs", "no Body", "nothing"],
)
async def test_one_that_fails(says, faults):
    """It is counted, and the request goes on with its bytes."""
    sent = request("a prompt")
    assert await ask(Says(says, deadline=0.01), sent) == (sent, faults)


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        pytest.param(request("a"), False, id="no media"),
        pytest.param(request([]), False, id="no prompts"),
        pytest.param(Request("r", "/", {}, Body("m", (b"a",), media=(b"digest",))), True, id="media"),
    ],
)
async def test_only_media(sent, asked):
    """Requests that can't be any different don't come."""
    says = Says(BODY, media_only=True)
    found, _ = await ask(says, sent)
    assert (bool(says.asked), found is sent) == (asked, not asked)
