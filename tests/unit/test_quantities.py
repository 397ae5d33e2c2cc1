"""Durations as Go spells them, quantities as Kubernetes does."""

import pytest

from epp.quantities import parse_bytes, parse_duration, parse_quantity, parse_size

DURATIONS = {
    "0": 0,
    "-0": 0,
    "+5s": 5,
    "30s": 30,
    "1m30s": 90,
    "1h2m3s": 3723,
    "500ms": 0.5,
    "-250ms": -0.25,
    ".5s": 0.5,
    "1.s": 1,
    "1.5h": 5400,
    "10us": 1e-5,
    "10\u00b5s": 1e-5,
    "10\u03bcs": 1e-5,
    "7ns": 7e-9,
    "1s1s": 2,
    "2562047h": 2562047 * 3600,
}

QUANTITIES = {
    "0": 0,
    "17": 17,
    "+17": 17,
    "-17": -17,
    "10k": 10_000,
    "25M": 25_000_000,
    "1G": 10**9,
    "3E": 3 * 10**18,
    "3E2": 300,
    "3e2": 300,
    "12e-1": 2,
    "32Mi": 32 * 1024**2,
    "0.5Gi": 512 * 1024**2,
    ".5Ki": 512,
    "1.": 1,
    "1500m": 2,
    "1n": 1,
    "-1500m": -1,
    "9223372036854775807": 2**63 - 1,
}


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "1 s", "1s ", ".s", "1d", "1S", "--1s", "1s-1s", "2562048h", "\u0661s"])
def test_what_go_refuses_as_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no duration|292 years"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "value"), QUANTITIES.items())
def test_a_quantity_is_read_as_a_whole_number(text: str, value: int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "k", "1K", "1ki", "1 Mi", "1e", "1e3Mi", "0x10", "1_000", "10E", "8Ei", "1e999"])
def test_what_kubernetes_refuses_as_a_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no quantity|64 bits"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("text", "value"), [("4194304", 4194304), ("10MiB", 10 * 1024**2), ("25MB", 25 * 10**6), ("32Mi", 2**25), ("5B", 5)]
)
def test_bytes_may_end_in_b(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "problem"), [("-1Mi", "negative"), ("10KB", "25MB, 32Mi"), ("BB", "25MB"), ("", "25MB")]
)
def test_bad_bytes_say_what_is_allowed(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2GiB", 2 * 2**30),
        ("500MB", 500_000_000),
        ("10KB", 10_000),
        ("1.5 gib", 3 * 2**29),
        (" 1,024 b", 1024),
        ("7", 7),
        ("3k", 3000),
    ],
)
def test_sizes(text: str, value: int) -> None:
    """As people write them: in any case, with or without B and spaces."""
    assert parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        *((text, "2GiB, 500MB") for text in ("2XB", "", "GiB", "-1MiB", "1e3")),
        ("0", "no room"),
        ("9EiB", "doesn't fit"),
    ],
)
def test_what_is_no_size(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_size(text)
