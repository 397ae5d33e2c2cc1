"""Which model a request is for in place of the one that the client names, and how its body says so. Pure."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from epp.errors import BadRequest
from epp.extproc.events import Arrival
from epp.objects import Objects
from epp.plugin import Plugged, Request
from epp.splice import Path, replaced

HEADER, ALIAS = "x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What becomes of a model's name.

    Attributes:
        rule: the InferenceModelRewrite that says so; "" if the client's header does.
        client: the name that the client knows; "" if it names none.
        target: the name that the engine knows.
        paths: the places of the name in an answer or an event.
    """

    rule: str
    client: str
    target: str
    paths: tuple[Path, ...]

    @property
    def changes(self) -> bool:
        """Whether the two names differ."""
        return self.client != self.target


def rewriting_of(
    request: Request, arrival: Arrival, parsers: tuple[Plugged, ...], objects: Objects, source: random.Random
) -> Rewriting | None:
    """What the objects or the client's header make of the request's model; None to leave it.

    A rule beats the header. Nothing is rewritten where the parser can't, or where the body mode doesn't let us.
    """
    asked = _asked(request.headers)
    if not (asked or objects.rewrites) or arrival.partial or arrival.fixed:
        return None
    parser = next((plugged for plugged in parsers if plugged.name == request.parser), None)
    paths = getattr(parser.plugin, "model_paths", ()) if parser is not None else ()
    rule = objects.rule(request.model)
    target = rule.target(source) if rule is not None else asked
    if not paths or not target:
        return None
    return Rewriting(rule.name if rule is not None else "", request.model, target, tuple(paths))


def renamed_cards(objects: Objects, served: Mapping[str, Raw]) -> dict[str, Raw]:
    """The models that rewrites offer under names of their own, as an engine describes the first of them that is served.

    Args:
        objects: the rules in force; one for every model offers no name.
        served: what engines say of their models, by name.
    """
    found: dict[str, Raw] = {}
    for name, rule in objects.exact.items():
        card = next((served[target] for target in rule.targets if target in served), None)
        if card is not None and name not in served:
            found[name] = Raw(msgspec.json.encode(msgspec.json.decode(card, type=dict[str, Any]) | {"id": name}))
    return found


def _asked(headers: Mapping[str, str]) -> str:
    return headers.get(HEADER) or headers.get(ALIAS) or ""


def rewritten(body: bytes, rewriting: Rewriting) -> bytes:
    """The body with the target's name; the same otherwise, byte for byte.

    Raises:
        BadRequest: it is no JSON object, so that a parser must have read something else out of it.
    """
    try:
        return replaced(body, "model", rewriting.target)
    except ValueError as error:
        raise BadRequest(f"the model's name can't be rewritten: {error}") from error
