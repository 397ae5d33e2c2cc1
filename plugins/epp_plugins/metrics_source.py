"""metrics-data-source: which page of every endpoint the metrics are read from, and how often.

What it does
    Tells how the endpoints' metrics are fetched: every endpoint's page is read in turns of its own, and what it says is
    what `queue-scorer` and others go by. A configuration without one gets one with the defaults; it needn't be referred
    to, and takes effect if it is in `plugins`. Of several only the first that `dataLayer.sources` names has an effect.

    What the command line says (`--model-server-metrics-scheme` and so on) wins over it, and an endpoint's own metrics
    port over `port`.

Reads
    Nothing.

Writes
    The columns that `core-metrics-extractor` reads off the page.

Parameters
    - `scheme` (http): or https.
    - `path` (/metrics): of the page.
    - `port` (none): of the page; without it, the one that the endpoint serves requests at.
    - `insecureSkipVerify` (true): with https, accept any certificate.
    - `caCertPath` (none): certificates (PEM) to check the endpoints' against; without, the system's.
    - `clientCertPath`, `clientKeyPath` (none): our own certificate and its key (PEM), for endpoints that ask for one.
    - `interval` (`--refresh-metrics-interval`): between two scrapes of an endpoint, such as "100ms"; less than 50 ms is
      50 ms. In large pools it is stretched, so that the pool as a whole is scraped 200 times a second.

Example:
    plugins:
    - type: queue-scorer
    - type: metrics-data-source
      parameters:
        scheme: https
        path: /metrics
        interval: 100ms
    dataLayer:
      sources:
      - pluginRef: metrics-data-source
        extractors:
        - pluginRef: core-metrics-extractor

Where it departs from llm-d, and why
    One that has another name is still the one, whether or not it is listed; there the default stands beside it, and
    every endpoint is scraped twice.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

import epp.plugin
from epp.plugin import Duration, Page

SHORTEST = 0.05


class MetricsSourceParameters(epp.plugin.Parameters):
    """See the module's manual."""

    scheme: Literal["http", "https"] = "http"
    path: str = Field(default="/metrics", pattern=r"^/")
    port: int | None = Field(default=None, ge=1, le=65535)
    insecure_skip_verify: bool = True
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    interval: Duration | None = None

    @model_validator(mode="after")
    def _key_of_a_certificate(self) -> "MetricsSourceParameters":
        if self.client_key_path and not self.client_cert_path:
            raise ValueError("clientKeyPath is the key of a certificate: name that as clientCertPath")
        return self


class MetricsDataSource:
    """Tells which page the metrics are read from."""

    Parameters = MetricsSourceParameters

    def __init__(self, parameters: MetricsSourceParameters) -> None:
        self._parameters = parameters

    def metrics_page(self) -> Page:
        """The page."""
        said = self._parameters
        return Page(
            scheme=said.scheme,
            path=said.path,
            port=said.port,
            insecure=said.insecure_skip_verify,
            ca=_file(said.ca_cert_path),
            certificate=_file(said.client_cert_path),
            key=_file(said.client_key_path),
            interval=None if said.interval is None else max(said.interval, SHORTEST),
        )


def _file(path: str) -> Path | None:
    return Path(path) if path else None
