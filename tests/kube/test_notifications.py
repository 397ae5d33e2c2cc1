"""`k8s-notification-source`: what extractors hear of objects in Kubernetes."""

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from epp.data.kubernetes.notifications import Notifications
from epp.kube.client import Api, Resource
from epp.sources import ObjectKind, ObjectReader, ObjectWatch
from tests.e2e.harness import Picker, until
from tests.kube.api import FakeApi, pod, pool
from tests.kube.conftest import LABELS
from tests.kube.harness import KubernetesPicker
from tests.kube.test_serve import OPEN, page

MAPS = ObjectKind("", "v1", "ConfigMap")
NAMESPACES = ObjectKind("", "v1", "Namespace")
SOURCE = "k8s-notification-source"
EXAMPLE = Path(__file__).parents[2] / "config/examples/drained.yaml"


def config_map(name: str, namespace: str = "default", **data: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


class Hearing:
    """Notifications with one reader; `heard` has what it was told: the notice, the object's name, its data."""

    def __init__(self, api: Api, **options: Any) -> None:
        self.heard: list[tuple[str, str, Any]] = []
        self.objects: list[Mapping[str, Any]] = []
        self.errors: list[str] = []
        self.faults: list[str] = []
        self.notifications = Notifications(
            api,
            "default",
            on_error=self.errors.append,
            on_fault=lambda _, reader, why: self.faults.append(f"{reader.name}: {why}"),
            **options,
        )

    def told(self, notice: str, item: Mapping[str, Any]) -> None:
        self.objects.append(item)
        self.heard.append((notice, item["metadata"]["name"], item.get("data")))

    def watch(self, kind: ObjectKind = MAPS, *others: Callable[..., None]) -> ObjectWatch:
        readers = [ObjectReader(f"reader-{n}", "mine", each) for n, each in enumerate((*others, self.told))]
        return ObjectWatch("source", SOURCE, kind, tuple(readers))

    async def until_heard(self, *expected: tuple[str, str, Any]) -> None:
        await until(lambda: len(self.heard) >= len(expected), f"{len(expected)} notices")
        assert self.heard == list(expected)
        self.heard.clear()


@pytest_asyncio.fixture
async def hearing(api: Api) -> AsyncIterator[Hearing]:
    made = Hearing(api, look_again=0.05)
    yield made
    await made.notifications.stop()


async def test_objects_that_come_change_and_go(fake: FakeApi, hearing: Hearing) -> None:
    """Those that are there at the start are added; each change is told once, of the whole object."""
    fake.apply(config_map("a", x="1"), config_map("other", namespace="elsewhere"))
    hearing.notifications.follow([hearing.watch()])
    await hearing.until_heard(("added", "a", {"x": "1"}))
    assert (hearing.objects[0]["apiVersion"], hearing.objects[0]["kind"]) == ("v1", "ConfigMap")
    fake.apply(config_map("b"))
    fake.apply(config_map("a", x="2"))
    fake.remove(config_map("b"))
    await hearing.until_heard(("added", "b", {}), ("changed", "a", {"x": "2"}), ("deleted", "b", {}))
    assert hearing.errors == []


async def test_kinds_without_a_namespace(fake: FakeApi, hearing: Hearing) -> None:
    """They are seen whole."""
    fake.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}})
    hearing.notifications.follow([hearing.watch(NAMESPACES)])
    await hearing.until_heard(("added", "n", None))


async def test_an_outage(fake: FakeApi, hearing: Hearing) -> None:
    """What has happened meanwhile is told when the API server is back, also where it has forgotten the past."""
    fake.apply(config_map("a"), config_map("b", x="1"), config_map("same"))
    hearing.notifications.follow([hearing.watch()])
    await hearing.until_heard(("added", "a", {}), ("added", "b", {"x": "1"}), ("added", "same", {}))
    await fake.down()
    fake.remove(config_map("a"))
    fake.apply(config_map("b", x="2"), config_map("c"))
    fake.expire()
    await fake.up()
    await hearing.until_heard(("deleted", "a", {}), ("changed", "b", {"x": "2"}), ("added", "c", {}))


async def test_another_configuration(fake: FakeApi, hearing: Hearing) -> None:
    """Its readers are told of all that is there, and of what has gone between the two."""
    fake.apply(config_map("a"), config_map("b"))
    hearing.notifications.follow([hearing.watch()])
    await hearing.until_heard(("added", "a", {}), ("added", "b", {}))
    fake.drop_watches()
    fake.remove(config_map("a"))
    hearing.heard.clear()
    hearing.notifications.follow([hearing.watch()])
    await until(lambda: hearing.heard[-1:] == [("added", "b", {})], "b is told of again")
    assert hearing.heard[-2:] == [("deleted", "a", {}), ("added", "b", {})]
    assert [each["synced"] for each in hearing.notifications.shown()] == [True]


async def test_a_reader_that_raises(fake: FakeApi, hearing: Hearing) -> None:
    """It is told, and disturbs no other one."""
    fake.apply(config_map("a"))
    hearing.notifications.follow([hearing.watch(MAPS, lambda notice, item: item["spec"])])
    await hearing.until_heard(("added", "a", {}))
    assert hearing.faults == ["reader-0: KeyError: 'spec'"]


async def test_a_kind_that_isnt_there(fake: FakeApi, hearing: Hearing) -> None:
    """It is said once, and the kind is followed as soon as the API server has it."""
    hearing.notifications.follow([hearing.watch(ObjectKind("example.com", "v1", "Thing"))])
    await until(lambda: hearing.errors, "an error")
    assert hearing.errors[0].startswith("source: Thing.v1.example.com can't be watched: GET /apis/example.com/v1: 404")
    fake.serve(("Thing", Resource("example.com", "v1", "things")))
    fake.apply({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a", "namespace": "default"}})
    await hearing.until_heard(("added", "a", None))
    assert len(hearing.errors) == 1


async def test_a_kind_that_we_may_not_see(fake: FakeApi, hearing: Hearing) -> None:
    """The same, with what is forbidden."""
    fake.denied.add(("list", "configmaps"))
    hearing.notifications.follow([hearing.watch()])
    await until(lambda: hearing.errors, "an error")
    assert "403 Forbidden" in hearing.errors[0]
    fake.denied.clear()
    fake.apply(config_map("a"))
    await hearing.until_heard(("added", "a", {}))


@pytest.mark.e2e
async def test_a_process_follows_what_its_configuration_names(fake: FakeApi, tmp_path: Path) -> None:
    """`epp serve` with the example; what it does to picks is in `tests/unit/plugins/test_effects.py`."""
    fake.apply(pool("llama", LABELS), pod("a", "127.0.0.1", labels=LABELS), config_map("drain", a="maintenance"))
    config = fake.kubeconfig(tmp_path / "config")
    async with KubernetesPicker(config, "--pool-name=llama", "--config-file", str(EXAMPLE), *OPEN) as picker:

        async def known() -> bool:
            (shown,) = (await page(picker, "kubernetes"))["notifications"]
            return bool(shown["synced"] and shown["objects"] == 1)

        await until(known, "the ConfigMap is known")
        (shown,) = (await page(picker, "kubernetes"))["notifications"]
        assert (shown["source"], shown["kind"], shown["readers"]) == (SOURCE, "ConfigMap.v1", ["drained"])


@pytest.mark.e2e
async def test_without_kubernetes(tmp_path: Path) -> None:
    """There is nothing to see, which is said."""
    async with Picker(["127.0.0.1:1"], "--config-file", str(EXAMPLE)) as picker:
        assert f"{SOURCE} watches ConfigMap.v1 in Kubernetes, which needs --pool-name" in picker.log()
