"""endpoint-notification-source, k8s-notification-source: sources that tell of changes instead of being asked.

What it does
    - `endpoint-notification-source` tells extractors such as `topology-extractor`, `precise-prefix-cache-producer` or
      `mm-embeddings-cache-producer` of endpoints that come and go. Here what they know of an endpoint follows the
      pool's membership in any case; a file that lists the source means the same as one that doesn't.
    - `k8s-notification-source` watches the objects of one kind in Kubernetes, and tells extractors with a method
      `notified` of each that is there, comes, changes or goes (docs/plugins.md has one): those that `dataLayer.sources`
      names, or else all that no source names. Of kinds that are in namespaces it sees those of the picker's
      (`--pool-namespace`). Its service account needs the rights to `get`, `list` and `watch` them.

    While the API server is lost nothing is told; when it answers again, what has happened meanwhile. A kind that it
    doesn't have, or that we may not see, is asked for again once a minute; the log and `/debug/kubernetes` tell.
    Without Kubernetes there is nothing to see, which the log says at the start.

Reads
    Objects in Kubernetes.

Writes
    Nothing.

Parameters
    of k8s-notification-source: `group` ("", the core's), `version` (required), `kind` (required) of the objects.

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
    - An endpoint extractor needs no source: one that was forgotten in `dataLayer` there never hears of anybody.
    - Objects that are there when the picker starts, or takes a configuration over, are told of as `added`, those that
      have changed as `changed`; there both are one.
"""

from pydantic import Field

import epp.plugin
from epp.plugin import ObjectKind


class EndpointNotificationSource:
    """Tells extractors of endpoints that come and go, which they hear of in any case."""

    kind = "data source"


class K8sNotificationSource:
    """Watches the objects of a kind in Kubernetes, and tells extractors of them."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        group: str = ""
        version: str = Field(min_length=1)
        kind: str = Field(min_length=1)

    def __init__(self, parameters: Parameters) -> None:
        self._kind = ObjectKind(parameters.group, parameters.version, parameters.kind)

    def watched_kind(self) -> ObjectKind:
        """Which objects."""
        return self._kind
