"""multicluster-queue-scorer, multicluster-kv-cache-utilization-scorer: clusters as endpoints, by their averages.

What it does
    A picker may stand in front of other pickers: each of its endpoints is the gateway of a cluster, and the picker of
    that cluster chooses among its engines. A gateway has no queue of its own; what counts are the averages that the
    cluster's picker has on its metrics page. `multicluster-metrics-data-source` fetches that page of every endpoint, in
    place of the engines' metrics, which aren't scraped then; `multicluster-metrics-extractor` takes the two averages;
    the scorers go by them as `queue-scorer` and `kv-cache-utilization-scorer` go by an engine's. A cluster whose page
    can't be had gets no points.

    `multicluster-file-discovery` reads the clusters from a file, as `file-discovery` reads endpoints. Where a cluster's
    metrics are elsewhere than its gateway, the labels `metricsAddress` and `metricsPort` of its entry say so:

        endpoints:
        - name: east
          address: gateway.east.example
          port: 443
          labels: {metricsAddress: epp.east.example, metricsPort: "9090"}

Reads
    - the extractor: the page of a cluster's picker, ours or llm-d's.
    - the scorers: `llm-d.ai/multicluster-queue-size`, `llm-d.ai/multicluster-kv-cache-utilization`.

Writes
    The extractor the two columns that the scorers read, not known while the page can't be had; the discovery the pool;
    the scorers nothing.

Parameters
    of multicluster-metrics-data-source:

    - `scheme` (https): or http.
    - `path` (/metrics), `port` (none, as is 0; the metrics port, or else the endpoint's): of the page.
    - `insecureSkipVerify` (false): with https, accept any certificate.
    - `caCertPath` (none): certificates (PEM) to check the clusters' against; without, the system's.
    - `clientCertPath`, `clientKeyPath` (none): our own certificate and its key (PEM), for clusters that ask for one.
    - `interval` (1s): between two looks at a cluster.

    of multicluster-metrics-extractor, names of metrics, of which several series are averaged:

    - `queueSizeMetric` (llm_d_epp_average_queue_size).
    - `kvCacheUtilizationMetric` (llm_d_epp_average_kv_cache_utilization).

    of multicluster-file-discovery:

    - `path` (required): the file; a relative one is looked for in the process's folder.
    - `watchFile` (false): whether it is read again when it changes.

    The scorers have none: None.

Example:
    plugins:
    - type: multicluster-file-discovery
      parameters:
        path: /etc/epp/clusters.yaml
        watchFile: true
    - type: multicluster-metrics-data-source
      parameters:
        caCertPath: /etc/epp/clusters-ca.pem
    - type: multicluster-metrics-extractor
    - type: multicluster-queue-scorer
    - type: multicluster-kv-cache-utilization-scorer
    dataLayer:
      discovery:
        pluginRef: multicluster-file-discovery
      sources:
      - pluginRef: multicluster-metrics-data-source
        extractors:
        - pluginRef: multicluster-metrics-extractor
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: multicluster-queue-scorer
        weight: 2
      - pluginRef: multicluster-kv-cache-utilization-scorer
        weight: 2

Where it departs from llm-d, and why
    - Engines' metrics aren't scraped beside it unless a metrics-data-source is configured; there the default source
      asks every gateway for a page that it doesn't have.
    - A page that can't be had makes the values unknown; there the last ones stay.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

import epp.plugin
from epp.keys import CLUSTER_KV_USAGE, CLUSTER_QUEUE
from epp.plugin import (
    Candidates,
    Endpoint,
    EndpointsFile,
    Floats,
    Key,
    Page,
    PageParameters,
    Request,
    formats,
    lower_is_better,
)

QUEUE: Final = "llm_d_epp_average_queue_size"
KV_USAGE: Final = "llm_d_epp_average_kv_cache_utilization"


class SourceParameters(PageParameters):
    """See the module's manual."""

    scheme: Literal["http", "https"] = "https"
    insecure_skip_verify: bool = False


class MulticlusterMetricsDataSource:
    """Fetches the metrics page of each cluster's picker, in place of engines' metrics."""

    Parameters = SourceParameters
    stability = "alpha"
    replaces_metrics = True

    def __init__(self, parameters: SourceParameters) -> None:
        self._page = parameters.page()

    def polled_page(self) -> Page:
        """The page."""
        return self._page


class MulticlusterFileDiscovery:
    """Tells which file names the clusters."""

    stability = "alpha"

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        path: str = Field(min_length=1)
        watch_file: bool = False

    def __init__(self, parameters: Parameters) -> None:
        self._file = EndpointsFile(Path(parameters.path), parameters.watch_file, clusters=True)

    def endpoints_file(self) -> EndpointsFile:
        """The file."""
        return self._file


class MulticlusterMetricsExtractor:
    """Takes the averages of a cluster's queues and caches off the page of its picker."""

    stability = "alpha"

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        queue_size_metric: str = Field(default=QUEUE, min_length=1)
        kv_cache_utilization_metric: str = Field(default=KV_USAGE, min_length=1)

    def __init__(self, parameters: Parameters) -> None:
        self._names = {
            CLUSTER_QUEUE: parameters.queue_size_metric,
            CLUSTER_KV_USAGE: parameters.kv_cache_utilization_metric,
        }
        self._page = formats.exposition.Exposition(self._names.values())

    def columns(self, endpoint: Endpoint, page: bytes) -> Mapping[Key, float]:
        """Requests and a fraction, as far as they are on the page."""
        found = self._page.read(page)
        values = {key: [sample.value for sample in found.get(name, ())] for key, name in self._names.items()}
        return {key: sum(parts) / len(parts) for key, parts in values.items() if parts}


class MulticlusterQueueScorer:
    """Prefers clusters with shorter queues on average: 1 for the shortest, 0 for the longest, 1 if all are equal."""

    stability = "alpha"

    def score(self, request: Request, c: Candidates) -> Floats:
        """(max - q) / (max - min) of the average queues, shape (n,); NaN where unknown."""
        return lower_is_better(c[CLUSTER_QUEUE])


class MulticlusterKvCacheUtilizationScorer:
    """Prefers clusters with more free KV cache on average: 1 for empty caches, 0 for full ones."""

    stability = "alpha"

    def score(self, request: Request, c: Candidates) -> Floats:
        """1 - usage, shape (n,); NaN where unknown."""
        return 1.0 - c[CLUSTER_KV_USAGE]
