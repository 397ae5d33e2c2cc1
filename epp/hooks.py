"""What of a configuration is looked up at every request, looked up once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from epp.keys import INFLIGHT_REQUESTS, INFLIGHT_TOKENS, Key
from epp.plugin import Plugged, Router

Hook = tuple[Plugged, Callable[..., Any]]


class Users:
    """How many streams are under way with a configuration.

    Attributes:
        count: the streams.
        at_rest: called, once, when the last one has ended; set when no further ones can come.
    """

    __slots__ = ("at_rest", "count")

    def __init__(self) -> None:
        self.count = 0
        self.at_rest: Callable[[], None] | None = None

    def leave(self) -> None:
        """A stream has ended."""
        self.count -= 1
        if self.at_rest is not None:
            self.no_more(self.at_rest)

    def no_more(self, at_rest: Callable[[], None]) -> None:
        """No further streams come: calls the function now if there are none left, or else as soon as there are none."""
        self.at_rest = at_rest if self.count else None
        if not self.count:
            at_rest()


@dataclass(frozen=True, slots=True, eq=False)
class Hooks:
    """The observers' methods by name, and the keys of the prefix index if there is one.

    Attributes:
        matched: the column of prompt tokens that an endpoint is believed to hold.
        matchable: the column of prompt tokens that could match.
        indexer: name and type of the plugin that writes them.
        uncached: the column of prompt tokens that an endpoint would have to compute, if somebody writes one.
        answer_tokens: tells with how many tokens an answer is charged; None if answers aren't charged.
        users: the streams that have begun with this configuration and have not ended.
        shadow: the same of the shadow; None for none. Its observers of responses are among those above.
        reads: of a shadow, the columns of the pool that it has been seen to read.
    """

    router: Router
    picked: tuple[Hook, ...]
    request_headers: tuple[Hook, ...]
    destination: tuple[Hook, ...]
    response_headers: tuple[Hook, ...]
    response_metadata: tuple[Hook, ...]
    first_byte: tuple[Hook, ...]
    done: tuple[Hook, ...]
    matched: Key | None
    matchable: Key | None
    indexer: tuple[str, str] | None
    uncached: Key | None
    answer_tokens: Hook | None
    users: Users
    shadow: "Hooks | None"
    reads: set[Key]

    @classmethod
    def of(cls, router: Router) -> "Hooks":
        """The hooks of a configuration."""
        named = {key.name: key for key in _written(router.producers)}
        by_name = {plugged.name: (plugged.name, plugged.type) for plugged in router.producers}
        matched = named.get("matched_tokens")
        shadow = cls.of(router.shadow) if router.shadow is not None else None
        return cls(
            router,
            picked=_methods(router, "picked"),
            request_headers=_methods(router, "request_headers"),
            destination=_methods(router, "destination"),
            response_headers=_methods(router, "response_headers"),
            response_metadata=_methods(router, "response_metadata"),
            first_byte=_methods(router, "first_byte") + (shadow.first_byte if shadow else ()),
            done=_methods(router, "done") + (shadow.done if shadow else ()),
            matched=matched,
            matchable=named.get("matchable_tokens"),
            indexer=by_name.get(matched.producer) if matched is not None else None,
            uncached=named.get("uncached_tokens"),
            answer_tokens=_charging(router),
            users=Users(),
            shadow=shadow,
            reads={INFLIGHT_REQUESTS, INFLIGHT_TOKENS},
        )


def _methods(router: Router, name: str) -> tuple[Hook, ...]:
    found = [(plugged, getattr(plugged.plugin, name, None)) for plugged in router.observers]
    return tuple((plugged, method) for plugged, method in found if method is not None)


def _charging(router: Router) -> Hook | None:
    found = [plugged for plugged in router.producers if getattr(plugged.plugin, "charges_answers", False)]
    return (found[0], found[0].plugin.answer_tokens) if found else None


def _written(producers: Iterable[Plugged]) -> Iterable[Key]:
    for plugged in producers:
        yield from getattr(plugged.plugin, "writes", ())
