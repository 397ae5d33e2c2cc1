"""drained.py: spares endpoints that a ConfigMap names. An example of a plugin that goes by objects in Kubernetes.

What it does
    Keeps the endpoints that are not among the keys of the ConfigMap `configMap`, so that `kubectl patch` takes one out
    of play in a moment. Without such a ConfigMap it keeps all.

Reads
    ConfigMaps in the picker's namespace, through k8s-notification-source.

Writes
    Nothing.

Parameters
    - `configMap` (drain): its name.

Example:
    plugins:
    - type: ./drained.py
    - type: k8s-notification-source
      parameters:
        version: v1
        kind: ConfigMap
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: drained
"""
# ruff: noqa: INP001 (a file on its own, no part of a package)

from collections.abc import Mapping
from typing import Any

import numpy as np

import epp.plugin
from epp.plugin import Candidates, Mask, Notice, Request


class Drained:
    """Spares endpoints that a ConfigMap names."""

    mandatory = True

    class Parameters(epp.plugin.Parameters):
        """Written in camelCase in the configuration; unknown ones are refused."""

        config_map: str = "drain"

    def __init__(self, parameters: Parameters) -> None:
        self._map = parameters.config_map
        self._spared: frozenset[str] = frozenset()

    def notified(self, notice: Notice, item: Mapping[str, Any]) -> None:
        """An object is there or comes (added), changes, or goes."""
        if item["metadata"]["name"] == self._map:
            self._spared = frozenset() if notice == "deleted" else frozenset(item.get("data") or ())

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Those that aren't named, shape (n,)."""
        return np.array([endpoint.name not in self._spared for endpoint in c.endpoints], dtype=bool)
