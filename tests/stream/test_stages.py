"""Requests that several endpoints serve in stages, or one through another: headers, destinations, what is charged."""

from collections.abc import Mapping

import pytest

from epp.extproc.events import BodyMode
from epp.pool import Endpoint
from tests.stream.conftest import Start
from tests.stream.envoy import send_request
from tests.stream.messages import destination, response_body, response_headers, set_headers
from tests.stream.picker import Picker
from tests.stream.test_lifetime import TOKENS

FULL = BodyMode.FULL_DUPLEX_STREAMED
DECODE, OTHER, PREFILL = "10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"
RANK, SIDECAR = "10.0.0.1:8001", "10.0.0.1:8000"

STAGES = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: decode-filter}
- {type: prefill-filter}
- {type: active-request-scorer}
- {type: max-score-picker, parameters: {maxNumOfEndpoints: 2}}
- {type: always-disagg-pd-decider}
- {type: disagg-profile-handler, parameters: {deciders: {prefill: always-disagg-pd-decider}}}
schedulingProfiles:
- {name: decode, plugins: [{pluginRef: decode-filter}, {pluginRef: active-request-scorer}]}
- {name: prefill, plugins: [{pluginRef: prefill-filter}]}
"""

RANKS = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: data-parallel-profile-handler, parameters: {primaryPort: 8000}}
- {type: queue-scorer}
"""


def endpoint(hostport: str, role: str = "") -> Endpoint:
    address, _, port = hostport.partition(":")
    labels: Mapping[str, str] = {"llm-d.ai/role": role} if role else {}
    return Endpoint(f"pod-{hostport}", address, int(port), labels=labels)


async def staged(start: Start) -> Picker:
    roles = {DECODE: "decode", OTHER: "decode", PREFILL: "prefill"}
    picker = await start(STAGES, endpoints=[endpoint(hostport, role) for hostport, role in roles.items()])
    slot = picker.pool.slot_at(OTHER)
    assert slot is not None
    picker.pool.charge(slot, 0.5, 0)  # it is the second choice
    return picker


def charged(picker: Picker) -> dict[str, tuple[float, float]]:
    """Without what makes the other one the second choice."""
    other = picker.inflight()
    requests, tokens = other.pop(OTHER)
    return other | ({OTHER: (requests - 0.5, tokens)} if requests > 0.5 else {})


async def test_a_prefill(start: Start) -> None:
    """The header names who prefills; that one is charged until the first byte, the decoding one until the end."""
    picker = await staged(start)
    async with picker.stream() as stream:
        sent = await send_request(stream, FULL)
        assert destination(sent.route) == f"{DECODE},{OTHER}"
        assert set_headers(sent.route)["x-prefiller-host-port"] == PREFILL
        assert charged(picker) == {DECODE: (1, TOKENS), PREFILL: (1, TOKENS)}
        await stream.ask(response_headers(served=DECODE))
        assert charged(picker) == {DECODE: (1, TOKENS), PREFILL: (1, TOKENS)}
        await stream.ask(response_body(b"a", end=False))
        assert charged(picker) == {DECODE: (1, 0)}
        await stream.rest()
    await free(picker)


async def test_a_fallback_is_the_decoding_ones(start: Start) -> None:
    """If the second choice answers, the decoding one's charge moves to it, and the prefill's stays where it is."""
    picker = await staged(start)
    async with picker.stream() as stream:
        await send_request(stream, FULL)
        await stream.ask(response_headers(served=OTHER))
        assert charged(picker) == {OTHER: (1, TOKENS), PREFILL: (1, TOKENS)}
        await stream.rest()
    assert picker.failed == [DECODE]
    await free(picker)


async def test_no_response_is_seen(start: Start) -> None:
    """Then both are charged until the stream ends."""
    picker = await staged(start)
    async with picker.stream() as stream:
        await send_request(stream, FULL, response_mode=BodyMode.NONE)
        await stream.ask(response_headers(served=DECODE))
        assert charged(picker) == {DECODE: (1, TOKENS), PREFILL: (1, TOKENS)}
        await stream.rest()
    await free(picker)


async def free(picker: Picker) -> None:
    """Takes back what made the other one the second choice."""
    slot = picker.pool.slot_at(OTHER)
    assert slot is not None
    picker.pool.charge(slot, -0.5, 0)
    await picker.settled()


@pytest.mark.parametrize(
    ("report", "failed"),
    [
        pytest.param({"served": SIDECAR}, [], id="the sidecar answers"),
        pytest.param({}, [], id="nobody says"),
        pytest.param({"status": 503, "attributes": {"response.flags": 0x20}}, [SIDECAR], id="the sidecar is gone"),
    ],
)
async def test_a_rank_behind_a_sidecar(start: Start, report: dict, failed: list[str]) -> None:
    """The request goes to the sidecar, the header names the rank, and the rank is charged; it has not refused."""
    picker = await start(RANKS, endpoints=[endpoint(SIDECAR), endpoint(RANK)])
    async with picker.stream() as stream:
        sent = await send_request(stream, FULL, subset=[RANK])
        assert destination(sent.route) == SIDECAR
        assert set_headers(sent.route)["x-data-parallel-host-port"] == RANK
        await stream.ask(response_headers(**report))
        assert picker.inflight() == {RANK: (1, TOKENS)}
        await stream.rest()
    assert picker.failed == failed
