"""What ``epp plugins new`` writes: for each kind a whole plugin that does something, and its test."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Template:
    """A kind of plugin.

    Attributes:
        does: what it does, a sentence.
        reads: the section "Reads" of the manual.
        writes: the section "Writes".
        names: what it imports from `epp.plugin`.
        body: the class's body.
        test: a test's body, of `plugin`.
        fakes: what the test imports from `epp.testing`.
        others: further imports, by plugin and test: lines before the ones from `epp`.
        in_profile: whether a profile refers to it.
        parameters: the section "Parameters".
        example: what stands in the manual's example beside the plugin, which is called `mine`, and its profile.
        arguments: of the test.
        made: makes `plugin` in the test; `{cls}` is the class's name.
    """

    does: str
    reads: str
    writes: str
    names: tuple[str, ...]
    body: str
    test: str
    fakes: tuple[str, ...]
    others: str = ""
    in_profile: bool = False
    parameters: str = "None."
    example: str = ""
    arguments: str = ""
    made: str = "{cls}()"


KINDS: Mapping[str, Template] = {
    "scorer": Template(
        "Prefers endpoints with less to do: 1 for the least, 0 for the most.",
        "`waiting`, `running`: requests at the engine, scraped.",
        "Nothing.",
        ("RUNNING", "WAITING", "Candidates", "Floats", "Request", "lower_is_better"),
        """
    def score(self, request: Request, c: Candidates) -> Floats:
        \"\"\"Points in [0, 1], shape (n,); NaN where a metric is missing, which is no points.\"\"\"
        return lower_is_better(c[WAITING] + c[RUNNING])
""",
        """
    scores = plugin.score(request(), candidates(waiting=[0, 5, 10], running=[0, 0, 0]))
    assert scores.tolist() == [1.0, 0.5, 0.0]
""",
        ("candidates", "request"),
        in_profile=True,
    ),
    "filter": Template(
        "Keeps the endpoints whose queue is not long, or everybody if all of them are.",
        "`waiting`: requests that wait at the engine, scraped.",
        "Nothing.",
        ("WAITING", "Candidates", "Mask", "Request"),
        """
    def keep(self, request: Request, c: Candidates) -> Mask:
        \"\"\"Who stays, shape (n,). A comparison with NaN is false: an endpoint that says nothing goes.\"\"\"
        short: Mask = c[WAITING] < 10
        return short if short.any() else ~short
""",
        """
    assert plugin.keep(request(), candidates(waiting=[0, 50])).tolist() == [True, False]
    assert plugin.keep(request(), candidates(waiting=[50, 50])).tolist() == [True, True]
""",
        ("candidates", "request"),
        in_profile=True,
    ),
    "picker": Template(
        "Takes the endpoint with the highest total, and the second as its fallback.",
        "The totals.",
        "Nothing.",
        ("Candidates", "Floats", "Ints", "Request"),
        """
    def pick(self, request: Request, c: Candidates, totals: Floats) -> Ints:
        \"\"\"Indices, best first; further ones are fallbacks.\"\"\"
        return np.argsort(-totals, kind="stable")[:2]
""",
        """
    assert plugin.pick(request(), candidates(count=3), np.array([0.1, 0.9, 0.5])).tolist() == [1, 2]
""",
        ("candidates", "request"),
        "import numpy as np\n",
        in_profile=True,
    ),
    "producer": Template(
        "Tells how many prompt tokens every endpoint would have, the request's included.",
        "`inflight_tokens`: the prompt tokens that we have sent there.",
        "`expected_tokens`.",
        ("INFLIGHT_TOKENS", "Candidates", "Context", "Floats", "Key", "Request", "request_key"),
        """
    def __init__(self, context: Context) -> None:
        self._expected = request_key("expected_tokens", context.name)
        self.writes = (self._expected,)

    def produce(self, request: Request, c: Candidates) -> Mapping[Key, Floats]:
        \"\"\"A column for this request, shape (n,). A scorer that has its key in `reads` finds it as `c[key]`.\"\"\"
        return {self._expected: c[INFLIGHT_TOKENS] + request.prompt_tokens}
""",
        """
    (column,) = plugin.produce(request("x" * 400), candidates(inflight_tokens=[0, 50])).values()
    assert column.tolist() == [100, 150]
""",
        ("candidates", "context", "request"),
        "from collections.abc import Mapping\n",
        made="{cls}(context=context())",
    ),
    "fetcher": Template(
        "Fetches what each endpoint costs, out of a file of prices by the endpoints' names.",
        "The file.",
        "`price`: NaN for endpoints that are not in the file.",
        ("Candidates", "Context", "Floats", "Key", "Request", "request_key"),
        """
    class Parameters(epp.plugin.Parameters):
        file: str = "prices.json"

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._file = Path(parameters.file)
        self._price = request_key("price", context.name)
        self.writes = (self._price,)

    async def fetch(self, request: Request, c: Candidates) -> Mapping[Key, Floats]:
        \"\"\"A column for this request, shape (n,). Anything may be awaited here, for 0.4 s or `self.deadline`.\"\"\"
        prices = await asyncio.to_thread(self._read)
        return {self._price: np.array([prices.get(endpoint.name, np.nan) for endpoint in c.endpoints])}

    def _read(self) -> Mapping[str, float]:
        return json.loads(self._file.read_text()) if self._file.exists() else {}
""",
        """
    (tmp_path / "prices.json").write_text('{"pod-1": 2.5}')
    (column,) = asyncio.run(plugin.fetch(request(), candidates(count=2))).values()
    assert np.isnan(column[0])
    assert column[1] == 2.5
""",
        ("candidates", "context", "request"),
        "import asyncio\nimport json\nfrom collections.abc import Mapping\nfrom pathlib import Path\n\n"
        "import epp.plugin\nimport numpy as np\n",
        parameters='`file` (prices.json): a JSON object, such as {"pod-0": 1.5}.',
        arguments="tmp_path",
        made='{cls}({cls}.Parameters(file=str(tmp_path / "prices.json")), context=context())',
    ),
    "handler": Template(
        "Runs the last profile for long prompts, and the first one for others.",
        "The length of the prompt.",
        "Nothing.",
        ("Request", "Run"),
        """
    def bind(self, profiles: tuple[str, ...]) -> None:
        \"\"\"The names of the configured profiles; ValueError refuses the configuration.\"\"\"
        self._profiles = profiles

    def decide(self, request: Request, run: Run) -> str | None:
        \"\"\"The name of a profile that it has run; None where its filters have left nobody.\"\"\"
        name = self._profiles[-1 if request.prompt_tokens >= 4096 else 0]
        return name if run(name) is not None else None
""",
        """
    plugin.bind(("default", "long"))

    def run(profile, peer=None):
        return candidates(count=1).pick(profile, [0], 1.0)

    assert plugin.decide(request("hello"), run) == "default"
    assert plugin.decide(request("x" * 20_000), run) == "long"
    assert plugin.decide(request("hello"), lambda profile, peer=None: None) is None
""",
        ("candidates", "request"),
        example="""\
    - type: queue-scorer
    - type: kv-cache-utilization-scorer
    schedulingProfiles:
    - name: default
      plugins: [{pluginRef: queue-scorer}]
    - name: long
      plugins: [{pluginRef: kv-cache-utilization-scorer}]
""",
    ),
    "decider": Template(
        "Splits long prompts whose endpoint is busy: their prefill goes elsewhere.",
        "The length of the prompt; `running`: requests at the engine, scraped.",
        "Nothing.",
        ("RUNNING", "Candidates", "Pick", "Request"),
        """
    def disaggregate(self, request: Request, pick: Pick | None, c: Candidates) -> bool:
        \"\"\"Whether the handler should run its further profile; `pick` is what the one before chose.\"\"\"
        if pick is None or request.prompt_tokens < 1024:
            return False
        return bool(((c[RUNNING] > 0) & (c.slots == pick.slots[0])).any())
""",
        """
    c = candidates(running=[3, 0])
    assert plugin.disaggregate(request("x" * 8000), c.pick("decode", [0], 1.0), c)
    assert not plugin.disaggregate(request("x" * 8000), c.pick("decode", [1], 1.0), c)
    assert not plugin.disaggregate(request("short"), c.pick("decode", [0], 1.0), c)
""",
        ("candidates", "request"),
        example="""\
    - type: disagg-profile-handler
      parameters: {deciders: {prefill: mine}}
    - type: decode-filter
    - type: prefill-filter
    schedulingProfiles:
    - name: decode
      plugins: [{pluginRef: decode-filter}]
    - name: prefill
      plugins: [{pluginRef: prefill-filter}]
""",
    ),
    "parser": Template(
        "Reads requests whose whole body is the prompt, as plain text.",
        "The request's path and body.",
        "`Body`: one prompt, and the model `plain`.",
        ("BadRequest", "Body", "ResponseReader"),
        """
    paths = ("generate/plain",)

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Body:
        \"\"\"Reads the body; BadRequest says what is wrong with it, and the client gets 400.\"\"\"
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"text in UTF-8 is due: {error}") from error
        return Body(model="plain", prompts=(body,))

    def response(self, *, streaming: bool) -> ResponseReader | None:
        \"\"\"A reader of the usage in one answer; None where this API reports none.\"\"\"
        return None
""",
        """
    assert plugin.parse("/generate/plain", {}, b"hello").prompts == (b"hello",)
    with pytest.raises(BadRequest, match="UTF-8"):
        plugin.parse("/generate/plain", {}, b"\\xff")
""",
        (),
        "from collections.abc import Mapping\n",
        example="""\
    requestHandler:
      parsers:
      - pluginRef: mine
""",
    ),
    "observer": Template(
        "Counts what became of requests, and tells clients who has answered.",
        "Nothing.",
        "The response header `x-served-by`.",
        ("Context", "Decision", "Endpoint", "Outcome", "Request"),
        """
    def __init__(self, context: Context) -> None:
        self._ended = context.state("ended", Counter)

    def response_headers(self, request: Request, decision: Decision, served: Endpoint) -> Mapping[str, str]:
        \"\"\"Headers to set on the response.\"\"\"
        return {"x-served-by": served.name}

    def done(self, request: Request, decision: Decision, outcome: Outcome, now: float) -> None:
        \"\"\"Called exactly once for each request that was routed.\"\"\"
        self._ended[str(outcome.status)] += 1

    def state(self) -> Mapping[str, int]:
        \"\"\"For `/debug/plugins/state`.\"\"\"
        return dict(self._ended)
""",
        """
    decision = decided(candidates(count=2), 1)
    headers = plugin.response_headers(request(), decision, decision.primary.endpoints[0])
    assert headers == {"x-served-by": "pod-1"}
    plugin.done(request(), decision, Outcome(status=200), now=0.0)
    assert plugin.state() == {"200": 1}
""",
        ("candidates", "context", "decided", "request"),
        "from collections import Counter\nfrom collections.abc import Mapping\n",
        made="{cls}(context=context())",
    ),
    "screener": Template(
        'Keeps requests off endpoints that are labelled `drain: "yes"`, whatever profile runs.',
        "The label `drain`.",
        "Nothing.",
        ("Candidates", "Mask", "Request"),
        """
    def screen(self, request: Request, c: Candidates) -> Mask:
        \"\"\"Who may serve the request, shape (n,).\"\"\"
        return c.label("drain") != c.code("drain", "yes")
""",
        """
    c = candidates(labels=[{"drain": "yes"}, {}])
    assert plugin.screen(request(), c).tolist() == [False, True]
""",
        ("candidates", "request"),
    ),
    "admitter": Template(
        "Turns sheddable requests away while every endpoint has a queue.",
        "`waiting`: requests that wait at the engine, scraped.",
        "Nothing.",
        ("WAITING", "Candidates", "Request"),
        """
    def deny(self, request: Request, c: Candidates) -> str | None:
        \"\"\"The reason for a 429; None to admit the request.\"\"\"
        busy = request.priority < 0 and bool((c[WAITING] > 0).all())
        return "every model server has a queue" if busy else None
""",
        """
    assert plugin.deny(request(priority=-1), candidates(waiting=[1, 2]))
    assert plugin.deny(request(priority=-1), candidates(waiting=[1, 0])) is None
    assert plugin.deny(request(priority=0), candidates(waiting=[1, 2])) is None
""",
        ("candidates", "request"),
    ),
    "header-reader": Template(
        "Takes the tenant for fairness from the header `x-tenant`.",
        "The request's headers.",
        "The attribute `agent-identity/tenant`, which stands in for a fairness id.",
        (),
        """
    def attributes(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        \"\"\"Attributes by key; names of headers are in lower case.\"\"\"
        tenant = headers.get("x-tenant")
        return {"agent-identity/tenant": tenant} if tenant else {}
""",
        """
    assert plugin.attributes({"x-tenant": "a"}) == {"agent-identity/tenant": "a"}
    assert plugin.attributes({}) == {}
""",
        (),
        "from collections.abc import Mapping\n",
    ),
}


def plugin_text(kind: str, module: str, class_name: str) -> str:
    """The plugin's file."""
    t = KINDS[kind]
    type_name = f"./{module}.py"
    blank = "" if "numpy" in t.others else "\n"
    imports = t.others + (f"{blank}from epp.plugin import {', '.join(t.names)}\n" if t.names else "")
    profile = ["    schedulingProfiles:", "    - name: default", "      plugins:", "      - pluginRef: mine"]
    beside = t.example.rstrip("\n").split("\n") if t.example else profile if t.in_profile else []
    example = ["    plugins:", f"    - {{type: {type_name}, name: mine}}", *beside]
    manual = [
        f'"""{module}.py: {t.does[0].lower()}{t.does[1:]}',
        *("", "What it does", f"    {t.does}"),
        *("", "Reads", f"    {t.reads}"),
        *("", "Writes", f"    {t.writes}"),
        *("", "Parameters", f"    {t.parameters}"),
        *("", "Example:", *example, '"""'),
    ]
    head = "\n".join(manual)
    return f'{head}\n\n{imports.lstrip()}\n\nclass {class_name}:\n    """{t.does}"""\n{t.body}'


def test_text(kind: str, module: str, class_name: str) -> str:
    """The file of its test."""
    t = KINDS[kind]
    standard = ["import asyncio"] if "asyncio." in t.test else []
    others = [line for name, line in _OTHERS.items() if f"{name}." in t.test]
    sdk = [name for name in ("BadRequest", "Outcome") if name in t.test]
    lines = [*standard, "from pathlib import Path", "", *others, "from epp.contract import check"]
    if sdk:
        lines += [f"from epp.plugin import {', '.join(sdk)}"]
    if t.fakes:
        lines += [f"from epp.testing import {', '.join(t.fakes)}"]
    lines += ["", f"from {module} import {class_name}"]
    made = f"    plugin = {t.made.format(cls=class_name)}"
    return "\n".join(
        [
            *(*lines, "", "", f"def test_{module}({t.arguments}):", f'    """{t.does}"""', made),
            *(t.test.strip("\n"), "", "", "def test_contract():", '    """What every plugin keeps to."""'),
            f'    check(str(Path(__file__).with_name("{module}.py"))).raise_if_broken()',
            "",
        ]
    )


_OTHERS = {"np": "import numpy as np", "pytest": "import pytest"}
