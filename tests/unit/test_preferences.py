"""`Prefer` headers, as RFC 7240 writes them."""

import pytest

from epp.reading import preferences


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("if-available", {"if-available"}),
        ("respond-async, if-available; x=1", {"respond-async", "if-available"}),
        ("If-Available;a;b=2 , wait=10", {"if-available", "wait"}),
        ("if-available=1", {"if-available"}),
        ('note="a, if-available; b", return=minimal; foo="some \\" if-available"', {"note", "return"}),
        ("x; if-available", {"x"}),
        ("if-available-not", {"if-available-not"}),
        (", ,", set()),
    ],
)
def test_names(header: str, names: set[str]) -> None:
    """A list of preferences; values, and what stands behind a semicolon, are none of them."""
    assert preferences(header) == names
