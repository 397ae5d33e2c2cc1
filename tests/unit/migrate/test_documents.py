"""YAML in and out: every scalar as it was written."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from epp.errors import ConfigError
from epp.migrate.documents import read, write

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
SCALARS = st.one_of(
    TEXTS,
    st.integers(),
    st.booleans(),
    st.none(),
    st.sampled_from(["yes", "null", "1:30", "0x1f", "2024-01-01", "~", ""]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3))
)


@given(st.lists(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=4), max_size=3), st.booleans())
def test_nothing_is_lost(documents, flow):
    """Whatever was in the documents is in them afterwards, in its order."""
    source = yaml.safe_dump_all(documents, default_flow_style=flow, sort_keys=False)
    again = list(yaml.safe_load_all(write(read(source, "file"))))
    assert json.dumps(again) == json.dumps([document for document in documents if document])


@pytest.mark.parametrize(
    "scalar",
    [
        "8000",
        '"8000"',
        "yes",
        "'yes'",
        "1:30",
        "2024-01-01",
        "0777",
        "1_000",
        "1e3",
        "~",
        '"~"',
        "!x 'y'",
        '"a\\tb"',
        "a: '#b'",
    ],
)
def test_as_written(scalar):
    """Quotes, notations and tags stay, whatever a YAML version makes of them."""
    source = f"---\nkey: {scalar}\n" if ":" not in scalar.replace("1:30", "") else f"---\nkey:\n  {scalar}\n"
    assert write(read(source, "file")) == source


def test_blocks():
    """Scripts and configurations inside of a manifest stay readable."""
    source = "---\ndata:\n  a: |\n    one: 1\n\n    two: 2\n  b: >-\n    folded text\n"
    assert write(read(source, "file")) == source


def test_anchors():
    """What is referred to is there; what is merged counts less than a mapping's own keys."""
    source = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\nd: {<<: [{y: 4}, *a]}\n"
    again = yaml.safe_load(write(read(source, "file")))
    assert again == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}, "d": {"x": 1, "y": 4}}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a: [", "file:1: not YAML: expected the node content, but found '<stream end>'"),
        ("a: 1\na: 2", "file:2: 'a' stands twice, first in line 1; keep one"),
        ("---\nkind: A\n---\n- 1\n", "file:4: a Kubernetes object is a mapping with apiVersion and kind"),
        ("a: &a\n  b: *a\n", "file:1: refers to itself"),
        ("? [a]\n: b", "file:1: a key is text"),
        ("a: {<<: 1}", "file:1: only a mapping can be merged with <<"),
        ("[" * 1000, "file: nested too deep"),
    ],
)
def test_errors(source, message):
    with pytest.raises(ConfigError) as caught:
        read(source, "file")
    assert str(caught.value) == message


def test_templates():
    """A chart's template is no YAML yet; the message says what to do."""
    with pytest.raises(ConfigError, match=r"render the template first \(helm template, kubectl kustomize\)"):
        read("a: b\n{{- if .Values.x }}\n", "file")


def test_empty():
    assert write(read("---\n---\n# nothing\n", "file")) == ""
