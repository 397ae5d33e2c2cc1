"""Data sources and extractors beside the engines' metrics: GPUs, clusters, models, notifications."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
from epp_plugins.dcgm import DcgmDataSource, DcgmExtractor
from epp_plugins.models_source import ModelsDataExtractor, ModelsDataSource
from epp_plugins.multicluster import (
    MulticlusterFileDiscovery,
    MulticlusterKvCacheUtilizationScorer,
    MulticlusterMetricsDataSource,
    MulticlusterMetricsExtractor,
    MulticlusterQueueScorer,
)
from epp_plugins.notification import K8sNotificationSource
from prometheus_client import generate_latest
from pydantic import ValidationError

from epp.formats.exposition import ExpositionError
from epp.keys import CLUSTER_KV_USAGE, CLUSTER_QUEUE, GPU_UTILIZATION, KV_USAGE, WAITING, attribute
from epp.observe.metrics import Metrics
from epp.plugin import Endpoint, EndpointsFile, Page
from epp.pool import Pool
from epp.testing import candidates, context, pool, request

nan = float("nan")


def made(cls: Any, **parameters: Any) -> Any:
    return cls(cls.Parameters.model_validate(parameters))


@pytest.mark.parametrize(
    ("source", "page"),
    [
        pytest.param(made(DcgmDataSource).polled_page(), Page(port=9400), id="GPUs"),
        pytest.param(
            made(
                DcgmDataSource, scheme="https", port=1, path="/x", interval="5s", insecureSkipVerify=False
            ).polled_page(),
            Page("https", "/x", 1, False, interval=5.0),
            id="GPUs elsewhere",
        ),
        pytest.param(
            made(MulticlusterMetricsDataSource, caCertPath="ca").polled_page(),
            Page("https", insecure=False, ca=Path("ca")),
            id="clusters, which are verified",
        ),
        pytest.param(
            made(MulticlusterMetricsDataSource, scheme="http", interval="1ms").polled_page(),
            Page("http", insecure=False, interval=0.05),
            id="clusters, plain",
        ),
        pytest.param(made(ModelsDataSource).models_page(), Page(path="/v1/models"), id="models"),
        pytest.param(
            made(ModelsDataSource, port=2, path="/m").models_page(), Page(path="/m", port=2), id="models there"
        ),
        pytest.param(made(DcgmDataSource, port=0).polled_page(), Page(), id="at the endpoint's own port"),
        pytest.param(made(ModelsDataSource, path="m").models_page(), Page(path="/m"), id="without the slash"),
    ],
)
def test_pages(source: Page, page: Page) -> None:
    """The page as the parameters say."""
    assert source == page


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        (DcgmDataSource, {"port": -1}),
        (DcgmDataSource, {"useNode": True}),
        (MulticlusterMetricsDataSource, {"scheme": "ftp"}),
        (MulticlusterMetricsExtractor, {"queueSizeMetric": ""}),
        (ModelsDataSource, {"path": ""}),
        (K8sNotificationSource, {"version": "v1"}),
        (K8sNotificationSource, {"version": "v1", "kind": ""}),
        (MulticlusterFileDiscovery, {}),
    ],
)
def test_invalid_parameters(cls: Any, parameters: Any) -> None:
    with pytest.raises(ValidationError):
        made(cls, **parameters)


def test_a_nodes_address() -> None:
    """It is asked if the parameter says so."""
    assert not made(DcgmDataSource).polled_page().at_node
    assert made(DcgmDataSource, useNodeAddress=True).polled_page().at_node


GPUS = """
# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{gpu="0",pod="llama-0"} 20
DCGM_FI_DEV_GPU_UTIL{gpu="1",pod="llama-0"} 75
DCGM_FI_DEV_GPU_UTIL{gpu="2",pod="qwen-0"} 90
DCGM_FI_DEV_FB_USED{gpu="0",pod="llama-0"} 99
"""


@pytest.mark.parametrize(
    ("name", "page", "expected"),
    [
        pytest.param("llama-0", GPUS, 0.75, id="the busiest of its own"),
        pytest.param("qwen-0-rank-3", GPUS, 0.9, id="a rank of its pod"),
        pytest.param("nobody", GPUS, None, id="none of them"),
        pytest.param("nobody", 'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 50\nDCGM_FI_DEV_GPU_UTIL 40\n', 0.5, id="a host's"),
        pytest.param("nobody", 'DCGM_FI_DEV_GPU_UTIL{pod=""} 50\n', 0.5, id="of no pod"),
        pytest.param("llama-0", "other 1\n", None, id="another page"),
    ],
)
def test_gpus(name: str, page: str, expected: float | None) -> None:
    """The highest utilization of the endpoint's GPUs, as a fraction."""
    found = DcgmExtractor(context("dcgm-extractor")).columns(Endpoint(name, "10.0.0.1", 8000), page.encode())
    assert found == ({} if expected is None else {GPU_UTILIZATION: expected})


def test_an_extractor_of_another_name() -> None:
    """Its column is the one that `attribute` and `producer` name together."""
    (key,) = DcgmExtractor(context("mine")).columns(Endpoint("a", "10.0.0.1", 1), b"DCGM_FI_DEV_GPU_UTIL 5\n")
    assert key is attribute("GPUUtilization", "mine") is not GPU_UTILIZATION
    with pytest.raises(ExpositionError):
        DcgmExtractor(context()).columns(Endpoint("a", "10.0.0.1", 1), b"<html>")


GATEWAY = Endpoint("cluster", "10.0.0.1", 443)


@pytest.mark.parametrize(
    ("parameters", "page", "expected"),
    [
        pytest.param(
            {},
            'llm_d_epp_average_queue_size{name="p"} 4\nllm_d_epp_average_kv_cache_utilization{name="p"} 0.6\n',
            {CLUSTER_QUEUE: 4, CLUSTER_KV_USAGE: 0.6},
            id="both",
        ),
        pytest.param({}, "llm_d_epp_average_queue_size 4\n", {CLUSTER_QUEUE: 4}, id="one"),
        pytest.param(
            {},
            'llm_d_epp_average_queue_size{name="a"} 4\nllm_d_epp_average_queue_size{name="b"} 2\n',
            {CLUSTER_QUEUE: 3},
            id="of two pools the average",
        ),
        pytest.param(
            {"queueSizeMetric": "q", "kvCacheUtilizationMetric": "k"},
            "q 1\nk 0.5\n",
            {CLUSTER_QUEUE: 1, CLUSTER_KV_USAGE: 0.5},
            id="of other names",
        ),
        pytest.param({}, "up 1\n", {}, id="none"),
    ],
)
def test_clusters(parameters: Any, page: str, expected: Any) -> None:
    assert made(MulticlusterMetricsExtractor, **parameters).columns(GATEWAY, page.encode()) == expected


def test_a_picker_in_front_of_pickers() -> None:
    """The page of our own picker has what the extractor looks for: the averages over its engines."""
    inner = pool(count=2)
    for slot, (waiting, used) in enumerate([(2.0, 0.25), (4.0, 0.75)]):
        inner.write(slot, {WAITING: waiting, KV_USAGE: used}, now=time.monotonic(), fresh_until=math.inf)
    page = generate_latest(Metrics(inner, "inner").registry)
    found = made(MulticlusterMetricsExtractor).columns(GATEWAY, page)
    assert found == {CLUSTER_QUEUE: 3.0, CLUSTER_KV_USAGE: 0.5}


def test_scores_of_clusters() -> None:
    """As of endpoints, by the averages; who has none gets nothing, and takes no part in the range."""
    c = candidates(columns={CLUSTER_QUEUE: [0, 5, 10, nan], CLUSTER_KV_USAGE: [0.5, 0.25, nan, 1]})
    assert MulticlusterQueueScorer().score(request(), c).tolist() == pytest.approx([1, 0.5, 0, nan], nan_ok=True)
    kv = MulticlusterKvCacheUtilizationScorer().score(request(), c).tolist()
    assert kv == pytest.approx([0.5, 0.75, nan, 0], nan_ok=True)


def test_clusters_without_scrapes() -> None:
    """What is polled doesn't go stale with metrics that nobody scrapes."""
    own = Pool()
    for number in range(2):
        slot = own.add(Endpoint(f"c{number}", "10.0.0.1", 8000 + number))
        own.write_polled(slot, {CLUSTER_QUEUE: float(number)}, "poll")
    c = candidates(of=own)
    assert not c.fresh.any()
    assert MulticlusterQueueScorer().score(request(), c).tolist() == [1, 0]


def test_discovery_of_clusters() -> None:
    file = made(MulticlusterFileDiscovery, path="a", watchFile=True).endpoints_file()
    assert file == EndpointsFile(Path("a"), watch=True, clusters=True)


def test_models() -> None:
    read = ModelsDataExtractor().served_models
    assert list(read(b'{"data": [{"id": "a"}, {"id": "b", "parent": "a"}]}')) == ["a", "b"]
    with pytest.raises(ValueError, match=r"."):
        read(b"[]")
