"""Who may read the metrics, as the API server says it, and for how long that is believed."""

import asyncio

import pytest

from epp.kube.client import Api, Unreachable
from epp.kube.reviews import Reviewer
from tests.e2e.harness import until
from tests.kube.api import FakeApi

USERS = {
    "t-prometheus": {"username": "system:serviceaccount:monitoring:prometheus", "groups": ["system:authenticated"]},
    "t-other": {"username": "other"},
}


@pytest.fixture
def reviewed(fake: FakeApi) -> FakeApi:
    fake.users = dict(USERS)
    fake.readers = {"system:serviceaccount:monitoring:prometheus"}
    return fake


@pytest.mark.parametrize(
    ("token", "verdict", "questions"),
    [("t-prometheus", "allowed", 2), ("t-other", "forbidden", 2), ("t-nobody", "unauthenticated", 1)],
)
async def test_a_verdict(reviewed: FakeApi, api: Api, token: str, verdict: str, questions: int) -> None:
    reviewer = Reviewer(api)
    assert await reviewer.verdict(token, "/metrics") == verdict
    assert await reviewer.verdict(token, "/metrics") == verdict
    assert len(reviewed.requests) == questions


async def test_a_verdict_is_believed_for_a_while(reviewed: FakeApi, api: Api) -> None:
    """A good one for a minute, a bad one for ten seconds; one of another path is another one."""
    now = 0.0
    reviewer = Reviewer(api, now=lambda: now)
    assert await reviewer.verdict("t-prometheus", "/metrics") == "allowed"
    assert await reviewer.verdict("t-other", "/metrics") == "forbidden"
    reviewed.readers = {"other"}
    now = 11.0
    assert await reviewer.verdict("t-prometheus", "/metrics") == "allowed"
    assert await reviewer.verdict("t-other", "/metrics") == "allowed"
    assert await reviewer.verdict("t-prometheus", "/debug/plugins") == "forbidden"
    now = 61.0
    assert await reviewer.verdict("t-prometheus", "/metrics") == "forbidden"


async def test_many_at_once_ask_once(reviewed: FakeApi, api: Api) -> None:
    reviewer = Reviewer(api)
    verdicts = await asyncio.gather(*(reviewer.verdict("t-prometheus", "/metrics") for _ in range(20)))
    assert set(verdicts) == {"allowed"}
    assert len(reviewed.requests) == 2


async def test_no_more_is_asked_at_once_than_so_much(reviewed: FakeApi, api: Api) -> None:
    """Of a flood of tokens most are turned away; what is known is answered, and so is the next one afterwards."""
    reviewer = Reviewer(api, at_once=4)
    assert await reviewer.verdict("t-prometheus", "/metrics") == "allowed"
    asked = len(reviewed.requests)
    flood = [reviewer.verdict(f"invented-{i}", "/metrics") for i in range(100)]
    known = reviewer.verdict("t-prometheus", "/metrics")
    *flooded, good = await asyncio.gather(*flood, known, return_exceptions=True)
    assert good == "allowed"
    assert flooded.count("unauthenticated") == 4
    assert all("4 others are being asked for" in str(each) for each in flooded[4:])
    assert len(reviewed.requests) == asked + 4
    assert await reviewer.verdict("t-other", "/metrics") == "forbidden"


async def test_an_answer_is_kept_though_whoever_asked_has_gone(reviewed: FakeApi, api: Api) -> None:
    reviewer = Reviewer(api)
    asking = asyncio.create_task(reviewer.verdict("t-other", "/metrics"))
    await until(lambda: reviewed.requests, "it is being asked")
    asking.cancel()
    await until(lambda: repr(reviewer) == "<Reviewer: 1 verdicts>", "it is kept")


async def test_without_an_api_server_there_is_no_verdict(reviewed: FakeApi, api: Api) -> None:
    """And none is kept."""
    reviewer = Reviewer(api)
    await reviewed.down()
    with pytest.raises(Unreachable):
        await reviewer.verdict("t-prometheus", "/metrics")
    await reviewed.up()
    assert await reviewer.verdict("t-prometheus", "/metrics") == "allowed"


async def test_no_more_verdicts_are_kept_than_a_thousand(reviewed: FakeApi, api: Api) -> None:
    reviewer = Reviewer(api)
    for i in range(1005):
        reviewer._keep((bytes([i % 251]), str(i), "get"), "forbidden")
    assert repr(reviewer) == "<Reviewer: 1000 verdicts>"
