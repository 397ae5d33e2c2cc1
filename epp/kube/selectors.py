"""Label selectors as text: `app=llama,tier!=test,role in (decode,both),gpu,!spot`."""

import re
from collections.abc import Callable, Mapping, Sequence

from epp.errors import ConfigError

Matches = Callable[[Mapping[str, str]], bool]

_KEY = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)?"
_SET = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)")
_EQUALS = re.compile(rf"({_KEY})\s*(==|=|!=)\s*({_VALUE})")
_EXISTS = re.compile(rf"(!?)\s*({_KEY})")
_SEPARATOR = re.compile(r",(?![^()]*\))")


def parse_selector(text: str) -> Matches:
    """A function that says whether labels match; an empty selector matches everything.

    Raises:
        ConfigError: naming the part that isn't a requirement.
    """
    requirements = [_requirement(part) for part in split_selector(text)]
    return lambda labels: all(holds(labels) for holds in requirements)


def split_selector(text: str) -> Sequence[str]:
    """The requirements of which a selector consists, each a selector of its own; they aren't checked."""
    return [part.strip() for part in _SEPARATOR.split(text)] if text.strip() else []


def format_selector(labels: Mapping[str, str]) -> str:
    """The selector that asks for exactly these labels, and takes others besides."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _requirement(part: str) -> Matches:
    if found := _SET.fullmatch(part):
        key, values = found[1], {value.strip() for value in found[3].split(",")}
        if all(re.fullmatch(_VALUE, value) for value in values):
            if found[2] == "in":
                return lambda labels: labels.get(key) in values
            return lambda labels: labels.get(key) not in values
    elif found := _EQUALS.fullmatch(part):
        key, value = found[1], found[3]
        if found[2] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    elif found := _EXISTS.fullmatch(part):
        key, wanted = found[2], not found[1]
        return lambda labels: (key in labels) == wanted
    raise ConfigError(f"{part!r} is no requirement of a label selector: key=value, key!=value, key in (a,b), key, !key")
