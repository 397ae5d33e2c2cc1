"""`dataLayer`: which plugins say where endpoints and metrics come from."""

from pathlib import Path

import pytest
from epp_plugins.core_metrics import CoreMetricsExtractor
from epp_plugins.dcgm import DcgmDataSource, DcgmExtractor
from epp_plugins.file_discovery import FileDiscovery
from epp_plugins.metrics_source import MetricsDataSource
from epp_plugins.multicluster import MulticlusterMetricsDataSource, MulticlusterMetricsExtractor
from epp_plugins.notification import EndpointNotificationSource
from epp_plugins.topology import TopologyExtractor

from epp.plugin import EndpointsFile, EngineMetrics, Extraction, Page
from epp.settings import InvalidConfig, resolve, show
from epp.sources import Sources
from epp.testing import context
from tests.unit.settings.conftest import HEAD, TYPES, registry_of

DATA = {
    "metrics-data-source": MetricsDataSource,
    "core-metrics-extractor": CoreMetricsExtractor,
    "file-discovery": FileDiscovery,
    "dcgm-data-source": DcgmDataSource,
    "dcgm-extractor": DcgmExtractor,
    "gpus": DcgmExtractor,
    "multicluster-metrics-data-source": MulticlusterMetricsDataSource,
    "multicluster-metrics-extractor": MulticlusterMetricsExtractor,
    "endpoint-notification-source": EndpointNotificationSource,
    "topology-extractor": TopologyExtractor,
}
CONFIG_MAPS = "{type: k8s-notification-source, parameters: {version: v1, kind: ConfigMap}}"
EXTRACTION = Extraction("core-metrics-extractor")
MINE = Page(path="/mine")


class Hearing:
    def notified(self, notice, item):
        pass


class Failing:
    def metrics_page(self):
        raise RuntimeError("no page")


def resolved(text):
    return resolve(HEAD + text, "f", registry_of(TYPES | DATA | {"failing": Failing, "hearing": Hearing}), context)


def load(text):
    return resolved(text).router


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
            Sources(MINE, Extraction("e", SPECS), models=Page(path="/v1/models")),
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


DCGM = "{type: dcgm-data-source}, {type: dcgm-extractor}"
CLUSTERS = "{type: multicluster-metrics-data-source}, {type: multicluster-metrics-extractor}"
METRICS = ("metrics-data-source", ("core-metrics-extractor",))
GPUS = ("dcgm-data-source", ("dcgm-extractor",))


@pytest.mark.parametrize(
    ("text", "wiring", "scraped"),
    [
        pytest.param("", [METRICS], True, id="defaults"),
        pytest.param(f"plugins: [{DCGM}]", [METRICS, GPUS], True, id="referred to nowhere"),
        pytest.param(
            "plugins: [{type: dcgm-data-source}, {type: gpus}]\n"
            "dataLayer: {sources: [{pluginRef: dcgm-data-source, extractors: [{pluginRef: gpus}]}]}",
            [METRICS, ("dcgm-data-source", ("gpus",))],
            True,
            id="the listed extractor",
        ),
        pytest.param(
            "plugins: [{type: dcgm-data-source}, {type: dcgm-extractor}, {type: gpus}]\n"
            "dataLayer: {sources: [{pluginRef: dcgm-data-source, extractors: [{pluginRef: gpus}]}, "
            "{pluginRef: dcgm-data-source, extractors: [{pluginRef: dcgm-extractor}, {pluginRef: gpus}]}]}",
            [METRICS, ("dcgm-data-source", ("gpus", "dcgm-extractor"))],
            True,
            id="a source that stands twice",
        ),
        pytest.param(
            f"plugins: [{DCGM}, {{type: dcgm-data-source, name: other}}, {{type: gpus}}]\n"
            "dataLayer: {sources: [{pluginRef: other, extractors: [{pluginRef: gpus}]}]}",
            [METRICS, ("other", ("gpus",)), GPUS],
            True,
            id="what no source names is for the others",
        ),
        pytest.param(
            f"plugins: [{CLUSTERS}]",
            [("multicluster-metrics-data-source", ("multicluster-metrics-extractor",))],
            False,
            id="clusters have no metrics of engines",
        ),
        pytest.param(
            f"plugins: [{CLUSTERS}, {{type: metrics-data-source}}]",
            [METRICS, ("multicluster-metrics-data-source", ("multicluster-metrics-extractor",))],
            True,
            id="unless they are asked for",
        ),
        pytest.param(
            f"plugins: [{DCGM}]\ndataLayer: {{injectDefaults: false, sources: [{{pluginRef: dcgm-data-source}}]}}",
            [GPUS],
            False,
            id="without the defaults",
        ),
        pytest.param(
            "plugins: [{type: models-data-source}, {type: models-data-extractor}]",
            [METRICS, ("models-data-source", ("models-data-extractor",))],
            True,
            id="models",
        ),
        pytest.param(
            "plugins: [{type: endpoint-notification-source}, {type: topology-extractor}]\n"
            "dataLayer: {sources: [{pluginRef: endpoint-notification-source, "
            "extractors: [{pluginRef: topology-extractor}]}]}",
            [METRICS, ("endpoint-notification-source", ("topology-extractor",))],
            True,
            id="what hears of changes",
        ),
        pytest.param(
            f"plugins: [{CONFIG_MAPS}, {{type: hearing}}]",
            [METRICS, ("k8s-notification-source", ("hearing",))],
            True,
            id="objects in Kubernetes",
        ),
        pytest.param(
            f"plugins: [{CONFIG_MAPS}, {{type: hearing, name: another}}]\n"
            "dataLayer: {sources: [{pluginRef: k8s-notification-source, extractors: [{pluginRef: another}]}]}",
            [METRICS, ("k8s-notification-source", ("another",))],
            True,
            id="the extractor that is named",
        ),
    ],
)
def test_wiring(text, wiring, scraped):
    """Which sources are in force, and what reads each; what is shown of it means the same."""
    first = resolved(text)
    sources = first.router.sources
    assert (sorted(sources.wiring), sources.scraped) == (sorted(wiring), scraped)
    followed = (*sources.polls, *sources.watches)
    read = [(each.name, tuple(reader.name for reader in each.readers)) for each in followed]
    assert read == [each for each in sources.wiring if each[0] in dict(read)]
    assert not [warning for warning in first.router.warnings if "has no effect" in warning]
    again = resolve(show.to_yaml(first), "f", registry_of(TYPES | DATA | {"hearing": Hearing}), context)
    assert (again.router.sources, again.router.sources.wiring) == (sources, sources.wiring)


def test_nobody_hears():
    """A source of objects without an extractor is none, and that is said."""
    router = load(f"plugins: [{CONFIG_MAPS}]")
    assert router.sources.watches == ()
    assert [
        warning for warning in router.warnings if "watches nothing: no extractor hears of what it would see" in warning
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("", [METRICS], id="defaults"),
        pytest.param(f"plugins: [{SOURCE}]", [("mine", ("core-metrics-extractor",))], id="a source's own name"),
    ],
)
def test_shown(text, shown):
    """`epp config show` has the data layer with its defaults."""
    layer = show.effective(resolved(text))["dataLayer"]
    sources = [
        (source["pluginRef"], tuple(e["pluginRef"] for e in source["extractors"])) for source in layer["sources"]
    ]
    assert (layer["injectDefaults"], layer["crossReplicaSyncInterval"], sources) == (True, "0.2s", shown)


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
        pytest.param(
            "dataLayer: {sources: [{pluginRef: metrics-data-source}, {pluginRef: metrics-data-source, "
            "extractors: [{pluginRef: core-metrics-extractor}]}]}",
            (
                (
                    'dataLayer.sources[1].pluginRef: "metrics-data-source" stands above already: '
                    "its extractors are taken together"
                ),
            ),
            id="a source twice",
        ),
        pytest.param(
            "dataLayer: {sources: [{pluginRef: metrics-data-source, "
            "extractors: [{pluginRef: core-metrics-extractor}, {pluginRef: core-metrics-extractor}]}]}",
            (
                (
                    "dataLayer.sources[0].extractors[1].pluginRef: "
                    '"core-metrics-extractor" reads metrics-data-source already: it counts once'
                ),
            ),
            id="an extractor twice",
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
            "dataLayer: {sources: [{pluginRef: models-data-source, "
            "extractors: [{pluginRef: core-metrics-extractor}]}]}",
            "dataLayer.sources[0].extractors[0].pluginRef: "
            '"core-metrics-extractor" reads nothing that models-data-source gives',
            id="an extractor of something else",
        ),
        pytest.param(
            "dataLayer: {sources: [{pluginRef: endpoint-notification-source, "
            "extractors: [{pluginRef: dcgm-extractor}]}]}",
            "dataLayer.sources[0].extractors[0].pluginRef: "
            '"dcgm-extractor" reads nothing that endpoint-notification-source gives',
            id="a reader of pages hears of no endpoints",
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
