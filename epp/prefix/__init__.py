"""Who has which prefix cached: chained block hashes of a prompt, and an index from chains to endpoints."""

from epp.prefix.hashing import Chain, Hasher
from epp.prefix.tree import PrefixIndex

__all__ = ["Chain", "Hasher", "PrefixIndex"]
