"""Values that llm-d takes with a meaning mean the same here; what can't have been meant is a warning."""

import json

import pytest

from epp.settings import InvalidConfig, Registry, resolve, show
from epp.testing import context

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
REGISTRY = Registry.installed()
NO_PROFILE = 'no profile is called "zz", which {key} names: it has no effect; there are: default'


def load(type_name, parameters):
    entry = json.dumps({"type": type_name, "parameters": parameters})
    return resolve(f"{HEAD}plugins: [{entry}, {{type: queue-scorer}}]", "f", REGISTRY, context)


def precise(**index):
    return {"indexerConfig": {"kvBlockIndexConfig": {"costAwareMemoryConfig": index}}}


@pytest.mark.parametrize(
    ("type_name", "parameters", "warning"),
    [
        pytest.param("no-hit-lru-scorer", {"lruSize": 0}, "lruSize is 0: the default counts, 1024", id="no size"),
        pytest.param("no-hit-lru-scorer", {"lruSize": -1}, "lruSize is -1: the default counts, 1024", id="less"),
        pytest.param("no-hit-lru-scorer", {"lruSize": 1}, None, id="a size"),
        *(
            pytest.param(name, {key: "zz"}, NO_PROFILE.format(key=key), id=f"{name}: {key}")
            for name in ("disagg-headers-handler", "prefill-header-handler")
            for key in ("prefillProfile", "encodeProfile")
        ),
        pytest.param("disagg-headers-handler", {}, None, id="default profiles that aren't there"),
        pytest.param(
            "p2p-source-producer",
            {"prefillProfileName": "zz"},
            NO_PROFILE.format(key="prefillProfileName"),
            id="the profile of a transfer",
        ),
        pytest.param("p2p-source-producer", {}, None, id="without that profile"),
        *(
            pytest.param("precise-prefix-cache-producer", precise(size=size), None, id=f"a size of {size}")
            for size in ("2GiB", "500 MB", "1048576")
        ),
    ],
)
def test_warned_of(type_name, parameters, warning):
    """At the plugin's parameters."""
    warnings = load(type_name, parameters).router.warnings
    found = [each for each in warnings if each.startswith("plugins[0].parameters: ")]
    assert found == ([f"plugins[0].parameters: {warning}"] if warning else [])


@pytest.mark.parametrize(
    ("type_name", "parameters", "shown"),
    [
        pytest.param("no-hit-lru-scorer", {"lruSize": 0}, {"lruSize": 1024}, id="a size"),
        pytest.param("metrics-data-source", {"port": 0, "interval": ""}, {}, id="of a page"),
        pytest.param("metrics-data-source", {"path": "stats"}, {"path": "/stats"}, id="a path"),
        pytest.param("precise-prefix-cache-producer", {"speculativeTTL": "0s"}, {"speculativeTTL": "2s"}, id="0 s"),
        pytest.param("precise-prefix-cache-producer", {"speculativeTTL": ""}, {"speculativeTTL": "2s"}, id="no time"),
    ],
)
def test_shown(type_name, parameters, shown):
    """The effective configuration has what counts, and means the same."""

    def parameters_in(loaded):
        return next(entry for entry in show.effective(loaded)["plugins"] if entry["type"] == type_name)["parameters"]

    assert parameters_in(load(type_name, parameters)) == parameters_in(load(type_name, shown))


@pytest.mark.parametrize(
    "layer", ["crossReplicaSyncInterval: 0s", "crossReplica: {syncInterval: 0s, publishTimeout: 0s}"]
)
def test_times_of_0(layer):
    """They mean the defaults."""
    assert resolve(f"{HEAD}plugins: [{{type: queue-scorer}}]\ndataLayer: {{{layer}}}", "f", REGISTRY, context)


@pytest.mark.parametrize("size", ["2XB", "0", ""])
def test_a_size_that_is_none(size):
    """Told at its place."""
    with pytest.raises(InvalidConfig) as caught:
        load("precise-prefix-cache-producer", precise(size=size))
    (problem,) = caught.value.problems
    assert problem.place == "plugins[0].parameters.indexerConfig.kvBlockIndexConfig.costAwareMemoryConfig.size"
    assert problem.message.startswith(f"{size!r} is no ")
