"""The types of value that a flag of `epp serve` can have, spelt as Go spells them."""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from epp.extproc.ciphers import KNOWN_SUITES
from epp.quantities import parse_bytes, parse_duration

BODY_MODES = ("FULL_DUPLEX_STREAMED", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "NONE")
TLS_VERSIONS = ("VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13")


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of value.

    Attributes:
        label: stands for the value in `--help`; "" for a boolean, which takes none.
        parse: text to value, or to a tuple of values if `many`; raises ValueError with what is allowed.
        many: whether a repeated flag adds to what came before, where another one replaces it.
    """

    label: str
    parse: Callable[[str], Any]
    many: bool = False


def _bool(text: str) -> bool:
    if text in {"1", "t", "T", "true", "TRUE", "True"}:
        return True
    if text in {"0", "f", "F", "false", "FALSE", "False"}:
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _int(text: str) -> int:
    if not re.fullmatch(r"[+-]?(0|[1-9][0-9_]*|0[xX][0-9a-fA-F_]+|0[oO]?[0-7_]+|0[bB][01_]+)", text):
        raise ValueError(f"{text!r} is no whole number")
    octal = re.fullmatch(r"([+-]?)0([0-7_]+)", text)
    return int(f"{octal[1]}0o{octal[2]}" if octal else text, 0)


def _port(text: str) -> int:
    port = _int(text)
    if not 0 <= port <= 65535:
        raise ValueError(f"{port} is no port: 0 to 65535")
    return port


def _duration(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < 0:
        raise ValueError(f"{text!r} is negative")
    return seconds


def _grpc_bytes(text: str) -> int | None:
    size = parse_bytes(text) if text else None
    if size is not None and size >= 2**31:
        raise ValueError(f"{text!r} is more than gRPC can take: less than 2Gi")
    return size


def _count(text: str) -> int:
    number = _int(text)
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number


def _address(text: str) -> str:
    address = text.removeprefix("[").removesuffix("]")
    return "" if not address else "127.0.0.1" if address == "localhost" else str(ipaddress.ip_address(address))


def _metrics_path(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} doesn't begin with a slash")
    return text


def _list(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(parse(item.strip()) for item in text.split(",") if item.strip())


def _choice(*names: str, spelling: Callable[[str], str] = str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if spelling(text) not in names:
            raise ValueError(f"{text!r} is none of {', '.join(name for name in names if name)}")
        return spelling(text)

    return parse


def _level(text: str) -> int | None:
    """Zap's levels as verbosity: names, or the number that -v would be given."""
    names = {"": None, "debug": 4, "info": 2, "warn": 1, "error": 0, "dpanic": 0, "panic": 0, "fatal": 0}
    if text.lower() in names:
        return names[text.lower()]
    if not text.isdecimal():
        raise ValueError(f"{text!r} is neither a number nor one of debug, info, warn, error, panic")
    return int(text)


BOOL = Kind("", _bool)
INT = Kind("N", _int)
PORT = Kind("PORT", _port)
PORTS = Kind("PORT,...", _list(_port), many=True)
TEXT = Kind("TEXT", str)
FILE = Kind("FILE", str)
FOLDER = Kind("DIR", str)
LIST = Kind("IP:PORT,...", _list(str), many=True)
SUITES = Kind("NAME,...", _list(_choice(*KNOWN_SUITES)), many=True)
DURATION = Kind("DURATION", _duration)
SIZE = Kind("BYTES", _grpc_bytes)
BYTES = Kind("BYTES", parse_bytes)
COUNT = Kind("N", _count)
ADDRESS = Kind("IP", _address)
PATH = Kind("PATH", _metrics_path)
LEVEL = Kind("LEVEL", _level)
BODY_MODE = Kind("MODE", _choice(*BODY_MODES, spelling=lambda text: text.upper().replace("-", "_")))
TLS_VERSION = Kind("VERSION", _choice("", *TLS_VERSIONS))
SCHEME = Kind("http|https", _choice("", "http", "https", spelling=str.lower))
ENCODER = Kind("json|console", _choice("json", "console", spelling=str.lower))
