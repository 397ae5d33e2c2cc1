"""Reads a few metrics out of a page in the Prometheus text format, in one pass of one regular expression.

A page has hundreds of lines of which a handful matter. The expression looks at the start of a line only, walks the
wanted names as a trie, and takes labels and value where one matches; no other line is looked at any closer. OpenMetrics
pages are read too, as far as they agree: exemplars, timestamps and `# EOF` are passed over.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from epp.errors import EppError

_LABELS = rb'(?:\{((?:[^"}\n]|"(?:[^"\\\n]|\\.)*+")*+)\})?'
_LINE = rb"\n[ \t]*+(%s)(?=[ \t{])[ \t]*+" + _LABELS + rb"[ \t]*+(\S++)"
_ANY_LINE = re.compile(
    rb"\n[ \t]*+(?:#[^\n]*|[A-Za-z_:][\w:]*+[ \t]*+" + _LABELS + rb"[ \t]*+[+-]?(?i:\d[\d.e+-]*+|nan|inf)"
    rb"(?:[ \t]++-?[\d.]++)?+[ \t\r]*+(?:#[^\n]*)?(?:\n|$))"
)
_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r'\\([\\n"])')


class ExpositionError(EppError):
    """The page is not in the Prometheus text format."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of a metric: its value, and its labels as they stand between the braces."""

    block: bytes
    value: float

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels by name; not to be changed."""
        return _parse_labels(self.block)


class Exposition:
    """Finds the samples of a fixed set of metrics.

    Args:
        names: of the samples, in full: `vllm:prompt_tokens_total`, not the family's name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._line = re.compile(_LINE % _any_of(names).encode())

    def read(self, page: bytes) -> dict[str, list[Sample]]:
        """The samples on the page, by metric, in the page's order; metrics that are not on it are left out.

        Raises:
            ExpositionError: a value is not a number, or the page is something else altogether.
        """
        found: dict[str, list[Sample]] = {}
        for name, block, value in self._line.findall(b"\n" + page):
            found.setdefault(name.decode(), []).append(Sample(block, _number(name, value)))
        if not found:
            _refuse_unless_exposition(page)
        return found


def _any_of(names: Iterable[str]) -> str:
    """An expression for any of the names, common prefixes factored out: it halves the time of a flat alternation."""
    tails: dict[str, list[str]] = {}
    for name in set(names):
        tails.setdefault(name[:1], []).append(name[1:])
    branches = [re.escape(head) + _any_of(rest) if head else "" for head, rest in sorted(tails.items(), reverse=True)]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _number(name: bytes, value: bytes) -> float:
    try:
        if b"_" in value:  # Python's digit separator is no part of the format
            raise ValueError
        return float(value)
    except ValueError:
        raise ExpositionError(f"the line of {name.decode()} is damaged at {value[:40]!r}") from None


@lru_cache(maxsize=8192)  # label sets hardly change from one scrape to the next, and are alike across endpoints
def _parse_labels(block: bytes) -> Mapping[str, str]:
    labels = _LABEL.findall(block.decode("utf-8", "replace"))
    return {name: _ESCAPE.sub(_unescaped, value) if "\\" in value else value for name, value in labels}


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


def _refuse_unless_exposition(page: bytes) -> None:
    start = page.lstrip()[:60]
    if not start:
        raise ExpositionError("the page is empty")
    if start.startswith(b"<"):
        raise ExpositionError(f"the page is HTML, not metrics: {start!r}; is the metrics path right?")
    if start.startswith((b"{", b"[")):
        raise ExpositionError("the page is JSON, not metrics (trtllm-serve has its metrics at /prometheus/metrics)")
    if not _ANY_LINE.search(b"\n" + page):
        raise ExpositionError(f"the page is not in the Prometheus text format; it begins with {start!r}")
