"""`dataLayer`: which plugins say where endpoints and metrics come from."""

from pathlib import Path

import pytest
from epp_plugins.core_metrics import CoreMetricsExtractor
from epp_plugins.file_discovery import FileDiscovery
from epp_plugins.metrics_source import MetricsDataSource

from epp.plugin import EndpointsFile, EngineMetrics, Extraction, Page
from epp.settings import InvalidConfig, resolve
from epp.sources import Sources
from epp.testing import context
from tests.unit.settings.conftest import HEAD, TYPES, registry_of

DATA = {
    "metrics-data-source": MetricsDataSource,
    "core-metrics-extractor": CoreMetricsExtractor,
    "file-discovery": FileDiscovery,
}
EXTRACTION = Extraction("core-metrics-extractor")
MINE = Page(path="/mine")


class Failing:
    def metrics_page(self):
        raise RuntimeError("no page")


def load(text):
    return resolve(HEAD + text, "f", registry_of(TYPES | DATA | {"failing": Failing}), context).router


SOURCE = "{type: metrics-data-source, name: mine, parameters: {path: /mine}}"
SPEC = "parameters: {engineConfigs: [{name: vllm, queuedRequestsSpec: q}]}"
SPECS = (EngineMetrics("vllm", waiting="q"),)


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        pytest.param("", Sources(Page(), EXTRACTION), id="defaults"),
        pytest.param(f"plugins: [{SOURCE}]", Sources(MINE, EXTRACTION), id="referred to nowhere"),
        pytest.param(
            f"plugins: [{SOURCE}]\ndataLayer: {{sources: [{{pluginRef: mine}}]}}",
            Sources(MINE, EXTRACTION),
            id="listed",
        ),
        pytest.param(
            f"plugins: [{{type: metrics-data-source}}, {SOURCE}]\ndataLayer: {{sources: [{{pluginRef: mine}}]}}",
            Sources(MINE, EXTRACTION),
            id="the listed one",
        ),
        pytest.param(
            "dataLayer: {injectDefaults: false, sources: [{pluginRef: metrics-data-source, "
            "extractors: [{pluginRef: core-metrics-extractor}]}]}",
            Sources(Page(), EXTRACTION),
            id="by type",
        ),
        pytest.param(
            f"plugins: [{SOURCE}]\ndataLayer: {{injectDefaults: false}}", Sources(MINE, EXTRACTION), id="no defaults"
        ),
        pytest.param(
            f"plugins: [{{type: core-metrics-extractor, name: e, {SPEC}}}]",
            Sources(Page(), Extraction("e", SPECS)),
            id="extractor, referred to nowhere",
        ),
        pytest.param(
            "plugins: [{type: core-metrics-extractor}, "
            f"{{type: core-metrics-extractor, name: e, {SPEC}}}, {SOURCE}]\n"
            "dataLayer: {sources: [{pluginRef: models-data-source}, {pluginRef: mine, extractors: [{pluginRef: e}]}]}",
            Sources(MINE, Extraction("e", SPECS)),
            id="the listed extractor",
        ),
        pytest.param(
            f"plugins: [{{type: model-server-protocol-metrics, {SPEC}}}]",
            Sources(Page(), Extraction("model-server-protocol-metrics", SPECS)),
            id="the extractor's old name",
        ),
        pytest.param(
            "plugins: [{type: file-discovery, parameters: {path: e.yaml, watchFile: true}}]\n"
            "dataLayer: {discovery: {pluginRef: file-discovery}}",
            Sources(Page(), EXTRACTION, EndpointsFile(Path("e.yaml"), watch=True)),
            id="endpoints from a file",
        ),
        pytest.param(
            "plugins: [{type: file-discovery, parameters: {path: e.yaml}}]",
            Sources(Page(), EXTRACTION),
            id="unused file",
        ),
    ],
)
def test_sources(text, sources):
    """What is listed counts first, then what is configured, then the default."""
    assert load(text).sources == sources


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        pytest.param(f"plugins: [{SOURCE}]\ndataLayer: {{sources: [{{pluginRef: mine}}]}}", (), id="all in effect"),
        pytest.param(f"plugins: [{SOURCE}]", (), id="adopted"),
        pytest.param(
            f"plugins: [{{type: metrics-data-source}}, {SOURCE}]",
            ('plugins[1]: "mine" (plugins[1]) is referred to by nothing, so it has no effect',),
            id="one page only",
        ),
        pytest.param(
            "plugins: [{type: file-discovery, parameters: {path: e.yaml}}]",
            ('plugins[0]: "file-discovery" (plugins[0]) is referred to by nothing, so it has no effect',),
            id="unused file",
        ),
        pytest.param(
            "dataLayer: {peerDiscovery: {pluginRef: x}, crossReplicaSyncerPluginRef: y}",
            (
                "dataLayer.peerDiscovery: is accepted, has no effect yet",
                "dataLayer.crossReplicaSyncerPluginRef: is accepted, has no effect yet",
            ),
            id="replicas",
        ),
    ],
)
def test_warnings(text, warnings):
    """What has no effect is said."""
    assert load(text).warnings == warnings


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param(
            "dataLayer: {injectDefaults: false}",
            "dataLayer.injectDefaults: without the defaults there must be a source: list a metrics-data-source in "
            "dataLayer.sources",
            id="no source",
        ),
        pytest.param(
            "dataLayer: {discovery: {pluginRef: file-discovery}}",
            "dataLayer.discovery.pluginRef.path: is required",
            id="file without path",
        ),
        pytest.param(
            "plugins: [{type: queue-scorer}]\ndataLayer: {sources: [{pluginRef: queue-scorer}]}",
            'dataLayer.sources[0].pluginRef: "queue-scorer" is no data source, it is: scorer',
            id="wrong kind",
        ),
        pytest.param(
            "plugins: [{type: failing}]",
            'plugins[0]: "failing" (plugins[0]): metrics_page fails: RuntimeError: no page',
            id="fails",
        ),
    ],
)
def test_errors(text, error):
    """What can't be used is an error at its place."""
    with pytest.raises(InvalidConfig) as caught:
        load(text)
    assert [str(problem) for problem in caught.value.problems] == [error]
