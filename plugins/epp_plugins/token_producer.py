"""token-producer: how the tokens of a prompt are counted.

What it does
    Says that tokens are estimated from the prompt's bytes, 4 to a token, which is what happens without it, too. A
    picture, a sound and a video count as 224 tokens each, whatever their size.

    A tokenizer of its own (`vllm`, `udsTokenizerConfig`) isn't asked yet: a file that has one loads, with a warning,
    and tokens are estimated.

Reads
    Nothing.

Writes
    Nothing.

Parameters
    - `estimate` ({}): `image`, `video`: accepted, see above.
    - `vllm` (none): `url` (http://localhost:8000), `timeout` (5s), `mmTimeout` (30s): see above.
    - `modelName` (""): required with `vllm`.
    - `udsTokenizerConfig` (none): deprecated.

    Of `estimate`, `vllm` and `udsTokenizerConfig` one may be given.

Example:
    plugins:
    - type: token-producer
      parameters:
        estimate: {}
    - type: prefix-cache-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: prefix-cache-scorer

Where it departs from llm-d, and why
    - `vllm` isn't built yet. There every request waits for an answer of the tokenizer's before it is scheduled.
    - The sizes of pictures and videos don't enter.
"""

from typing import Any

from pydantic import Field, model_validator

import epp.plugin
from epp.plugin import Duration


class Estimate(epp.plugin.Parameters):
    """`estimate`."""

    image: dict[str, Any] | None = None
    video: dict[str, Any] | None = None


class Render(epp.plugin.Parameters):
    """`vllm`."""

    url: str = "http://localhost:8000"
    timeout: Duration = 5.0
    mm_timeout: Duration = 30.0


class TokenParameters(epp.plugin.Parameters):
    """See the module's manual."""

    estimate: Estimate | None = None
    vllm: Render | None = None
    model_name: str = ""
    uds_tokenizer_config: dict[str, Any] | None = Field(default=None, deprecated='write "vllm"')

    @model_validator(mode="after")
    def _one_backend(self) -> "TokenParameters":
        given = [name for name in ("estimate", "vllm", "uds_tokenizer_config") if dict(self)[name] is not None]
        if len(given) > 1:
            raise ValueError("one of estimate, vllm and udsTokenizerConfig may be given")
        if self.vllm is not None and not self.model_name:
            raise ValueError("vllm needs modelName")
        return self


class TokenProducer:
    """Says how tokens are counted: estimated from bytes."""

    kind = "tokenizer"
    Parameters = TokenParameters

    def __init__(self, parameters: TokenParameters) -> None:
        said = dict(parameters)
        asked = said["vllm"] is not None or said["uds_tokenizer_config"] is not None
        sizes = said["estimate"] is not None and said["estimate"] != Estimate()
        self.remarks = [
            *(["the tokenizer isn't asked yet: tokens are estimated, 4 bytes each"] if asked else []),
            *(["the sizes of pictures and videos don't enter: each counts as 224 tokens"] if sizes else []),
        ]
