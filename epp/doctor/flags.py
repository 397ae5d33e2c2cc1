"""A picker's pod, read: its container, its flags, its ports."""

import re
from collections.abc import Mapping
from typing import Any

from epp.doctor.cluster import Object, at, name_of

_PORTS = {"grpc": 9002, "grpc-health": 9003, "metrics": 9090}
_OLD = {"grpc-ext-proc": "grpc", "http-metrics": "metrics"}  # as llm-d's charts call them
_REFERENCE = re.compile(r"\$(\$?)\(([-._a-zA-Z0-9]+)\)")


class Picker:
    """One pod of a picker, read: its container, its flags, its ports."""

    def __init__(self, pod: Object) -> None:
        self.pod = pod
        self.subject = name_of({"kind": "Pod", **pod})
        self.address = str(at(pod, "status", "podIP") or "")
        containers = at(pod, "spec", "containers") or [{}]
        named = [each for each in containers if each.get("name") in ("main", "epp")]
        self.container: Mapping[str, Any] = (named or containers)[0]
        self._environ: dict[str, str | None] = {}  # None for what a ConfigMap or a Secret says
        self._read_environ()
        written = (*(self.container.get("command") or ()), *(self.container.get("args") or ()))
        self.arguments = [self._expanded(str(each)) for each in written]

    def port(self, name: str) -> int:
        """The number of one of its ports: what its flag says, or how the container declares it, or the usual one."""
        said = self.flag(f"{name}-port") or ""
        if said.isdecimal():
            return int(said)
        for each in self.container.get("ports") or ():
            if _OLD.get(each.get("name"), each.get("name")) == name:
                return int(each["containerPort"])
        return _PORTS[name]

    def flag(self, name: str) -> str | None:
        """The last value of a flag; "" for a bare one, None if it isn't set. In kebab case, or in camel case.

        None, too, if its value has a variable in it that a ConfigMap or a Secret gives.
        """
        first, *rest = name.split("-")
        spellings = {name, first + "".join(word.capitalize() for word in rest)}
        value = None
        for index, argument in enumerate(self.arguments):
            key, has_value, text = argument.lstrip("-").partition("=")
            if key in spellings and argument.startswith("-"):
                following = self.arguments[index + 1] if index + 1 < len(self.arguments) else ""
                value = text if has_value else "" if following.startswith("-") else following
        return None if value and self._is_open(value) else value

    def _read_environ(self) -> None:
        for each in self.container.get("env") or ():
            field = str(at(each, "valueFrom", "fieldRef", "fieldPath") or "")
            text = at(self.pod, *field.split(".")) if each.get("valueFrom") else each.get("value", "")
            self._environ[str(each.get("name"))] = self._expanded(text) if isinstance(text, str) else None

    def _expanded(self, text: str) -> str:
        """With `$(NAME)` as Kubernetes writes it out: what it doesn't know stays, and `$$(NAME)` is for `$(NAME)`."""

        def value(found: re.Match[str]) -> str:
            known = self._environ.get(found[2])
            return found[0][1:] if found[1] else found[0] if known is None else known

        return _REFERENCE.sub(value, text)

    def _is_open(self, text: str) -> bool:
        """Whether there is a variable left in it whose value is said elsewhere."""
        names = [found[2] for found in _REFERENCE.finditer(text)]
        elsewhere = bool(self.container.get("envFrom"))
        return any(self._environ.get(name, "") is None or (elsewhere and name not in self._environ) for name in names)

    def leads_astray(self, target_port: int | str) -> str:
        """Why a Service's targetPort doesn't lead to its ext_proc; "" if it does, or leads to a container beside it."""
        wanted = self.port("grpc")
        declared = [
            (each.get("name"), int(each["containerPort"]), container is self.container)
            for container in at(self.pod, "spec", "containers") or ()
            for each in container.get("ports") or ()
        ]
        if isinstance(target_port, str) and target_port not in {name for name, _, _ in declared}:
            return f"no container has a port named {target_port!r}"
        number = next((number for name, number, _ in declared if name == target_port), target_port)
        right = {wanted} | {number for _, number, own in declared if not own}
        return "" if number in right else f"it serves ext_proc on {wanted}, not {number}"

    def on(self, name: str, *, default: bool = False) -> bool:
        """Whether a switch is on."""
        value = self.flag(name)
        return default if value is None else value.lower() not in {"false", "0", "f"}
