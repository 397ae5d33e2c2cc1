"""Who may import whom (docs/architecture.md), and what may lie in the repository's top folder."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points, packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BASE = frozenset(
    {
        "errors",
        "formats",
        "files",
        "keys",
        "objects",
        "options",
        "pool",
        "prefix",
        "quantities",
        "request",
        "sources",
        "splice",
        "states",
    }
)
SDK = BASE | {"plugin"}
SIBLINGS = frozenset({"data", "extproc", "flow", "observe", "schedule", "settings"})
PATH = frozenset({"configuration", "exchange", "hooks", "pipeline", "reading", "rewriting", "shadow"})
BESIDE = frozenset({"contract", "demo", "doctor", "engine", "envoy", "migrate", "replay", "sidecar", "testing"})

MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "files": frozenset(),
    "keys": frozenset(),
    "memory": frozenset(),
    "quantities": frozenset(),
    "request": frozenset(),
    "sources": frozenset(),
    "states": frozenset(),
    "prefix": frozenset({"keys"}),
    "formats": frozenset({"errors", "request"}),
    "options": frozenset({"errors", "quantities"}),
    "objects": frozenset(),
    "splice": frozenset(),
    "pool": frozenset({"errors", "keys", "objects"}),
    "kube": frozenset({"errors"}),
    "plugin": BASE,
    **dict.fromkeys(SIBLINGS, SDK),
    "data": SDK | {"kube"},
    **dict.fromkeys(PATH, SDK | SIBLINGS | PATH),
    "cluster": SDK | {"data", "kube"},
    "app": SDK | SIBLINGS | PATH | {"cluster", "kube", "memory"},
    "testing": SDK,
    "contract": SDK | {"schedule", "settings", "testing"},
    "doctor": SDK | {"data", "kube"},
    "engine": BASE,
    "envoy": BASE,
    "migrate": BASE,
    "sidecar": BASE,
    "demo": BASE | {"engine", "envoy"},
    "replay": SDK | SIBLINGS | PATH | {"engine"},
    "cli": SDK | SIBLINGS | PATH | BESIDE | {"app", "kube"},
    "__main__": frozenset({"cli"}),
}
"""Of each module or package of `epp`, which others it may import; itself always, and `epp.__version__`."""

THIRD_PARTIES: dict[str, frozenset[str]] = {
    "errors": frozenset({"msgspec"}),
    "files": frozenset(),
    "keys": frozenset(),
    "memory": frozenset(),
    "quantities": frozenset(),
    "options": frozenset(),
    "request": frozenset({"msgspec"}),
    "sources": frozenset(),
    "states": frozenset(),
    "objects": frozenset(),
    "splice": frozenset(),
    "pool": frozenset({"numpy"}),
    "prefix": frozenset({"numpy", "xxhash"}),
    "formats": frozenset({"msgspec", "xxhash"}),
    "plugin": frozenset({"numpy", "pydantic"}),
    "__main__": frozenset(),
}
"""What else the base may import besides the standard library. Others may import what pyproject.toml names."""

PLUGINS_MAY_IMPORT = frozenset({"epp.keys", "epp.plugin"})

TOP_LEVEL = frozenset(
    """
    .ci .dockerignore .gitignore Dockerfile LICENSE Makefile README.md benchmarks config docs epp plugins protos
    pyproject.toml requirements-dev.lock requirements.lock tests
    """.split()  # noqa: SIM905 (a list of quoted names reads worse)
)


@dataclass(frozen=True, slots=True)
class Module:
    """One source file. Its unit is the module or package of `epp` that the rules are about."""

    file: Path
    name: str

    @property
    def unit(self) -> str:
        return self.name.split(".")[1] if "." in self.name else ""

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.file.read_text())

    def imports(self, *, types: bool = True) -> Iterator[str]:
        """Dotted names of what is imported anywhere in the file, in functions too; without `types`, not for them."""
        tree = self.tree if types else _WithoutTypes().visit(self.tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from (f"{self._source(node)}.{alias.name}" for alias in node.names)

    def _source(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".")
        package = package[: len(package) - node.level + (self.file.name == "__init__.py")]
        return ".".join([*package, *([node.module] if node.module else [])])


class _WithoutTypes(ast.NodeTransformer):
    """Leaves out what only the type checker sees."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test).endswith("TYPE_CHECKING") else self.generic_visit(node)


def modules(folder: Path) -> list[Module]:
    found = []
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder.parent).with_suffix("").parts
        found.append(Module(file, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)))
    return found


EPP = modules(ROOT / "epp")
PLUGINS = modules(ROOT / "plugins" / "epp_plugins")
UNITS = {module.unit for module in EPP} - {""}

# pydantic_core is pydantic's own other half, where some of its types live.
PROVIDED = {**packages_distributions(), "pydantic_core": ["pydantic"]}
"""The distributions that an import name comes from."""


def within(module: Module, *, types: bool = True) -> set[str]:
    """The units of `epp` that a module imports."""
    dotted = [name.split(".") for name in module.imports(types=types)]
    return {parts[1] for parts in dotted if parts[0] == "epp" and len(parts) > 1 and parts[1] in UNITS}


def third_parties(module: Module) -> set[str]:
    own = {"epp", "epp_plugins", "epp_protos", "__future__"}
    return {name.split(".")[0] for name in module.imports()} - sys.stdlib_module_names - own


@pytest.mark.parametrize("unit", sorted(UNITS))
def test_every_unit_has_a_place(unit: str) -> None:
    """Whoever adds a module or package to `epp` says here what it may know."""
    assert unit in MAY_IMPORT


@pytest.mark.parametrize("module", EPP, ids=lambda module: module.name)
def test_a_module_imports_only_what_its_place_allows(module: Module) -> None:
    """The base knows no packages, sibling packages don't know one another, only the command line knows the app."""
    allowed = MAY_IMPORT.get(module.unit, frozenset()) | {module.unit}
    assert within(module) <= allowed
    assert third_parties(module) <= THIRD_PARTIES.get(module.unit, third_parties(module))


@pytest.mark.parametrize(
    ("source", "units", "foreign"),
    [
        ("import epp.app", {"app"}, set()),
        ("from epp import app, __version__", {"app"}, set()),
        ("from epp.extproc.server import ExternalProcessor", {"extproc"}, set()),
        ("from ..schedule import scheduler", {"schedule"}, set()),
        ("from . import scrape", {"data"}, set()),
        ("def f():\n    from epp.observe import logs\n    import grpc.aio", {"observe"}, {"grpc"}),
        ("if TYPE_CHECKING:\n    from epp.pipeline import Pipeline", {"pipeline"}, set()),
        ("import os, numpy as np", set(), {"numpy"}),
    ],
)
def test_imports_are_seen_wherever_they_stand(tmp_path: Path, source: str, units: set[str], foreign: set[str]) -> None:
    """The rules above are worth something."""
    file = tmp_path / "module.py"
    file.write_text(source)
    module = Module(file, "epp.data.module")
    assert (within(module), third_parties(module)) == (units, foreign)


@pytest.mark.parametrize("module", EPP + PLUGINS, ids=lambda module: module.name)
def test_whatever_is_imported_is_declared(module: Module) -> None:
    """What only developers have installed doesn't count; what is in an extra, only for who needs that."""
    declared = requires("endpoint-picker") or []
    demo = module.unit in {"cli", "demo", "envoy", "replay"}
    names = {re.split(r"[^\w.-]", line)[0] for line in declared if demo or "extra ==" not in line}
    for name in third_parties(module):
        assert {each.lower().replace("_", "-") for each in PROVIDED[name]} & names, name


@pytest.mark.parametrize("module", EPP, ids=lambda module: module.name)
def test_the_mechanism_does_not_know_the_policy(module: Module) -> None:
    """Plugins are found through entry points, ours like anybody's."""
    assert not [name for name in module.imports() if name.split(".")[0] == "epp_plugins"]


@pytest.mark.parametrize("module", PLUGINS, ids=lambda module: module.name)
def test_a_plugin_imports_the_sdk_and_no_other_plugin(module: Module) -> None:
    """What is no plugin itself, such as `engine_work`, is a part of the one that imports it."""
    plugins = {entry.module for entry in entry_points(group="epp.plugins")}
    names = {".".join(name.split(".")[:2]) for name in module.imports()}
    assert not {name for name in names if name.split(".")[0] == "epp"} - PLUGINS_MAY_IMPORT
    assert not names & plugins


def test_imports_run_in_no_circle() -> None:
    """A circle is allowed where one side imports for types alone."""
    graph: dict[str, set[str]] = {unit: set() for unit in UNITS}
    for module in EPP:
        if module.unit:
            graph[module.unit] |= within(module, types=False) - {module.unit}
    while leaves := [unit for unit, others in graph.items() if not others & graph.keys()]:
        for unit in leaves:
            del graph[unit]
    assert graph == {}


def effects(module: Module) -> Iterator[str]:
    """What a module does while it is imported, other than to define: calls for their effect, and foreign state set."""
    tree = module.tree
    foreign = {(alias.asname or alias.name).split(".")[0] for node in ast.walk(tree) for alias in _aliases(node)}
    ours = {name.split(".")[-1] for name in module.imports() if name.split(".")[0] in {"epp", "epp_plugins"}}
    for node in _at_import(tree.body):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            # A method of the module's own object, such as a YAML loader that is given its resolvers, is definition.
            if isinstance(function, ast.Name) or _root(function) in foreign:
                yield ast.unparse(node)
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (ast.unparse(target) for target in targets if _root(target) in foreign)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            # A decorator of ours might take a note of what it decorates.
            yield from (ast.unparse(each) for each in node.decorator_list if ast.unparse(each).split("(")[0] in ours)


def _aliases(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) else []


def _at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run at import, but for what runs only if the module is the program."""
    for statement in body:
        if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
            continue
        yield statement
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody", "handlers"):
                yield from _at_import(getattr(statement, field, []))


def _root(target: ast.expr) -> str:
    """`registry` of `registry.plugins["a"]`; "" for a plain name and for what no name leads to."""
    if isinstance(target, ast.Name):
        return ""
    while isinstance(target, ast.Attribute | ast.Subscript | ast.Call):
        target = target.func if isinstance(target, ast.Call) else target.value
    return target.id if isinstance(target, ast.Name) else ""


@pytest.mark.parametrize("module", EPP + PLUGINS, ids=lambda module: module.name)
def test_nothing_registers_itself_on_import(module: Module) -> None:
    """No call for its effect, no assignment into another module's objects, no decorator of ours."""
    assert list(effects(module)) == []


@pytest.mark.parametrize(
    ("source", "effect"),
    [
        ("import a\na.register(b)", "a.register(b)"),
        ("if True:\n    print()", "print()"),
        ("class A:\n    register()", "register()"),
        ("from a import REGISTRY\nREGISTRY['x'] = 1", "REGISTRY['x']"),
        ("import a\na.b.c += 1", "a.b.c"),
        ("try:\n    pass\nexcept ValueError:\n    go()", "go()"),
        ("from epp.plugin import register\n@register('x')\nclass A: ...", "register('x')"),
        ("x = {}\nx['a'] = 1", None),
        ("import yaml\nclass Loader(yaml.SafeLoader): ...\nLoader.add_constructor('x', f)", None),
        ("import a\nclass A:\n    x = a.b()", None),
        ("'''Text.'''\nimport functools\n@functools.cache\ndef f(): go()", None),
        ("if __name__ == '__main__':\n    go()", None),
    ],
)
def test_effects_of_an_import_are_seen(tmp_path: Path, source: str, effect: str | None) -> None:
    """The rule above is worth something."""
    file = tmp_path / "module.py"
    file.write_text(source)
    assert list(effects(Module(file, "epp.module"))) == ([] if effect is None else [effect])


def test_importing_everything_starts_nothing() -> None:
    """No thread, no handler of logs or signals, no metric in prometheus_client's global registry."""
    names = [module.name for module in EPP + PLUGINS if module.name != "epp.__main__"]
    script = f"""
import importlib, logging, prometheus_client, signal, threading
before = list(prometheus_client.REGISTRY.collect())
handlers = [signal.getsignal(number) for number in signal.valid_signals()]
for name in {names!r}:
    importlib.import_module(name)
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert logging.getLogger().handlers == [], logging.getLogger().handlers
assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
assert len(list(prometheus_client.REGISTRY.collect())) == len(before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    return listing.stdout.rstrip("\0").split("\0")


def test_the_top_folder_holds_only_what_belongs_there() -> None:
    assert {name.split("/")[0] for name in tracked()} <= TOP_LEVEL


def test_nothing_generated_is_tracked() -> None:
    assert not [name for name in tracked() if re.search(r"(^|/)(__pycache__|\.venv|\.[a-z]+_cache|dist)/|\.pyc$", name)]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_files_name_no_host(name: str) -> None:
    """Where packages come from is each machine's own setting."""
    text = (ROOT / name).read_text()
    assert "--hash=sha256:" in text
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash=)", text, re.MULTILINE)
