"""What is replayed: requests as pieces of text, so that a trace without text keeps exactly what its prompts share.

A piece stands for a text that its number determines: equal numbers are equal text, and a shorter piece of a number is
the beginning of a longer one. A token is four bytes everywhere: in the prompt that the picker gets, where that is the
estimate of llm-d's token producer, and in the simulated engine, whose pseudo tokens they are. A prompt of any length
is made when its request arrives and forgotten when it has been routed.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

TOKEN_BYTES = 4
"""As in `epp.request.BYTES_PER_TOKEN` and `epp.engine.tokens`."""

_DIGITS = 16  # the text of a piece is its number in hexadecimal, over and over


class Piece(NamedTuple):
    """So many tokens of the text with this number; the text depends on the lower 64 bits of the number."""

    text: int
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One request.

    Attributes:
        at: when it comes, seconds from the start at the workload's own pace.
        prompt: what it asks, from the start of the context.
        answer: what the engine answers.
        follows: the index of the turn whose answer must have ended before this one comes; None for none.
    """

    at: float
    prompt: tuple[Piece, ...]
    answer: Piece
    follows: int | None = None

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt."""
        return sum(piece.tokens for piece in self.prompt)


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in the order of their times.

    Attributes:
        remarks: what whoever reads figures of it should know, a sentence each.

    Raises:
        ValueError: there are none, or they are out of order.
    """

    name: str
    turns: tuple[Turn, ...]
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"{self.name}: there are no requests")
        times = [turn.at for turn in self.turns]
        if times != sorted(times):
            raise ValueError(f"{self.name}: the requests are not in the order of their times")

    def __len__(self) -> int:
        return len(self.turns)

    def __repr__(self) -> str:
        return f"<Workload {self.name}: {len(self)} requests, {self.rate:g} a second>"

    @cached_property
    def rate(self) -> float:
        """Requests a second at its own pace; all at once count as within a second."""
        span = self.turns[-1].at - self.turns[0].at
        return len(self.turns) / span if span > 0 else float(len(self.turns))

    @cached_property
    def longest(self) -> int:
        """The most tokens of a request, prompt and answer."""
        return max(turn.prompt_tokens + turn.answer.tokens for turn in self.turns)

    @cached_property
    def texts(self) -> "Texts":
        """The tree of all texts of this workload."""
        return Texts(self.turns)


class Texts:
    """The tree of all texts: what comes after what, so that two contexts have a node in common as far as they agree.

    Attributes:
        nodes: for each turn the nodes of its pieces, the answer's last.
        known: for each turn how many tokens of its prompt had been there before, in a prompt or an answer.
    """

    def __init__(self, turns: tuple[Turn, ...]) -> None:
        numbers: dict[tuple[int, int, int], int] = {}  # the node of a text after so many tokens of another node
        longest = [0]
        nodes: list[tuple[int, ...]] = []
        known: list[int] = []
        for turn in turns:
            path: list[int] = []
            node, length, found, matching = 0, 0, 0, True
            for piece in (*turn.prompt, turn.answer):
                node = numbers.setdefault((node, length, piece.text), len(longest))
                if node == len(longest):
                    longest.append(0)
                length = piece.tokens
                if matching and len(path) < len(turn.prompt):
                    found += min(longest[node], length)
                    matching = longest[node] >= length
                longest[node] = max(longest[node], length)
                path.append(node)
            nodes.append(tuple(path))
            known.append(found)
        self._tokens = [turn.prompt_tokens for turn in turns]
        self.nodes = tuple(nodes)
        self.known = tuple(known)

    def ideal_hit_ratio(self, warm_up: float = 0.0) -> float:
        """The share of the prompts' tokens that one endless cache would have: the most that routing can reach.

        Args:
            warm_up: the share of the turns, the first ones, that is left out.
        """
        first = int(warm_up * len(self.known))
        return sum(self.known[first:]) / sum(self._tokens[first:])

    def contents(self, index: int, turn: Turn, block: int) -> list[int]:
        """The contents of the context's full blocks, as the engine model wants them: equal for equal prefixes.

        A block that ends in a piece is named by the piece's node, which stands for all that comes before, and by its
        own place.

        Args:
            index: the turn's.
            turn: the turn itself.
            block: tokens of a block.
        """
        found: list[int] = []
        end = 0
        for node, piece in zip(self.nodes[index], (*turn.prompt, turn.answer), strict=True):
            first, end = len(found), end + piece.tokens
            base = node << _PLACES
            found.extend(range(base + first, base + end // block))
        return found


_PLACES = 24  # bits for a block's place: contexts of up to 16 million blocks


def text(pieces: tuple[Piece, ...]) -> bytes:
    """The pieces as ASCII, four bytes a token."""
    return b"".join([_text(piece.text, piece.tokens * TOKEN_BYTES) for piece in pieces])


def _text(number: int, size: int) -> bytes:
    unit = b"%016x" % (number & 0xFFFFFFFFFFFFFFFF)
    return (unit * (size // _DIGITS + 1))[:size]
