"""The configuration in force gives way to the next one between two requests, or stays."""

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from epp.configuration import Configuration, Source, Watching
from epp.errors import ConfigError
from epp.hooks import Hooks, Users
from epp.observe.series import Family, Spec
from epp.pool import Pool
from epp.testing import context

QUICK = Watching(poll=0.01, settle=0.01)
PLUGIN = """
from epp.plugin import Candidates, Context, Floats, Request

class Keeper:
    closed = 0
    def __init__(self, context: Context) -> None:
        self.kept = context.state("kept", dict)
    def score(self, request: Request, c: Candidates) -> Floats:
        return [{points}] * len(c)
    def close(self) -> None:
        self.closed += 1
"""


def config(weight: float = 1.0, plugin: str = "./keeper.py") -> str:
    return f"""
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{{type: {plugin}, name: keeper}}, {{type: queue-scorer}}]
schedulingProfiles:
- name: default
  plugins: [{{pluginRef: keeper, weight: {weight}}}, {{pluginRef: queue-scorer}}]
"""


async def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


class Setup:
    """A folder with a configuration and a plugin's file, and the hooks that requests would begin with."""

    def __init__(self, folder: Path) -> None:
        self.file, self.plugin_file = folder / "config.yaml", folder / "keeper.py"
        self.file.write_text(config())
        self.plugin_file.write_text(PLUGIN.format(points=0.5))
        self.pool = Pool()
        self.reloads = Family(Spec("reloads", "counter", ("result",), ""))
        self.swapped: list[Hooks] = []
        self.refuse = False
        self.ended: list[Any] = []
        self.configuration: Configuration | None = None

    def _swap(self, hooks: Hooks) -> None:
        self.swapped.append(hooks)
        if self.refuse:
            raise ConfigError("no such page")

    def load(self, source: Source | None = None, *, refuse: bool = False) -> Configuration:
        self.refuse = refuse
        self.configuration = Configuration(
            source or Source(self.file),
            lambda name, states: context(name, pool=self.pool, states=states),
            reloads=self.reloads,
            swap=self._swap,
            ended=self.ended.append,
            wall=lambda: 1.5e9,
            watching=QUICK,
        )
        return self.configuration

    @property
    def keeper(self) -> Any:
        return self.configuration.router.profiles["default"].scorers[0][0].plugin

    @property
    def weight(self) -> float:
        return self.configuration.router.profiles["default"].scorers[0][1]

    def counted(self) -> tuple[float, float]:
        return self.reloads.value("ok").value, self.reloads.value("failed").value


@pytest.fixture
async def setup(tmp_path):
    made = Setup(tmp_path)
    yield made
    if made.configuration is not None:
        await made.configuration.stop()


async def test_reload(setup):
    """The new configuration is put in force once, with what the plugin kept; the old plugin is closed."""
    first = setup.load().hooks
    old = setup.keeper
    old.kept["a"] = 1
    setup.file.write_text(config(weight=3))
    assert await setup.configuration.reload("test")
    assert setup.swapped == [setup.configuration.hooks]
    assert setup.swapped[0] is not first
    assert setup.weight == 3
    assert setup.keeper is not old
    assert setup.keeper.kept == {"a": 1}
    assert (old.closed, setup.keeper.closed) == (1, 0)
    assert setup.ended == [first.router]
    assert setup.counted() == (1, 0)


async def test_requests_under_way(setup):
    """A plugin is closed when the last request that began with its configuration has ended, and not before."""
    first, old = setup.load().hooks, setup.keeper
    first.users.count += 2
    await setup.configuration.reload("test")
    assert setup.configuration.shown()["earlier"] == [{"generation": 1, "streams": 2}]
    first.users.leave()
    assert old.closed == 0
    first.users.leave()
    assert old.closed == 1
    assert setup.configuration.shown()["earlier"] == []


BROKEN = {
    "not YAML": lambda setup: setup.file.write_text("plugins: ["),
    "not UTF-8": lambda setup: setup.file.write_bytes(b"\xff"),
    "gone": lambda setup: setup.file.unlink(),
    "unknown type": lambda setup: setup.file.write_text(config(plugin="no-such-type")),
    "the plugin's syntax": lambda setup: setup.plugin_file.write_text("def"),
    "the plugin's import": lambda setup: setup.plugin_file.write_text("1 / 0"),
    "the plugin ends the process": lambda setup: setup.plugin_file.write_text("raise SystemExit"),
    "the plugin's constructor": lambda setup: setup.plugin_file.write_text(
        PLUGIN.format(points=1).replace("self.kept =", "self.kept = 1 / 0 #")
    ),
    "no plugin": lambda setup: setup.plugin_file.write_text("x = 1"),
}


@pytest.mark.parametrize("broken", [pytest.param(change, id=name) for name, change in BROKEN.items()])
async def test_broken(setup, broken, caplog):
    """Whatever is wrong, the old configuration stays whole, and a log line, the metric and the debug page say so."""
    before, old = setup.load().hooks, setup.keeper
    old.kept["a"] = 1
    broken(setup)
    assert not await setup.configuration.reload("test")
    assert setup.swapped == []
    assert setup.configuration.hooks is before
    assert (old.kept, old.closed) == ({"a": 1}, 0)
    assert setup.counted() == (0, 1)
    assert "the configuration stays as it was" in caplog.text
    last = setup.configuration.shown()["last_reload"]
    assert (last["result"], last["why"], last["at"]) == ("failed", "test", 1.5e9)
    assert last["error"]
    setup.file.write_text(config(weight=2))
    setup.plugin_file.write_text(PLUGIN.format(points=0.5))
    assert await setup.configuration.reload("test")
    assert setup.keeper.kept == {"a": 1}
    assert setup.weight == 2


async def test_what_cannot_be_put_in_force(setup, caplog):
    """Such as pages that can't be fetched: the old configuration stays, and the new one's plugins are closed."""
    before = setup.load(refuse=True).hooks
    old = setup.keeper
    setup.file.write_text(config(weight=2))
    assert not await setup.configuration.reload("test")
    assert (setup.configuration.hooks, setup.weight, old.closed) == (before, 1, 0)
    (refused,) = setup.swapped
    assert refused.router.profiles["default"].scorers[0][0].plugin.closed == 1
    assert setup.counted() == (0, 1)
    assert setup.configuration.shown()["last_reload"]["error"] == "no such page"
    assert setup.configuration.shown()["earlier"] == []
    setup.refuse = False
    assert await setup.configuration.reload("test")
    assert (setup.weight, setup.configuration.now.number) == (2, 2)


@pytest.mark.parametrize("broken", [pytest.param(change, id=name) for name, change in BROKEN.items()])
async def test_broken_at_start(setup, broken):
    """At the start there is nothing to fall back on: the error is the caller's."""
    broken(setup)
    with pytest.raises(ConfigError):
        setup.load()


async def test_asked(setup):
    """Asking, as SIGHUP does, loads the configuration although nothing has changed."""
    setup.load().start()
    setup.configuration.ask()
    await until(lambda: setup.swapped)
    assert setup.configuration.shown()["last_reload"]["why"] == "asked to"


def replaced(file: Path, text: str) -> None:
    """As editors and `kubectl cp` write."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


@pytest.mark.parametrize("write", [Path.write_text, replaced], ids=["written", "replaced"])
async def test_watched(setup, write):
    """A changed file is loaded, and so is a changed plugin's file."""
    setup.load().start()
    write(setup.file, config(weight=5))
    await until(lambda: setup.weight == 5)
    old = setup.keeper
    write(setup.plugin_file, PLUGIN.format(points=0.25))
    await until(lambda: setup.keeper is not old)
    assert setup.keeper.score(None, [1, 2]) == [0.25, 0.25]
    assert setup.configuration.shown()["last_reload"]["why"] == "keeper.py has changed"


async def test_a_mounted_config_map(setup, tmp_path):
    """A ConfigMap's file is a link into a folder behind a link, which is replaced as a whole."""
    for number in (1, 2):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "config.yaml").write_text(config(weight=number))
        (folder / "keeper.py").write_text(PLUGIN.format(points=number / 4))
    mount = tmp_path / "mount"
    mount.mkdir()
    (mount / "..data").symlink_to(tmp_path / "..1")
    for name in ("config.yaml", "keeper.py"):
        (mount / name).symlink_to(Path("..data") / name)
    setup.load(Source(mount / "config.yaml")).start()
    assert setup.keeper.score(None, [1]) == [0.25]
    (mount / "..data_tmp").symlink_to(tmp_path / "..2")
    (mount / "..data_tmp").replace(mount / "..data")
    await until(lambda: setup.weight == 2)
    assert setup.keeper.score(None, [1]) == [0.5]


async def test_a_broken_plugin_is_loaded_once_it_is_mended(setup):
    """The files of a load that failed are watched: mending the plugin alone is enough."""
    (setup.file.parent / "second.py").write_text("def")
    setup.load().start()
    setup.file.write_text(config(plugin="./second.py"))
    await until(lambda: setup.counted() == (0, 1))
    (setup.file.parent / "second.py").write_text(PLUGIN.format(points=1).replace("Keeper", "Second"))
    await until(lambda: setup.counted() == (1, 1))
    assert type(setup.keeper).__name__ == "Second"


async def test_what_nobody_wants_goes(setup):
    """A state that the new configuration doesn't ask for is freed with the old configuration."""
    setup.load()
    held = weakref.ref(setup.configuration.now.states.get("old", Pool))
    setup.file.write_text(config(plugin="kv-cache-utilization-scorer"))
    assert await setup.configuration.reload("test")
    assert len(setup.configuration.now.states) == 0
    setup.swapped.clear()
    setup.ended.clear()
    gc.collect()
    assert held() is None


async def test_text(setup):
    """A text doesn't change, but a plugin's file that it names may."""
    setup.load(Source(text=config(plugin=str(setup.plugin_file)), origin="--config-text")).start()
    setup.plugin_file.write_text(PLUGIN.format(points=0.75))
    await until(lambda: setup.swapped)
    assert setup.keeper.score(None, [1]) == [0.75]


def test_users():
    """The function is called once, when no stream is left."""
    called: list[int] = []
    users = Users()
    users.count = 2
    users.no_more(partial(called.append, 1))
    users.leave()
    assert called == []
    users.leave()
    assert called == [1]
    idle = Users()
    idle.no_more(partial(called.append, 2))
    assert called == [1, 2]


async def test_a_plugin_that_cannot_be_closed(setup, caplog):
    """What a plugin's `close` raises is logged, and disturbs nothing."""
    setup.plugin_file.write_text(PLUGIN.format(points=1).replace("self.closed += 1", "1 / 0"))
    setup.load()
    assert await setup.configuration.reload("test")
    assert "plugin keeper could not be closed" in caplog.text
    assert len(setup.ended) == 1
