"""Thousands of answers under way at the same time, as a few engines with long answers have them."""

import asyncio
from collections import Counter

import h2.config
import h2.connection
import h2.events
import pytest

from epp.envoy.options import Address
from epp.envoy.process import EnvoyProcess
from tests.e2e.harness import VARIANTS, Stage, completion, soft_file_limit, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

DESTINATION = "x-gateway-destination-endpoint"
STREAMS = 2000
CONNECTIONS = 4
BODY = completion(400)
HEADERS = [("content-type", "application/json"), ("x-pieces", "4"), ("x-hold", "yes")]


class Connection:
    """Many requests at once over one HTTP/2 connection.

    Attributes:
        bodies: of the answers so far, by stream.
        statuses: of the answers so far.
        ended: answers that came to their proper end.
    """

    def __init__(self, address: Address, count: int) -> None:
        self.bodies: dict[int, bytes] = {}
        self.statuses: list[str] = []
        self.ended = 0
        self._address, self._count = address, count
        self._waiting: list[int] = []
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))

    async def run(self) -> None:
        """Sends them all, and reads until all have ended."""
        reader, writer = await asyncio.open_connection(*self._address)
        self._http.initiate_connection()
        writer.write(self._http.data_to_send())
        for _ in range(self._count):
            self._waiting.append(self._head())
        try:
            while self.ended < self._count:
                self._send_bodies()
                writer.write(self._http.data_to_send())
                await writer.drain()
                data = await reader.read(1 << 16)
                assert data, "the connection was closed"
                for event in self._http.receive_data(data):
                    self._note(event)
        finally:
            writer.transport.abort()

    def _head(self) -> int:
        stream = self._http.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/v1/completions")]
        self._http.send_headers(stream, [*pseudo, *HEADERS])
        return stream

    def _send_bodies(self) -> None:
        """As many as the connection's window takes."""
        while self._waiting and self._http.local_flow_control_window(self._waiting[-1]) >= len(BODY):
            self._http.send_data(self._waiting.pop(), BODY, end_stream=True)

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.statuses.append(dict(event.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
            self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended += 1


@pytest.mark.parametrize("variant", ["standalone", "full-duplex"])
async def test_two_thousand_open_streams(variant: str) -> None:
    """All get their first piece before any gets its last; the picker has picked and charged each; then all end well."""
    if not soft_file_limit(6 * STREAMS):
        pytest.skip(f"this machine doesn't allow {6 * STREAMS} open files")
    async with (
        Stage() as stage,
        EnvoyProcess(stage.options(**VARIANTS[variant])) as gateway,
        asyncio.TaskGroup() as group,
    ):
        connections = [Connection(gateway.address, STREAMS // CONNECTIONS) for _ in range(CONNECTIONS)]
        for connection in connections:
            group.create_task(connection.run())
        await until(lambda: sum(len(each.bodies) for each in connections) == STREAMS, "all have their first piece", 60)
        assert Counter(status for each in connections for status in each.statuses) == {"200": STREAMS}
        picks = [request.header(DESTINATION) for upstream in stage.upstreams for request in upstream.seen]
        assert Counter(picks) == Counter({upstream.address: upstream.open for upstream in stage.upstreams})
        sums = await stage.picker.metrics()
        assert sums["llm_d_epp_inflight_requests"] == STREAMS
        assert sums["llm_d_epp_extproc_streams_inflight"] == STREAMS
        for upstream in stage.upstreams:
            upstream.gate.set()
        await until(lambda: sum(each.ended for each in connections) == STREAMS, "all have ended", 60)
        assert {body for each in connections for body in each.bodies.values()} == {BODY}
        await until(lambda: stage.idle(gateway), "nothing is left in flight")
