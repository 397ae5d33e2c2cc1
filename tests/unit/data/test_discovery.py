import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from epp.data.declared import parse_static
from epp.data.discovery import Discovery, DiscoveryOptions, one_family, resolve_host
from epp.errors import ConfigError
from epp.keys import INFLIGHT_REQUESTS
from epp.pool import Endpoint, Pool

from .conftest import Heard

QUICK = DiscoveryOptions(poll=0.01, settle=0.01, resolve=0.01, patience=5.0)


class Names:
    """A resolver: addresses by host, or an error; look-ups of `hanging` wait for `gate`."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.hanging = ""
        self.gate = asyncio.Event()
        self.heard: Heard | None = None

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if self.heard is not None:
            self.heard.note()
        if host == self.hanging:
            await self.gate.wait()
        answer = self.answers.get(host.removesuffix(".svc"), OSError(-2, "Name or service not known"))
        if isinstance(answer, Exception):
            raise answer
        return answer


class Setup:
    """A pool with a discovery over it."""

    def __init__(self, heard: Heard, file: Path) -> None:
        self.pool, self.heard, self.file, self.names = Pool(2), heard, file, Names()
        self.discovery: Discovery | None = None

    async def start(
        self, static: str = "", *, file: bool = False, options: DiscoveryOptions = QUICK, **names: Any
    ) -> None:
        self.names.answers.update(names)
        self.discovery = Discovery(
            self.pool,
            parse_static(static),
            self.file if file else None,
            options,
            resolve=self.names,
            on_error=self.heard.on_error,
            on_pool=self.heard.on_pool,
        )
        await self.discovery.start()

    def write(self, *endpoints: dict[str, Any]) -> None:
        self.replace(json.dumps({"endpoints": endpoints}))

    def replace(self, text: str) -> None:
        """Puts a whole file in the place of the old one."""
        part = self.file.with_suffix(".part")
        part.write_text(text)
        part.replace(self.file)

    @property
    def endpoints(self) -> dict[str, str]:
        found = [self.pool.endpoints[slot] for slot in self.pool.all_slots()]
        return {endpoint.name: endpoint.hostport for endpoint in found if endpoint is not None}


@pytest.fixture
async def setup(heard: Heard, tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(heard, tmp_path / "endpoints.yaml")
    yield made
    if made.discovery is not None:
        await made.discovery.stop()


def entry(name: str, last: int = 1, **more: Any) -> dict[str, Any]:
    return {"name": name, "address": f"10.0.0.{last}", "port": 8000} | more


# --- the start


async def test_static(setup: Setup) -> None:
    """Fixed endpoints are called after their address, unless they have a name."""
    assert setup.pool.synced is False
    await setup.start("10.0.0.1:8000,[::1]:8001,a=10.0.0.2:8000")
    assert setup.endpoints == {"10.0.0.1:8000": "10.0.0.1:8000", "[::1]:8001": "[::1]:8001", "a": "10.0.0.2:8000"}
    assert setup.pool.synced is True
    assert repr(setup.discovery) == "<Discovery: 3 entries, 3 endpoints>"


async def test_file_and_static_together(setup: Setup) -> None:
    """Both count; several ports are ranks of one name; labels and metrics ports arrive."""
    setup.write(
        entry("a", labels={"llm-d.ai/role": "decode"}, metricsPort=9100, namespace="n"),
        {"name": "b", "address": "10.0.0.2", "ports": [8000, 8001]},
    )
    await setup.start("10.0.0.9:8000", file=True)
    assert setup.endpoints == {
        "10.0.0.9:8000": "10.0.0.9:8000",
        "a": "10.0.0.1:8000",
        "b-rank-0": "10.0.0.2:8000",
        "b-rank-1": "10.0.0.2:8001",
    }
    a = setup.pool.endpoints[setup.pool.slots["n/a"]]
    assert a is not None
    assert (a.labels, a.metrics_port, a.namespace) == ({"llm-d.ai/role": "decode"}, 9100, "n")


START_ERRORS = {
    "no file": (None, "can't be read: No such file"),
    "bad file": ("endpoints: [a]", r"endpoints\[0\]: expected name"),
    "too long a file": ("endpoints: []" + " " * 1000, "longer than 1000 bytes"),
    "the file contradicts the list": (
        json.dumps({"endpoints": [entry("a", 9)]}),
        r"endpoints\[0\]: its address 10.0.0.9:8000 is also that of --endpoints: '10.0.0.9:8000'",
    ),
}


@pytest.mark.parametrize(("text", "message"), START_ERRORS.values(), ids=START_ERRORS.keys())
async def test_bad_start(setup: Setup, text: str | None, message: str) -> None:
    """Without any good state the start fails, and says where."""
    if text is not None:
        setup.replace(text)
    with pytest.raises(ConfigError, match=message) as raised:
        await setup.start("10.0.0.9:8000", file=True, options=DiscoveryOptions(max_bytes=1000))
    assert str(setup.file) in str(raised.value) or "--endpoints" in str(raised.value)
    assert not setup.pool.synced


# --- the file


async def test_adds_and_removes(setup: Setup, heard: Heard) -> None:
    """A changed file is a difference: who stays is left alone, with what is in flight."""
    setup.write(entry("a", 1), entry("b", 2))
    await setup.start(file=True)
    slot = setup.pool.slots["default/b"]
    setup.pool.charge(slot, 1, 100)
    setup.write(entry("b", 2, labels={"x": "y"}), entry("c", 3))
    await heard.until(lambda: len(heard.pools) == 2)
    assert heard.pools == [(["default/a", "default/b"], []), (["default/c"], ["default/a"])]
    assert setup.endpoints == {"b": "10.0.0.2:8000", "c": "10.0.0.3:8000"}
    assert setup.pool.slots["default/b"] == slot
    assert setup.pool.column(INFLIGHT_REQUESTS)[slot] == 1
    b = setup.pool.endpoints[slot]
    assert b is not None
    assert b.labels == {"x": "y"}


async def test_another_address_is_another_endpoint(setup: Setup, heard: Heard) -> None:
    """The same name at another address starts from nothing."""
    setup.write(entry("a", 1))
    await setup.start(file=True)
    slot = setup.pool.slots["default/a"]
    generation = setup.pool.generations[slot]
    setup.pool.charge(slot, 1, 100)
    setup.write(entry("a", 3))
    await heard.until(lambda: len(heard.pools) == 2)
    assert heard.pools[1] == (["default/a"], ["default/a"])
    assert setup.endpoints == {"a": "10.0.0.3:8000"}
    assert setup.pool.generations[slot] > generation
    assert setup.pool.column(INFLIGHT_REQUESTS)[setup.pool.slots["default/a"]] == 0


async def test_another_name_at_the_same_address(setup: Setup, heard: Heard) -> None:
    """An endpoint that is renamed keeps its slot and what is in flight, also as it becomes a rank."""
    setup.write(entry("a", 1), entry("b", 2))
    await setup.start(file=True)
    slot = setup.pool.slots["default/a"]
    setup.pool.charge(slot, 1, 100)
    setup.write({"name": "a", "address": "10.0.0.1", "ports": [8001, 8000]})
    await heard.until(lambda: len(heard.pools) == 2)
    assert setup.endpoints == {"a-rank-1": "10.0.0.1:8000", "a-rank-0": "10.0.0.1:8001"}
    assert setup.pool.slots["default/a-rank-1"] == slot
    assert setup.pool.column(INFLIGHT_REQUESTS)[slot] == 1
    assert setup.pool.slot_at("10.0.0.1:8000") == slot


async def test_a_bad_file_changes_nothing(setup: Setup, heard: Heard) -> None:
    """The last good state stays, whole; the error is told once, and a good file counts again."""
    setup.write(entry("a", 1))
    await setup.start(file=True)
    setup.write(entry("b", 2), entry("c", 3, prot=1))
    await heard.until(lambda: len(heard.errors) == 1)
    assert "endpoints[1]: unknown field 'prot'; did you mean port?" in heard.errors[0]
    assert "the last good state stays (1 endpoints)" in heard.errors[0]
    assert str(setup.file) in heard.errors[0]
    assert setup.endpoints == {"a": "10.0.0.1:8000"}
    setup.write(entry("b", 2))
    await heard.until(lambda: setup.endpoints == {"b": "10.0.0.2:8000"})
    setup.write(entry("b", 2), entry("c", 3, prot=1))
    await heard.until(lambda: len(heard.errors) == 2)
    assert heard.errors[0] == heard.errors[1]


async def test_a_file_that_goes_and_comes_back(setup: Setup, heard: Heard) -> None:
    """A file that is gone changes nothing, and is read when it is back."""
    setup.write(entry("a", 1))
    await setup.start(file=True)
    setup.file.unlink()
    await heard.until(lambda: len(heard.errors) == 1)
    assert "No such file" in heard.errors[0]
    assert setup.endpoints == {"a": "10.0.0.1:8000"}
    setup.write(entry("b", 2))
    await heard.until(lambda: setup.endpoints == {"b": "10.0.0.2:8000"})


async def test_a_mount_of_kubernetes(setup: Setup, heard: Heard) -> None:
    """A mounted ConfigMap changes by a symbolic link that is replaced; the file itself keeps name, size and time."""
    folder = setup.file.parent
    for version, last in (("v1", 1), ("v2", 2)):
        (folder / version).mkdir()
        file = folder / version / setup.file.name
        file.write_text(json.dumps({"endpoints": [entry("a", last)]}))
        os.utime(file, (1_000_000, 1_000_000))
    (folder / "..data").symlink_to("v1")
    setup.file.symlink_to(Path("..data") / setup.file.name)
    await setup.start(file=True)
    assert setup.endpoints == {"a": "10.0.0.1:8000"}
    (folder / "..new").symlink_to("v2")
    (folder / "..new").replace(folder / "..data")
    await heard.until(lambda: setup.endpoints == {"a": "10.0.0.2:8000"} or heard.errors != [])
    shutil.rmtree(folder / "v1")
    assert heard.errors == []


async def test_a_file_half_written(setup: Setup, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is read only when it has been left alone for a while: what is written piece by piece is never torn."""
    setup.write(entry("a", 1))
    await setup.start(file=True)
    whole = "endpoints:\n" + "".join(f"- {json.dumps(entry(f'e{number}', number))}\n" for number in range(1, 9))
    pieces = iter([whole[:end] for end in range(60, len(whole), 60)] + [whole])
    original = Path.stat

    def stat(self: Path, **named: Any) -> os.stat_result:
        """Each look finds the file one piece further."""
        if self == setup.file:
            self.write_text(next(pieces, whole))
            os.utime(self, ns=(1, 10**18 + len(self.read_bytes())))
        return original(self, **named)

    monkeypatch.setattr(Path, "stat", stat)
    await heard.until(lambda: len(setup.pool) == 8 or heard.errors != [] or len(heard.pools) > 2)
    assert heard.errors == []
    assert [len(added) for added, _ in heard.pools] == [1, 8]


# --- host names


async def test_a_host_with_one_address(setup: Setup) -> None:
    """It is called after the host."""
    await setup.start("llama.svc:8000,a=llama.svc:8001", llama=["10.0.0.1"])
    assert setup.endpoints == {"llama.svc:8000": "10.0.0.1:8000", "a": "10.0.0.1:8001"}


async def test_a_host_with_several_addresses(setup: Setup) -> None:
    """One endpoint an address, called after both, and a rank each for several ports."""
    setup.write({"name": "a", "address": "llama.svc", "ports": [1, 2]})
    await setup.start("llama.svc:8000", file=True, llama=["10.0.0.2", "10.0.0.1", "10.0.0.2"])
    assert setup.endpoints == {
        "llama.svc:8000@10.0.0.1": "10.0.0.1:8000",
        "llama.svc:8000@10.0.0.2": "10.0.0.2:8000",
        "a@10.0.0.1-rank-0": "10.0.0.1:1",
        "a@10.0.0.2-rank-0": "10.0.0.2:1",
        "a@10.0.0.1-rank-1": "10.0.0.1:2",
        "a@10.0.0.2-rank-1": "10.0.0.2:2",
    }


async def test_addresses_come_and_go(setup: Setup, heard: Heard) -> None:
    """Names are looked up again; an address that stays keeps its slot, although its name changes with their number."""
    await setup.start("llama.svc:8000", llama=["10.0.0.1"])
    slot = setup.pool.slots["default/llama.svc:8000"]
    setup.pool.charge(slot, 1, 100)
    setup.names.answers["llama"] = ["10.0.0.1", "10.0.0.2"]
    await heard.until(lambda: len(setup.pool) == 2)
    assert setup.pool.slots["default/llama.svc:8000@10.0.0.1"] == slot
    setup.names.answers["llama"] = ["10.0.0.1"]
    await heard.until(lambda: len(setup.pool) == 1)
    assert setup.endpoints == {"llama.svc:8000": "10.0.0.1:8000"}
    assert setup.pool.slots["default/llama.svc:8000"] == slot
    assert setup.pool.column(INFLIGHT_REQUESTS)[slot] == 1


async def test_a_name_that_fails_later_keeps_its_addresses(setup: Setup, heard: Heard) -> None:
    """An outage of the resolver takes nobody out; it is told once."""
    setup.names.heard = heard
    await setup.start("llama.svc:8000,b.svc:1", llama=["10.0.0.1"], b=["10.0.0.2"])
    setup.names.answers["llama"] = OSError(-3, "Temporary failure in name resolution")
    setup.names.answers["b"] = []
    await heard.until(lambda: len(heard.errors) == 2)
    asked = len(setup.names.asked)
    await heard.until(lambda: len(setup.names.asked) > asked + 6)
    assert sorted(heard.errors) == [
        (
            "host b.svc doesn't resolve: it has no address; its last addresses stay (10.0.0.2), and it is tried again "
            "every 0.01 s"
        ),
        (
            "host llama.svc doesn't resolve: Temporary failure in name resolution; its last addresses stay (10.0.0.1), "
            "and it is tried again every 0.01 s"
        ),
    ]
    assert setup.endpoints == {"llama.svc:8000": "10.0.0.1:8000", "b.svc:1": "10.0.0.2:1"}


async def test_a_name_that_does_not_resolve_at_the_start(setup: Setup, heard: Heard) -> None:
    """The picker starts without it, says so, and takes it in when it resolves."""
    await setup.start("llama.svc:8000,10.0.0.9:1")
    assert setup.pool.synced
    assert setup.endpoints == {"10.0.0.9:1": "10.0.0.9:1"}
    assert heard.errors == [
        (
            "host llama.svc doesn't resolve: Name or service not known; its endpoints are missing, and it is tried "
            "again every 0.01 s"
        )
    ]
    setup.names.answers["llama"] = ["10.0.0.1"]
    await heard.until(lambda: len(setup.pool) == 2)


async def test_a_resolver_that_hangs(setup: Setup, heard: Heard) -> None:
    """The start waits for it so long and no longer, asks once, and takes the answer when it comes."""
    setup.names.hanging, setup.names.heard = "llama.svc", heard
    options = DiscoveryOptions(patience=0.01, resolve=0.01)
    await setup.start("llama.svc:8000,b.svc:1", options=options, llama=["10.0.0.1"], b=["10.0.0.2"])
    assert setup.endpoints == {"b.svc:1": "10.0.0.2:1"}
    await heard.until(lambda: setup.names.asked.count("b.svc") > 5)
    assert setup.names.asked.count("llama.svc") == 1
    assert heard.errors == [
        "host llama.svc: no answer yet from the resolver; its endpoints are missing, and it is tried again every 0.01 s"
    ]
    setup.names.gate.set()
    await heard.until(lambda: len(setup.pool) == 2)


async def test_a_second_outage_is_told_again(setup: Setup, heard: Heard) -> None:
    """Once a name has resolved, the next failure is news."""
    setup.names.heard = heard
    await setup.start("llama.svc:8000")
    for outage in (1, 2):
        await heard.until(lambda: len(heard.errors) == outage)  # noqa: B023
        setup.names.answers["llama"] = ["10.0.0.1"]
        asked = len(setup.names.asked)
        await heard.until(lambda: len(setup.names.asked) > asked + 1)  # noqa: B023
        setup.names.answers["llama"] = OSError(-2, "Name or service not known")
    await heard.until(lambda: len(heard.errors) == 3)


async def test_two_names_of_one_server(setup: Setup) -> None:
    """One address and port is one endpoint, whoever leads to it; the first has it."""
    await setup.start("a.svc:1,b.svc:1", a=["10.0.0.1"], b=["10.0.0.1"])
    assert setup.endpoints == {"a.svc:1": "10.0.0.1:1"}


async def test_others_endpoints_are_left_alone(setup: Setup, heard: Heard) -> None:
    """What something else has put into the pool is none of discovery's business."""
    setup.write(entry("a", 1))
    setup.pool.add(Endpoint("z", "10.0.0.9", 8000))
    await setup.start(file=True)
    setup.write()
    await heard.until(lambda: len(heard.pools) == 2)
    assert setup.endpoints == {"z": "10.0.0.9:8000"}


async def test_a_callback_that_raises_ends_nothing(setup: Setup, heard: Heard) -> None:
    """A fault in what listens is told, and the file is watched on."""
    setup.write(entry("a", 1))
    await setup.start(file=True)
    heard.fault = KeyError("broken")
    setup.write(entry("b", 2))
    await heard.until(lambda: len(heard.errors) == 1)
    assert "KeyError: 'broken'" in heard.errors[0]
    heard.fault = None
    setup.write(entry("c", 3))
    await heard.until(lambda: setup.endpoints == {"c": "10.0.0.3:8000"})


async def test_stop_ends_everything(setup: Setup) -> None:
    """No task is left, not even a look-up that hangs."""
    setup.names.hanging = "llama.svc"
    setup.write(entry("a", 1))
    await setup.start("llama.svc:8000", file=True, options=DiscoveryOptions(patience=0.01))
    assert setup.discovery is not None
    await setup.discovery.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert setup.endpoints == {"a": "10.0.0.1:8000"}


RESOLVED: dict[str, tuple[list[tuple[int, str]], list[str]]] = {
    "IPv4": ([(socket.AF_INET, "10.0.0.1"), (socket.AF_INET, "10.0.0.2")], ["10.0.0.1", "10.0.0.2"]),
    "IPv6": ([(socket.AF_INET6, "::1")], ["::1"]),
    "both lead to the same servers": ([(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")], ["127.0.0.1"]),
    "something else": ([(socket.AF_UNIX, "/x")], []),
}


@pytest.mark.parametrize(("found", "expected"), RESOLVED.values(), ids=RESOLVED.keys())
def test_one_family(found: list[tuple[int, str]], expected: list[str]) -> None:
    """A server of two families is one server."""
    assert one_family(found) == expected


async def test_resolve_localhost() -> None:
    """The real resolver knows this machine."""
    assert await resolve_host("localhost") in (["127.0.0.1"], ["::1"])
