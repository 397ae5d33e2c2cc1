"""Plugins that say where endpoints and metrics come from."""

from pathlib import Path

import pytest
from epp_plugins.core_metrics import CoreMetricsExtractor
from epp_plugins.file_discovery import FileDiscovery
from epp_plugins.metrics_source import MetricsDataSource
from pydantic import ValidationError

from epp.plugin import ENGINE_LABELS, EndpointsFile, EngineMetrics, Extraction, Page
from epp.testing import context


@pytest.mark.parametrize(
    ("parameters", "page"),
    [
        ({}, Page()),
        (
            {
                "scheme": "https",
                "path": "/m",
                "port": 9000,
                "insecureSkipVerify": False,
                "caCertPath": "ca",
                "clientCertPath": "crt",
                "clientKeyPath": "key",
                "interval": "1s",
            },
            Page("https", "/m", 9000, False, Path("ca"), Path("crt"), Path("key"), 1.0),
        ),
        ({"interval": "10ms"}, Page(interval=0.05)),
        ({"port": 0, "interval": ""}, Page()),
        ({"path": "metrics"}, Page()),
    ],
    ids=["defaults", "all", "shortest", "empty values are none", "without the slash"],
)
def test_metrics_page(parameters, page):
    """The page as the parameters say."""
    assert MetricsDataSource(MetricsDataSource.Parameters.model_validate(parameters)).metrics_page() == page


@pytest.mark.parametrize(
    "parameters",
    [
        {"scheme": "ftp"},
        {"port": -1},
        {"port": 65536},
        {"path": ""},
        {"interval": 5},
        {"interval": "0s"},
        {"clientKeyPath": "key"},
    ],
    ids=str,
)
def test_pages_that_cant_be(parameters):
    """What can't be fetched is refused."""
    with pytest.raises(ValidationError):
        MetricsDataSource.Parameters.model_validate(parameters)


def extraction(parameters):
    return CoreMetricsExtractor(
        CoreMetricsExtractor.Parameters.model_validate(parameters), context("mine")
    ).engine_metrics()


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, Extraction("mine", (), "vllm", ENGINE_LABELS)),
        ({"engineLabelKey": "llm-d.ai/engine-type"}, Extraction("mine", (), "vllm", ENGINE_LABELS)),
        ({"engineLabelKey": "engine", "defaultEngine": "sglang"}, Extraction("mine", (), "sglang", ("engine",))),
        (
            {
                "defaultEngine": "own",
                "engineConfigs": [
                    {
                        "name": "own",
                        "queuedRequestsSpec": "q",
                        "runningRequestsSpec": "r{a=b}",
                        "kvUsageSpec": "k",
                        "loraSpec": "l",
                        "cacheInfoSpec": "c",
                        "cacheBlockSizeLabelName": "size",
                        "cacheNumBlocksLabelName": "count",
                        "cacheBlockSizeSpec": "cs",
                        "cacheNumBlocksSpec": "cn",
                        "customMetrics": [{"attributeKey": "age", "metricSpec": 'a{b="c"}'}],
                    },
                    {"name": "vllm"},
                ],
            },
            Extraction(
                "mine",
                (
                    EngineMetrics(
                        "own", "q", "r{a=b}", "k", "l", "c", "size", "count", "cs", "cn", (("age", 'a{b="c"}'),)
                    ),
                    EngineMetrics("vllm"),
                ),
                "own",
            ),
        ),
    ],
    ids=["defaults", "the default label", "another label", "all"],
)
def test_engine_metrics(parameters, expected):
    """The engines as the parameters say."""
    assert extraction(parameters) == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"engineConfigs": [{"name": "default"}]}, 'no engine can be called "default"'),
        ({"engineConfigs": [{"name": "a"}, {"name": "a"}]}, 'an engine above is called "a" already'),
        ({"defaultEngine": "b", "engineConfigs": [{"name": "a"}]}, 'defaultEngine: "b" is none of a, vllm, sglang'),
        ({"engineConfigs": [{"name": "a", "kvUsageSpec": "1st"}]}, "metric '1st': write name"),
        ({"engineConfigs": [{"name": "a", "loraSpec": "l{x}"}]}, "'x' is not label=value"),
        ({"engineConfigs": [{"name": "a", "customMetrics": [{"attributeKey": "k", "metricSpec": ""}]}]}, "at least 1"),
    ],
)
def test_engines_that_cant_be(parameters, message):
    """What can't be read is refused at load."""
    with pytest.raises(ValidationError, match=message):
        extraction(parameters)


def test_endpoints_file():
    """The file as the parameters say; it must be named."""
    made = FileDiscovery(FileDiscovery.Parameters.model_validate({"path": "a/b", "watchFile": True}))
    assert made.endpoints_file() == EndpointsFile(Path("a/b"), watch=True)
    assert FileDiscovery(FileDiscovery.Parameters(path="x")).endpoints_file() == EndpointsFile(Path("x"), watch=False)
    with pytest.raises(ValidationError):
        FileDiscovery.Parameters.model_validate({})
