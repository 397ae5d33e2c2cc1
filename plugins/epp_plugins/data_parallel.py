"""data-parallel-profile-handler: picks a data-parallel rank behind the one port that a pod's sidecar listens on.

What it does
    Runs the one profile of the configuration. Each rank of a pod is an endpoint of its own, by its port; requests for
    any of them go to the sidecar at the pod's `primaryPort`, and the header `x-data-parallel-host-port` tells it which
    rank was picked. The picked rank's load and cache are counted for the rank, not for the sidecar's port.

    Fallbacks have no place in this: the header is about one pod. Only the first endpoint of the pick is used.

Reads
    Nothing.

Writes
    The destination, and the request header `x-data-parallel-host-port`; a client's own copy never passes.

Parameters
    - `primaryPort` (8000): the sidecar's port, from 1 to 65535.
    - `targetPort`: deprecated, the same; it counts if the other one isn't given.

Example:
    plugins:
    - type: data-parallel-profile-handler
      parameters:
        primaryPort: 8000
    - type: queue-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    The scores of the decision are kept, for its explanation; there they are dropped.
"""

from collections.abc import Mapping
from typing import Self

from pydantic import Field

import epp.plugin
from epp.plugin import Decision, Request, Run, WrongParameters

HEADER = "x-data-parallel-host-port"


class DataParallelParameters(epp.plugin.Parameters):
    """See the module's manual."""

    primary_port: int = Field(default=8000, ge=1, le=65535)
    target_port: int | None = Field(default=None, ge=1, le=65535, deprecated='write "primaryPort"')

    @property
    def port(self) -> int:
        """The sidecar's; the old spelling counts where the new one isn't given."""
        old: int | None = dict(self)["target_port"]  # the attribute would warn of itself
        return self.primary_port if "primary_port" in self.model_fields_set or old is None else old

    def effective(self) -> Self:
        """In the new spelling."""
        return self.model_validate({"primary_port": self.port})


class DataParallelProfileHandler:
    """Sends requests to the primary port of the picked rank's pod, with the rank in a header."""

    mandatory = True

    Parameters = DataParallelParameters

    def __init__(self, parameters: DataParallelParameters) -> None:
        self._port = parameters.port
        self._profile = "default"

    def bind(self, profiles: tuple[str, ...]) -> None:
        """Takes the names of the configured profiles.

        Raises:
            WrongParameters: it is not exactly one.
        """
        if len(profiles) != 1:
            message = f"data-parallel-profile-handler runs exactly one profile, there are: {', '.join(profiles)}"
            raise WrongParameters(((), message))
        self._profile = profiles[0]

    def decide(self, request: Request, run: Run) -> str:
        """Runs the profile; its name."""
        run(self._profile)
        return self._profile

    def request_headers(self, request: Request, decision: Decision) -> Mapping[str, str]:
        """The rank, for the sidecar."""
        return {HEADER: decision.primary.endpoints[0].hostport}

    def destination(self, request: Request, decision: Decision) -> str:
        """The sidecar of the rank's pod."""
        return f"{decision.primary.endpoints[0].host}:{self._port}"
