"""The deprecated names of plugin types that llm-d's picker has; all of its types are registered."""

from collections.abc import Mapping

ALIASES: Mapping[str, str] = {
    "by-label-selector": "label-selector-filter",
    "model-server-protocol-metrics": "core-metrics-extractor",
    "tokenizer": "token-producer",
}
"""Deprecated type names with the same parameters under a new name."""
