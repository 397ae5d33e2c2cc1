"""Which plugins are never left out: those that say who can serve a request, or tell the others where its parts are."""

from epp.settings import Registry

MANDATORY = {
    "by-label",
    "context-length-aware",
    "data-parallel-profile-handler",
    "decode-filter",
    "disagg-headers-handler",
    "disagg-profile-handler",
    "disaggregatedset-rollout-screener",
    "encode-filter",
    "header-based-testing-filter",
    "label-selector-filter",
    "pd-profile-handler",
    "prefill-filter",
    "prefill-header-handler",
    "served-model-filter",
}
PREFERENCES = {
    "concurrency-detector": "load",
    "endpoint-attribute-filter": "a metric",
    "multicluster-session-affinity-filter": "a session, as session-affinity-filter does",
    "prefix-cache-affinity-filter": "a cache",
    "session-affinity-filter": "a session, and everybody if its endpoint is gone",
    "slo-headroom-tier-filter": "a prediction",
    "topology-affinity-filter": "closeness, and everybody if nobody is close",
    "utilization-detector": "load",
    "utilization-filter": "load",
}
"""Filters that any endpoint could do without, and what they go by."""


def test_mandatory() -> None:
    """Every filter and screener is one or the other."""
    registry = Registry.installed()
    ours = [name for name in registry.types if registry.find(name).cls.__module__.startswith("epp_plugins.")]
    found = {name for name in ours if getattr(registry.find(name).cls, "mandatory", False)}
    assert found == MANDATORY
    choosing = {name for name in ours if {"filter", "screener"} & set(registry.find(name).kinds)}
    assert choosing - MANDATORY == set(PREFERENCES)
