"""The passthrough parser takes everything and reads nothing."""

import pytest
from epp_plugins.passthrough import PassthroughParser

from epp.plugin import Parser


def test_it_is_the_fallback() -> None:
    """A parser without paths is the fallback for every path."""
    parser = PassthroughParser()
    assert isinstance(parser, Parser)
    assert parser.paths == ()


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b'{"model":"m","prompt":"x"}'], ids=["empty", "binary", "json"])
def test_nothing_is_read(body: bytes) -> None:
    """Whatever the body is, there are no model and no prompts."""
    read = PassthroughParser().parse("/anything", {}, body)
    assert (read.model, read.prompts, read.cache_salt, read.stream, read.max_tokens) == ("", (), "", False, None)


@pytest.mark.parametrize("streaming", [True, False])
def test_answers_are_not_read(streaming: bool) -> None:
    assert PassthroughParser().response(streaming=streaming) is None
