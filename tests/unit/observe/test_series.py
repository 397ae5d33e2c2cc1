"""Counters, gauges and histograms of ours, as prometheus_client exposes them and its parsers read them."""

import math

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from epp.observe.series import Family, Spec, Twin


class Exposing(Collector):
    def __init__(self, *families: Family) -> None:
        self._families = families

    def collect(self):
        for family in self._families:
            yield from family.collect()


FORMATS = {"text": (generate_latest, parse_text), "openmetrics": (generate_openmetrics, parse_openmetrics)}


def read(form: str, *families: Family) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples by name and label values, in the order of the labels' names."""
    registry = CollectorRegistry()
    registry.register(Exposing(*families))
    generate, parse = FORMATS[form]
    found = {}
    for family in parse(generate(registry).decode()):
        for sample in family.samples:
            found[sample.name, tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


each_format = pytest.mark.parametrize("form", FORMATS)


@each_format
def test_counter_and_gauge(form: str) -> None:
    """A counter keeps its _total; label values of every kind survive."""
    counter = Family(Spec("seen_total", "counter", ("a", "b"), "Help."))
    counter.value("x", "y").inc()
    counter.value("x", "y").inc(2)
    counter.value('quote " and \\', "line\nbreak caf\u00e9").inc(0.5)
    gauge = Family(Spec("depth", "gauge", (), "Help with \\ and\na line break."))
    gauge.value().set(7)
    gauge.value().inc(-2)
    assert read(form, counter, gauge) == {
        ("seen_total", ("x", "y")): 3,
        ("seen_total", ('quote " and \\', "line\nbreak caf\u00e9")): 0.5,
        ("depth", ()): 5,
    }


@each_format
def test_histogram(form: str) -> None:
    """Bounds are inclusive, buckets cumulative, and the last one is the count."""
    histogram = Family(Spec("wait_seconds", "histogram", ("a",), "Help.", (0.1, 1, 10)))
    for value in (0.1, 0.100001, 1, 5, 11):
        histogram.buckets("x").observe(value)
    found = read(form, histogram)
    buckets = {key[1][1]: value for key, value in found.items() if key[0] == "wait_seconds_bucket"}
    assert buckets == {"0.1": 1, "1.0": 3, "10.0": 4, "+Inf": 5}
    assert found["wait_seconds_count", ("x",)] == 5
    assert found["wait_seconds_sum", ("x",)] == pytest.approx(17.200001)


def test_nothing_was_counted() -> None:
    """A family without children has no samples."""
    assert read("text", Family(Spec("a_total", "counter", ("x",), "Help."))) == {}


def test_a_histogram_without_a_value_says_nothing() -> None:
    """Unless it has no labels: then it is there from the start, as a counter is."""
    spec = Spec("a_s", "histogram", ("x",), "Help.", (1,), twins=(Twin("b_s", ()),))
    labelled, bare = Family(spec), Family(Spec("c_s", "histogram", (), "Help.", (1,)))
    labelled.buckets("held on to")
    labelled.buckets("used").observe(0.5)
    bare.buckets()
    found = read("text", labelled, bare)
    counts = {key: value for key, value in found.items() if key[0].endswith("_count")}
    assert counts == {("a_s_count", ("used",)): 1, ("b_s_count", ()): 1, ("c_s_count", ()): 0}


def test_children_are_kept() -> None:
    """The same label values are the same child, so that it can be held on to."""
    family = Family(Spec("a_total", "counter", ("x",), "Help."))
    assert family.value("1") is family.value("1")
    assert family.value("1") is not family.value("2")


TWINS = {
    "all labels": (("a", "b"), {("1", "x"): 1, ("1", "y"): 2, ("2", "x"): 4}),
    "in another order": (("b", "a"), {("1", "x"): 1, ("1", "y"): 2, ("2", "x"): 4}),
    "the first": (("a",), {("1",): 3, ("2",): 4}),
    "the second": (("b",), {("x",): 5, ("y",): 2}),
    "none": ((), {(): 7}),
}


@pytest.mark.parametrize(("labels", "expected"), TWINS.values(), ids=TWINS)
def test_a_twin_sums_over_what_it_drops(labels: tuple[str, ...], expected: dict[tuple[str, ...], float]) -> None:
    """Both names are exposed; the sums are the same, and say so of themselves."""
    spec = Spec("new_total", "counter", ("a", "b"), "[ALPHA] Help.", twins=(Twin("old_total", labels),))
    family = Family(spec)
    for values, count in {("1", "x"): 1, ("1", "y"): 2, ("2", "x"): 4}.items():
        family.value(*values).inc(count)
    found = read("text", family)
    assert {key[1]: value for key, value in found.items() if key[0] == "old_total"} == expected
    assert sum(value for key, value in found.items() if key[0] == "new_total") == 7
    twin = list(family.collect())[1]
    assert twin.documentation == "[ALPHA] [Deprecated: Use new_total] Help."


def test_a_histograms_twin() -> None:
    """Buckets, sums and counts are added up one by one."""
    spec = Spec("new_s", "histogram", ("a",), "Help.", (1, 2), twins=(Twin("old_s", ()), Twin("older_s", ("a",))))
    family = Family(spec)
    family.buckets("x").observe(0.5)
    family.buckets("x").observe(9)
    family.buckets("y").observe(1.5)
    found = read("text", family)
    assert [found["old_s_bucket", (le,)] for le in ("1.0", "2.0", "+Inf")] == [1, 2, 3]
    assert (found["old_s_count", ()], found["old_s_sum", ()]) == (3, 11)
    assert found["older_s_count", ("x",)] == 2


def test_odd_values() -> None:
    """What can't be measured does no harm to the others."""
    gauge = Family(Spec("g", "gauge", ("a",), "Help."))
    gauge.value("nan").set(math.nan)
    gauge.value("inf").set(math.inf)
    found = read("text", gauge)
    assert math.isnan(found["g", ("nan",)])
    assert found["g", ("inf",)] == math.inf
