"""Profile handlers."""

import pytest
from epp_plugins.profile_handlers import SingleProfileHandler

from epp.testing import request


@pytest.mark.parametrize("name", ["default", "decode"])
def test_single(name):
    """The only profile runs once, and is the primary one."""
    handler = SingleProfileHandler()
    handler.bind((name,))
    ran = []
    assert handler.decide(request(), ran.append) == name
    assert ran == [name]


@pytest.mark.parametrize("profiles", [("a", "b"), ()])
def test_single_needs_one(profiles):
    """It has nothing to say about several profiles."""
    with pytest.raises(ValueError, match="exactly one profile"):
        SingleProfileHandler().bind(profiles)
