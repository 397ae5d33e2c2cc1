"""Profile handlers."""

import pytest
from epp_plugins.profile_handlers import SingleProfileHandler

from epp.settings import Registry, resolve
from epp.testing import context, request


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


HEADER = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: header-profile-handler, parameters: {defaultProfile: %s}}, {type: queue-scorer}]
schedulingProfiles: [%s]
"""


@pytest.mark.parametrize(
    ("default", "profiles", "warned"),
    [
        pytest.param("decode", "{name: a}, {name: b}", True, id="none"),
        pytest.param("b", "{name: a}, {name: b}", False, id="one of them"),
        pytest.param("decode", "{name: a}", False, id="the only one"),
    ],
)
def test_a_default_profile_that_isnt_there(default, profiles, warned):
    """It is said that requests without the header will be refused."""
    warnings = resolve(HEADER % (default, profiles), "f", Registry.installed(), context).router.warnings
    message = (
        "plugins[0].parameters: requests without the header EPP-Profile are refused: no profile is called 'decode', "
        "which defaultProfile names; there are: a, b"
    )
    assert [said for said in warnings if "EPP-Profile" in said] == ([message] if warned else [])
