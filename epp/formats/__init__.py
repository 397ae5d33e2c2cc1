"""What plugins share: the bytes of prompts, usage in answers, gRPC frames, OpenAI's requests, pages of metrics.

Part of the SDK: plugins take it from there, as `from epp.plugin import formats`.
"""

from epp.formats import answers, exposition, grpc, openai, text

__all__ = ["answers", "exposition", "grpc", "openai", "text"]
