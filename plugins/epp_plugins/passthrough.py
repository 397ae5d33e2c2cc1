"""passthrough-parser: takes every request as it is.

What it does
    Claims every path that no other parser claims, and reads nothing of the body: no model, no prompts. Such a request
    can be of any format and is scheduled by load alone; scorers that need a prompt or a model give no points for it.

Reads
    Nothing.

Writes
    An empty `Body`. No usage: the answer isn't read.

Parameters
    None.

Example:
    plugins:
    - type: openai-parser
    - type: passthrough-parser
    requestHandler:
      parsers:
      - pluginRef: openai-parser
      - pluginRef: passthrough-parser

Where it departs from llm-d, and why
    llm-d's token producer fails for such a request, and with it everything that runs after it: the scorers see no load.
    Here a body without prompts is a prompt of length 0 to whoever needs one.
"""

from collections.abc import Mapping

from epp.plugin import Body

_EMPTY = Body()


class PassthroughParser:
    """Takes every request as it is: no model, no prompts, so load alone decides."""

    paths: tuple[str, ...] = ()

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Body:
        """Nothing of the body: no model, no prompts."""
        return _EMPTY

    def response(self, *, streaming: bool) -> None:
        """No usage is read."""
