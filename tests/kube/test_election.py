"""One leader by a Lease: taken, renewed, released, lost, and taken over when its holder is gone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Self

import msgspec
import pytest

from epp.kube.access import Access, FixedToken
from epp.kube.client import Api
from epp.kube.election import ADDRESS, Election, Lease, Terms, own_address
from tests.e2e.harness import until
from tests.kube.api import Failure, FakeApi

QUICK = Terms(duration=0.6, retry=0.05, probe=0.02)
LONG = Terms(duration=60.0, retry=30.0, probe=0.02)
"""With which nothing happens in time but what is woken."""


class Replicas:
    """Elections of one Lease."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.errors: list[str] = []
        self.changes: list[tuple[str, bool]] = []
        self._all: list[Election] = []

    def add(self, identity: str, terms: Terms = QUICK, **options: Any) -> Election:
        def changed(leading: bool) -> None:
            self.changes.append((identity, leading))

        election = Election(
            self._api,
            "default",
            "epp-default-llama.llm-d.ai",
            identity,
            terms=terms,
            on_change=changed,
            on_error=self.errors.append,
            **options,
        )
        self._all.append(election)
        election.start()
        return election

    async def stop(self) -> None:
        for election in self._all:
            await election.stop()


@pytest.fixture
async def replicas(api: Api) -> AsyncIterator[Replicas]:
    made = Replicas(api)
    yield made
    await made.stop()


def lease(fake: FakeApi) -> dict[str, Any]:
    (found,) = fake.objects("Lease")
    return found


def leads(election: Election) -> Callable[[], bool]:
    return lambda: election.leading


async def test_the_first_leads_and_the_second_waits(fake: FakeApi, replicas: Replicas) -> None:
    first = replicas.add("first")
    await until(leads(first), "it leads")
    second = replicas.add("second")
    await until(lambda: second.holder == "first", "the second has looked")
    spec = lease(fake)["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("first", 1, 0)
    await until(lambda: lease(fake)["spec"]["renewTime"] > spec["renewTime"], "it is renewed")
    assert lease(fake)["spec"]["acquireTime"] == spec["acquireTime"]
    assert not second.leading
    assert replicas.errors == []


async def test_a_lease_that_is_released_is_taken_at_once(fake: FakeApi, replicas: Replicas) -> None:
    """The follower watches; it would look again after half a minute only."""
    first = replicas.add("first")
    await until(leads(first), "it leads")
    second = replicas.add("second", LONG)
    await until(lambda: second.holder == "first", "the second has looked")
    await until(lambda: [verb for verb, _ in fake.requests].count("watch") == 2, "both watch")
    await first.stop()
    await until(leads(second), "the second leads", 5.0)
    assert lease(fake)["spec"]["leaseTransitions"] == 1
    assert replicas.changes == [("first", True), ("first", False), ("second", True)]


async def test_a_renewal_under_way_does_not_keep_it_from_being_released(fake: FakeApi, replicas: Replicas) -> None:
    """It is given up at the end, but the API server may have taken it."""
    first = replicas.add("first", LONG)
    await until(leads(first), "it leads")
    fake.apply(lease(fake))
    await first.stop()
    assert not lease(fake)["spec"]["holderIdentity"]


async def test_one_that_is_not_renewed_runs_out(fake: FakeApi, api: Api, replicas: Replicas) -> None:
    """Judged by the own clock since it last changed, whatever times it names."""
    spec = {"holderIdentity": "gone", "leaseDurationSeconds": 1, "renewTime": "2099-01-01T00:00:00.000000Z"}
    fake.apply(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "epp-default-llama.llm-d.ai"},
            "spec": spec,
        }
    )
    now = 100.0
    election = replicas.add("new", now=lambda: now)
    await until(lambda: election.holder == "gone", "it has looked")
    now = 100.9
    looked = len(fake.requests)
    await until(lambda: len(fake.requests) > looked + 2, "it has looked again")
    assert not election.leading
    now = 101.1
    await until(leads(election), "it leads")


async def test_a_watch_that_was_refused_is_tried_again(fake: FakeApi, replicas: Replicas) -> None:
    """As of an API server that has just begun, or of a Role that is mended."""
    first = replicas.add("first")
    await until(leads(first), "it leads")
    fake.denied |= {("list", "leases"), ("watch", "leases")}
    fake.drop_watches()
    second = replicas.add("second", LONG)
    await until(lambda: second.holder == "first", "the second has looked")
    await until(lambda: [verb for verb, _ in fake.requests].count("list") > 3, "both have been refused")
    fake.denied.clear()
    asked = len(fake.requests)
    await until(lambda: [verb for verb, _ in fake.requests[asked:]].count("watch") == 2, "both watch")
    await first.stop()
    await until(leads(second), "the second leads", 5.0)


class Port:
    """Somebody's health port: who is connected to it, and how to kill them."""

    def __init__(self) -> None:
        self.connected: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(lambda _, writer: self.connected.append(writer), "127.0.0.1", 0)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        self._server.close()
        for writer in self.connected:
            writer.transport.abort()


async def test_the_lease_of_a_process_that_is_gone_is_taken_before_it_runs_out(
    fake: FakeApi, replicas: Replicas
) -> None:
    """As after SIGKILL: its connection breaks and its port refuses another one."""
    async with Port() as port:
        first = replicas.add("first", LONG, address=port.address)
        await until(leads(first), "it leads")
        assert lease(fake)["metadata"]["annotations"] == {ADDRESS: port.address}
        second = replicas.add("second", LONG, address="127.0.0.1:9003")
        await until(lambda: port.connected, "the second keeps a connection")
        port.kill()
        await until(leads(second), "the second leads", 5.0)
        assert lease(fake)["metadata"]["annotations"] == {ADDRESS: "127.0.0.1:9003"}


@pytest.mark.parametrize("how", ["away", "broken"])
async def test_without_an_api_server_the_one_that_outlives_the_leader_stands_in(
    fake: FakeApi, replicas: Replicas, how: str
) -> None:
    """Nobody could take the Lease, and there would be no picker; who gets it afterwards remains."""
    async with Port() as port:
        first = replicas.add("first", LONG, address=port.address)
        await until(leads(first), "it leads")
        second, third = replicas.add("second"), replicas.add("third")
        await until(lambda: len(port.connected) == 2, "both keep a connection")
        if how == "away":
            await fake.down()
        else:
            fake.failures = [Failure(503, 10**6)]
        await until(lambda: replicas.errors, "they have noticed")
        assert {second.leading, third.leading} == {False}
        port.kill()
        await until(lambda: second.leading and third.leading, "they stand in", 5.0)
        fake.failures = []
        await fake.up()
        await until(lambda: second.leading != third.leading, "one of them leads")
        assert lease(fake)["spec"]["holderIdentity"] == ("second" if second.leading else "third")


async def test_who_stands_in_takes_the_lease_when_it_can(fake: FakeApi, replicas: Replicas) -> None:
    """Though it was renewed after its last look: its holder's process is gone all the same."""
    async with Port() as port:
        first = replicas.add("first", LONG, address=port.address)
        await until(leads(first), "it leads")
        second = replicas.add("second", replace(LONG, retry=0.05))
        await until(lambda: port.connected, "it keeps a connection")
        await fake.down()
        await until(lambda: replicas.errors, "it has noticed")
        fake.apply(lease(fake))
        port.kill()
        await until(leads(second), "it stands in")
        await fake.up()
        await until(lambda: lease(fake)["spec"]["holderIdentity"] == "second", "it has the Lease")
        assert [change for change in replicas.changes if change[0] == "second"] == [("second", True)]


async def test_a_leader_that_cant_reach_the_api_server_goes_on_until_it_learns_of_another(
    fake: FakeApi, replicas: Replicas
) -> None:
    first = replicas.add("first")
    await until(leads(first), "it leads")
    await fake.down()
    await until(lambda: replicas.errors, "it has noticed")
    assert first.leading
    taken = lease(fake)
    taken["spec"]["holderIdentity"] = "other"
    fake.apply(taken)
    await fake.up()
    await until(lambda: not first.leading, "it has learnt")
    assert first.holder == "other"


class Stuck(Api):
    """An API whose writes are never answered while it is `stuck`."""

    stuck = False

    async def replace(self, path: str, item: Any) -> Any:
        if self.stuck:
            await asyncio.Event().wait()
        return await super().replace(path, item)


@pytest.fixture
async def stuck(fake: FakeApi) -> AsyncIterator[Stuck]:
    client = Stuck(Access(fake.url, FixedToken()))
    yield client
    await client.aclose()


@pytest.fixture
async def hanging(fake: FakeApi, stuck: Stuck) -> AsyncIterator[Election]:
    """A leader whose renewals hang for as long as it lasts, and who watches."""
    replicas = Replicas(stuck)
    first = replicas.add("first", Terms(duration=0.6, retry=0.05, deadline=100.0, probe=0.02))
    await until(leads(first), "it leads")
    stuck.stuck = True
    await until(lambda: [verb for verb, _ in fake.requests].count("watch") == 1, "it watches")
    yield first
    await replicas.stop()


async def test_a_leader_whose_renewal_hangs_learns_of_another_at_once(fake: FakeApi, hanging: Election) -> None:
    """By its watch; it would wait for the answer for minutes."""
    hanging.change("MODIFIED", msgspec.convert({"spec": {"holderIdentity": "other", "leaseTransitions": 0}}, Lease))
    assert hanging.leading, "an earlier term of somebody else's proves nothing"
    taken = lease(fake)
    taken["spec"] |= {"holderIdentity": "other", "leaseTransitions": 1}
    fake.apply(taken)
    await until(lambda: not hanging.leading, "it has learnt", 5.0)


async def test_a_leader_whose_renewal_hangs_learns_that_the_lease_was_made_anew(
    fake: FakeApi, hanging: Election
) -> None:
    """Which counts its terms from 0 again."""
    old = lease(fake)
    meta = {"uid": "before", "creationTimestamp": "2020-01-01T00:00:00Z"}
    of_old = {"metadata": meta, "spec": {"holderIdentity": "other", "leaseTransitions": 7}}
    hanging.change("MODIFIED", msgspec.convert(of_old, Lease))
    assert hanging.leading, "one from before ours proves nothing"
    fake.remove(old)
    spec = {"holderIdentity": "other", "leaseTransitions": 0}
    fake.apply(
        {"apiVersion": old["apiVersion"], "kind": "Lease", "metadata": {"name": old["metadata"]["name"]}, "spec": spec}
    )
    await until(lambda: not hanging.leading, "it has learnt", 5.0)


async def test_an_attempt_that_hangs_is_given_up(fake: FakeApi, stuck: Stuck) -> None:
    replicas = Replicas(stuck)
    first = replicas.add("first", Terms(duration=60.0, retry=0.05, deadline=0.2, probe=0.02))
    await until(leads(first), "it leads")
    stuck.stuck = True
    await until(lambda: replicas.errors, "it has noticed")
    assert "no answer in 0.2 s" in replicas.errors[0]
    assert first.leading
    stuck.stuck = False
    renewed = lease(fake)["spec"]["renewTime"]
    await until(lambda: lease(fake)["spec"]["renewTime"] > renewed, "it is renewed")
    await replicas.stop()


async def test_two_that_begin_at_once_have_one_leader(fake: FakeApi, replicas: Replicas) -> None:
    elections = [replicas.add(f"replica-{i}") for i in range(5)]
    await until(lambda: any(each.leading for each in elections), "somebody leads")
    for _ in range(3):
        renewed = lease(fake)["spec"]["renewTime"]
        await until(lambda then=renewed: lease(fake)["spec"]["renewTime"] > then, "it is renewed")
        assert sum(each.leading for each in elections) == 1
    assert replicas.errors == []


async def test_without_permission_it_says_so_and_goes_on(fake: FakeApi, replicas: Replicas) -> None:
    fake.denied |= {("get", "leases"), ("watch", "leases"), ("list", "leases")}
    election = replicas.add("first")
    await until(lambda: replicas.errors, "it says so")
    assert "403" in replicas.errors[0]
    fake.denied.clear()
    await until(leads(election), "it leads")
    assert len(replicas.errors) == 1


def test_the_own_address_on_the_way_to_the_api_server() -> None:
    assert own_address("http://127.0.0.1:80") == "127.0.0.1"
    assert own_address("https://nowhere.invalid") == ""
