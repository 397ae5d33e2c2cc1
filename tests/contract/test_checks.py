"""Every registered plugin keeps the contract that ships (`epp.contract`), over whatever hypothesis comes up with."""

from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.contract import CHECKS, SECTIONS, Check, Subject, case, check, sections
from epp.settings import Registry
from epp.settings.registry import METHODS
from tests.unit.test_contract import ROOT

REGISTRY = Registry.installed()
FEW = settings(max_examples=30, deadline=None)
DUE = [
    pytest.param(name, each, id=f"{name}: {each.sentence}")
    for name in REGISTRY.types
    for each in CHECKS
    if each.kind in REGISTRY.find(name).kinds
]


@cache
def subject(type_name: str, of: Check) -> Subject:
    """An instance for one check, which remembers what it has seen of the cases before."""
    return Subject.load(type_name)


@pytest.mark.parametrize(("type_name", "of"), DUE)
@FEW
@given(random=st.randoms(use_true_random=False))
def test_contract(type_name: str, of: Check, random: Random) -> None:
    """The sentence is true of every request and pool."""
    of.run(subject(type_name, of), case(random))


@pytest.mark.parametrize("kind", sorted({each.kind for each in CHECKS}))
def test_every_kind_is_there(kind: str) -> None:
    """A check that no plugin gets would check nothing."""
    assert any(kind in REGISTRY.find(name).kinds for name in REGISTRY.types)


def test_every_plugin_is_there() -> None:
    """Every type has a check but those that have no method that is ever called."""
    unchecked = {name for name in REGISTRY.types if not any(of.kind in REGISTRY.find(name).kinds for of in CHECKS)}
    silent = {name for name in REGISTRY.types if not any(hasattr(REGISTRY.find(name).cls, each) for each in METHODS)}
    assert unchecked <= silent
    assert {name for name in silent if REGISTRY.find(name).status == "implemented"} == {"endpoint-notification-source"}


@pytest.mark.parametrize("file", sorted((ROOT / "config/examples").glob("*.py")), ids=lambda file: file.name)
def test_examples(file) -> None:
    """The plugins among the examples keep it, too, and have manuals."""
    check(str(file), count=50).raise_if_broken()
    parts = sections(Registry({}).find(str(file)).manual)
    assert [heading for heading in parts if heading in SECTIONS] == list(SECTIONS[:-1])
