import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from epp.formats.exposition import Exposition, ExpositionError

NAMES = ("vllm:num_requests", "vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason", "up", "u")


def read(page: str | bytes, *names: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found = Exposition(names or NAMES).read(page if isinstance(page, bytes) else page.encode())
    return {name: [(dict(sample.labels), sample.value) for sample in samples] for name, samples in found.items()}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "no labels": ("up 1\n", {"up": [({}, 1.0)]}),
    "empty braces": ("up{} 1\n", {"up": [({}, 1.0)]}),
    "no newline at the end": ("up 1", {"up": [({}, 1.0)]}),
    "CRLF": ('up{a="b"} 1\r\nu 2\r\n', {"up": [({"a": "b"}, 1.0)], "u": [({}, 2.0)]}),
    "blanks and tabs": ('  up\t{ a = "b" , c="d" ,}\t 1 \n', {"up": [({"a": "b", "c": "d"}, 1.0)]}),
    "timestamp": ("up 1 1395066363000\nu 2 -5\n", {"up": [({}, 1.0)], "u": [({}, 2.0)]}),
    "exponent": ("up 1.5e-06\nu -2E+3\n", {"up": [({}, 1.5e-06)], "u": [({}, -2000.0)]}),
    "infinite": ("up +Inf\nu -Inf\n", {"up": [({}, math.inf)], "u": [({}, -math.inf)]}),
    "braces, commas and hashes in a value": ('up{a="}, # {"} 1\n', {"up": [({"a": "}, # {"}, 1.0)]}),
    "escapes": (r'up{a="q\"b\\n\nx\y"} 1' + "\n", {"up": [({"a": 'q"b\\n\nx\\y'}, 1.0)]}),
    "trailing backslash": ('up{a="\\\\"} 1\n', {"up": [({"a": "\\"}, 1.0)]}),
    "text beyond ASCII": ('up{a="日本"} 1\n', {"up": [({"a": "日本"}, 1.0)]}),
    "a prefix of another": (
        "vllm:num_requests_waiting_by_reason 1\nvllm:num_requests 2\nvllm:num_requests_waiting 3\nvllm:num_req 4\n",
        {
            "vllm:num_requests_waiting_by_reason": [({}, 1.0)],
            "vllm:num_requests": [({}, 2.0)],
            "vllm:num_requests_waiting": [({}, 3.0)],
        },
    ),
    "several series": ('up{a="1"} 1\nup{a="2"} 2\n', {"up": [({"a": "1"}, 1.0), ({"a": "2"}, 2.0)]}),
    "comments": ("# HELP up 1\n# TYPE up gauge\n# up 3\nup 1\n# EOF\n", {"up": [({}, 1.0)]}),
    "exemplar": ('up{le="1"} 5 # {trace_id="x"} 0.67 1.5\n', {"up": [({"le": "1"}, 5.0)]}),
    "name within a line": ('other{up="up 1"} 2\nother_up 3\n', {}),
    "none of the names": ("other 1\n", {}),
    "only comments": ("# HELP other none\n", {}),
    "OpenMetrics without samples": ("# EOF\n", {}),
}


@pytest.mark.parametrize(("page", "expected"), CASES.values(), ids=CASES.keys())
def test_reads(page: str, expected: dict[str, Any]) -> None:
    """The wanted samples come out with labels and values, and nothing else does."""
    assert read(page) == expected


def test_reads_nan() -> None:
    """NaN is a value."""
    assert math.isnan(read("up NaN\n")["up"][0][1])


REFUSED = {
    "empty": ("", "empty"),
    "blank": (" \r\n\n", "empty"),
    "HTML": ("<!DOCTYPE html>\n<html><body>up 1</body></html>", "HTML"),
    "JSON": ('[{"iter": 1}]', "JSON"),
    "prose": ("Error: the engine isn't ready yet\n", "not in the Prometheus text format"),
    "value is text": ("up one\n", "line of up"),
    "value with digit separators": ("up 1_000\n", "line of up"),
    "value is missing": ('up{a="b"} # comment\n', "line of up"),
    "label is not closed": ('up{a="b} 1\n', "line of up"),
}


@pytest.mark.parametrize(("page", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(page: str, message: str) -> None:
    """A page that is no exposition, or is damaged where it matters, is an error that says what is there instead."""
    with pytest.raises(ExpositionError, match=message):
        read(page)


def test_a_damaged_line_of_another_metric_does_no_harm() -> None:
    """Only wanted lines are looked at."""
    assert read('other{"} x\nup 1\n') == {"up": [({}, 1.0)]}


label_values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=8)
values = st.one_of(
    st.floats().map(repr),
    st.integers(-(10**6), 10**6).map(str),
    st.sampled_from(["NaN", "+Inf", "-Inf", "1e+06", ".5", "5.", "1E-3"]),
)
blanks = st.sampled_from([" ", "  ", "\t"])


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@st.composite
def lines(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from((*NAMES, "other", "upper", "vllm:num_requests_", "vllm:num_requests_waiting2")))
    labels = draw(st.dictionaries(st.sampled_from("abcle"), label_values, max_size=3))
    block = ",".join(f'{label}="{escaped(value)}"' for label, value in labels.items())
    block = f"{{{block}{',' if block and draw(st.booleans()) else ''}}}" if block or draw(st.booleans()) else ""
    separator = draw(blanks)
    stamp = draw(st.sampled_from(["", f"{separator}1395066363000"]))
    return f"{name}{block}{separator}{draw(values)}{stamp}"


comments = st.sampled_from(["", "# HELP up about up", "# TYPE vllm:num_requests gauge", "# up 5", "# EOF"])
pages = st.lists(st.one_of(lines(), comments), max_size=12)


@settings(deadline=None, max_examples=300)
@given(pages, st.sampled_from(["\n", "\r\n"]))
def test_agrees_with_the_reference_parser(content: list[str], newline: str) -> None:
    """On any page the samples are those that prometheus_client's parser finds."""
    page = newline.join(["# a page", *content, ""])
    expected: dict[str, list[tuple[dict[str, str], str]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in NAMES:
                expected.setdefault(sample.name, []).append((sample.labels, repr(float(sample.value))))
    found = {name: [(labels, repr(value)) for labels, value in samples] for name, samples in read(page).items()}
    assert found == expected
