"""endpoint-notification-source, k8s-notification-source: sources that tell of changes instead of being asked.

What it does
    - `endpoint-notification-source` tells extractors such as `topology-extractor` of endpoints that come and go. Here
      what an extractor says of an endpoint follows the pool's membership in any case; a file that lists the source
      means the same as one that doesn't.
    - `k8s-notification-source` watches objects of a kind in Kubernetes. No plugin of llm-d or of ours goes by such a
      watch of one's own, and without Kubernetes there is nothing to watch: it is accepted, and has no effect.

Reads
    Nothing.

Writes
    Nothing.

Parameters
    of k8s-notification-source: `group` (""), `version` (required), `kind` (required) of the objects.

    endpoint-notification-source has none: None.

Example:
    plugins:
    - type: endpoint-notification-source
    - type: k8s-notification-source
      parameters:
        group: apps
        version: v1
        kind: Deployment
    - type: topology-extractor
    - type: topology-affinity-scorer
    dataLayer:
      sources:
      - pluginRef: endpoint-notification-source
        extractors:
        - pluginRef: topology-extractor
      - pluginRef: k8s-notification-source
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: topology-affinity-scorer

Where it departs from llm-d, and why
    An endpoint extractor needs no source: an extractor that was forgotten in `dataLayer` there never hears of anybody.
"""

from pydantic import Field

import epp.plugin


class EndpointNotificationSource:
    """Tells extractors of endpoints that come and go, which they hear of in any case."""

    kind = "data source"


class K8sNotificationSource:
    """Watches objects in Kubernetes; no plugin goes by them."""

    kind = "data source"
    loads_only = "has no effect: it needs Kubernetes, and no plugin goes by what it would see"

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        group: str = ""
        version: str = Field(min_length=1)
        kind: str = Field(min_length=1)

    def __init__(self, parameters: Parameters) -> None:
        """Nothing is kept of them: they are checked."""
