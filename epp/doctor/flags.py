"""A picker's pod, read: its container, its flags, its ports."""

from collections.abc import Mapping
from typing import Any

from epp.doctor.cluster import Object, at, name_of

_PORTS = {"grpc": 9002, "grpc-health": 9003, "metrics": 9090}
_OLD = {"grpc-ext-proc": "grpc", "http-metrics": "metrics"}  # as llm-d's charts call them


class Picker:
    """One pod of a picker, read: its container, its flags, its ports."""

    def __init__(self, pod: Object) -> None:
        self.pod = pod
        self.subject = name_of({"kind": "Pod", **pod})
        self.address = str(at(pod, "status", "podIP") or "")
        containers = at(pod, "spec", "containers") or [{}]
        named = [each for each in containers if each.get("name") in ("main", "epp")]
        self.container: Mapping[str, Any] = (named or containers)[0]
        self.arguments = [*(self.container.get("command") or ()), *(self.container.get("args") or ())]

    def port(self, name: str) -> int:
        """The number of one of its ports."""
        for each in self.container.get("ports") or ():
            if _OLD.get(each.get("name"), each.get("name")) == name:
                return int(each["containerPort"])
        return _PORTS[name]

    def flag(self, name: str) -> str | None:
        """The last value of a flag; "" for a bare one, None if it isn't set. In kebab case, or in camel case."""
        first, *rest = name.split("-")
        spellings = {name, first + "".join(word.capitalize() for word in rest)}
        value = None
        for index, argument in enumerate(self.arguments):
            key, has_value, text = str(argument).lstrip("-").partition("=")
            if key in spellings and str(argument).startswith("-"):
                following = str(self.arguments[index + 1]) if index + 1 < len(self.arguments) else ""
                value = text if has_value else "" if following.startswith("-") else following
        return value

    def on(self, name: str, *, default: bool = False) -> bool:
        """Whether a switch is on."""
        value = self.flag(name)
        return default if value is None else value.lower() not in {"false", "0", "f"}
