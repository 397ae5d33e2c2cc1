"""docs/decision-log.md against the sources: its fields, flags, metrics and configuration are those that there are."""

import re
from pathlib import Path

import yaml

from epp.cli.flagtable import BY_SPELLING
from epp.envoy.filters import observers
from epp.envoy.options import Address, EnvoyOptions
from epp.observe.entries import Entry
from epp.observe.table import SPECS
from epp.settings import Registry, load
from epp.testing import context

TEXT = (Path(__file__).parents[2] / "docs" / "decision-log.md").read_text()


def section(title: str) -> str:
    return TEXT.partition(f"## {title}\n")[2].partition("\n##")[0]


def fenced(after: str) -> str:
    return TEXT.partition(f"## {after}\n")[2].partition("```yaml\n")[2].partition("```")[0]


def test_every_field_is_explained():
    """And no other one."""
    cells = [line.split("|")[1] for line in section("Fields").splitlines() if line.startswith("| `")]
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(Entry.__struct_fields__)


def test_flags_and_metrics_exist():
    """With the defaults that they have."""
    flags = re.findall(r"^\| `--([a-z-]+)` \| (\S+) \|", TEXT, re.MULTILINE)
    assert len(flags) == 3
    assert all(BY_SPELLING[name].default == default for name, default in flags)
    names = {spec.name for spec in SPECS}
    said = set(re.findall(r"`((?:llm_d_epp|scheduler)_[a-z_]+)", TEXT))
    assert said
    assert said <= names


def test_the_shadow_loads():
    """As it stands, below the head of a configuration."""
    text = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n" + fenced("A shadow")
    router = load(text, "docs", Registry.installed(), context)
    assert router.shadow is not None
    assert not router.warnings


def test_the_filter_is_the_one_that_is_printed():
    """The same as `epp envoy --observe` has."""
    options = EnvoyOptions(
        listen=Address("127.0.0.1", 0),
        picker=(Address("10.0.0.5", 9002),),
        observe=(Address("10.0.0.6", 9102),),
        endpoints=(Address("10.0.0.1", 8000),),
    )
    assert yaml.safe_load(fenced("Looking on")) == observers(options)
