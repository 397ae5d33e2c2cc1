"""openai-parser: reads requests of OpenAI's API, and the usage out of the answers.

What it does
    Reads model, stream flag, token limit, cache salt and prompts out of the JSON body in one pass. A prompt is all that
    an engine's prefix cache depends on, as bytes in the order in which a chat template renders it: the template and its
    arguments, documents, tools, then each message with its role, content, tool calls and reasoning. Spacing and key
    order of the JSON don't enter, nor do sampling parameters, `user` and the like. A conversation that goes on has the
    bytes of the earlier one as its prefix.

    Text enters as UTF-8; pictures, sounds and other media as `MEDIA_BYTES` made of their digest, so that different ones
    differ, whatever `detail` is asked for; token ids as unsigned 32-bit little-endian integers. Bytes that UTF-8 never
    has keep the parts apart.

    | Path | Prompt |
    |---|---|
    | `chat/completions`, `chat/completions/render` | `messages` |
    | `completions`, `completions/render` | `prompt`, else `prompt_embeds`: text, texts, token ids, lists of token ids |
    | `embeddings` | `input` (as above), else `messages` |
    | `responses` | `instructions`, then `input`: text or items |
    | `conversations` | `items` |
    | `images/generations` | `prompt` |

    A request that no engine can take is refused with 400: what isn't JSON, lacks its prompt or has no model. What an
    engine may judge in its own way passes: a limit of "5" is 5, one of {} is none, unknown fields are skipped unread.

Reads
    The request's path and body, and the response's body if the body mode shows it.

Writes
    `Body`: `model`, `prompts`, `cache_salt`, `stream`, and `max_tokens` from `max_completion_tokens`,
    `max_output_tokens` or `max_tokens`. `Usage`: prompt, completion and cached tokens from the `usage` of a JSON answer
    or an event stream, or from `response.usage` in the Responses API. An answer with a content encoding such as gzip
    can't be read: its usage stays unknown.

Parameters
    None.

Example:
    plugins:
    - type: openai-parser
    requestHandler:
      parsers:
      - pluginRef: openai-parser

Where it departs from llm-d, and why
    - The errors are llm-d's, and say in addition where the fault is.
    - `conversations` needs no model: OpenAI's format has none there, so llm-d refuses every such request.
    - `embeddings` takes `messages`, and `completions` takes `prompt_embeds`, because vLLM does.
    - The template, its arguments, documents, tool calls and reasoning enter a chat's prompt: the engine renders them,
      so requests that differ in them share no more of its cache.
    - A picture, a sound and a video count as 224 tokens each. llm-d takes 225 for a picture whose size it doesn't know,
      and reads the size out of the picture's data where it can.
    - An answer's usage is found however its events are split over messages.
"""

from collections.abc import Mapping

from epp.plugin import Body, ResponseReader, formats


class OpenAIParser:
    """Reads requests of OpenAI's API, and the usage out of the answers."""

    paths: tuple[str, ...] = tuple(formats.openai.KINDS)
    model_paths = (("model",), ("response", "model"))

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Body:
        """Reads a request; BadRequest says what no engine could take."""
        return formats.openai.body(body, formats.openai.kind_of(path))

    def response(self, *, streaming: bool) -> ResponseReader:
        """A reader of a response's usage."""
        reader = formats.answers.EventUsage if streaming else formats.answers.JsonUsage
        return reader(formats.openai.USAGE)
