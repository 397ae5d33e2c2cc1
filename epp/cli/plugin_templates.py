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
    example = [f"    plugins: [{{type: {type_name}, name: mine}}]", *(profile if t.in_profile else [])]
    manual = [
        f'"""{module}.py: {t.does[0].lower()}{t.does[1:]}',
        *("", "What it does", f"    {t.does}"),
        *("", "Reads", f"    {t.reads}"),
        *("", "Writes", f"    {t.writes}"),
        *("", "Parameters", "    None."),
        *("", "Example:", *example, '"""'),
    ]
    head = "\n".join(manual)
    return f'{head}\n\n{imports.lstrip()}\n\nclass {class_name}:\n    """{t.does}"""\n{t.body}'


def test_text(kind: str, module: str, class_name: str) -> str:
    """The file of its test."""
    t = KINDS[kind]
    wants_context = "context: Context" in t.body
    lines = ["from pathlib import Path", ""]
    if "np." in t.test:
        lines += ["import numpy as np"]
    lines += ["from epp.contract import check"]
    if "Outcome(" in t.test:
        lines += ["from epp.plugin import Outcome"]
    if t.fakes:
        lines += [f"from epp.testing import {', '.join(t.fakes)}"]
    lines += ["", f"from {module} import {class_name}"]
    made = f"{class_name}(context=context())" if wants_context else f"{class_name}()"
    return "\n".join(
        [
            *(*lines, "", "", f"def test_{module}():", f'    """{t.does}"""', f"    plugin = {made}"),
            *(t.test.strip("\n"), "", "", "def test_contract():", '    """What every plugin keeps to."""'),
            f'    check(str(Path(__file__).with_name("{module}.py"))).raise_if_broken()',
            "",
        ]
    )
