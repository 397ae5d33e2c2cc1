"""The deprecated names of plugin types that llm-d's picker has; all of its types are registered."""

from collections.abc import Mapping

ALIASES: Mapping[str, str] = {
    "by-label-selector": "label-selector-filter",
    "model-server-protocol-metrics": "core-metrics-extractor",
    "tokenizer": "token-producer",
}
"""Deprecated type names with the same parameters under a new name."""

DIVIDED: Mapping[str, tuple[str, ...]] = {
    "precise-prefix-cache-scorer": ("prefix-cache-scorer", "precise-prefix-cache-producer")
}
"""Types that were, whose work several have now; the first is of their kind."""
