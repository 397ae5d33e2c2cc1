"""dcgm-data-source, dcgm-extractor: how busy the GPUs of an endpoint are, as NVIDIA's exporter (DCGM) tells.

What it does
    The source fetches the exporter's page of every endpoint's host, beside the engine's own metrics. The extractor
    takes the busiest GPU of the endpoint: the highest `DCGM_FI_DEV_GPU_UTIL` of the series whose label `pod` is the
    endpoint's name, or that have no such label. `endpoint-attribute-scorer` and `endpoint-attribute-filter` can go by
    it: attribute `GPUUtilization`, producer `dcgm-extractor`.

    Both take effect if they are in `plugins`. The exporter of a host without Kubernetes has no label `pod`, so that all
    endpoints of one host have the host's busiest GPU.

Reads
    The exporter's page.

Writes
    The column `GPUUtilization`, a fraction; not known while the page can't be had, or has none of the endpoint's GPUs.

Parameters
    of dcgm-data-source:

    - `scheme` (http): or https.
    - `path` (/metrics), `port` (9400): of the exporter's page; 0 is the port of the endpoint's metrics.
    - `insecureSkipVerify` (true): with https, accept any certificate.
    - `caCertPath` (none): certificates (PEM) to check the endpoints' against; without, the system's.
    - `clientCertPath`, `clientKeyPath` (none): our own certificate and its key (PEM), for endpoints that ask for one.
    - `useNodeAddress` (false): ask at the address of the pod's node in place of the pod's, as an exporter on the host's
      network needs it. Without Kubernetes an endpoint's address is its host's, and this has no effect.
    - `interval` (1s): between two looks at an endpoint; in large pools it is stretched.

    dcgm-extractor has none: None.

Example:
    plugins:
    - type: dcgm-data-source
    - type: dcgm-extractor
    - type: endpoint-attribute-scorer
      parameters:
        attributeKey: GPUUtilization
        producer: dcgm-extractor
        algorithm:
          type: linear_lower_is_better
          normalization:
            fixedRange: {min: 0, max: 1}
    dataLayer:
      sources:
      - pluginRef: dcgm-data-source
        extractors:
        - pluginRef: dcgm-extractor
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: endpoint-attribute-scorer

Where it departs from llm-d, and why
    - A page that can't be had makes the value unknown, which wins nothing; there the last one stays.
    - The page is fetched once a second instead of 20 times: the exporter itself measures no more often.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from epp.keys import attribute
from epp.plugin import Context, Endpoint, Key, Page, PageParameters, PagePort, formats

METRIC: Final = "DCGM_FI_DEV_GPU_UTIL"
_RANK = re.compile(r"-rank-\d+$")


class DcgmParameters(PageParameters):
    """See the module's manual."""

    port: PagePort = 9400
    use_node_address: bool = False


class DcgmDataSource:
    """Fetches the page of NVIDIA's exporter."""

    Parameters = DcgmParameters
    stability = "alpha"

    def __init__(self, parameters: DcgmParameters) -> None:
        self._page = replace(parameters.page(), at_node=parameters.use_node_address)

    def polled_page(self) -> Page:
        """The page."""
        return self._page


class DcgmExtractor:
    """Tells how busy the busiest GPU of an endpoint is."""

    stability = "alpha"

    def __init__(self, context: Context) -> None:
        self._key = attribute("GPUUtilization", context.name)
        self._page = formats.exposition.Exposition([METRIC])

    def columns(self, endpoint: Endpoint, page: bytes) -> Mapping[Key, float]:
        """The highest utilization of the endpoint's GPUs, in [0, 1]; nothing if it has none on the page."""
        pod = _RANK.sub("", endpoint.name)
        samples = self._page.read(page).get(METRIC, ())
        own = [sample.value for sample in samples if sample.labels.get("pod", "") in {"", pod, endpoint.name}]
        return {self._key: max(own) / 100.0} if own else {}
