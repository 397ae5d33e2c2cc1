"""What a picker uses of Kubernetes: the pool from its API server, the election of a leader, who may read metrics."""

import logging
import os
import random
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from epp.data.kubernetes.discovery import KubernetesDiscovery, Wanted
from epp.data.kubernetes.notifications import Notifications, OnFault
from epp.errors import ConfigError
from epp.kube.access import find
from epp.kube.client import Api
from epp.kube.election import Election, lease_name, own_address
from epp.kube.reviews import Reviewer
from epp.options import ServeOptions, listen_address
from epp.pool import Pool

log = logging.getLogger("epp.kubernetes")

_OF_A_DEPLOYMENT = re.compile(r"(.+)-[a-z0-9]+-[a-z0-9]+")


def name_of(options: ServeOptions, environ: Mapping[str, str]) -> str:
    """What the pool is called: by its own name, with a selector by that of our Deployment; "" if there is none.

    Args:
        options: of which `pool_name` and `endpoint_selector` count.
        environ: of which POD_NAME does, shaped `<deployment>-<hash>-<hash>`.
    """
    found = _OF_A_DEPLOYMENT.fullmatch(environ.get("POD_NAME", ""))
    return options.pool_name or (found[1] if found and options.endpoint_selector else "")


class Cluster:
    """Builds and holds these parts.

    Args:
        options: of `epp serve`.
        pool: that discovery fills.
        source: of jitter.
        on_pool: hears of the ids of endpoints added and removed.
        on_state: called when the pool is synced or no longer, its discovery stale or no longer, and when we begin or
            cease to lead.
        on_fault: hears of an extractor that raises when it is told of an object.
        environ: where the API server is; see `epp.kube.access.find`.

    Raises:
        ConfigError: nothing says where the API server is, or an option can't be used.
    """

    def __init__(
        self,
        options: ServeOptions,
        pool: Pool,
        source: random.Random,
        *,
        on_pool: Callable[[Sequence[str], Sequence[str]], None],
        on_state: Callable[[], None],
        on_fault: OnFault = lambda *_: None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        wanted = _wanted(options)
        name = name_of(options, environ)
        if options.ha_enable_leader_election and not name:
            raise ConfigError(
                "--ha-enable-leader-election with --endpoint-selector needs a name for the Lease: set POD_NAME in the "
                "environment to the pod's name, shaped DEPLOYMENT-HASH-HASH"
            )
        self._options, self._environ, self._on_state, self._random = options, environ, on_state, source
        self._lease = lease_name(options.pool_namespace, name)
        self._stale = False
        self.api = Api(find(environ))
        self.discovery = KubernetesDiscovery(
            pool,
            self.api,
            wanted,
            on_error=lambda message: log.error("%s", message),
            on_pool=on_pool,
            on_state=self._discovery_changed,
            now=time.monotonic,
            source=source,
        )
        self.notifications = Notifications(
            self.api,
            options.pool_namespace,
            on_error=lambda message: log.error("%s", message),
            on_fault=on_fault,
            source=source,
        )
        self.election: Election | None = None
        self.reviewer = Reviewer(self.api) if options.metrics_endpoint_auth else None

    def __repr__(self) -> str:
        return f"<Cluster: {self.api!r}, {self.discovery!r}, {self.election!r}>"

    @property
    def leads(self) -> bool:
        """Whether this is the replica that should be asked; without an election every one is."""
        return not self._options.ha_enable_leader_election or (self.election is not None and self.election.leading)

    def campaign(self, health_port: int) -> None:
        """Begins to try for the lead, if there is an election.

        Args:
            health_port: ours, which followers watch over.
        """
        if not self._options.ha_enable_leader_election:
            return
        address = self._environ.get("POD_IP") or own_address(self.api.access.server)
        self.election = Election(
            self.api,
            self._options.pool_namespace,
            self._lease,
            f"{self._environ.get('POD_NAME') or socket.gethostname()}_{uuid4()}",
            address=listen_address(address, health_port) if address else "",
            on_change=self._lead_changed,
            on_error=lambda message: log.error("%s", message),
            now=time.monotonic,
            source=self._random,
        )
        self.election.start()

    async def release(self) -> None:
        """Gives the lead up, for another replica to take it at once."""
        if self.election is not None:
            await self.election.stop()

    async def stop(self) -> None:
        """Ends everything."""
        await self.release()
        await self.notifications.stop()
        await self.discovery.stop()
        await self.api.aclose()

    def shown(self) -> dict[str, Any]:
        """The state of it all, for people."""
        election = self.election.shown() if self.election is not None else None
        return {
            "api_server": self.api.access.server,
            "discovery": self.discovery.shown(),
            "election": election,
            "notifications": self.notifications.shown(),
        }

    def _discovery_changed(self) -> None:
        if self.discovery.stale != self._stale:
            self._stale = self.discovery.stale
            if self._stale:
                log.warning("the API server is lost, or refuses: the endpoints stay as they are until it answers again")
            else:
                log.info("the API server answers again: the endpoints are current")
        self._on_state()

    def _lead_changed(self, leading: bool) -> None:
        log.info("this replica %s (Lease %s)", "leads" if leading else "doesn't lead any more", self._lease)
        self._on_state()


def _wanted(options: ServeOptions) -> Wanted:
    if options.endpoint_selector:
        return Wanted(options.pool_namespace, selector=options.endpoint_selector, ports=options.endpoint_target_ports)
    return Wanted(options.pool_namespace, options.pool_name, options.pool_group)
