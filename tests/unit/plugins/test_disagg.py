"""Disaggregated serving: which profiles run, in which order, and what goes along as headers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from epp_plugins.data_parallel import DataParallelProfileHandler
from epp_plugins.deciders import AlwaysDecider, MultimodalDecider, PrefixBasedDecider
from epp_plugins.disagg import DisaggProfileHandler
from epp_plugins.disagg_headers import DisaggHeadersHandler
from epp_plugins.header_profile import HeaderProfileHandler
from epp_plugins.p2p_source import P2pSourceProducer
from epp_plugins.pd_profile import PdProfileHandler
from pydantic import ValidationError

from epp.plugin import BadRequest, Body, Candidates, Context, Pick, UnknownPlugin, matched_tokens
from epp.testing import candidates, context, decided, request

MATCHED = matched_tokens()
ALWAYS = AlwaysDecider()


class Never:
    def disaggregate(self, request, pick, c):
        return False


class Counted:
    """Counters that remember."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def __call__(self, name, labels):
        key = (name, *labels.values())
        values = self.values

        class One:
            def inc(self, amount: float = 1.0) -> None:
                values[key] = values.get(key, 0.0) + amount

        return One()


def with_plugins(*, counters: Any = None, **plugins: Any) -> Context:
    def lookup(name: str, _kind: type) -> Any:
        if name not in plugins:
            raise UnknownPlugin("", name)
        return plugins[name]

    made = replace(context("pd"), lookup=lookup)
    return made if counters is None else replace(made, counters=counters)


class Running:
    """Runs profiles: each finds the endpoint of its number, but for those that fail. Notes who was whose peer."""

    PICKS = {"decode": 0, "d": 0, "prefill": 1, "p": 1, "encode": 2, "e": 2}  # noqa: RUF012

    def __init__(self, *failing: str, **columns: Any) -> None:
        self.candidates: Candidates = candidates(count=3, **columns)
        self.ran: list[tuple[str, str | None]] = []
        self._failing = failing

    def __call__(self, profile: str, peer: Pick | None = None) -> Pick | None:
        self.ran.append((profile, peer and peer.profile))
        return None if profile in self._failing else self.candidates.pick(profile, [self.PICKS[profile]], 1.0)


def handler(parameters: dict[str, Any], profiles: tuple[str, ...], **plugins: Any) -> DisaggProfileHandler:
    context = with_plugins(**plugins)
    made = DisaggProfileHandler(DisaggProfileHandler.Parameters.model_validate(parameters, context=context), context)
    made.bind(profiles)
    return made


BOTH = {"deciders": {"prefill": "yes", "encode": "yes"}}
ALL = ("decode", "prefill", "encode")


@pytest.mark.parametrize(
    ("parameters", "profiles", "failing", "ran"),
    [
        pytest.param({}, ALL, (), [("decode", None)], id="no deciders"),
        pytest.param(
            BOTH, ALL, (), [("decode", None), ("encode", None), ("prefill", "decode")], id="decode, encode, prefill"
        ),
        pytest.param({"deciders": {"prefill": "no"}}, ALL, (), [("decode", None)], id="decided against"),
        pytest.param(
            BOTH, ("decode", "prefill"), (), [("decode", None), ("prefill", "decode")], id="no encode profile"
        ),
        pytest.param(BOTH, ("decode",), (), [("decode", None)], id="decode alone"),
        pytest.param(BOTH, ALL, ("decode",), [("decode", None)], id="nobody decodes"),
        pytest.param(
            BOTH, ALL, ("encode",), [("decode", None), ("encode", None), ("prefill", "decode")], id="nobody encodes"
        ),
        pytest.param(
            {"stageOrder": "prefill-first", "deciders": {"encode": "yes"}},
            ALL,
            (),
            [("prefill", None), ("encode", None), ("decode", "prefill")],
            id="prefill first",
        ),
        pytest.param(
            {"stageOrder": "Prefill_First"},
            ALL,
            ("prefill",),
            [("prefill", None), ("decode", None)],
            id="prefill first, and fails",
        ),
        pytest.param(
            {"stageOrder": "prefill"}, ("decode",), (), [("decode", None)], id="prefill first, without profile"
        ),
        pytest.param(
            {"profiles": {"decode": "d", "prefill": "p", "encode": "e"}, **BOTH},
            ("d", "p", "e"),
            (),
            [("d", None), ("e", None), ("p", "d")],
            id="other names",
        ),
        pytest.param(
            {"decodeProfile": "d", "prefillProfile": "p", "deciderPluginName": "yes"},
            ("d", "p"),
            (),
            [("d", None), ("p", "d")],
            id="flat",
        ),
        pytest.param(
            {"encodeProfile": "e", "prefillDeciderPluginName": "no", "encodeDeciderPluginName": "yes"},
            ("decode", "prefill", "e"),
            (),
            [("decode", None), ("e", None)],
            id="flat, all",
        ),
    ],
)
def test_stages(parameters, profiles, failing, ran):
    """The profiles run in order, each later one with the earlier pick as its peer; decode is the primary one."""
    run = Running(*failing)
    made = handler(parameters, profiles, yes=ALWAYS, no=Never())
    assert made.decide(request("hi"), run) in {"decode", "d"}
    assert run.ran == ran


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stageOrder": "encode-first"}, 'must be "decode-first" or "prefill-first"'),
        ({"stageOrder": 1}, 'must be "decode-first" or "prefill-first"'),
        ({"stageOrder": "prefill-first", "deciders": {"prefill": "yes"}}, "has no place in prefill-first"),
        ({"stageOrder": "prefill-first", "deciderPluginName": "yes"}, "has no place in prefill-first"),
        ({"decodeProfile": "d", "profiles": {"decode": "d"}}, "can't stand beside"),
        ({"deciderPluginName": "yes", "deciders": {}}, "can't stand beside"),
    ],
)
def test_invalid_parameters(parameters, message):
    """What contradicts itself is refused."""
    with pytest.raises(ValidationError, match=message):
        DisaggProfileHandler.Parameters.model_validate(parameters)


def test_no_decode_profile():
    """There must be a profile that decodes, for both handlers."""
    with pytest.raises(ValueError, match='profile "decode", for decoding, is needed; there are: prefill, encode'):
        handler({}, ("prefill", "encode"))
    with pytest.raises(ValueError, match='profile "d", for decoding, is needed; there are: decode'):
        pd({"decodeProfile": "d"}, ("decode",))


@pytest.mark.parametrize("name", ["decider", "deciderPluginName"])
def test_no_decider(name):
    """A reference to something else is refused."""
    parameters = {"deciders": {"prefill": "x"}} if name == "decider" else {name: "x"}
    with pytest.raises(ValueError, match='"x" is no decider'):
        handler(parameters, ALL, x=object())
    with pytest.raises(ValueError, match='"x" is no decider'):
        pd({"deciderPluginName": "x"}, ("decode",), x=object())


def decision(*profiles: str):
    c = candidates(count=4)
    others = {name: Running.PICKS[name] for name in profiles}
    return c, decided(c, 0, 3, profile="decode", others=others)


@pytest.mark.parametrize(
    ("profiles", "headers", "kind"),
    [
        ((), {}, "decode-only"),
        (("prefill",), {"x-prefiller-host-port": "10.0.0.2:8000"}, "prefill-decode"),
        (("encode",), {"x-encoder-hosts-ports": "10.0.0.3:8000"}, "encode-decode"),
        (
            ("prefill", "encode"),
            {"x-prefiller-host-port": "10.0.0.2:8000", "x-encoder-hosts-ports": "10.0.0.3:8000"},
            "encode-prefill-decode",
        ),
    ],
)
def test_headers_and_metric(profiles, headers, kind):
    """The other stages' endpoints go along, and the request is counted by its stages."""
    counted = Counted()
    made = DisaggProfileHandler(DisaggProfileHandler.Parameters(), with_plugins(counters=counted))
    c, found = decision(*profiles)
    sent = request("hi", model="m")
    made.picked(sent, found, c)
    assert made.request_headers(sent, found) == headers
    key = ("llm_d_epp_disagg_decision_total", "pd", "disagg-profile-handler", "m", kind)
    assert counted.values == {key: 1.0}
    plain = DisaggHeadersHandler(DisaggHeadersHandler.Parameters(), context())
    assert plain.request_headers(sent, found) == headers


def test_several_endpoints_of_a_stage():
    """The first one prefills, all of them encode."""
    c = candidates(count=4)
    several = replace_picks(
        decided(c, 0, profile="decode"), c.pick("prefill", [1, 2], 1.0), c.pick("encode", [2, 3], 1.0)
    )
    made = DisaggHeadersHandler(DisaggHeadersHandler.Parameters(), context())
    assert made.request_headers(request(), several) == {
        "x-prefiller-host-port": "10.0.0.2:8000",
        "x-encoder-hosts-ports": "10.0.0.3:8000,10.0.0.4:8000",
    }


def test_who_only_encodes():
    """The profile for encoding, whatever its name, has nothing of the prompt computed."""
    parameters = DisaggProfileHandler.Parameters.model_validate({"profiles": {"encode": "vision"}})
    assert DisaggProfileHandler(parameters, with_plugins()).encodes == ("vision",)


def replace_picks(found, *picks: Pick):
    return replace(found, picks={**found.picks, **{pick.profile: pick for pick in picks}})


# --- deciders

nan = float("nan")


@pytest.mark.parametrize(
    ("parameters", "length", "cached", "splits"),
    [
        pytest.param({}, 4000, 0, False, id="never"),
        pytest.param({"nonCachedTokens": 1000}, 4000, 0, True, id="exactly enough"),
        pytest.param({"nonCachedTokens": 1001}, 4000, 0, False, id="too short"),
        pytest.param({"nonCachedTokens": 1000}, 3997, 0, True, id="a part of a token is one"),
        pytest.param({"nonCachedTokens": 100}, 4000, 900, True, id="enough is left"),
        pytest.param({"nonCachedTokens": 100}, 4000, 901, False, id="too little is left"),
        pytest.param({"nonCachedTokens": 100}, 4000, nan, False, id="nobody knows"),
        pytest.param({"nonCachedTokens": 10, "promptTokens": 1001}, 4000, 0, False, id="prompt too short"),
        pytest.param({"nonCachedTokens": 10, "promptTokens": 1000}, 4000, 0, True, id="prompt long enough"),
    ],
)
def test_prefix_based(parameters, length, cached, splits):
    """It goes by what the endpoint that decodes would have to compute."""
    decider = PrefixBasedDecider(PrefixBasedDecider.Parameters.model_validate(parameters))
    c = candidates(columns={MATCHED: [5000.0, cached]})
    assert decider.disaggregate(request("x" * length), c.pick("decode", [1], 1.0), c) is splits
    assert decider.disaggregate(request("x" * length), None, c) is False


@pytest.mark.parametrize("parameters", [{"nonCachedTokens": -1}, {"promptTokens": -1}])
def test_negative(parameters):
    """Counts are not negative."""
    with pytest.raises(ValidationError):
        PrefixBasedDecider.Parameters.model_validate(parameters)


@pytest.mark.parametrize(("media", "splits"), [((), False), ((b"digest",), True)])
def test_multimodal(media, splits):
    """Pictures make the difference."""
    sent = replace_body(request("hi"), Body("m", (b"hi",), media=media))
    assert MultimodalDecider().disaggregate(sent, None, candidates(count=1)) is splits


def replace_body(sent, body):
    return type(sent)(sent.id, sent.path, sent.headers, body)


# --- the old handler


def pd(parameters: dict[str, Any], profiles: tuple[str, ...] = ("decode", "prefill"), **plugins: Any):
    context = with_plugins(**plugins)
    made = PdProfileHandler(PdProfileHandler.Parameters.model_validate(parameters, context=context), context)
    made.bind(profiles)
    return made


@pytest.mark.parametrize(
    ("parameters", "plugins", "cached", "ran"),
    [
        pytest.param({}, {}, 0, ["decode", "prefill"], id="before deciders: always"),
        pytest.param({"threshold": 0}, {}, 1000, ["decode", "prefill"], id="threshold 0: always"),
        pytest.param({"threshold": 401}, {}, 899, ["decode", "prefill"], id="threshold: 101 tokens are left"),
        pytest.param({"threshold": 401}, {}, 900, ["decode"], id="threshold: 100 tokens are left"),
        pytest.param({}, {"prefix-based-pd-decider": Never()}, 0, ["decode"], id="the default decider"),
        pytest.param({"deciderPluginName": "yes"}, {"yes": ALWAYS}, 0, ["decode", "prefill"], id="a decider"),
        pytest.param({"hashBlockSize": 5, "prefixPluginName": "x"}, {}, 0, ["decode", "prefill"], id="without effect"),
    ],
)
def test_pd(parameters, plugins, cached, ran):
    """The prefill runs if the decider, or the threshold of before, wants it."""
    run = Running(columns={MATCHED: [cached, 0, 0]})
    assert pd(parameters, **plugins).decide(request("x" * 4000), run) == "decode"
    assert [profile for profile, _ in run.ran] == ran


def test_pd_without_the_decider_that_is_named():
    """A decider that is named must be there."""
    with pytest.raises(ValidationError):
        pd({"deciderPluginName": "nobody"})


def test_pd_reads_for_the_threshold_only():
    """The prefix index is needed where the threshold asks for it."""
    assert pd({"threshold": 4}).reads == (MATCHED,)
    assert pd({"threshold": 0}).reads == ()
    assert pd({"threshold": 4, "deciderPluginName": "nobody"}).reads == (MATCHED,)
    assert pd({"deciderPluginName": "yes"}, yes=ALWAYS).reads == ()


@pytest.mark.parametrize("profiles", [(), ("prefill",)])
def test_pd_metric(profiles):
    """It counts under its own name."""
    counted = Counted()
    made = PdProfileHandler(PdProfileHandler.Parameters(), with_plugins(counters=counted))
    c, found = decision(*profiles)
    made.picked(request("hi", model="m"), found, c)
    kind = "prefill-decode" if profiles else "decode-only"
    assert counted.values == {("llm_d_epp_pd_decision_total", "pd", "pd-profile-handler", "m", kind): 1.0}


# --- data parallelism


@pytest.mark.parametrize("made", ["data-parallel", "pd"])
def test_data_parallel(made):
    """The request goes to the pod's sidecar, which learns the rank; fallbacks are left out."""
    if made == "pd":
        plugin = pd({"primaryPort": 9000})
    else:
        plugin = DataParallelProfileHandler(DataParallelProfileHandler.Parameters.model_validate({"primaryPort": 9000}))
    _, found = decision()
    assert plugin.request_headers(request(), found) == {"x-data-parallel-host-port": "10.0.0.1:8000"}
    assert plugin.destination(request(), found) == "10.0.0.1:9000"


def test_pd_without_port():
    """Without it the pick is the destination."""
    _, found = decision()
    assert pd({}).request_headers(request(), found) == {}
    assert pd({}).destination(request(), found) is None


def test_data_parallel_profile():
    """It runs the one profile, and needs exactly one."""
    made = DataParallelProfileHandler(DataParallelProfileHandler.Parameters())
    made.bind(("decode",))
    run = Running()
    assert made.decide(request(), run) == "decode"
    assert run.ran == [("decode", None)]
    with pytest.raises(ValueError, match="exactly one profile, there are: a, b"):
        made.bind(("a", "b"))


@pytest.mark.parametrize("port", [0, 65536])
def test_data_parallel_port(port):
    """A port is one."""
    with pytest.raises(ValidationError):
        DataParallelProfileHandler.Parameters.model_validate({"primaryPort": port})


# --- by header


@pytest.mark.parametrize(
    ("headers", "profiles", "ran"),
    [
        ({"epp-profile": "prefill"}, ("decode", "prefill"), "prefill"),
        ({}, ("decode", "prefill"), "decode"),
        ({"epp-profile": ""}, ("decode", "prefill"), "decode"),
        ({"epp-profile": "whatever"}, ("d",), "d"),
        ({}, ("d",), "d"),
    ],
)
def test_header_profile(headers, profiles, ran):
    """The header names the profile, unless there is one only."""
    made = HeaderProfileHandler(HeaderProfileHandler.Parameters())
    made.bind(profiles)
    run = Running()
    assert made.decide(request(headers=headers), run) == ran
    assert run.ran == [(ran, None)]


@pytest.mark.parametrize("headers", [{"x-tier": "gold"}, {}])
def test_header_of_no_profile(headers):
    """A profile that there isn't is the client's mistake."""
    made = HeaderProfileHandler(HeaderProfileHandler.Parameters.model_validate({"headerName": "X-Tier"}))
    made.bind(("d", "p"))
    with pytest.raises(BadRequest, match="the header x-tier names one of d, p"):
        made.decide(request(headers=headers), Running())


# --- sources of KV blocks


def source(matched, waiting, request_id="r", chosen=0, delta=1, prefill=None, block=nan):
    plugin = P2pSourceProducer(P2pSourceProducer.Parameters.model_validate({"minCachedTokenDelta": delta}), context())
    c = candidates(
        waiting=waiting,
        cache_block_size=np.broadcast_to(block, len(matched)),
        columns={MATCHED: np.array(matched, dtype=float)},
    )
    found = decided(c, chosen, others={} if prefill is None else {"prefill": prefill})
    sent = request("hi")
    sent = type(sent)(request_id, sent.path, sent.headers, sent.body)
    plugin.picked(sent, found, c)
    headers = plugin.request_headers(sent, found)
    assert plugin.request_headers(sent, found) == {}  # once
    return headers.get("x-kv-cache-source-host-port")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param({"matched": [0, 640, 128], "waiting": [0, 0, 0]}, "10.0.0.2:8000", id="who has most"),
        pytest.param({"matched": [640, 640, 0], "waiting": [0, nan, 0]}, None, id="the pick itself"),
        pytest.param({"matched": [0, 0, 0], "waiting": [0, 0, 0]}, None, id="nobody has any"),
        pytest.param({"matched": [nan, nan, nan], "waiting": [0, 0, 0]}, None, id="nobody knows"),
        pytest.param({"matched": [128, 640, 0], "waiting": [0, 0, 0], "delta": 512}, "10.0.0.2:8000", id="worthwhile"),
        pytest.param({"matched": [129, 640, 0], "waiting": [0, 0, 0], "delta": 512}, None, id="not worthwhile"),
        pytest.param({"matched": [0, 640, 0], "waiting": [0, 0, 0], "prefill": 1}, None, id="the prefill computes"),
        pytest.param(
            {"matched": [640, 640, 0], "waiting": [0, nan, 0], "prefill": 2}, "10.0.0.1:8000", id="known load first"
        ),
        pytest.param({"matched": [0, 640, 0], "waiting": [nan] * 3}, "10.0.0.2:8000", id="nobody's load is known"),
    ],
)
def test_source(arguments, expected):
    """The source has more of the prompt than whoever computes it, by enough."""
    assert source(**arguments) == expected


def test_source_is_random_and_steady():
    """Those within a block of the best share by 1 / (1 + waiting); one request has one source."""
    ids = [f"request-{number}" for number in range(600)]
    found = [source([0, 640, 576, 575], [0, 0, 2, 0], request_id) for request_id in ids]
    assert found == [source([0, 640, 576, 575], [0, 0, 2, 0], request_id) for request_id in ids]
    assert set(found) == {"10.0.0.2:8000", "10.0.0.3:8000"}
    assert found.count("10.0.0.2:8000") == pytest.approx(450, abs=60)  # 3 : 1


@pytest.mark.parametrize(
    ("block", "near"),
    [
        pytest.param(nan, {2, 3}, id="unknown: 64"),
        pytest.param(0.0, {2, 3}, id="nonsense: 64"),
        pytest.param(16.0, {2}, id="16"),
        pytest.param(128.0, {2, 3, 4}, id="128"),
        pytest.param([nan, 16.0, 16.0, 128.0], {2, 4}, id="each its own"),
    ],
)
def test_sources_within_a_block_of_the_engine(block, near):
    """Another endpoint may have a block less than the best: of its own engine's length."""
    found = {source([0, 640, 576, 512], [0, 0, 0, 0], f"request-{number}", block=block) for number in range(60)}
    assert found == {f"10.0.0.{number}:8000" for number in near}
