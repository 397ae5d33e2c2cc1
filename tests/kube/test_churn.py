"""500 pods come, change and go while watches break, places expire, lists are slow and the API server is away."""

import asyncio
import random
import time
from contextlib import aclosing
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from epp.kube.access import Access, FixedToken
from epp.kube.client import Api
from tests.kube.api import Failure, FakeApi, pod, pool
from tests.kube.conftest import LABELS, Following

PODS = 500
ANSWERED = 2.0
"""Seconds after the API server answers again within which the pool must be right."""

CHANGES = st.tuples(st.just("change"), st.integers(0, 2**32), st.integers(1, 200))
TROUBLE = st.one_of(
    st.tuples(st.just("drop")),
    st.tuples(st.just("expire")),
    st.tuples(st.just("down")),
    st.tuples(st.just("up")),
    st.tuples(st.just("slow"), st.sampled_from([0.0, 0.01, 0.1])),
    st.tuples(st.just("fail"), st.sampled_from([410, 429, 500, 503]), st.integers(1, 3), st.sampled_from(["", "list"])),
    st.tuples(st.just("ports"), st.sampled_from([(8000,), (8000, 8001), (8001,)])),
    st.tuples(st.just("go on"), st.integers(1, 300)),
)


class World:
    """The pods as they are: the truth that the pool must come to."""

    def __init__(self, fake: FakeApi) -> None:
        self.ports: tuple[int, ...] = (8000,)
        self._fake = fake
        self._ready: dict[str, str] = {}
        self._count = 0
        self._names = [f"p{i}" for i in range(PODS)]

    @property
    def members(self) -> dict[str, str]:
        return {
            f"{name}-rank-{rank}": f"{address}:{port}"
            for name, address in self._ready.items()
            for rank, port in enumerate(self.ports)
        }

    def fill(self) -> None:
        for name in self._names:
            self.change(name, "ready")

    def change(self, name: str, state: str) -> None:
        self._count += 1
        address = f"10.{self._count >> 16 & 255}.{self._count >> 8 & 255}.{self._count & 255}"
        self._ready.pop(name, None)
        if state == "gone":
            self._fake.remove(pod(name))
        elif state == "starting":
            self._fake.apply(pod(name, labels=LABELS))
        elif state == "a stranger":
            self._fake.apply(pod(name, address))
        else:
            there = {"ready": state == "ready", "deleted": state == "ending"}
            self._fake.apply(pod(name, address, labels=LABELS, **there))
            if state == "ready":
                self._ready[name] = address

    def shuffle(self, seed: int, count: int) -> None:
        source = random.Random(seed)
        states = ("ready", "ready", "not ready", "ending", "starting", "gone", "a stranger")
        for _ in range(count):
            self.change(source.choice(self._names), source.choice(states))


async def scenario(steps: list[tuple[Any, ...]]) -> None:
    async with FakeApi() as fake:
        world = World(fake)
        fake.apply(pool("llama", LABELS))
        world.fill()
        async with aclosing(Api(Access(fake.url, FixedToken()))) as api, Following(api) as following:
            await following.until(lambda: following.members == world.members)
            for step in steps:
                await take(step, fake, world)
            fake.slow, fake.failures = 0.0, []
            await fake.up()
            answering = time.monotonic()
            await following.until(lambda: following.members == world.members, ANSWERED + 8)
            assert time.monotonic() - answering < ANSWERED
            await following.until(lambda: not following.discovery.stale)
            assert following.pool.synced
            assert sum(following.pool.eligible) == len(world.members)


async def take(step: tuple[Any, ...], fake: FakeApi, world: World) -> None:
    match step:
        case ("change", seed, count):
            world.shuffle(seed, count)
        case ("drop",):
            fake.drop_watches()
        case ("expire",):
            fake.expire()
        case ("down",):
            await fake.down()
        case ("up",):
            await fake.up()
        case ("slow", seconds):
            fake.slow = seconds
        case ("fail", status, count, verb):
            fake.failures.append(Failure(status, count, verb=verb))
        case ("ports", ports):
            world.ports = ports
            fake.apply(pool("llama", LABELS, ports))
        case ("go on", turns):
            for _ in range(turns):
                await asyncio.sleep(0)


# Shrinking would take minutes, as every example is played in real time.
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.reuse, Phase.generate])
@given(st.lists(st.tuples(CHANGES, TROUBLE, TROUBLE), min_size=1, max_size=6))
def test_whatever_happens_the_pool_ends_up_right(rounds: list[tuple[tuple[Any, ...], ...]]) -> None:
    """Within 2 s of the API server answering again the endpoints are exactly those of the ready pods."""
    asyncio.run(scenario([step for steps in rounds for step in steps]))
