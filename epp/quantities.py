"""The two spellings that Go and Kubernetes have for numbers: durations (`1m30s`) and quantities (`32Mi`).

Flags and configuration files read both with these functions; bad text is a ValueError that says what is allowed.
"""

import re
from decimal import ROUND_CEILING, Context, Decimal

_LARGEST = 2**63 - 1
"""Go holds nanoseconds and quantities in an int64; what overflows there is an error here."""

_SECONDS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "\u00b5s": Decimal("1e-6"),  # the micro sign
    "\u03bcs": Decimal("1e-6"),  # the Greek letter
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PART = re.compile(rf"({_NUMBER})(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_DURATION = re.compile(rf"([+-]?)((?:{_PART.pattern})+|0)")

_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
}
_QUANTITY = re.compile(rf"([+-]?{_NUMBER})(?:[eE]([+-]?[0-9]{{1,3}})|([numkMGTPE]|[KMGTPE]i)?)")
_SIZE = re.compile(r"([0-9][0-9,]*(?:\.[0-9]*)?)\s*(?:([kmgtpe])(i?))?b?", re.IGNORECASE)
_EXACT = Context(prec=2000)  # of any number of digits that a command line or a file is likely to hold


def parse_duration(text: str) -> float:
    """A Go duration in seconds: numbers with units, such as `30s`, `1m30s`, `1.5h`, `-250ms`; and `0`.

    Raises:
        ValueError: it is none, or longer than 292 years.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration: write it like 30s, 1m30s or 500ms (units ns, us, ms, s, m, h)")
    seconds = sum((Decimal(number) * _SECONDS[unit] for number, unit in _PART.findall(match[2])), Decimal(0))
    if seconds * 10**9 > _LARGEST:
        raise ValueError(f"{text!r} is longer than 292 years")
    return float(-seconds if match[1] == "-" else seconds)


def parse_quantity(text: str) -> int:
    """A Kubernetes quantity as a whole number, rounded up: `5`, `10k`, `32Mi`, `1.5G`, `1e3`.

    Raises:
        ValueError: it is none, or doesn't fit in 64 bits.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no quantity: write it like 1000, 10k, 25M or 32Mi")
    digits, exponent, suffix = match.groups()
    factor = _SUFFIXES[suffix or ""] if exponent is None else Decimal(10) ** int(exponent)
    value = int(_EXACT.multiply(Decimal(digits), factor).to_integral_value(ROUND_CEILING))
    if abs(value) > _LARGEST:
        raise ValueError(f"{text!r} doesn't fit in 64 bits")
    return value


def parse_bytes(text: str) -> int:
    """A number of bytes: a quantity, of which llm-d allows a trailing `B` (`10MiB`, `25MB`).

    Raises:
        ValueError: it is none, or negative.
    """
    try:
        value = parse_quantity(text.removesuffix("B"))
    except ValueError:
        raise ValueError(f"{text!r} is no number of bytes: write it like 4194304, 25MB, 32Mi or 32MiB") from None
    if value < 0:
        raise ValueError(f"{text!r} is negative")
    return value


def parse_size(text: str) -> int:
    """A number of bytes as people write it, in any case: `2GiB`, `500 MB`, `1.5g`, `1,024`.

    Raises:
        ValueError: it is none, or 0.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: write it like 2GiB, 500MB or 1048576")
    digits, letter, binary = match.groups(default="")
    prefix = "k" if letter in {"k", "K"} and not binary else letter.upper()
    size = parse_quantity(digits.replace(",", "") + prefix + binary.lower())
    if size == 0:
        raise ValueError(f"{text!r} is no room at all: write it like 2GiB, 500MB or 1048576")
    return size
