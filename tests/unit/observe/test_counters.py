"""Counters of plugins."""

import pytest
from prometheus_client import generate_latest

from epp.observe.metrics import MOST_MODELS, Metrics
from epp.pool import Pool

DECISION = "llm_d_epp_disagg_decision_total"
LABELS = {
    "plugin_name": "pd",
    "plugin_type": "disagg-profile-handler",
    "model_name": "m",
    "decision_type": "decode-only",
}


def exposed(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_a_counter_of_the_table():
    """It counts under its name and under its deprecated twin's, whatever the order of the labels."""
    metrics = Metrics(Pool(), "pool")
    metrics.counter(DECISION, LABELS).inc()
    metrics.counter(DECISION, dict(reversed(LABELS.items()))).inc(2)
    text = exposed(metrics)
    labels = 'decision_type="decode-only",model_name="m",plugin_name="pd",plugin_type="disagg-profile-handler"'
    lines = {line for line in text.splitlines() if "disagg_decision" in line and not line.startswith("#")}
    (line,) = [line for line in lines if line.startswith(DECISION)]
    assert set(line[line.index("{") + 1 : line.index("}")].split(",")) == set(labels.split(","))
    assert line.endswith(" 3.0")
    assert 'llm_d_inference_scheduler_disagg_decision_total{decision_type="decode-only",model_name="m"} 3.0' in lines


def test_a_counter_of_a_plugins_own():
    """A name that nobody has is added."""
    metrics = Metrics(Pool(), "pool")
    metrics.counter("my_hits_total", {"zone": "a"}).inc(4)
    assert 'my_hits_total{zone="a"} 4.0' in exposed(metrics)


@pytest.mark.parametrize(
    ("name", "labels"),
    [(DECISION, {"model_name": "m"}), ("llm_d_epp_request_running", {}), (DECISION, LABELS | {"zone": "a"})],
    ids=["too few labels", "gauge", "too many labels"],
)
def test_what_does_not_fit(name, labels):
    """A family keeps its kind and its labels."""
    with pytest.raises(ValueError, match=f"{name} is a "):
        Metrics(Pool(), "pool").counter(name, labels)


def test_models_are_bounded():
    """Clients choose models' names: beyond so many they count together."""
    metrics = Metrics(Pool(), "pool")
    for number in range(MOST_MODELS + 2):
        metrics.counter(DECISION, LABELS | {"model_name": f"m{number}"}).inc()
    assert 'model_name="other"' in exposed(metrics)
    assert len(metrics.families[DECISION].children) == MOST_MODELS + 1
