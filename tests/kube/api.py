"""A Kubernetes API server over real HTTP, as far as clients of ours can tell: objects, lists, watches, leases, reviews.

    async with FakeApi() as api:
        api.apply(pod("llama-0", "10.0.0.1", labels={"app": "llama"}))
        environ = {"KUBECONFIG": str(api.kubeconfig(tmp_path / "config"))}

It is stateful: every change has the next resourceVersion, a watch begins where it is asked to, one from before
`expire()` is answered with 410, an update with an old resourceVersion with 409. What goes wrong is asked for: `down`
and `up`, `drop_watches`, `slow`, `failures`, `silent`. Objects may be applied from the test, or over HTTP.

As a process of its own (`python -m tests.kube.api`) it prints its URL, and ends when its input does.
"""

import asyncio
import contextlib
import copy
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import msgspec
from aiohttp import web

from epp.kube.client import LLM_D_GROUP, OLD_GROUP, POOL_GROUP, Resource
from epp.kube.selectors import Matches, parse_selector

Key = tuple[str, str]
"""Namespace, "" for what has none, and name."""

KINDS: Mapping[str, Resource] = {
    "Pod": Resource("", "v1", "pods"),
    "Service": Resource("", "v1", "services"),
    "Namespace": Resource("", "v1", "namespaces"),
    "Secret": Resource("", "v1", "secrets"),
    "ConfigMap": Resource("", "v1", "configmaps"),
    "Event": Resource("", "v1", "events"),
    "Deployment": Resource("apps", "v1", "deployments"),
    "EndpointSlice": Resource("discovery.k8s.io", "v1", "endpointslices"),
    "Lease": Resource("coordination.k8s.io", "v1", "leases"),
    "HTTPRoute": Resource("gateway.networking.k8s.io", "v1", "httproutes"),
    "Gateway": Resource("gateway.networking.k8s.io", "v1", "gateways"),
    "LLMInferenceService": Resource("serving.kserve.io", "v1alpha1", "llminferenceservices"),
}
"""What it serves, besides what follows, whose versions are several."""

INFERENCE = (
    ("InferencePool", Resource(POOL_GROUP, "v1", "inferencepools")),
    ("InferencePool", Resource(OLD_GROUP, "v1alpha2", "inferencepools")),
    ("InferenceObjective", Resource(LLM_D_GROUP, "v1alpha2", "inferenceobjectives")),
    ("InferenceObjective", Resource(OLD_GROUP, "v1alpha2", "inferenceobjectives")),
    ("InferenceModelRewrite", Resource(LLM_D_GROUP, "v1alpha2", "inferencemodelrewrites")),
    ("InferenceModelRewrite", Resource(OLD_GROUP, "v1alpha2", "inferencemodelrewrites")),
    ("InferenceModel", Resource(OLD_GROUP, "v1alpha2", "inferencemodels")),
)
CLUSTER_WIDE = ("namespaces",)


@dataclass(slots=True)
class _Stored:
    object: dict[str, Any]
    encoded: bytes


@dataclass(frozen=True, slots=True)
class _Change:
    version: int
    type: str
    key: Key
    before: Mapping[str, str] | None
    after: Mapping[str, str] | None
    encoded: bytes


@dataclass(slots=True)
class _Collection:
    objects: dict[Key, _Stored] = field(default_factory=dict)
    changes: list[_Change] = field(default_factory=list)


@dataclass(slots=True)
class Failure:
    """An answer in place of the right one.

    Attributes:
        status: the HTTP status.
        count: of the requests that are still to get it.
        plural: of the resource; "" for all.
        verb: "list", "watch", "get", "create", "update", "delete"; "" for all.
        headers: such as Retry-After.
    """

    status: int
    count: int = 1
    plural: str = ""
    verb: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class FakeApi:
    """See the module. On 127.0.0.1, at a port that stays the same while it is down.

    Attributes:
        requests: what has been asked: pairs of verb and path, watches and lists with their query.
        slow: seconds that every list takes.
        silent: whether watches tell nothing, and send nothing either.
        failures: what goes wrong; the first that fits is taken.
        users: by bearer token, a TokenReview's `user`; any other token is nobody's.
        readers: users that a SubjectAccessReview allows to get /metrics and the pages beside it.
        denied: what the caller may not do, as verb and plural; an answer of 403, and of no to a review.
        denied_groups: API groups that the caller may do nothing in.
        token: that every caller must show; "" for none.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, str]] = []
        self.slow = 0.0
        self.silent = False
        self.failures: list[Failure] = []
        self.users: dict[str, dict[str, Any]] = {}
        self.readers: set[str] = set()
        self.denied: set[tuple[str, str]] = set()
        self.denied_groups: set[str] = set()
        self.token = ""
        self._tls = tls
        self._kinds: dict[tuple[str, str], Resource] = {}
        for kind, resource in (*KINDS.items(), *INFERENCE):
            self._kinds[resource.group_version, kind] = resource
        self._collections: dict[Resource, _Collection] = {each: _Collection() for each in self._kinds.values()}
        self._version = 1000
        self._oldest = 0
        self._changed = asyncio.Event()
        self._dropped = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.down()

    # --- for the test

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def kubeconfig(self, file: Path, *, namespace: str = "default", token: str = "") -> Path:
        """Writes a kubeconfig for it, and gives the file back."""
        cluster = {"server": self.url, "insecure-skip-tls-verify": True}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": namespace}}],
            "clusters": [{"name": "fake", "cluster": cluster}],
            "users": [{"name": "me", "user": {"token": token or self.token}}],
        }
        file.write_text(json.dumps(config))
        return file

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Creates objects, or puts them in the place of those of the same name."""
        for each in objects:
            self._put(self._resource_of(each), copy.deepcopy(dict(each)))
        self._wake()

    def remove(self, *objects: Mapping[str, Any]) -> None:
        """Deletes objects; those that aren't there are none."""
        for each in objects:
            resource = self._resource_of(each)
            key = _key(each)
            if key in self._collections[resource].objects:
                self._delete(resource, key)
        self._wake()

    def objects(self, kind: str, version: str = "") -> list[dict[str, Any]]:
        """All objects of a kind, of any of its versions or of one such as `v1`, `llm-d.ai/v1alpha2`."""
        found = [r for (of, name), r in self._kinds.items() if name == kind and version in ("", of)]
        return [stored.object for r in found for stored in self._collections[r].objects.values()]

    def unserve(self, group_version: str) -> None:
        """Its kinds are unknown from now on, as without their CustomResourceDefinition."""
        for key in [key for key in self._kinds if key[0] == group_version]:
            self._collections.pop(self._kinds.pop(key), None)
        self.drop_watches()

    def serve(self, *kinds: tuple[str, Resource]) -> None:
        """Its kinds are known from now on."""
        for kind, resource in kinds:
            self._kinds[resource.group_version, kind] = resource
            self._collections.setdefault(resource, _Collection())

    @property
    def version(self) -> str:
        """The last resourceVersion."""
        return str(self._version)

    def expire(self) -> None:
        """Whatever has been is forgotten: watches end with 410, and so does one that begins before now."""
        self._version += 1
        self.compact()
        self._wake()

    def compact(self) -> None:
        """What was before the last change is forgotten; who has been told of that one may go on from there."""
        self._oldest = self._version
        for collection in self._collections.values():
            collection.changes.clear()

    def drop_watches(self) -> None:
        """Breaks off every connection with a watch, in the middle of it."""
        self._dropped.set()
        self._dropped = asyncio.Event()
        self._wake()

    async def down(self) -> None:
        """Nobody listens any more, and every connection is broken."""
        runner, self._runner = self._runner, None
        if runner is not None:
            self.drop_watches()
            await runner.cleanup()

    async def up(self) -> None:
        """Listens, again at the same port."""
        if self._runner is None:
            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/{path:.*}", self._answer)
            self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
            await self._runner.setup()
            site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls, reuse_address=True)
            await site.start()
            self.port = self._runner.addresses[0][1]

    # --- the state

    def _resource_of(self, each: Mapping[str, Any]) -> Resource:
        return self._kinds[each["apiVersion"], each["kind"]]

    def _put(self, resource: Resource, new: dict[str, Any]) -> _Stored:
        collection, meta = self._collections[resource], new["metadata"]
        if resource.plural not in CLUSTER_WIDE:
            meta.setdefault("namespace", "default")
        key = _key(new)
        old = collection.objects.get(key)
        self._version += 1
        known = old.object["metadata"] if old else {}
        meta.setdefault("uid", known.get("uid") or str(uuid4()))
        meta.setdefault("creationTimestamp", known.get("creationTimestamp") or f"{datetime.now(UTC):%FT%TZ}")
        meta["resourceVersion"] = str(self._version)
        stored = collection.objects[key] = _Stored(new, msgspec.json.encode(new))
        before = _labels(old.object) if old else None
        kind = "MODIFIED" if old else "ADDED"
        collection.changes.append(_Change(self._version, kind, key, before, _labels(new), stored.encoded))
        return stored

    def _delete(self, resource: Resource, key: Key) -> _Stored:
        collection = self._collections[resource]
        stored = collection.objects.pop(key)
        self._version += 1
        stored.object["metadata"]["resourceVersion"] = str(self._version)
        encoded = msgspec.json.encode(stored.object)
        change = _Change(self._version, "DELETED", key, _labels(stored.object), None, encoded)
        collection.changes.append(change)
        return stored

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- HTTP

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized", "Unauthorized")
        parts = request.path.strip("/").split("/")
        if parts[0] == "version":
            return web.json_response({"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
        if parts[0] not in ("api", "apis"):
            return _status(404, "NotFound", "the server could not find the requested resource")
        depth = 2 if parts[0] == "api" else 3
        if len(parts) <= depth:
            return self._discovery(parts)
        group_version, rest = "/".join(parts[1:depth]), parts[depth:]
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        if rest[0] in ("tokenreviews", "subjectaccessreviews", "selfsubjectaccessreviews"):
            return await self._review(request, rest[0])
        resource = next((r for r in self._collections if (r.group_version, r.plural) == (group_version, rest[0])), None)
        if resource is None:
            return _status(404, "NotFound", "the server could not find the requested resource")
        name = rest[1] if len(rest) > 1 else ""
        verb = _verb(request, name)
        self.requests.append((verb, request.path_qs))
        if refused := self._refused(verb, resource):
            return refused
        if verb in ("list", "watch"):
            return await self._collection(request, resource, namespace, watch=verb == "watch")
        return self._one(verb, resource, (namespace, name), await request.read())

    def _discovery(self, parts: list[str]) -> web.Response:
        versions = {resource.group_version for resource in self._collections}
        if len(parts) == 1:
            if parts[0] == "api":
                return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
            names = sorted({each.split("/")[0] for each in versions if "/" in each})
            of = {n: [{"groupVersion": v} for v in versions if v.startswith(f"{n}/")] for n in names}
            groups = [{"name": name, "versions": of[name]} for name in names]
            return web.json_response({"kind": "APIGroupList", "groups": groups})
        group_version = "/".join(parts[1:])
        if group_version not in versions:
            return _status(404, "NotFound", "the server could not find the requested resource")
        verbs = ["create", "delete", "get", "list", "update", "watch"]
        found = [
            {"name": r.plural, "kind": kind, "namespaced": r.plural not in CLUSTER_WIDE, "verbs": verbs}
            for (version, kind), r in self._kinds.items()
            if version == group_version
        ]
        return web.json_response({"kind": "APIResourceList", "groupVersion": group_version, "resources": found})

    def _refused(self, verb: str, resource: Resource) -> web.Response | None:
        for failure in self.failures:
            if failure.count > 0 and failure.plural in ("", resource.plural) and failure.verb in ("", verb):
                failure.count -= 1
                return _status(failure.status, "InternalError", "as the test wants it", failure.headers)
        if (verb, resource.plural) in self.denied or resource.group in self.denied_groups:
            message = f'{resource} is forbidden: User "me" cannot {verb} resource "{resource.plural}"'
            return _status(403, "Forbidden", message)
        return None

    def _one(self, verb: str, resource: Resource, key: Key, body: bytes) -> web.Response:
        objects = self._collections[resource].objects
        if verb == "create":
            new = json.loads(body)
            new["metadata"].setdefault("namespace", key[0]) if key[0] else None
            if _key(new) in objects:
                return _status(409, "AlreadyExists", f'{resource} "{_key(new)[1]}" already exists')
            return self._written(self._put(resource, new), 201)
        if key not in objects:
            return _status(404, "NotFound", f'{resource} "{key[1]}" not found')
        if verb == "get":
            return web.Response(body=objects[key].encoded, content_type="application/json")
        if verb == "delete":
            return self._written(self._delete(resource, key))
        new = json.loads(body)
        given = new["metadata"].get("resourceVersion")
        if given and given != objects[key].object["metadata"]["resourceVersion"]:
            message = "the object has been modified; please apply your changes to the latest version and try again"
            return _status(409, "Conflict", f'Operation cannot be fulfilled on {resource} "{key[1]}": {message}')
        return self._written(self._put(resource, new))

    def _written(self, stored: _Stored, status: int = 200) -> web.Response:
        self._wake()
        return web.Response(body=stored.encoded, status=status, content_type="application/json")

    async def _collection(
        self, request: web.Request, resource: Resource, namespace: str, *, watch: bool
    ) -> web.StreamResponse:
        selects = _selection(request.query, namespace)
        if watch:
            with contextlib.suppress(ConnectionResetError):  # the client has gone
                return await self._watch(request, resource, selects)
            return web.Response()
        await asyncio.sleep(self.slow)
        return self._list(request, resource, selects)

    def _list(
        self, request: web.Request, resource: Resource, selects: Callable[[Key, Mapping[str, str] | None], bool]
    ) -> web.Response:
        limit, token = int(request.query.get("limit", "0")), request.query.get("continue", "")
        version, _, start = token.partition(":") if token else (str(self._version), "", "")
        if int(version) < self._oldest:
            return _status(410, "Expired", "The provided continue parameter is too old")
        objects = self._as_of(self._collections[resource], int(version))
        found = [(key, e) for key, (labels, e) in sorted(objects.items()) if selects(key, labels)]
        rest = [(key, encoded) for key, encoded in found if "/".join(key) > start]
        page = rest[:limit] if limit else rest
        meta = {"resourceVersion": version}
        if len(page) < len(rest):
            meta["continue"] = f"{version}:{'/'.join(page[-1][0])}"
        kind = next(kind for (_, kind), each in self._kinds.items() if each == resource)
        items = [msgspec.Raw(encoded) for _, encoded in page]
        answer = {"kind": f"{kind}List", "apiVersion": resource.group_version, "metadata": meta, "items": items}
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    def _as_of(self, collection: _Collection, version: int) -> dict[Key, tuple[Mapping[str, str], bytes]]:
        """The objects as they were at that version: later changes are taken back."""
        objects = {key: (_labels(stored.object), stored.encoded) for key, stored in collection.objects.items()}
        later = {change.key for change in collection.changes if change.version > version}
        for key in later:
            objects.pop(key, None)
            earlier = [change for change in collection.changes if change.key == key and change.version <= version]
            if earlier and earlier[-1].after is not None:
                objects[key] = (earlier[-1].after, earlier[-1].encoded)
        return objects

    async def _watch(
        self, request: web.Request, resource: Resource, selects: Callable[[Key, Mapping[str, str] | None], bool]
    ) -> web.StreamResponse:
        version = int(request.query.get("resourceVersion") or self._version)
        if version < self._oldest:
            return _status(410, "Expired", f"too old resource version: {version} ({self._oldest})")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        dropped, bookmarks = self._dropped, request.query.get("allowWatchBookmarks") == "true"
        seconds = float(request.query.get("timeoutSeconds", "1800"))
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end and resource in self._collections:
            changed = self._changed
            if dropped.is_set():
                assert request.transport is not None
                request.transport.abort()
                break
            if version < self._oldest:
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                await response.write(msgspec.json.encode({"type": "ERROR", "object": gone}) + b"\n")
                break
            if not self.silent:
                lines = list(self._lines(self._collections[resource], version, selects))
                if bookmarks and self._version > version and not lines:
                    lines = [self._bookmark(resource)]
                version = self._version
                if lines:
                    await response.write(b"".join(lines))
                    continue
            try:
                async with asyncio.timeout_at(end):
                    await changed.wait()
            except TimeoutError:
                break
        return response

    def _lines(
        self, collection: _Collection, version: int, selects: Callable[[Key, Mapping[str, str] | None], bool]
    ) -> Iterable[bytes]:
        for change in collection.changes[_first_after(collection.changes, version) :]:
            was, is_ = selects(change.key, change.before), selects(change.key, change.after)
            if was or is_:
                kind = "MODIFIED" if was and is_ else "ADDED" if is_ else "DELETED"
                yield b'{"type":"%s","object":%s}\n' % (kind.encode(), change.encoded)

    def _bookmark(self, resource: Resource) -> bytes:
        kind = next(kind for (_, kind), each in self._kinds.items() if each == resource)
        meta = {"resourceVersion": str(self._version), "creationTimestamp": None}
        mark = {"kind": kind, "apiVersion": resource.group_version, "metadata": meta}
        return msgspec.json.encode({"type": "BOOKMARK", "object": mark}) + b"\n"

    async def _review(self, request: web.Request, plural: str) -> web.Response:
        self.requests.append(("create", request.path))
        refused = self._refused("create", Resource("", "v1", plural))
        if refused is not None:
            return refused
        review = await request.json()
        spec = review["spec"]
        if plural == "tokenreviews":
            user = self.users.get(spec["token"])
            review["status"] = {"authenticated": True, "user": user} if user else {"error": "unknown token"}
        elif plural == "subjectaccessreviews":
            review["status"] = {"allowed": spec.get("user") in self.readers}
        else:
            asked = spec.get("resourceAttributes") or {}
            denied = (asked.get("verb"), asked.get("resource")) in self.denied
            review["status"] = {"allowed": not denied and asked.get("group", "") not in self.denied_groups}
        return web.json_response(review, status=201)


def _key(each: Mapping[str, Any]) -> Key:
    return each["metadata"].get("namespace", "default"), each["metadata"]["name"]


def _labels(each: Mapping[str, Any]) -> Mapping[str, str]:
    return each["metadata"].get("labels") or {}


def _first_after(changes: list[_Change], version: int) -> int:
    low, high = 0, len(changes)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if changes[middle].version <= version else (low, middle)
    return low


def _verb(request: web.Request, name: str) -> str:
    if request.method == "GET":
        return "watch" if request.query.get("watch") in ("1", "true") else "get" if name else "list"
    return {"POST": "create", "PUT": "update", "DELETE": "delete"}[request.method]


def _selection(query: Mapping[str, str], namespace: str) -> Callable[[Key, Mapping[str, str] | None], bool]:
    matches: Matches = parse_selector(query.get("labelSelector", ""))
    fields = [part.partition("=")[::2] for part in query.get("fieldSelector", "").split(",") if part]
    wanted = {name.strip("="): value.strip("=") for name, value in fields}

    def selects(key: Key, labels: Mapping[str, str] | None) -> bool:
        if labels is None or (namespace and key[0] != namespace):
            return False
        return key[1] == wanted.get("metadata.name", key[1]) and matches(labels)

    return selects


def _status(code: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message}
    return web.json_response(body | {"reason": reason, "code": code}, status=code, headers=headers)


def pod(
    name: str,
    address: str = "",
    *,
    namespace: str = "default",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    ready: bool = True,
    deleted: bool = False,
    uid: str = "",
) -> dict[str, Any]:
    """A pod as a kubelet would show it, of about 2 kB; without an address it has no condition either."""
    meta: dict[str, Any] = {"name": name, "namespace": namespace, "labels": dict(labels or {})}
    meta |= {"annotations": dict(annotations)} if annotations else {}
    meta |= {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleted else {}
    meta |= {"uid": uid} if uid else {}
    meta["managedFields"] = [
        {"manager": "kubelet", "operation": "Update", "fieldsV1": {f"f:{i}": {"f:a": {}} for i in range(30)}}
    ]
    container = {"name": "main", "image": "vllm", "args": [f"--argument-{i}=value" for i in range(16)]}
    status: dict[str, Any] = {"phase": "Running" if address else "Pending"}
    if address:
        kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
        state = {kind: "False" if kind.endswith("Ready") and not ready else "True" for kind in kinds}
        since = "2026-01-01T00:00:00Z"
        status["conditions"] = [{"type": k, "status": v, "lastTransitionTime": since} for k, v in state.items()]
        status |= {"podIP": address, "podIPs": [{"ip": address}], "hostIP": "192.0.2.1"}
        status["containerStatuses"] = [{"name": "main", "ready": ready, "restartCount": 0, "image": "vllm"}]
    spec = {"containers": [container], "nodeName": "node-1"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}


def pool(
    name: str,
    labels: Mapping[str, str],
    ports: Iterable[int] = (8000,),
    *,
    namespace: str = "default",
    old: bool = False,
    **spec: Any,
) -> dict[str, Any]:
    """An InferencePool of version v1, or of v1alpha2, which has one port."""
    meta = {"name": name, "namespace": namespace}
    if old:
        shape = {"selector": dict(labels), "targetPortNumber": next(iter(ports))}
        shape["extensionRef"] = {"name": f"{name}-epp", "portNumber": 9002}
        return {"apiVersion": f"{OLD_GROUP}/v1alpha2", "kind": "InferencePool", "metadata": meta, "spec": shape | spec}
    shape = {"selector": {"matchLabels": dict(labels)}, "targetPorts": [{"number": port} for port in ports]}
    shape["endpointPickerRef"] = {"name": f"{name}-epp", "port": {"number": 9002}}
    return {"apiVersion": f"{POOL_GROUP}/v1", "kind": "InferencePool", "metadata": meta, "spec": shape | spec}


@contextlib.asynccontextmanager
async def process() -> AsyncIterator[str]:
    """The API server as a process of its own; its URL. Objects are applied over HTTP."""
    command = (sys.executable, "-m", "tests.kube.api")
    root = Path(__file__).parents[2]
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(*command, cwd=root, stdin=pipe, stdout=pipe)
    try:
        assert running.stdout is not None
        yield (await running.stdout.readline()).decode().strip()
    finally:
        assert running.stdin is not None
        running.stdin.close()
        await running.wait()


async def _main() -> None:
    async with FakeApi() as api:
        print(api.url, flush=True)  # noqa: T201 (whoever started it reads it)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
