"""The client and its watches, against an API server over HTTP."""

import asyncio
import base64
import json
import random
import ssl
import time
from collections.abc import Collection, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pytest
import yaml

from epp.errors import ConfigError
from epp.extproc.tls import Pair, self_signed
from epp.kube.access import Access, FileToken, FixedToken, find
from epp.kube.client import PODS, POOLS, Api, ApiError, Resource, Unreachable
from epp.kube.selectors import parse_selector
from epp.kube.watch import Backoff, Name, Object, Pace, Reflector
from tests.e2e.harness import until
from tests.kube.api import Failure, FakeApi, pod, pool

IN_POOL = {"app": "llama"}


class Names:
    """A sink that keeps the names, and can be waited on."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.changes: list[tuple[str, str]] = []
        self.lists = 0
        self.errors: list[str] = []
        self._something = asyncio.Event()

    async def replace(self, items: Sequence[Object], unread: Collection[Name]) -> None:
        self.names = {item.metadata.name for item in items} | {name for _, name in unread if name in self.names}
        self.lists += 1
        self._something.set()

    def change(self, change: str, item: Object) -> None:
        self.changes.append((change, item.metadata.name))
        (self.names.discard if change == "DELETED" else self.names.add)(item.metadata.name)
        self._something.set()

    def on_error(self, message: str) -> None:
        self.errors.append(message)
        self._something.set()

    def on_state(self) -> None:
        self._something.set()

    async def until(self, condition, within: float = 10.0) -> None:
        async with asyncio.timeout(within):
            while not condition():
                self._something.clear()
                await self._something.wait()


class Watching:
    """A reflector of pods that runs."""

    def __init__(self, api: Api, resource: Resource = PODS, **options) -> None:
        self.sink = Names()
        self.reflector = Reflector(
            api,
            resource,
            "default",
            Object,
            self.sink,
            on_error=self.sink.on_error,
            on_state=self.sink.on_state,
            **options,
        )

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self.reflector.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until_names(self, *names: str) -> None:
        await self.sink.until(lambda: self.sink.names == set(names))


async def test_objects_are_created_read_replaced_and_conflict(fake: FakeApi, api: Api) -> None:
    created = await api.create(PODS.path("default"), pod("a", "10.0.0.1"))
    assert await api.get(PODS.path("default", "a")) == created
    newer = await api.replace(PODS.path("default", "a"), created)
    assert newer["metadata"]["resourceVersion"] != created["metadata"]["resourceVersion"]
    for what, status, reason in (
        (api.replace(PODS.path("default", "a"), created), 409, "Conflict"),
        (api.create(PODS.path("default"), pod("a")), 409, "AlreadyExists"),
        (api.get(PODS.path("default", "b")), 404, "NotFound"),
    ):
        with pytest.raises(ApiError, match=reason) as caught:
            await what
        assert (caught.value.status, caught.value.reason) == (status, reason)


async def test_a_list_comes_in_pages_as_of_one_moment(fake: FakeApi, api: Api) -> None:
    """What changes between two pages is not in the list."""
    fake.apply(*(pod(f"p{i:03}", "10.0.0.1", labels=IN_POOL) for i in range(250)), pod("other", "10.0.0.2"))
    seen: list[str] = []
    async for page in api.pages(PODS.path("default"), labelSelector="app=llama"):
        seen += [json.loads(bytes(item))["metadata"]["name"] for item in page.items]
        fake.apply(pod("p300", labels=IN_POOL))
        fake.remove(pod("p240"))
    assert seen == [f"p{i:03}" for i in range(250)]
    assert len([1 for verb, _ in fake.requests if verb == "list"]) == 3


async def test_connections_may_take_longer_the_longer_there_was_none(fake: FakeApi) -> None:
    now = 0.0
    async with aclosing(Api(Access(fake.url, FixedToken()), now=lambda: now)) as api:
        await fake.down()
        for later, within in ((0.0, 1.0), (29.0, 1.0), (90.0, 3.0), (900.0, 10.0)):
            now = later
            with pytest.raises(Unreachable):
                await api.list(PODS.path("default"))
            assert api.connect_within == within
        await fake.up()
        await api.list(PODS.path("default"))
        assert api.connect_within == 1.0


async def test_what_is_served(fake: FakeApi, api: Api) -> None:
    assert await api.serves(PODS)
    assert await api.serves(POOLS)
    fake.unserve(POOLS.group_version)
    assert not await api.serves(POOLS)


async def test_a_watch_follows_a_selector(fake: FakeApi, api: Api) -> None:
    """An object whose labels change comes or goes."""
    fake.apply(pod("a", labels=IN_POOL), pod("b"))
    async with Watching(api, labels="app=llama") as watching:
        await watching.until_names("a")
        fake.apply(pod("b", labels=IN_POOL))
        await watching.until_names("a", "b")
        fake.apply(pod("a"))
        await watching.until_names("b")
        fake.remove(pod("b"))
        await watching.until_names()
        assert watching.sink.lists == 1
        assert watching.sink.changes == [("ADDED", "b"), ("DELETED", "a"), ("DELETED", "b")]


async def test_a_broken_watch_goes_on_where_it_was(fake: FakeApi, api: Api) -> None:
    fake.apply(pod("a"))
    async with Watching(api) as watching:
        await watching.until_names("a")
        fake.silent = True
        fake.apply(pod("b"))
        fake.remove(pod("a"))
        fake.silent = False
        fake.drop_watches()
        await watching.until_names("b")
        assert watching.sink.lists == 1


async def test_bookmarks_move_the_place_on(fake: FakeApi, api: Api) -> None:
    """A watch of what never changes outlives that what was before is forgotten."""
    async with Watching(api, labels="app=llama") as watching:
        await watching.sink.until(lambda: watching.sink.lists == 1)
        fake.apply(pod("stranger"))
        await until(lambda: watching.reflector.version == fake.version, "the bookmark has come")
        fake.compact()
        fake.drop_watches()
        fake.apply(pod("a", labels=IN_POOL))
        await watching.until_names("a")
        assert watching.sink.lists == 1


async def test_what_is_gone_is_listed_anew(fake: FakeApi, api: Api) -> None:
    async with Watching(api) as watching:
        await watching.sink.until(lambda: watching.sink.lists == 1)
        fake.apply(pod("a"))
        fake.expire()
        await watching.sink.until(lambda: watching.sink.lists == 2)
        await watching.until_names("a")
        assert watching.sink.errors == []


async def test_an_outage_leaves_what_was_known_marked_stale(fake: FakeApi, api: Api) -> None:
    fake.apply(pod("a"))
    async with Watching(api) as watching:
        await watching.until_names("a")
        await fake.down()
        await watching.sink.until(lambda: watching.reflector.stale_since is not None)
        assert watching.sink.names == {"a"}
        assert len(watching.sink.errors) == 1
        fake.apply(pod("b"))
        await fake.up()
        answering = time.monotonic()
        await watching.until_names("a", "b")
        assert time.monotonic() - answering < 2.0
        await watching.sink.until(lambda: watching.reflector.stale_since is None)


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_refusals_are_told_once_and_tried_again(fake: FakeApi, api: Api, status: int) -> None:
    fake.failures = [Failure(status, 3, verb="list")]
    fake.apply(pod("a"))
    async with Watching(api, pace=Pace(0.001, 0.01)) as watching:
        await watching.until_names("a")
        assert len(watching.sink.errors) == 1
        assert str(status) in watching.sink.errors[0]


async def test_a_list_is_no_answer_while_the_watch_after_it_is_refused(fake: FakeApi, api: Api) -> None:
    """As with a Role without `watch`: it is told once, stays stale, and the outage gets old."""
    now = 0.0
    fake.apply(pod("a"))
    fake.denied = {("watch", "pods")}
    async with Watching(api, now=lambda: now, pace=Pace(0.5, 0.001, 30.0, 0.5)) as watching:
        await watching.sink.until(lambda: watching.sink.lists > 4)
        assert (len(watching.sink.errors), watching.reflector.stale_since) == (1, 0.0)
        now = 31.0
        lists, since = watching.sink.lists, time.monotonic()
        await watching.sink.until(lambda: watching.sink.lists > lists + 2)
        assert time.monotonic() - since > 0.25
        fake.denied.clear()
        await watching.sink.until(lambda: watching.reflector.stale_since is None)


async def test_a_watch_that_says_nothing_is_taken_up_on_another_connection(fake: FakeApi, api: Api) -> None:
    """Its own may be dead, and only kept by a load balancer; where nobody has anything to say that is no outage."""
    fake.apply(pod("a"))
    async with Watching(api, silence=0.3) as watching:
        await watching.until_names("a")
        await until(lambda: [verb for verb, _ in fake.requests].count("watch") == 1, "it watches")
        fake.silent = True
        fake.apply(pod("b"))
        await until(lambda: [verb for verb, _ in fake.requests].count("watch") > 1, "it watches again")
        fake.silent = False
        await watching.until_names("a", "b")
        assert (watching.sink.errors, watching.reflector.stale_since, watching.sink.lists) == ([], None, 1)


async def test_a_watch_whose_answer_doesnt_begin_is_given_up() -> None:
    opened: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: opened.append(writer), "127.0.0.1", 0)
    api = Api(Access("http://127.0.0.1:{1}".format(*server.sockets[0].getsockname()), FixedToken()), timeout=0.1)
    async with server, aclosing(api):
        with pytest.raises(Unreachable, match="no answer in time"):
            async with asyncio.timeout(10), api.lines("/api/v1/pods", {"watch": "1"}, within=300.0):
                pass
        for writer in opened:
            writer.close()


async def test_a_kind_that_is_not_served_ends_it(fake: FakeApi, api: Api) -> None:
    fake.unserve(POOLS.group_version)
    async with Watching(api, POOLS) as watching:
        with pytest.raises(ApiError) as caught:
            await asyncio.wait_for(watching.task, 10)
        assert caught.value.status == 404


async def test_an_object_of_another_shape_is_left_out(fake: FakeApi, api: Api) -> None:
    broken = pod("broken")
    broken["metadata"]["labels"] = {"app": 1}
    fake.apply(broken, pod("a"))
    async with Watching(api) as watching:
        await watching.until_names("a")
        (told,) = watching.sink.errors
        assert told.startswith("pods that can't be read, and stay as they were: default/broken: Expected `str`")
        fake.apply(broken, pod("b"))
        await watching.until_names("a", "b")
        assert len(watching.sink.errors) == 1
        assert list(watching.reflector.unread) == [("default", "broken")]


async def test_an_object_that_cant_be_read_any_more_stays_as_it_was(fake: FakeApi, api: Api) -> None:
    """Whether it is watched or listed; until it can be read again, or is gone."""
    broken = pod("a")
    broken["metadata"]["labels"] = {"app": 1}
    fake.apply(pod("a"), pod("b"))
    async with Watching(api, pace=Pace(0.001, 0.01)) as watching:
        await watching.until_names("a", "b")
        fake.apply(broken)
        await watching.sink.until(lambda: watching.reflector.unread)
        fake.expire()
        await watching.sink.until(lambda: watching.sink.lists == 2)
        assert watching.sink.names == {"a", "b"}
        fake.apply(pod("a"))
        await watching.sink.until(lambda: not watching.reflector.unread)
        fake.apply(broken)
        await watching.sink.until(lambda: watching.reflector.unread)
        fake.remove(broken)
        await watching.until_names("b")
        assert watching.reflector.unread == {}
        assert watching.reflector.stale_since is None


async def test_large_lists_and_bursts_let_others_run(fake: FakeApi, api: Api) -> None:
    """While 500 pods are listed and 500 changes come in at once, nobody waits for long."""
    fake.apply(*(pod(f"p{i}", "10.0.0.1") for i in range(500)))
    worst = 0.0

    async def others() -> None:
        nonlocal worst
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            worst = max(worst, time.perf_counter() - began)

    async with Watching(api) as watching:
        await watching.sink.until(lambda: len(watching.sink.names) == 500)
        task = asyncio.create_task(others())
        fake.apply(*(pod(f"p{i}", "10.0.0.1") for i in range(500)))
        await watching.sink.until(lambda: len(watching.sink.changes) == 500)
        task.cancel()
    assert worst < 0.25  # the API server, which is in this process, encodes all 500 in one go


def test_pauses_double_up_to_a_second_and_later_on_further() -> None:
    now = 0.0
    backoff = Backoff(Pace(), lambda: now, random.Random(1))
    early = [backoff.pause() for _ in range(40)]
    assert 0.025 <= early[0] <= 0.05
    assert max(early) <= 1.0
    assert min(early[10:]) >= 0.5
    now = 31.0
    assert 7.5 <= backoff.pause() <= 15.0
    backoff.reset()
    assert backoff.pause() <= 0.05


def test_an_outage_after_an_answer_is_another_one() -> None:
    """However long the one before was, and however little has been said since."""
    now = 0.0
    backoff = Backoff(Pace(), lambda: now, random.Random(1))
    for now in range(40):  # noqa: B007 (the clock)
        backoff.pause()
    backoff.answered()
    assert [backoff.pause() <= 1.0 for _ in range(5)] == [True] * 5


def test_an_answer_that_is_taken_back_at_once_ends_no_outage() -> None:
    now = 0.0
    backoff = Backoff(Pace(), lambda: now, random.Random(1))
    for now in range(40):  # noqa: B007 (the clock)
        backoff.answered()
        backoff.withdrew()
        pause = backoff.pause()
    assert pause >= 7.5 / 2


async def test_the_pauses_of_the_outage_before_are_forgotten_while_a_watch_says_nothing(
    fake: FakeApi, api: Api
) -> None:
    """No event and no bookmark: that the API server has taken the watch is enough."""
    now = 0.0
    fake.apply(pod("a"))
    fake.silent = True
    pace = Pace(first=20.0, cap=0.02, patience=30.0, late_cap=20.0)
    async with Watching(api, now=lambda: now, pace=pace) as watching:
        await watching.until_names("a")
        await fake.down()
        await watching.sink.until(lambda: watching.reflector.stale_since is not None)
        await fake.up()
        await watching.sink.until(lambda: watching.reflector.stale_since is None)
        now = 100.0
        await fake.down()
        await watching.sink.until(lambda: watching.reflector.stale_since is not None)
        await fake.up()
        answering = time.monotonic()
        await watching.sink.until(lambda: watching.reflector.stale_since is None)
        assert time.monotonic() - answering < 2.0


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ("", {}, True),
        ("app=llama", {"app": "llama", "x": "y"}, True),
        ("app==llama", {"app": "qwen"}, False),
        ("app!=llama", {}, True),
        ("a.b/c-d in (x, y),!spot", {"a.b/c-d": "y"}, True),
        ("a in (x,y), b", {"a": "x"}, False),
        ("a notin (x,y)", {"a": "x"}, False),
        ("a notin (x,y)", {}, True),
        ("a=", {"a": ""}, True),
        ("!a", {"a": ""}, False),
    ],
)
def test_selectors(selector: str, labels: dict[str, str], matches: bool) -> None:
    assert parse_selector(selector)(labels) is matches


@pytest.mark.parametrize("selector", ["a b", "a=b=c", "=x", "a in x", "a>1", "a=b,,c", "-a"])
def test_no_selectors(selector: str) -> None:
    with pytest.raises(ConfigError, match="is no requirement"):
        parse_selector(selector)


# --- where the API server is


def test_without_anything_it_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no KUBECONFIG.*no service account.*\.kube/config"):
        find({"HOME": str(tmp_path)}, account=tmp_path)


CERTIFICATE = "{name: c, cluster: {server: 'https://x', certificate-authority: nowhere.crt}}"
BROKEN = {
    "no YAML": ("{", "is no kubeconfig"),
    "no context": ("current-context: x", "there is no context 'x' \\(there are: none\\)"),
    "none current": ("contexts: [{name: a, context: {}}]", "no current-context is set"),
    "no server": (
        "{current-context: a, contexts: [{name: a, context: {cluster: c}}], clusters: [{name: c, cluster: {}}]}",
        "can't be used: 'server'",
    ),
    "no file": (
        f"{{current-context: a, contexts: [{{name: a, context: {{cluster: c}}}}], clusters: [{CERTIFICATE}]}}",
        "nowhere.crt",
    ),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_kubeconfigs_that_cant_be_used(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "config"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        find({"KUBECONFIG": str(file)})


def test_several_kubeconfigs_are_one(tmp_path: Path) -> None:
    """The first that has a name counts; relative paths are those of the file that names them."""
    one, two = tmp_path / "one", tmp_path / "two" / "config"
    two.parent.mkdir()
    cluster = {"name": "c", "cluster": {"server": "http://1"}}
    one.write_text(yaml.safe_dump({"current-context": "b", "clusters": [cluster]}))
    two.write_text(
        yaml.safe_dump(
            {
                "current-context": "a",
                "contexts": [{"name": "b", "context": {"cluster": "c", "user": "u", "namespace": "ns"}}],
                "clusters": [{"name": "c", "cluster": {"server": "http://2"}}],
                "users": [{"name": "u", "user": {"tokenFile": "token"}}],
            }
        )
    )
    (two.parent / "token").write_text("secret\n")
    access = find({"KUBECONFIG": f"{one}:{two}:{tmp_path / 'none'}"})
    assert (access.server, access.namespace) == ("http://1", "ns")
    assert asyncio.run(access.credentials.token()) == "secret"


async def test_a_token_file_is_read_again_when_it_is_refused_or_old(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "token"
    file.write_text("one")
    token = FileToken(file, lambda: now)
    assert await token.token() == "one"
    file.write_text("two")
    assert await token.token() == "one"
    token.refused()
    assert await token.token() == "two"
    file.write_text("three")
    now = 61.0
    assert await token.token() == "three"


async def test_a_command_gives_the_token(tmp_path: Path) -> None:
    """As cloud providers have it; a token that the API server refuses is asked for again, once."""
    script = tmp_path / "login"
    log = tmp_path / "log"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$1 $WHO" >> {log}\n'
        'test -n "$KUBERNETES_EXEC_INFO" || exit 1\n'
        f'echo "{{\\"status\\": {{\\"token\\": \\"t$(wc -l < {log} | tr -d " ")\\"}}}}"\n'
    )
    script.chmod(0o755)
    async with FakeApi() as fake:
        config = json.loads(fake.kubeconfig(tmp_path / "config").read_text())
        config["users"][0]["user"] = {
            "exec": {"command": "./login", "args": ["get"], "env": [{"name": "WHO", "value": "me"}]}
        }
        (tmp_path / "config").write_text(json.dumps(config))
        fake.token = "t2"
        api = Api(find({"KUBECONFIG": str(tmp_path / "config")}))
        assert await api.list(PODS.path("default")) == []
        assert log.read_text() == "get me\n" * 2
        fake.token = "t9"
        with pytest.raises(ApiError, match="401"):
            await api.list(PODS.path("default"))
        await api.aclose()


def server_tls(folder: Path, pair: Pair) -> ssl.SSLContext:
    (folder / "tls.crt").write_bytes(pair.chain)
    (folder / "tls.key").write_bytes(pair.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


async def test_a_pod_reaches_it_with_its_service_account(tmp_path: Path) -> None:
    """TLS checked against the mounted authority, the token from its file."""
    pair = self_signed(("127.0.0.1",), datetime.now(UTC))
    async with FakeApi(server_tls(tmp_path, pair)) as fake:
        fake.token = "of the service account"
        (tmp_path / "ca.crt").write_bytes(pair.chain)
        (tmp_path / "token").write_text(fake.token)
        (tmp_path / "namespace").write_text("models")
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(fake.port)}
        access = find(environ, account=tmp_path)
        assert access.namespace == "models"
        api = Api(access)
        fake.apply(pod("a", namespace="models"))
        assert [each["metadata"]["name"] for each in await api.list(PODS.path("models"))] == ["a"]
        await api.aclose()
        (tmp_path / "ca.crt").write_bytes(self_signed(("127.0.0.1",), datetime.now(UTC)).chain)
        stranger = Api(find(environ, account=tmp_path))
        with pytest.raises(Unreachable, match="certificate"):
            await stranger.list(PODS.path("models"))
        await stranger.aclose()


async def test_a_client_certificate_from_a_kubeconfig(tmp_path: Path) -> None:
    pair = self_signed(("127.0.0.1",), datetime.now(UTC))
    tls = server_tls(tmp_path, pair)
    tls.load_verify_locations(cadata=pair.chain.decode())
    tls.verify_mode = ssl.CERT_REQUIRED
    async with FakeApi(tls) as fake:
        config = json.loads(fake.kubeconfig(tmp_path / "config").read_text())
        data = {name: base64.b64encode(content).decode() for name, content in (("c", pair.chain), ("k", pair.key))}
        config["clusters"][0]["cluster"] = {"server": fake.url, "certificate-authority-data": data["c"]}
        config["users"][0]["user"] = {"client-certificate-data": data["c"], "client-key-data": data["k"]}
        (tmp_path / "config").write_text(json.dumps(config))
        api = Api(find({"KUBECONFIG": str(tmp_path / "config")}))
        assert await api.list(POOLS.path("default")) == []
        fake.apply(pool("llama", IN_POOL))
        assert len(await api.list(POOLS.path("default"))) == 1
        await api.aclose()
