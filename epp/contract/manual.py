"""A plugin's manual: the docstring of its module, by sections."""

import textwrap
from typing import Any

import yaml

SECTIONS = ("What it does", "Reads", "Writes", "Parameters", "Example", "Where it departs from llm-d, and why")
"""In this order; the last one only for a plugin that llm-d has too."""


def sections(manual: str) -> dict[str, str]:
    """The sections by heading: a heading stands at the margin, what it is about is indented."""
    parts: dict[str, str] = {}
    heading = ""
    for line in manual.splitlines():
        if line and not line[0].isspace():
            heading = line.rstrip(":")
        else:
            parts[heading] = parts.get(heading, "") + line + "\n"
    return {heading: textwrap.dedent(text).strip() for heading, text in parts.items()}


def example(manual: str) -> dict[str, Any]:
    """The section "Example" as a configuration without its head; empty if there is none.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    value = yaml.safe_load(sections(manual).get("Example", ""))
    return value if isinstance(value, dict) else {}
