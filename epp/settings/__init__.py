"""Configuration: an `EndpointPickerConfig` text to a `Router`, strictly, with every error at once."""

from epp.settings import defaults
from epp.settings.document import read_file
from epp.settings.loader import Resolved, build, load, prepare, resolve
from epp.settings.problems import InvalidConfig, Problem
from epp.settings.registry import PluginClass, Registry, kinds

__all__ = [
    "InvalidConfig",
    "PluginClass",
    "Problem",
    "Registry",
    "Resolved",
    "build",
    "defaults",
    "kinds",
    "load",
    "prepare",
    "read_file",
    "resolve",
]
