"""The pool follows the API server: pools of both groups, pods, objects, and what goes wrong."""

import re

import numpy as np
import pytest

from epp.data.kubernetes.discovery import Wanted
from epp.errors import ConfigError
from epp.keys import INFLIGHT_REQUESTS, WAITING
from epp.kube.client import LLM_D_GROUP, OLD_GROUP, POOL_GROUP, Api
from epp.kube.watch import Pace
from epp.pool import Candidates
from tests.kube.api import INFERENCE, Failure, FakeApi, pod, pool
from tests.kube.conftest import LABELS, Following

QUICK = Pace(0.001, 0.01)


def objective(name: str, priority: int, group: str = LLM_D_GROUP) -> dict[str, object]:
    spec = {"priority": priority, "poolRef": {"name": "llama"}}
    return {"apiVersion": f"{group}/v1alpha2", "kind": "InferenceObjective", "metadata": {"name": name}, "spec": spec}


async def test_pods_come_change_and_go(fake: FakeApi, api: Api) -> None:
    fake.apply(pool("llama", LABELS), pod("a", "10.0.0.1", labels=LABELS), pod("stranger", "10.0.0.9"))
    async with Following(api) as following:
        assert following.pool.synced
        assert following.members == {"a-rank-0": "10.0.0.1:8000"}
        fake.apply(pod("b", labels=LABELS))
        fake.apply(pod("b", "10.0.0.2", labels=LABELS, ready=False))
        fake.apply(pod("b", "10.0.0.2", labels=LABELS))
        await following.until_members(a_rank_0="10.0.0.1:8000", b_rank_0="10.0.0.2:8000")
        fake.apply(pod("a", "10.0.0.1", labels=LABELS, deleted=True))
        await following.until_members(b_rank_0="10.0.0.2:8000")
        fake.remove(pod("a"), pod("b"))
        await following.until_members()
        assert following.errors == []


async def test_other_ports_and_another_selector(fake: FakeApi, api: Api) -> None:
    """Every pod is expanded anew; the pods of the old selector stay until those of the new one are known."""
    other = {"app": "qwen"}
    fake.apply(pool("llama", LABELS), pod("a", "10.0.0.1", labels=LABELS), pod("b", "10.0.0.2", labels=other))
    async with Following(api) as following:
        fake.apply(pool("llama", LABELS, (8000, 8001)))
        await following.until_members(a_rank_0="10.0.0.1:8000", a_rank_1="10.0.0.1:8001")
        fake.slow = 0.1
        fake.apply(pool("llama", other))
        await following.until_members(a_rank_0="10.0.0.1:8000")
        await following.until_members(b_rank_0="10.0.0.2:8000")
        assert ([], ["default/a-rank-0"]) in following.changes


async def test_a_pod_that_changes_keeps_its_slot_and_one_that_is_replaced_does_not(fake: FakeApi, api: Api) -> None:
    """A label more is the same pod; another uid, or another address, is another one whose cache is empty."""
    fake.apply(pool("llama", LABELS), pod("a", "10.0.0.1", labels=LABELS, uid="1"))
    async with Following(api) as following:
        slot = following.pool.slots["default/a-rank-0"]
        following.pool.charge(slot, 1, 10)
        fake.apply(pod("a", "10.0.0.1", labels=LABELS | {"more": "x"}, uid="1"))
        await following.until(lambda: following.pool.label_codes("more")[1])
        assert following.pool.column(INFLIGHT_REQUESTS)[slot] == 1
        generation = following.pool.generations[slot]
        fake.apply(pod("a", "10.0.0.1", labels=LABELS, uid="2"))
        await following.until(lambda: following.pool.generations[slot] > generation)
        assert following.pool.column(INFLIGHT_REQUESTS).sum() == 0
        fake.apply(pod("a", "10.0.0.3", labels=LABELS, uid="2"))
        await following.until_members(a_rank_0="10.0.0.3:8000")


@pytest.mark.parametrize(
    ("group", "versions", "port"),
    [
        ("", "v1", 8000),
        ("", "v1alpha2", 8200),
        ("", "both", 8000),
        (POOL_GROUP, "both", 8000),
        (OLD_GROUP, "both", 8200),
    ],
)
async def test_the_pool_of_either_group(fake: FakeApi, api: Api, group: str, versions: str, port: int) -> None:
    """Without --pool-group it is v1's, and v1alpha2's where there is no other."""
    if versions in ("v1", "both"):
        fake.apply(pool("llama", LABELS))
    if versions in ("v1alpha2", "both"):
        fake.apply(pool("llama", LABELS, (8200,), old=True))
    fake.apply(pod("a", "10.0.0.1", labels=LABELS))
    async with Following(api, Wanted(pool="llama", group=group)) as following:
        assert following.members == {"a-rank-0": f"10.0.0.1:{port}"}


@pytest.mark.parametrize("how", ["its definition isn't installed", "it may not be read"])
async def test_v1alpha2_where_v1_is_out_of_reach(fake: FakeApi, api: Api, how: str) -> None:
    """As in a cluster of KServe 0.16."""
    fake.apply(pool("llama", LABELS, old=True), pod("a", "10.0.0.1", labels=LABELS))
    if how == "its definition isn't installed":
        fake.unserve(f"{POOL_GROUP}/v1")
    else:
        fake.denied_groups.add(POOL_GROUP)
    async with Following(api) as following:
        assert following.members == {"a-rank-0": "10.0.0.1:8000"}


@pytest.mark.parametrize("status", [403, 404])
async def test_a_pool_that_cant_be_asked_for_yet_is_asked_for_soon(fake: FakeApi, api: Api, status: int) -> None:
    """As of an API server that has just begun, and doesn't know the kind or the Role yet."""
    fake.apply(pool("llama", LABELS), pod("a", "10.0.0.1", labels=LABELS))
    fake.failures = [Failure(status, 1000, "inferencepools")]
    async with Following(api, Wanted(pool="llama", group=POOL_GROUP)) as following:
        assert not following.pool.synced
        fake.failures.clear()
        await following.until(lambda: following.pool.synced, 2.0)


async def test_a_pool_that_comes_late_goes_and_comes_back(fake: FakeApi, api: Api) -> None:
    """Without it nobody is in it, and the picker isn't ready."""
    fake.apply(pod("a", "10.0.0.1", labels=LABELS))
    async with Following(api) as following:
        assert not following.pool.synced
        assert any("there is no inferencepools" in error for error in following.errors)
        fake.apply(pool("llama", LABELS))
        await following.until(lambda: following.pool.synced)
        assert following.members == {"a-rank-0": "10.0.0.1:8000"}
        fake.remove(pool("llama", LABELS))
        await following.until(lambda: not following.pool.synced)
        assert following.members == {}
        fake.apply(pool("llama", LABELS, (8001,)))
        await following.until_members(a_rank_0="10.0.0.1:8001")
        await following.until(lambda: following.pool.synced)


@pytest.mark.parametrize("how", ["it may not be read any more", "its definition is gone"])
async def test_a_pool_that_is_refused_later_on_stays_and_is_stale(fake: FakeApi, api: Api, how: str) -> None:
    """Its pods are followed on; the page for people says why, and since when."""
    fake.apply(pool("llama", LABELS), pod("a", "10.0.0.1", labels=LABELS))
    async with Following(api, pace=QUICK) as following:
        if how == "its definition is gone":
            fake.unserve(f"{POOL_GROUP}/v1")
        else:
            fake.denied |= {("list", "inferencepools"), ("watch", "inferencepools")}
            fake.drop_watches()
        name = f"inferencepools.{POOL_GROUP}"
        await following.until(lambda: re.search(": 40[34] ", following.discovery.shown()["errors"].get(name, "")))
        shown = following.discovery.shown()
        assert shown["stale"]
        assert shown["watches"][name]["stale_seconds"] >= 0
        assert shown["errors"][name] in following.errors
        fake.apply(pod("b", "10.0.0.2", labels=LABELS))
        await following.until_members(a_rank_0="10.0.0.1:8000", b_rank_0="10.0.0.2:8000")
        assert following.pool.synced
        fake.serve(*[(kind, resource) for kind, resource in INFERENCE if resource.group == POOL_GROUP])
        fake.apply(pool("llama", LABELS, (8001,)))
        fake.denied.clear()
        await following.until_members(a_rank_0="10.0.0.1:8001", b_rank_0="10.0.0.2:8001")
        await following.until(lambda: not following.discovery.stale)
        assert name not in following.discovery.shown()["errors"]


async def test_a_refusal_of_the_group_that_has_no_such_pool_makes_nothing_stale(fake: FakeApi, api: Api) -> None:
    fake.apply(pool("llama", LABELS), pod("a", "10.0.0.1", labels=LABELS))
    async with Following(api, pace=QUICK, look_again=0.3) as following:
        fake.denied_groups.add(OLD_GROUP)
        fake.drop_watches()
        await following.until(lambda: f"inferencepools.{OLD_GROUP}" in following.discovery.shown()["errors"])
        fake.apply(pod("b", "10.0.0.2", labels=LABELS))
        await following.until_members(a_rank_0="10.0.0.1:8000", b_rank_0="10.0.0.2:8000")
        await following.until(lambda: not following.discovery.stale)  # once InferenceModels are given up, too
        assert f"inferencepools.{OLD_GROUP}" in following.discovery.shown()["errors"]


async def test_a_selector_without_a_pool(fake: FakeApi, api: Api) -> None:
    """No other kind is asked for."""
    fake.apply(pod("a", "10.0.0.1", labels=LABELS), pod("b", "10.0.0.2"), objective("high", 5))
    wanted = Wanted(selector="app in (llama,qwen)", ports=(8000, 8001))
    async with Following(api, wanted) as following:
        assert following.members == {"a-rank-0": "10.0.0.1:8000", "a-rank-1": "10.0.0.1:8001"}
        assert {path.split("?")[0] for _, path in fake.requests} == {"/api/v1/namespaces/default/pods"}
        assert following.pool.objects.priorities == {}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"pool": "p", "group": "llm-d.ai"}, "--pool-group: 'llm-d.ai' has no InferencePools"),
        ({"selector": "a=b=c", "ports": (1,)}, "--endpoint-selector: 'a=b=c' is no requirement"),
        ({"selector": "a=b"}, "--endpoint-selector needs --endpoint-target-ports"),
    ],
)
def test_what_cant_be_wanted(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Wanted(**wanted)


async def test_objects_of_the_newer_group_and_of_the_older_where_there_is_no_other(fake: FakeApi, api: Api) -> None:
    fake.apply(pool("llama", LABELS), objective("a", 5), objective("b", 7, OLD_GROUP))
    async with Following(api) as following:
        assert following.pool.objects.priorities == {"a": 5}
        fake.apply(objective("c", -1))
        await following.until(lambda: following.pool.objects.priorities == {"a": 5, "c": -1})
        fake.remove(objective("a", 5))
        await following.until(lambda: following.pool.objects.priorities == {"c": -1})
    fake.unserve(f"{LLM_D_GROUP}/v1alpha2")
    async with Following(api) as following:
        assert following.pool.objects.priorities == {"b": 7}
        assert following.errors == []


@pytest.mark.parametrize("status", [403, 404])
async def test_a_refusal_leaves_the_objects_as_they_were(fake: FakeApi, api: Api, status: int) -> None:
    """As of an API server that has just begun: the older group, which is served and empty, doesn't take its place."""
    fake.apply(pool("llama", LABELS), objective("a", 5))
    async with Following(api, pace=QUICK) as following:
        fake.failures = [Failure(status, 3, plural="inferenceobjectives", verb="list")]
        fake.expire()
        fake.drop_watches()
        await following.until(lambda: following.stale == [False, True, False])
        assert following.pool.objects.priorities == {"a": 5}
        fake.apply(objective("b", 6))
        await following.until(lambda: following.pool.objects.priorities == {"a": 5, "b": 6})


async def test_a_group_that_is_gone_makes_room_for_the_older_and_back(fake: FakeApi, api: Api) -> None:
    fake.apply(pool("llama", LABELS), objective("a", 5), objective("b", 7, OLD_GROUP))
    async with Following(api, pace=QUICK, look_again=0.3) as following:
        fake.unserve(f"{LLM_D_GROUP}/v1alpha2")
        fake.drop_watches()
        await following.until(lambda: following.pool.objects.priorities == {"b": 7})
        fake.serve(*[(kind, resource) for kind, resource in INFERENCE if resource.group == LLM_D_GROUP])
        fake.apply(objective("c", 1))
        await following.until(lambda: following.pool.objects.priorities == {"c": 1})


async def test_without_any_of_them_and_with_the_models_of_old(fake: FakeApi, api: Api) -> None:
    fake.unserve(f"{LLM_D_GROUP}/v1alpha2")
    fake.unserve(f"{OLD_GROUP}/v1alpha2")
    fake.apply(pool("llama", LABELS))
    async with Following(api) as following:
        assert following.pool.synced
        assert len(following.errors) == 2
    spec = {"modelName": "chat", "criticality": "Critical", "poolRef": {"name": "llama"}}
    fake.serve(*[(kind, resource) for kind, resource in INFERENCE if kind == "InferenceModel"])
    fake.apply(
        {"apiVersion": f"{OLD_GROUP}/v1alpha2", "kind": "InferenceModel", "metadata": {"name": "m"}, "spec": spec}
    )
    async with Following(api) as following:
        assert following.pool.objects.priority("", "chat") == 10


async def test_an_outage_leaves_the_pool_and_its_scores_as_they_were(fake: FakeApi, api: Api) -> None:
    """What an endpoint reports doesn't come from the API server: candidates and columns are the same while stale."""
    fake.apply(pool("llama", LABELS), *(pod(f"p{i}", f"10.0.0.{i}", labels=LABELS) for i in range(1, 4)))
    async with Following(api) as following:
        pool_ = following.pool
        for slot in pool_.slots.values():
            pool_.write(slot, {WAITING: float(slot)}, now=1.0, fresh_until=9.0)
        before = Candidates(pool_, pool_.eligible_slots(), 2.0)
        columns = before[WAITING].copy()
        version = pool_.version
        await fake.down()
        await following.until(lambda: following.stale == [False, True])
        assert following.discovery.stale
        assert following.discovery.shown()["errors"]
        after = Candidates(pool_, pool_.eligible_slots(), 2.0)
        assert np.array_equal(after[WAITING], columns)
        assert (after.all_fresh, pool_.version, pool_.synced) == (True, version, True)
        fake.remove(pod("p1"))
        await fake.up()
        await following.until(lambda: following.stale == [False, True, False])
        await following.until_members(p2_rank_0="10.0.0.2:8000", p3_rank_0="10.0.0.3:8000")
        await following.until(lambda: following.discovery.shown()["errors"] == {})  # of both groups' pools


async def test_a_start_without_an_api_server_waits_for_it(fake: FakeApi, api: Api) -> None:
    fake.apply(pool("llama", LABELS), pod("a", "10.0.0.1", labels=LABELS))
    await fake.down()
    async with Following(api, pace=QUICK) as following:
        assert not following.pool.synced
        assert following.errors
        await fake.up()
        await following.until(lambda: following.pool.synced)
        assert following.members == {"a-rank-0": "10.0.0.1:8000"}


async def test_a_pod_that_cant_be_read_keeps_its_endpoint_and_is_told(fake: FakeApi, api: Api) -> None:
    """Whether it is watched or listed: its health is what its scrapes say."""
    broken = pod("a", "10.0.0.9", labels=LABELS)
    broken["status"]["conditions"] = "?"
    fake.apply(pool("llama", LABELS), pod("a", "10.0.0.1", labels=LABELS))
    async with Following(api, pace=QUICK) as following:
        fake.apply(broken, pod("b", "10.0.0.2", labels=LABELS))
        await following.until(lambda: following.discovery.unread == 1)
        await following.until_members(a_rank_0="10.0.0.1:8000", b_rank_0="10.0.0.2:8000")
        assert any("pods that can't be read, and stay as they were: default/a" in each for each in following.errors)
        fake.remove(pod("b"))
        fake.expire()
        await following.until_members(a_rank_0="10.0.0.1:8000")
        assert "Expected `array`" in following.discovery.shown()["watches"]["pods"]["unread"]["a"]
        assert (following.discovery.stale, following.pool.synced) == (False, True)
        fake.apply(pod("a", "10.0.0.9", labels=LABELS))
        await following.until_members(a_rank_0="10.0.0.9:8000")
        await following.until(lambda: following.discovery.unread == 0)
        fake.apply(broken)
        await following.until(lambda: following.discovery.unread == 1)
        fake.remove(broken)
        await following.until_members()
        await following.until(lambda: following.discovery.unread == 0)


async def test_a_ban_on_pods_is_told_and_lifted(fake: FakeApi, api: Api) -> None:
    fake.apply(pool("llama", LABELS), pod("a", "10.0.0.1", labels=LABELS))
    fake.denied.add(("list", "pods"))
    async with Following(api, pace=QUICK) as following:
        assert any("pods is forbidden" in error for error in following.errors)
        fake.denied.clear()
        await following.until_members(a_rank_0="10.0.0.1:8000")
