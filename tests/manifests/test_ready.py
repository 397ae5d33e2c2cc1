"""The picker, started with exactly the arguments of a rendering, becomes ready.

The API server allows it no more than the rendering's roles do. The ports are free ones, and what is mounted lies
elsewhere; nothing else of the arguments is changed.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from epp.extproc.tls import self_signed
from epp.settings import defaults
from tests.e2e.harness import until
from tests.kube.api import INFERENCE, KINDS, FakeApi, pod
from tests.kube.harness import NOT_SERVING, SERVING, KubernetesPicker
from tests.manifests.renderings import PICKERS, Pod, documents, of

pytestmark = pytest.mark.e2e

Rule = Mapping[str, Any]
SERVED = {*KINDS, *(kind for kind, _ in INFERENCE)}


def distinct() -> list[str]:
    """Renderings that start the picker with flags, or for an API group, that none before them has had.

    Every process takes a second; names, numbers and the time to drain make no difference to its start.
    """
    seen: dict[str, str] = {}
    for name in PICKERS:
        given = Pod.rendered(name).main["args"]
        flags = sorted({argument.partition("=")[0] for argument in given} - {"--drain-timeout"})
        groups = [argument for argument in given if argument.startswith("--pool-group")]
        seen.setdefault(str((flags, groups)), name)
    return list(seen.values())


class Guarded(FakeApi):
    """An API server that allows what rules do.

    Attributes:
        forbidden: what was asked for besides.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        super().__init__()
        self.forbidden: list[str] = []
        self._rules = rules

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = self._asked(request)
        if asked is None or any(allows(rule, *asked) for rule in self._rules):
            return await super()._answer(request)
        self.forbidden.append(" ".join(asked))
        return web.json_response({"kind": "Status", "reason": "Forbidden", "message": " ".join(asked)}, status=403)

    def _asked(self, request: web.Request) -> tuple[str, str, str, str] | None:
        """Verb, group, resource and name; None for what everybody may ask."""
        parts = request.path.strip("/").split("/")
        group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1] if len(parts) > 1 else "", parts[3:])
        rest = rest[2:] if rest[:1] == ["namespaces"] else rest
        if not rest:
            return None
        field, _, wanted = request.query.get("fieldSelector", "").partition("=")
        name = rest[1] if len(rest) > 1 else wanted if field == "metadata.name" else ""
        verbs = {"POST": "create", "PUT": "update", "DELETE": "delete"}
        reading = "watch" if request.query.get("watch") in ("1", "true") else "get" if len(rest) > 1 else "list"
        return verbs.get(request.method, reading), group, rest[0], name


def allows(rule: Rule, verb: str, group: str, resource: str, name: str) -> bool:
    """Whether a rule of a Role allows it."""
    names = rule.get("resourceNames") or [name]
    return (
        verb in rule["verbs"]
        and group in rule.get("apiGroups", ())
        and resource in rule.get("resources", ())
        and name in names
    )


def rules(name: str) -> Iterator[Rule]:
    """What is bound to the picker's service account."""
    account = Pod.rendered(name).spec["serviceAccountName"]
    for binding in (*of(name, "RoleBinding"), *of(name, "ClusterRoleBinding")):
        if account in [subject["name"] for subject in binding["subjects"]]:
            for role in of(name, binding["roleRef"]["kind"]):
                yield from role["rules"] if role["metadata"]["name"] == binding["roleRef"]["name"] else ()


def mounted(name: str, folder: Path) -> dict[str, str]:
    """The folders that stand for what is mounted, by the paths that the arguments name."""
    made = {}
    configs = {each["metadata"]["name"]: each["data"] for each in of(name, "ConfigMap")}
    volumes = {volume["name"]: volume for volume in Pod.rendered(name).spec.get("volumes", ())}
    for mount in Pod.rendered(name).main.get("volumeMounts", ()):
        place = folder / mount["name"]
        place.mkdir()
        volume = volumes[mount["name"]]
        if "configMap" in volume:
            texts = configs.get(volume["configMap"]["name"], {"config.yaml": defaults.TEXT})
        else:
            pair = self_signed(("epp.llm.svc",), datetime.now(UTC))
            texts = {"tls.crt": pair.chain.decode(), "tls.key": pair.key.decode()}
        for key, text in texts.items():
            (place / key).write_text(text)
        made[mount["mountPath"]] = str(place)
    return made


def arguments(name: str, places: Mapping[str, str]) -> list[str]:
    """Those of the rendering, where what they name as mounted is found in its place."""
    found = []
    for argument in Pod.rendered(name).main["args"]:
        flag, equals, value = argument.partition("=")
        path = next((path for path in places if value == path or value.startswith(f"{path}/")), "")
        found.append(f"{flag}{equals}{places[path]}{value.removeprefix(path)}" if path else argument)
    return found


def objects(name: str) -> Iterator[dict[str, Any]]:
    """What of the rendering the API server has, and a model server."""
    for document in documents(name):
        if document["kind"] in SERVED and document["kind"] != "Secret":
            yield {**document, "metadata": {**document["metadata"], "namespace": "llm"}}
    yield pod("llama-0", "127.0.0.1", namespace="llm", labels=labels(name))


def labels(name: str) -> dict[str, str]:
    for pool in of(name, "InferencePool"):
        selector = pool["spec"]["selector"]
        return dict(selector.get("matchLabels", selector))
    (selector,) = [each for each in Pod.rendered(name).main["args"] if each.startswith("--endpoint-selector=")]
    return dict(pair.split("=") for pair in selector.partition("=")[2].split(","))


async def test_the_picker_becomes_ready(tmp_path: Path) -> None:
    """It asks for nothing that its roles don't allow, and finds the pool."""
    names = [name for name in distinct() if rights_of_ours(name)]
    assert len(names) > 5
    gate = asyncio.Semaphore(4)

    async def one(name: str, folder: Path) -> tuple[str, Any]:
        async with gate:
            return name, await started(name, folder)

    folders = [tmp_path / name.replace("/", "-") for name in names]
    for folder in folders:
        folder.mkdir()
    found = await asyncio.gather(*map(one, names, folders))
    assert found == [(name, SERVING) for name in names]


def rights_of_ours(name: str) -> bool:
    """Whether the roles are in the rendering, and not left to somebody else."""
    return bool(of(name, "Role"))


async def started(name: str, folder: Path) -> Any:
    """What the picker says of its readiness once it is ready."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(Guarded(list(rules(name))))
        api.apply(*objects(name))
        given = arguments(name, mounted(name, folder))
        environ = {"NAMESPACE": "llm", "POD_NAME": "epp-7f9c-x2k"}
        kubeconfig = api.kubeconfig(folder / "kubeconfig", namespace="llm")
        picker = await stack.enter_async_context(KubernetesPicker(kubeconfig, *given, environ=environ))
        await until(picker.ready, f"{name} is ready")
        status = await picker.status("readiness")
        leases = [lease["metadata"]["name"] for lease in api.objects("Lease")]
        assert leases == ([f"epp-llm-{given[0].partition('=')[2]}.llm-d.ai"] if "high-availability" in name else [])
    assert api.forbidden == [], name
    return status


async def test_metrics_are_for_the_reader(tmp_path: Path) -> None:
    """With the rights of the rendering, the picker can tell who may read its metrics."""
    name = "kustomize/base"
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(Guarded(list(rules(name))))
        api.apply(*objects(name))
        api.users["good"] = {"username": "system:serviceaccount:monitoring:prometheus"}
        api.readers.add("system:serviceaccount:monitoring:prometheus")
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", namespace="llm")
        given = Pod.rendered(name).main["args"]
        picker = await stack.enter_async_context(KubernetesPicker(kubeconfig, *given, environ={"NAMESPACE": "llm"}))
        await until(picker.ready, "it is ready")
        http = await stack.enter_async_context(aiohttp.ClientSession())
        statuses = []
        for token in ("", "bad", "good"):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with http.get(f"http://{picker.metrics_address}/metrics", headers=headers) as response:
                statuses.append(response.status)
    assert statuses == [401, 401, 200]
    assert api.forbidden == []


async def test_without_its_pool_it_is_not_ready(tmp_path: Path) -> None:
    """What the tests above wait for is worth something."""
    name = "kustomize/base"
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(Guarded([]))
        api.apply(*objects(name))
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", namespace="llm")
        given = Pod.rendered(name).main["args"]
        picker = await stack.enter_async_context(KubernetesPicker(kubeconfig, *given, environ={"NAMESPACE": "llm"}))
        assert await picker.status("readiness") == NOT_SERVING
        await until(lambda: asyncio.sleep(0, bool(api.forbidden)), "it has been refused")
    assert "list inference.networking.k8s.io inferencepools vllm" in api.forbidden
