"""An endpoint picker for LLM inference: mechanism. Policy is in ``epp_plugins``."""

__version__ = "0.1.0"
