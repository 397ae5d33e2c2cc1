"""A request's text as the engine sees it: tokens by position, and the contents of its blocks, made as they are needed.

The answer is known from the start, since the seed gives it; so the blocks that it will fill have their hashes before
they are computed, and only those that somebody asks for are ever made.
"""

from array import array
from collections.abc import Sequence
from typing import overload

import xxhash

from epp.engine.tokens import END, answer_token


def root_hash(*names: str | None) -> int:
    """The parent of a chain's first block; a LoRA adapter or a cache salt gives a chain of its own."""
    return xxhash.xxh3_64_intdigest("\0".join(name or "" for name in names).encode())


class Text(Sequence[int]):
    """The hashes of the full blocks of a prompt and its answer; each covers its whole prefix, adapter and salt too."""

    def __init__(
        self,
        prompt: "array[int]",
        block_size: int,
        output_tokens: int = 0,
        *,
        seed: int = 0,
        ends_itself: bool = False,
        answer: "array[int] | None" = None,
        lora: str | None = None,
        cache_salt: str | None = None,
    ) -> None:
        """The answer is ``answer`` as far as that goes, otherwise words that ``seed`` chooses.

        Its last token is the end of the message if it ``ends_itself``.
        """
        self.prompt_tokens = len(prompt)
        self.block_size = block_size
        self.lora = lora
        self.cache_salt = cache_salt
        self._tokens = array("I", prompt)
        self._size = len(prompt) + output_tokens
        self._seed = seed
        self._answer = answer or array("I")
        self._ends_itself = ends_itself
        self._hashes: list[int] = []
        self._root = root_hash(lora, cache_salt)

    def __len__(self) -> int:
        return self._size // self.block_size

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index >= len(self._hashes):
            if index >= len(self):
                raise IndexError(index)
            self._hash_up_to(index + 1)
        return self._hashes[index]

    def _hash_up_to(self, blocks: int) -> None:
        size = self.block_size
        parent = self._hashes[-1] if self._hashes else self._root
        self._write_up_to(blocks * size)
        for start in range(len(self._hashes) * size, blocks * size, size):
            parent = xxhash.xxh3_64_intdigest(self._tokens[start : start + size], seed=parent)
            self._hashes.append(parent)

    def tokens(self, start: int, stop: int) -> "array[int]":
        """The tokens at these positions of prompt and answer together."""
        self._write_up_to(min(stop, self._size))
        return self._tokens[start:stop]

    def answer(self, start: int, stop: int) -> "array[int]":
        """The tokens at these positions of the answer."""
        return self.tokens(self.prompt_tokens + start, self.prompt_tokens + stop)

    def _write_up_to(self, tokens: int) -> None:
        for position in range(len(self._tokens), tokens):
            self._tokens.append(self._token(position - self.prompt_tokens))

    def _token(self, position: int) -> int:
        if self._ends_itself and self.prompt_tokens + position + 1 == self._size:
            return END
        return self._answer[position] if position < len(self._answer) else answer_token(self._seed, position)
