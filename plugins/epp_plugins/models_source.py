"""models-data-source, models-data-extractor: on which page engines say what models they serve.

What it does
    Engines are asked what they serve whether or not these are configured: `/v1/models`, at the start and about every
    10 seconds. `served-model-filter` goes by it, and so does the answer to `GET /v1/models`. The source says where else
    that page is, and how it is fetched; of several only the first that `dataLayer.sources` names has an effect. The
    extractor reads it. Neither needs to be referred to.

Reads
    The page: a list of models under `data`, each with its `id`.

Writes
    The models of every endpoint.

Parameters
    of models-data-source:

    - `scheme` (http): or https.
    - `path` (/v1/models): of the page; the slash may be left out.
    - `port` (none): of the page; without it, or with 0, the one that the endpoint serves requests at.
    - `insecureSkipVerify` (true): with https, accept any certificate.
    - `caCertPath` (none): certificates (PEM) to check the endpoints' against; without, the system's.
    - `clientCertPath`, `clientKeyPath` (none): our own certificate and its key (PEM), for endpoints that ask for one.
    - `interval` (10s): between two looks at an endpoint; in large pools it is stretched.

    models-data-extractor has none: None.

Example:
    plugins:
    - type: queue-scorer
    - type: models-data-source
      parameters:
        path: /openai/v1/models
    - type: models-data-extractor
    dataLayer:
      sources:
      - pluginRef: models-data-source
        extractors:
        - pluginRef: models-data-extractor

Where it departs from llm-d, and why
    The page is asked for by default, and every 10 seconds instead of 20 times a second: models come and go rarely.
"""

from collections.abc import Mapping
from typing import Any

from epp.plugin import Page, PageParameters, PagePath, formats


class ModelsParameters(PageParameters):
    """See the module's manual."""

    path: PagePath = "/v1/models"


class ModelsDataSource:
    """Tells on which page engines say what they serve."""

    Parameters = ModelsParameters

    def __init__(self, parameters: ModelsParameters) -> None:
        self._page = parameters.page()

    def models_page(self) -> Page:
        """The page."""
        return self._page


class ModelsDataExtractor:
    """Reads the models off an engine's list of them."""

    def served_models(self, page: bytes) -> Mapping[str, Any]:
        """What the engine says of each model, by its name; ValueError if it is no such list."""
        return formats.openai.models(page)
