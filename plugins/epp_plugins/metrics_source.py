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
    - `path` (/metrics): of the page; the slash may be left out.
    - `port` (none): of the page; without it, or with 0, the one that the endpoint serves requests at.
    - `insecureSkipVerify` (true): with https, accept any certificate.
    - `caCertPath` (none): certificates (PEM) to check the endpoints' against; without, the system's.
    - `clientCertPath`, `clientKeyPath` (none): our own certificate and its key (PEM), for endpoints that ask for one.
    - `interval` (`--refresh-metrics-interval`, as is ""): between two scrapes of an endpoint, as "100ms"; less than
      50 ms is 50 ms. In large pools it is stretched, so that the pool as a whole is scraped 200 times a second.

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

from epp.plugin import Page, PageParameters


class MetricsDataSource:
    """Tells which page the metrics are read from."""

    Parameters = PageParameters

    def __init__(self, parameters: PageParameters) -> None:
        self._page = parameters.page()

    def metrics_page(self) -> Page:
        """The page."""
        return self._page
