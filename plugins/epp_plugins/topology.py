"""topology-extractor, topology-affinity-filter, topology-affinity-scorer: keep the stages of a request close together.

What it does
    Where a request is served in stages, the later pick should be close to the earlier one, its peer, since the KV cache
    goes from the one to the other. How close two endpoints are is the nearest level of topology at which their labels
    say the same: host, rack, zone or region. The extractor says which labels these are.

    | Nearest level in common | Score |
    |---|---|
    | host | 1 |
    | rack | 0.2 |
    | zone | 0.05 |
    | region | 0.02 |
    | none | 0 |

    The filter keeps the endpoints that are at least as close as `minAffinity`; everybody if nobody is, or if there is
    no peer. Without a peer the scorer gives 0 to all.

Reads
    The endpoints' labels, and the peer, which the profile handler names.

Writes
    Nothing.

Parameters
    of topology-extractor, the names of labels:

    - `hostname` (kubernetes.io/hostname); the name of the pod's node for an endpoint without that label.
    - `rack` (topology.kubernetes.io/rack).
    - `zone` (topology.kubernetes.io/zone).
    - `region` (topology.kubernetes.io/region).

    of the others: `topologyProducerName` (topology-extractor): whose labels to use; those above if it isn't configured.

    of topology-affinity-filter: `minAffinity` (host): or rack, zone, region.

Example:
    plugins:
    - type: topology-extractor
      parameters:
        rack: example.com/rack
    - type: topology-affinity-filter
      parameters:
        minAffinity: zone
    - type: topology-affinity-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: topology-affinity-filter
      - pluginRef: topology-affinity-scorer

Where it departs from llm-d, and why
    In nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

import epp.plugin
from epp.plugin import Candidates, Context, Endpoint, Floats, Mask, Pool, Request, UnknownPlugin, refers_to

EXTRACTOR: Final = "topology-extractor"
POINTS: Final[Mapping[str, float]] = {"host": 1.0, "rack": 0.2, "zone": 0.05, "region": 0.02}
"""By level, the nearest first."""


class TopologyExtractor:
    """Says by which labels endpoints are on the same host, in the same rack, zone or region."""

    stability = "alpha"

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        hostname: str = Field(default="kubernetes.io/hostname", min_length=1)
        rack: str = Field(default="topology.kubernetes.io/rack", min_length=1)
        zone: str = Field(default="topology.kubernetes.io/zone", min_length=1)
        region: str = Field(default="topology.kubernetes.io/region", min_length=1)

    def __init__(self, parameters: Parameters) -> None:
        p = parameters
        self.labels: Mapping[str, str] = {"host": p.hostname, "rack": p.rack, "zone": p.zone, "region": p.region}

    def extract(self, endpoint: Endpoint) -> Mapping[str, str]:
        """Where the endpoint is, by level, as far as its labels and its node say."""
        said = {level: endpoint.labels.get(label, "") for level, label in self.labels.items()}
        said["host"] = said["host"] or endpoint.node
        return {level: value for level, value in said.items() if value}


_DEFAULT: Final = TopologyExtractor(TopologyExtractor.Parameters())


class Affinity(epp.plugin.Parameters):
    """The parameter that filter and scorer have in common."""

    topology_producer_name: Annotated[str, refers_to(TopologyExtractor, EXTRACTOR, EXTRACTOR)] | None = None


class _Topology:
    """How close candidates are to the peer, by the extractor that is configured."""

    def __init__(self, parameters: Affinity, context: Context) -> None:
        extractor = _extractor(parameters, context)
        self._labels = extractor.labels

        def hosts(pool: Pool) -> NDArray[np.str_]:
            return np.array([extractor.extract(e).get("host", "") if e else "" for e in pool.endpoints], dtype=np.str_)

        self._hosts = hosts  # one object: the pool's cache is keyed by it
        self._extractor = extractor

    def closeness(self, c: Candidates) -> Floats:
        """The points of the nearest level that each candidate has in common with the peer, shape (n,)."""
        points = np.zeros(len(c))
        peer = self._extractor.extract(c.peer.endpoints[0]) if c.peer is not None else {}
        for level in reversed(list(POINTS)):  # the nearest last
            if level in peer:
                points[self._common(level, peer[level], c)] = POINTS[level]
        return points

    def _common(self, level: str, value: str, c: Candidates) -> Mask:
        if level == "host":
            return np.asarray(c.derived(self._hosts) == value)
        label = self._labels[level]
        return np.asarray(c.label(label) == c.code(label, value))


def _extractor(parameters: Affinity, context: Context) -> TopologyExtractor:
    try:
        extractor: TopologyExtractor = context.plugin(parameters.topology_producer_name or EXTRACTOR)
    except UnknownPlugin:
        return _DEFAULT
    return extractor


class FilterParameters(Affinity):
    """See the module's manual."""

    min_affinity: Literal["host", "rack", "zone", "region"] = "host"


class TopologyAffinityFilter:
    """Keeps the endpoints that are close enough to the one that another stage of the request runs at."""

    stability = "alpha"
    Parameters = FilterParameters

    def __init__(self, parameters: FilterParameters, context: Context) -> None:
        self._topology = _Topology(parameters, context)
        self._least = POINTS[parameters.min_affinity]

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Who is close enough to the peer, or everybody, shape (n,)."""
        close: Mask = self._topology.closeness(c) >= self._least
        return close if close.any() else np.ones(len(c), dtype=bool)


class TopologyAffinityScorer:
    """Prefers endpoints close to the one that another stage of the request runs at: 1 for the same host."""

    stability = "alpha"
    Parameters = Affinity

    def __init__(self, parameters: Affinity, context: Context) -> None:
        self._topology = _Topology(parameters, context)

    def score(self, request: Request, c: Candidates) -> Floats:
        """The points of the nearest level in common with the peer, shape (n,)."""
        return self._topology.closeness(c)
