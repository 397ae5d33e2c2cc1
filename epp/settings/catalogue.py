"""The plugin types that llm-d's picker has and this version does not have yet, and its deprecated names.

A name leaves these tables when its plugin is built; a test holds that no registered type is listed here.
"""

from collections.abc import Mapping

ALIASES: Mapping[str, str] = {
    "by-label-selector": "label-selector-filter",
    "model-server-protocol-metrics": "core-metrics-extractor",
    "tokenizer": "token-producer",
}
"""Deprecated type names with the same parameters under a new name."""

NO_EFFECT_YET: Mapping[str, str] = {
    "multicluster-metrics-data-source": "data source",
    "models-data-source": "data source",
    "dcgm-data-source": "data source",
    "k8s-notification-source": "data source",
    "endpoint-notification-source": "data source",
    "multicluster-metrics-extractor": "extractor",
    "models-data-extractor": "extractor",
    "dcgm-extractor": "extractor",
    "multicluster-file-discovery": "discovery",
}
"""Types of the data layer by kind: a file that names them loads, with a warning."""

_MULTICLUSTER = "pools of several clusters"

NOT_BUILT_YET: Mapping[str, str] = {
    "multicluster-session-affinity-filter": _MULTICLUSTER,
    "multicluster-queue-scorer": _MULTICLUSTER,
    "multicluster-kv-cache-utilization-scorer": _MULTICLUSTER,
    "multicluster-prefix-cache-scorer": _MULTICLUSTER,
    "multicluster-approx-prefix-cache-producer": _MULTICLUSTER,
    "burst-prefix-cache-producer": "joint placement of bursts",
}
"""Types that decide where requests go, by the feature they belong to: a file that names them does not load."""
