"""What parsers of several APIs share: the bytes of prompts, usage in answers, gRPC frames, OpenAI's request.

Part of the SDK: plugins take it from there, as `from epp.plugin import formats`.
"""

from epp.formats import answers, grpc, openai, text

__all__ = ["answers", "grpc", "openai", "text"]
