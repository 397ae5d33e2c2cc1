"""served-model-filter: keeps the endpoints that serve the request's model.

What it does
    With engines that serve different models behind one Envoy, a request goes to one that has its model, or its LoRA
    adapter. A model that nobody serves is a 404 that names the nearest one there is; one whose engines are all out, or
    not among those that the data plane allows, is a 503. An engine that doesn't say what it
    serves stays; so does everybody for a request without a model, and while all engines serve the same: then the engine
    itself says what it doesn't know, adapters that were loaded a moment ago included.

    It is on unless the configuration lists it with `enabled: false`. `GET /v1/models` lists the models of all engines
    where they differ, `GET /v1/models/NAME` tells of one.

Reads
    The engines' `/v1/models`, asked at the start and about every 10 seconds, and the request's model: the target, where
    a rewrite has chosen one.

Writes
    Nothing.

Parameters
    `enabled` (true): whether it looks at all.

Example:
    plugins:
    - type: served-model-filter

Where it departs from llm-d, and why
    llm-d has no such filter: there a pool serves one base model. Without Kubernetes there is one pool, and three
    engines with two models are one too.
"""

from epp import plugin
from epp.plugin import REPORTED, SERVED_MODELS, Candidates, Context, Mask, Request


class ServedModelFilter:
    """Keeps the endpoints that serve the request's model."""

    mandatory = True

    class Parameters(plugin.Parameters):
        """See the manual."""

        enabled: bool = True

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._enabled, self._pool = parameters.enabled, context.pool

    def screen(self, request: Request, c: Candidates) -> Mask | None:
        """True for who serves the model or doesn't say, shape (n,); None where all serve the same."""
        if not self._enabled or not request.model or not c.differ(SERVED_MODELS):
            return None
        return c.has(SERVED_MODELS, request.model) | ~c.has(SERVED_MODELS, REPORTED)

    def refusal(self, request: Request, c: Candidates) -> str:
        """Why nobody is left: what is asked for, and the nearest that there is; nothing if who serves it is out."""
        if c.anywhere(SERVED_MODELS, request.model):
            return ""
        served = c.members(SERVED_MODELS) - {REPORTED}
        return plugin.unknown_model(request.model, served.union(self._pool.objects.offered(served)))
