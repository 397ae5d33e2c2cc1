"""What types change that no profile has: handlers, deciders, parsers, sources. With it here, without it there.

Together with the rows of `test_picks` there is one for every type that is implemented.
"""

import asyncio
import base64
import gzip
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from epp_protos import vertex_prediction_pb2 as vertex
from epp_protos import vllm_engine_pb2 as engine

from epp.cli.flags import parse
from epp.data.configured import models_options, page_reader, scrape_options
from epp.data.discovery import Discovery, DiscoveryOptions
from epp.data.scrape import enter
from epp.errors import RequestError
from epp.exchange import Exchange
from epp.extproc.events import Answer, Arrival, ResponseHeaders
from epp.keys import REPORTED, SERVED_MODELS
from epp.plugin import Pool, Router
from epp.settings import InvalidConfig, Registry
from epp.testing import pool
from tests.unit.plugins.picking import loaded, picture, pipeline_with
from tests.unit.plugins.test_picks import INVALID, QUEUE, ROWS, TWO, ZONE, ZONES, roles

REGISTRY = Registry.installed()
FLAGS = parse(["--endpoints=10.0.0.1:8000"], {})
PREFILLER, ENCODERS = "x-prefiller-host-port", "x-encoder-hosts-ports"
PODS = [f"10.0.0.{number}:8000" for number in (1, 2, 3)]

Config = dict[str, Any]
Result = str | None


def profile(name: str, *plugins: str) -> dict[str, Any]:
    return {"name": name, "plugins": [{"pluginRef": plugin} for plugin in plugins]}


def config(
    *plugins: str | dict[str, Any], profiles: Sequence[Any] = (), parsers: Sequence[str] = (), **more: Any
) -> Config:
    """A configuration of these plugins; without profiles one of those that fit one."""
    entries = [{"type": plugin} if isinstance(plugin, str) else plugin for plugin in plugins]
    weights = {entry.get("name", entry["type"]): entry.get("weight") for entry in entries}
    own = {"scorer", "filter", "picker"}
    fitting = [
        name for entry, name in zip(entries, weights, strict=True) if own & set(REGISTRY.find(entry["type"]).kinds)
    ]
    members = [{"pluginRef": name} | ({"weight": weights[name]} if weights[name] else {}) for name in fitting]
    made: Config = {
        "plugins": [{key: value for key, value in entry.items() if key != "weight"} for entry in entries],
        "schedulingProfiles": list(profiles) or [{"name": "default", "plugins": members}],
    }
    if parsers:
        made["requestHandler"] = {"parsers": [{"pluginRef": parser} for parser in parsers]}
    return made | more


@dataclass(frozen=True)
class Sent:
    """A request."""

    body: bytes = b'{"model": "model", "prompt": "hello"}'
    path: str = "/v1/completions"
    headers: Mapping[str, str] = field(default_factory=dict)

    def in_zone(self, zone: str) -> "Sent":
        return Sent(self.body, self.path, {**self.headers, "x-zone": zone})


class Told:
    """The answer to the last request: where it goes, what is set on it, what comes of it."""

    def __init__(self, own: Pool, answer: Answer, exchange: Exchange) -> None:
        self.pool, self.answer, self.exchange = own, answer, exchange

    def names(self) -> str:
        slots = [self.pool.slot_at(hostport) for hostport in self.answer.destination.split(",")]
        return " ".join(self.pool.endpoints[slot].name if slot is not None else "?" for slot in slots)

    def header(self, name: str) -> Result:
        return dict(self.answer.set_headers).get(name)


def goes(told: Told) -> Result:
    """Where the request goes, by names; fallbacks behind."""
    return told.names()


def destination(told: Told) -> Result:
    return told.answer.destination


def header(name: str) -> Callable[[Told], Result]:
    """What is set on the request."""
    return lambda told: told.header(name)


def response_header(told: Told) -> Result:
    headers = told.exchange.response_headers(ResponseHeaders({":status": "200"}, end=False, served_by=PODS[1]))
    return dict(headers).get("x-conformance-test-served-endpoint")


def metadata(told: Told) -> Result:
    told.exchange.response_headers(ResponseHeaders({":status": "200"}, end=False))
    return json.dumps(told.exchange.response_metadata()) if told.exchange.reports else None


@dataclass(frozen=True)
class Row:
    """A type's effect.

    Attributes:
        with_it, without: the configurations.
        goes, otherwise: what `effect` says of the last request, its status, or INVALID.
        sent: the requests, one after the other; those before the last stay in flight.
        at_once: how many of the last one come at once; what is said of them is joined.
        pages: what is at a URL of the endpoints, by `host:port/path`.
        listed: entries of the file that discovery reads.
        objects: what there is in Kubernetes, as its watches would tell.
    """

    with_it: Config
    without: Config
    goes: Result
    otherwise: Result
    pool: dict[str, Any] = field(default_factory=lambda: TWO)
    sent: Sequence[Sent] = (Sent(),)
    effect: Callable[[Told], Result] = goes
    at_once: int = 1
    pages: Mapping[str, str] = field(default_factory=dict)
    listed: Sequence[Mapping[str, Any]] = ()
    objects: Sequence[Mapping[str, Any]] = ()


# --- what the data layer does, without HTTP


def scraped(row: Row, own: Pool, router: Router) -> None:
    """What the pages say enters the pool as scrapes, polls and looks at models would enter it."""
    sources = router.sources
    metrics, reader = scrape_options(FLAGS, sources.page), page_reader(FLAGS, sources.extraction)
    models = models_options(FLAGS, sources)

    def page(host: str, port: int, path: str) -> bytes | None:
        text = row.pages.get(f"{host}:{port}{path}")
        return None if text is None else text.encode()

    for slot in own.slots.values():
        endpoint = own.endpoints[slot]
        assert endpoint is not None
        found = page(endpoint.metrics_host, metrics.port or endpoint.metrics_port or endpoint.port, metrics.path)
        if found is not None and sources.scraped:
            report = reader.read(found, endpoint.labels)
            if report.engine:
                enter(own, slot, report, now=0.0, fresh_until=math.inf)
        for poll in sources.polls:
            found = page(
                endpoint.metrics_host, poll.page.port or endpoint.metrics_port or endpoint.port, poll.page.path
            )
            for each in poll.readers if found is not None else ():
                own.write_polled(slot, each.columns(endpoint, found or b""), f"{poll.name}/{each.name}")
        found = page(endpoint.host, models.port or endpoint.port, models.path)
        if found is not None and sources.read_models is not None:
            own.write_set(slot, SERVED_MODELS, (REPORTED, *sources.read_models(found)))


def noticed(row: Row, router: Router) -> None:
    """Extractors hear of the objects that somebody watches."""
    for watch in router.sources.watches:
        for item in row.objects:
            if (item["apiVersion"], item["kind"]) == (watch.kind.version, watch.kind.kind):
                for reader in watch.readers:
                    reader.notified("added", item)


async def discovered(row: Row, router: Router, file: Path) -> Pool:
    """The pool of the file that the configuration names, if it names one; else the row's."""
    said = router.sources.file
    if not row.listed:
        return pool(**row.pool)
    own = Pool()
    if said is not None:
        discovery = Discovery(own, (), file, DiscoveryOptions(clusters=said.clusters))
        await discovery.start()
        await discovery.stop()
    return own


async def effect(row: Row, made: Config, file: Path) -> Result:
    """What comes of the row's requests under a configuration."""
    own = pool(**row.pool)
    try:
        router = loaded(made, own)
        own = await discovered(row, router, file)
        router = loaded(made, own)
    except InvalidConfig:
        return INVALID
    scraped(row, own, router)
    noticed(row, router)
    path = pipeline_with(router, own)
    exchanges = []
    try:
        for sent in row.sent[:-1]:
            exchanges.append(path.open())
            await exchanges[-1].route(arrival(sent))
        last = [path.open() for _ in range(row.at_once)]
        exchanges += last
        answers = await asyncio.gather(*[exchange.route(arrival(row.sent[-1])) for exchange in last])
        told = [
            Told(own, answer, each) for answer, each in zip(answers, last, strict=True) if isinstance(answer, Answer)
        ]
        said = [row.effect(each) for each in told]
        return said[0] if row.at_once == 1 else " ".join(map(str, said))
    except RequestError as error:
        return str(error.status)
    finally:
        for exchange in exchanges:
            exchange.close("ended", complete=True)


def arrival(sent: Sent) -> Arrival:
    return Arrival({":method": "POST", ":path": sent.path, "x-request-id": "r"} | dict(sent.headers), sent.body, None)


# --- the rows


def chat(content: Any, **more: Any) -> Sent:
    body = {"model": "model", "max_tokens": 1, "messages": [{"role": "user", "content": content}], **more}
    return Sent(json.dumps(body).encode(), "/v1/chat/completions")


def completion(prompt: str) -> Sent:
    return Sent(json.dumps({"model": "model", "prompt": prompt}).encode())


LONG = completion("x" * 1024)

CONFIG_MAPS = {"type": "k8s-notification-source", "parameters": {"version": "v1", "kind": "ConfigMap"}}
DRAINED = {"type": str(Path(__file__).parents[3] / "config/examples/drained.py"), "name": "drained"}


def parsed(parser: str, sent: Sent, beside: str = "passthrough-parser") -> Row:
    """A request that is read is known again: it goes where it was sent first, by its zone; else by the queue."""
    plugins = ({**QUEUE}, {**ZONE}, "prefix-cache-scorer")
    return Row(
        config(parser, beside, *plugins, parsers=[beside, parser]),
        config(beside, *plugins, parsers=[beside]),
        "pod-1",
        "pod-0",
        pool=ZONES,
        sent=(sent.in_zone("b"), sent),
    )


def framed(message: Any) -> bytes:
    data = message.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


IDS = list(range(300))
SPLIT = [profile("decode", "decode-filter", "queue-scorer"), profile("prefill", "prefill-filter", "queue-scorer")]
STAGES = ("decode-filter", "prefill-filter", "queue-scorer")
PD = {"waiting": [0, 4], "labels": roles("prefill", "decode")}


def decided(decider: str, sent: Sent = LONG, **parameters: Any) -> Row:
    """The prefill goes to pod-0 if the decider wants it to."""
    handler = {"type": "disagg-profile-handler"}
    asked = handler | {"parameters": {"deciders": {"prefill": decider}}}
    return Row(
        config({"type": decider, "parameters": parameters}, *STAGES, asked, profiles=SPLIT),
        config(*STAGES, handler, profiles=SPLIT),
        PODS[0],
        None,
        pool=PD,
        sent=(sent,),
        effect=header(PREFILLER),
    )


def headers_of(handler: str) -> Row:
    """The old profile handler splits, and doesn't set the header itself."""
    return Row(
        config(handler, "pd-profile-handler", *STAGES, profiles=SPLIT),
        config("pd-profile-handler", *STAGES, profiles=SPLIT),
        PODS[0],
        None,
        pool=PD,
        effect=header(PREFILLER),
    )


LONG_ONLY = (
    {"type": "prefix-based-pd-decider", "parameters": {"nonCachedTokens": 1000}},
    *STAGES,
    {"type": "disagg-profile-handler", "parameters": {"deciders": {"prefill": "prefix-based-pd-decider"}}},
)
LARGE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 4096, 1024)).decode()
CLOSE = [*roles("decode", "prefill", "prefill")]
for labels, zone in zip(CLOSE, ("a", "b", "a"), strict=True):
    labels |= {"topology.kubernetes.io/zone": zone, "mine": zone}
SPLITTING = {"type": "disagg-profile-handler", "parameters": {"deciders": {"prefill": "always-disagg-pd-decider"}}}
CLOSE_POOL: dict[str, Any] = {"waiting": [9, 0, 4], "labels": CLOSE}


def close(plugin: dict[str, Any], *beside: dict[str, Any], without: Sequence[dict[str, Any]] = ()) -> Row:
    """pod-2 is in the decoder's zone, pod-1 has the shorter queue."""

    def made(*plugins: dict[str, Any]) -> Config:
        fitting = [p["type"] for p in plugins if "extractor" not in p["type"]]
        profiles = [SPLIT[0], profile("prefill", "prefill-filter", *fitting, "light")]
        light = {"type": "queue-scorer", "name": "light"}
        return config(
            *plugins, *STAGES, light, "always-disagg-pd-decider", SPLITTING, profiles=[weighted(p) for p in profiles]
        )

    return Row(
        made(plugin, *beside),
        made(*beside, *without),
        PODS[2],
        PODS[1],
        pool=CLOSE_POOL,
        effect=header(PREFILLER),
    )


def weighted(of: dict[str, Any]) -> dict[str, Any]:
    """The profile, with little weight for what is called light."""
    return of | {"plugins": [p | ({"weight": 0.01} if p["pluginRef"] == "light" else {}) for p in of["plugins"]]}


SCORER = {"type": "topology-affinity-scorer"}
GPU_SCORER = {
    "type": "endpoint-attribute-scorer",
    "parameters": {
        "attributeKey": "GPUUtilization",
        "producer": "dcgm-extractor",
        "algorithm": {
            "type": "linear_lower_is_better",
            "normalization": {"fixedRange": {"min": 0, "max": 1}},
        },
    },
}
GPUS = {
    "10.0.0.1:9400/metrics": 'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 90\n',
    "10.0.0.2:9400/metrics": 'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 10\n',
}
CLUSTERS = (
    "multicluster-metrics-data-source",
    "multicluster-metrics-extractor",
    "multicluster-queue-scorer",
    ZONE | {"weight": 0.1},
)
IN_A: dict[str, Any] = {"pool": ZONES, "sent": (Sent().in_zone("a"),)}
CLUSTER_PAGES = {
    "10.0.0.1:8000/metrics": "llm_d_epp_average_queue_size 9\n",
    "10.0.0.2:8000/metrics": "llm_d_epp_average_queue_size 1\n",
}
VLLM = "vllm:num_requests_waiting {}\nvllm:num_requests_running {}\n"
METRICS = {
    "10.0.0.1:8000/metrics": VLLM.format(0, 5),
    "10.0.0.2:8000/metrics": VLLM.format(4, 0),
    "10.0.0.1:8000/stats": VLLM.format(4, 0),
    "10.0.0.2:8000/stats": VLLM.format(0, 5),
}
SERVED = {
    "10.0.0.1:8000/v1/models": '{"data": [{"id": "other"}]}',
    "10.0.0.2:8000/v1/models": '{"data": [{"id": "model"}]}',
}
TWO_CLUSTERS = [
    {
        "name": f"pod-{n}",
        "address": f"10.0.0.{n + 1}",
        "port": "8000",
        "labels": {"metricsAddress": f"10.9.0.{n + 1}", "zone": zone},
    }
    for n, zone in enumerate("ab")
]

ROW: dict[str, Row] = {
    # --- pickers, whose lists `test_picks` doesn't see
    "max-score-picker": Row(
        config({"type": "max-score-picker", "parameters": {"maxNumOfEndpoints": 2}}, "queue-scorer"),
        config("queue-scorer"),
        "pod-0 pod-1",
        "pod-0",
    ),
    # --- handlers
    "header-profile-handler": Row(
        config(
            {"type": "header-profile-handler", "parameters": {"headerName": "x-tier", "defaultProfile": "a"}},
            *("queue-scorer", "kv-cache-utilization-scorer"),
            profiles=[profile("a", "queue-scorer"), profile("b", "kv-cache-utilization-scorer")],
        ),
        config("queue-scorer", "kv-cache-utilization-scorer", profiles=[profile("a", "queue-scorer")]),
        "pod-1",
        "pod-0",
        pool=TWO | {"kv_usage": [1.0, 0.0]},
        sent=(Sent(headers={"x-tier": "b"}),),
    ),
    "data-parallel-profile-handler": Row(
        config({"type": "data-parallel-profile-handler", "parameters": {"primaryPort": 9000}}, "queue-scorer"),
        config("queue-scorer"),
        "10.0.0.1:9000",
        PODS[0],
        effect=destination,
    ),
    "disagg-profile-handler": Row(
        config("disagg-profile-handler", *STAGES, profiles=SPLIT),
        config(*STAGES, profiles=[profile("decode", "queue-scorer")]),
        "pod-1",
        "pod-0",
        pool=PD,
    ),
    "pd-profile-handler": Row(
        config("pd-profile-handler", *STAGES, profiles=SPLIT),
        config(*STAGES, profiles=[profile("decode", "queue-scorer")]),
        "pod-1",
        "pod-0",
        pool=PD,
    ),
    "disagg-headers-handler": headers_of("disagg-headers-handler"),
    "prefill-header-handler": headers_of("prefill-header-handler"),
    # --- deciders
    "always-disagg-pd-decider": decided("always-disagg-pd-decider"),
    "prefix-based-pd-decider": decided("prefix-based-pd-decider", nonCachedTokens=256),
    "always-disagg-multimodal-decider": decided("always-disagg-multimodal-decider", chat(picture("a"))),
    # 4096 * 1024 / 1024 is 4096 tokens, and else 224: the decider splits from 1000 on.
    "token-producer": Row(
        config("token-producer", *LONG_ONLY, profiles=SPLIT),
        config(*LONG_ONLY, profiles=SPLIT),
        PODS[0],
        None,
        pool=PD,
        sent=(chat([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{LARGE}"}}]),),
        effect=header(PREFILLER),
    ),
    # --- topology
    "topology-affinity-scorer": close(SCORER),
    "topology-affinity-filter": close({"type": "topology-affinity-filter", "parameters": {"minAffinity": "zone"}}),
    "topology-extractor": close(
        {"type": "topology-extractor", "parameters": {"zone": "mine"}},
        SCORER,
        without=[{"type": "topology-extractor", "parameters": {"zone": "nobody's"}}],
    ),
    # --- parsers
    "openai-parser": parsed("openai-parser", LONG),
    "anthropic-parser": parsed("anthropic-parser", Sent(chat("x" * 1024).body, "/v1/messages")),
    "vllmhttp-parser": parsed(
        "vllmhttp-parser", Sent(json.dumps({"model": "model", "token_ids": IDS}).encode(), "/inference/v1/generate")
    ),
    "sglanghttp-parser": parsed("sglanghttp-parser", Sent(json.dumps({"input_ids": IDS}).encode(), "/generate")),
    "vllmgrpc-parser": parsed(
        "vllmgrpc-parser",
        Sent(
            framed(engine.GenerateRequest(tokenized=engine.TokenizedInput(input_ids=IDS))),
            "/vllm.grpc.engine.VllmEngine/Generate",
        ),
    ),
    "vertexai-parser": parsed(
        "vertexai-parser",
        Sent(
            framed(vertex.PredictRequest(http_body=vertex.HttpBody(data=chat("x" * 1024).body))),
            "/google.cloud.aiplatform.v1.PredictionService/ChatCompletions",
        ),
    ),
    "passthrough-parser": Row(
        config("openai-parser", "passthrough-parser", "queue-scorer", parsers=["openai-parser", "passthrough-parser"]),
        config("openai-parser", "queue-scorer", parsers=["openai-parser"]),
        "pod-0",
        "400",
        sent=(Sent(gzip.compress(b"anything"), "/other"),),
    ),
    # --- what goes with a pick
    "burst-prefix-cache-producer": Row(
        config(
            {"type": "burst-prefix-cache-producer", "parameters": {"windowDurationMs": 1000, "maxBatchSize": 2}},
            {
                "type": "prefix-cache-scorer",
                "weight": 3,
                "parameters": {"prefixMatchInfoProducerName": "burst-prefix-cache-producer"},
            },
            "active-request-scorer",
            {**QUEUE},
        ),
        config("active-request-scorer", {**QUEUE}),
        "pod-0 pod-0",
        "pod-0 pod-1",
        sent=(LONG,),
        at_once=2,
    ),
    "p2p-source-producer": Row(
        config("p2p-source-producer", "queue-scorer", {**ZONE}),
        config("queue-scorer", {**ZONE}, "approx-prefix-cache-producer"),
        PODS[1],
        None,
        pool=ZONES,
        sent=(LONG.in_zone("b"), LONG),
        effect=header("x-kv-cache-source-host-port"),
    ),
    "destination-endpoint-served-verifier": Row(
        config("destination-endpoint-served-verifier", "queue-scorer"),
        config("queue-scorer"),
        PODS[1],
        None,
        effect=response_header,
    ),
    "request-attribute-reporter": Row(
        config(
            {
                "type": "request-attribute-reporter",
                "parameters": {"attributes": [{"key": {"name": "cost"}, "expression": "1 + 1"}]},
            },
            "queue-scorer",
        ),
        config("queue-scorer"),
        '{"envoy.lb": {"cost": 2.0}}',
        None,
        effect=metadata,
    ),
    # --- where numbers and endpoints come from
    "metrics-data-source": Row(
        config({"type": "metrics-data-source", "parameters": {"path": "/stats"}}, "queue-scorer"),
        config("queue-scorer"),
        "pod-1",
        "pod-0",
        pool={"count": 2},
        pages=METRICS,
    ),
    "core-metrics-extractor": Row(
        config(
            {
                "type": "core-metrics-extractor",
                "parameters": {"engineConfigs": [{"name": "vllm", "queuedRequestsSpec": "vllm:num_requests_running"}]},
            },
            "queue-scorer",
        ),
        config("queue-scorer"),
        "pod-1",
        "pod-0",
        pool={"count": 2},
        pages=METRICS,
    ),
    "dcgm-data-source": Row(
        config("dcgm-data-source", "dcgm-extractor", GPU_SCORER, {**QUEUE}),
        config("dcgm-extractor", GPU_SCORER, {**QUEUE}),
        "pod-1",
        "pod-0",
        pages=GPUS,
    ),
    "dcgm-extractor": Row(
        config("dcgm-data-source", "dcgm-extractor", GPU_SCORER, {**QUEUE}),
        config("dcgm-data-source", GPU_SCORER, {**QUEUE}),
        "pod-1",
        "pod-0",
        pages=GPUS,
    ),
    "multicluster-metrics-data-source": Row(
        config(*CLUSTERS), config(*CLUSTERS[1:]), "pod-1", "pod-0", pages=CLUSTER_PAGES, **IN_A
    ),
    "multicluster-metrics-extractor": Row(
        config(*CLUSTERS), config(CLUSTERS[0], *CLUSTERS[2:]), "pod-1", "pod-0", pages=CLUSTER_PAGES, **IN_A
    ),
    "models-data-source": Row(
        config({"type": "models-data-source", "parameters": {"path": "/m"}}, "models-data-extractor", {**QUEUE}),
        config("models-data-extractor", {**QUEUE}),
        "pod-0",
        "pod-1",
        pages=SERVED | {f"10.0.0.{n}:8000/m": '{"data": [{"id": "model"}]}' for n in (1, 2)},
    ),
    "k8s-notification-source": Row(
        config(CONFIG_MAPS, DRAINED, {**QUEUE}),
        config(DRAINED, {**QUEUE}),
        "pod-1",
        "pod-0",
        objects=(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "drain"}, "data": {"pod-0": "maintenance"}},
        ),
    ),
    "file-discovery": Row(
        config(
            {"type": "file-discovery", "parameters": {"path": "f"}},
            *("max-score-picker",),
            dataLayer={"discovery": {"pluginRef": "file-discovery"}},
        ),
        config("max-score-picker"),
        "pod-1",
        "503",
        listed=TWO_CLUSTERS[1:],
    ),
    # The clusters' metrics are at 10.9.0.1 and 10.9.0.2, which the labels say.
    "multicluster-file-discovery": Row(
        config(
            {"type": "multicluster-file-discovery", "parameters": {"path": "f"}},
            *CLUSTERS,
            dataLayer={"discovery": {"pluginRef": "multicluster-file-discovery"}},
        ),
        config(
            {"type": "file-discovery", "parameters": {"path": "f"}},
            *CLUSTERS,
            dataLayer={"discovery": {"pluginRef": "file-discovery"}},
        ),
        "pod-0",
        "pod-1",
        sent=(Sent().in_zone("b"),),
        pages={
            "10.9.0.1:8000/metrics": "llm_d_epp_average_queue_size 1\n",
            "10.9.0.2:8000/metrics": "llm_d_epp_average_queue_size 9\n",
        },
        listed=TWO_CLUSTERS,
    ),
}

ELSEWHERE = {
    "endpoint-notification-source": "extractors hear of endpoints without it",
    "models-data-extractor": "reads the page as it is read without it",
    "single-profile-handler": "is there wherever no other handler is",
}
"""Types that change nothing, since what they stand for happens in any case."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where an endpoints file is."""
    return tmp_path / "endpoints.json"


@pytest.mark.parametrize("row", ROW.values(), ids=ROW)
async def test_effect(row: Row, file: Path) -> None:
    """What the type is for happens with it, and doesn't without it."""
    await asyncio.to_thread(file.write_text, json.dumps({"endpoints": row.listed}))
    assert await effect(row, row.with_it, file) == row.goes
    assert await effect(row, row.without, file) == row.otherwise
    assert row.goes != row.otherwise


def test_every_type_has_a_row() -> None:
    """Each implemented type of the registry changes something in a row, here or in `test_picks`."""
    shown = {row.plugin["type"] for row in ROWS.values()} | set(ROW)
    found = [REGISTRY.find(name) for name in REGISTRY.types]
    ours = {each.type for each in found if each.cls.__module__.startswith("epp_plugins.")}
    implemented = {each.type for each in found if each.type in ours and each.status == "implemented"}
    assert implemented - shown == set(ELSEWHERE)
    assert shown <= implemented


@pytest.mark.parametrize("name", ROW)
def test_rows_are_about_their_type(name: str) -> None:
    """It is among the plugins of the one configuration; where it is among the other's too, its parameters differ."""
    row = ROW[name]
    mine, others = (
        [entry for entry in made["plugins"] if entry["type"] == name] for made in (row.with_it, row.without)
    )
    assert mine
    assert mine != others
