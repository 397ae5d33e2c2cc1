"""Generated workloads, by name and seed: the shapes that published comparisons of routers use.

Each is a frozen dataclass whose fields are its numbers: `chat`, or `chat:sessions=30,requests=100`. How many there are
of requests, sessions and groups is said for each engine, so that a workload suits 8 of them and 64. Times are at a pace
of its own, and a replay scales them to the rate that it is told, as it does with a trace's.

Sessions overlap: as many as are told are under way from the start, each ends after any turn with the same probability,
and others begin at the rate at which they end. So the load is even from the first second to the last. A turn comes at
its time, but never before the answer that it follows has ended.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from heapq import heappop, heappush
from math import exp, log
from random import Random
from typing import Any

from epp.errors import ConfigError
from epp.replay.workload import Piece, Turn, Workload

Session = Iterator[tuple[tuple[Piece, ...], Piece, float]]
"""What a session asks, turn by turn: the whole prompt, the answer, seconds from this question to the next."""

SPEED = 40.0
"""Tokens a second at which whoever waits for an answer expects it to come."""


def new(random: Random, tokens: int) -> Piece:
    """A text that nobody else has."""
    return Piece(random.getrandbits(62), tokens)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lognormal lengths in tokens, cut off at both ends: the median, and the mean, which is above it."""

    median: float
    mean: float
    least: int
    most: int

    def draw(self, random: Random) -> int:
        """One of them; ln(mean / median) is half the variance of the logarithm."""
        sigma = (2 * log(self.mean / self.median)) ** 0.5
        return round(min(max(self.median * exp(random.gauss(0.0, sigma)), self.least), self.most))


def popular(random: Random, choices: Sequence[Piece]) -> Piece:
    """One of them, each as often as Zipf's law has it: the second half as often as the first, and so on."""
    return random.choices(choices, [1 / (rank + 1) for rank in range(len(choices))])[0]


def _at_random(random: Random, rate: float, asked: Sequence[tuple[tuple[Piece, ...], Piece]]) -> list[Turn]:
    """Requests that have nothing to do with one another, as a Poisson process."""
    now = 0.0
    turns = []
    for prompt, answer in asked:
        now += random.expovariate(rate)
        turns.append(Turn(now, prompt, answer))
    return turns


def _overlapping(
    random: Random, requests: int, sessions: int, cycle: float, turns: float, begin: Callable[[], Session]
) -> list[Turn]:
    """So many requests of sessions that overlap.

    Args:
        random: of the times.
        requests: how many turns there are in all.
        sessions: how many are under way at a time, on the average.
        cycle: mean seconds from one question of a session to its next.
        turns: mean turns of a session.
        begin: a new session.
    """
    due: list[tuple[float, int, Session, int | None]] = []
    for number in range(sessions):
        heappush(due, (random.expovariate(1 / cycle), number, begin(), None))
    rate = sessions / (cycle * turns)
    following = random.expovariate(rate)
    found: list[Turn] = []
    while len(found) < requests:
        if not due or following < due[0][0]:
            sessions += 1
            heappush(due, (following, sessions, begin(), None))
            following += random.expovariate(rate)
            continue
        at, number, session, previous = heappop(due)
        prompt, answer, pause = next(session)
        found.append(Turn(at, prompt, answer, previous))
        if random.random() >= 1 / turns:
            heappush(due, (at + pause, number, session, len(found) - 1))
    return found


@dataclass(frozen=True)
class SharedPrompts:
    """Groups of users under one system prompt each, in random order.

    The lengths are those of llm-d's published benchmark, which has 150 groups of 5 users.

    Attributes:
        groups: system prompts, for each engine.
        users: requests under each.
        shared: tokens of a system prompt.
        own: tokens of a user's own question.
        answer: tokens of an answer.
        rate: requests a second, for each engine.
    """

    groups: int = 75
    users: int = 5
    shared: int = 6_000
    own: int = 1_200
    answer: int = 1_000
    rate: float = 1.0

    def turns(self, random: Random, engines: int) -> list[Turn]:
        """The requests."""
        prompts = [new(random, self.shared) for _ in range(self.groups * engines)] * self.users
        random.shuffle(prompts)
        asked = [((prompt, new(random, self.own)), new(random, self.answer)) for prompt in prompts]
        return _at_random(random, self.rate * engines, asked)


@dataclass(frozen=True)
class LongDocuments(SharedPrompts):
    """Questions about long documents: 95,000 shared tokens, 5,000 own, 1,000 answered."""

    groups: int = 4
    users: int = 10
    shared: int = 95_000
    own: int = 5_000
    rate: float = 0.2


@dataclass(frozen=True)
class Chat:
    """People who talk: every turn repeats the whole conversation; the system prompts have Zipf's popularity.

    Attributes:
        requests: for each engine.
        sessions: conversations at a time, for each engine.
        system_prompts: how many there are in all.
        system: tokens of one.
        turns_mean: turns of a conversation.
        think: mean seconds from an answer's expected end to the next question, exponential.
        most: tokens of a context, answer included; a conversation that would exceed it forgets all but the last turn.
    """

    requests: int = 300
    sessions: int = 100
    system_prompts: int = 20
    system: int = 800
    turns_mean: float = 6.0
    think: float = 20.0
    most: int = 30_000

    def turns(self, random: Random, engines: int) -> list[Turn]:
        """The requests."""
        systems = [new(random, self.system) for _ in range(self.system_prompts)]
        cycle = self.think + 260 / SPEED
        counts = (self.requests * engines, self.sessions * engines)
        return _overlapping(random, *counts, cycle, self.turns_mean, lambda: self._talk(random, systems))

    def _talk(self, random: Random, systems: Sequence[Piece]) -> Session:
        asked, answered = Lengths(120, 300, 4, 8_000), Lengths(180, 260, 4, 2_000)
        layers: tuple[Piece, ...] = (popular(random, systems),)
        context = layers
        while True:
            question, answer = new(random, asked.draw(random)), new(random, answered.draw(random))
            context = _grown(context, question, answer, layers, self.most)
            yield context, answer, answer.tokens / SPEED + random.expovariate(1 / self.think)
            context = (*context, answer)


@dataclass(frozen=True)
class Agents:
    """Coding agents: long contexts that grow by what tools return, short gaps, now and then a person's question.

    New tokens a turn are lognormal with mean 6,000 and median 4,000, answers with 1,000 and 800. 70 % of the gaps are a
    tool's (mean 5 s), the others a person's (mean 30 s); 5 % of the turns begin a new context. Under every context lie
    a layer that all share, and one of its repository; repositories have Zipf's popularity.

    Attributes:
        requests: for each engine.
        sessions: agents at a time, for each engine.
        repositories: how many there are in all.
        shared: tokens of the layer that all share.
        repository: tokens of a repository's layer.
        turns_mean: turns of an agent.
        resets: share of turns that begin a new context.
        most: tokens of a context, answer included; an agent that would exceed it begins a new one. Published agents go
            up to 200,000; the default is less because the context of the default engine profile is 131,072.
    """

    requests: int = 120
    sessions: int = 30
    repositories: int = 40
    shared: int = 32_000
    repository: int = 10_000
    turns_mean: float = 15.0
    resets: float = 0.05
    most: int = 120_000

    def turns(self, random: Random, engines: int) -> list[Turn]:
        """The requests."""
        if self.most < 2 * (self.shared + self.repository):
            raise ConfigError(f"agents: most={self.most} leaves no room beside the shared layers")
        shared = new(random, self.shared)
        repositories = [new(random, self.repository) for _ in range(self.repositories)]
        cycle = 0.7 * 5.0 + 0.3 * 30.0 + 1_000 / SPEED
        counts = (self.requests * engines, self.sessions * engines)
        return _overlapping(random, *counts, cycle, self.turns_mean, lambda: self._work(random, shared, repositories))

    def _work(self, random: Random, shared: Piece, repositories: Sequence[Piece]) -> Session:
        room = (self.most - self.shared - self.repository) // 2
        asked, answered = Lengths(4_000, 6_000, 50, room), Lengths(800, 1_000, 20, min(8_000, room))
        layers: tuple[Piece, ...] = (shared, popular(random, repositories))
        context = layers
        while True:
            found, answer = new(random, asked.draw(random)), new(random, answered.draw(random))
            before = layers if random.random() < self.resets else context
            context = _grown(before, found, answer, layers, self.most)
            gap = random.expovariate(1 / (5.0 if random.random() < 0.7 else 30.0))
            yield context, answer, answer.tokens / SPEED + gap
            context = (*context, answer)


def _grown(
    context: tuple[Piece, ...], asked: Piece, answer: Piece, layers: tuple[Piece, ...], most: int
) -> tuple[Piece, ...]:
    """The context with what is asked now, upon the layers alone if there would be more tokens than that."""
    tokens = sum(piece.tokens for piece in context) + asked.tokens + answer.tokens
    return (*(context if tokens <= most else layers), asked)


@dataclass(frozen=True)
class Unshared:
    """Nobody shares anything: all that routing can do is to keep the load even.

    Attributes:
        requests: for each engine.
        prompt_median, prompt_mean: tokens of a prompt, lognormal.
        answer_median, answer_mean: tokens of an answer, lognormal.
        rate: requests a second, for each engine.
    """

    requests: int = 300
    prompt_median: float = 1_500.0
    prompt_mean: float = 3_000.0
    answer_median: float = 180.0
    answer_mean: float = 300.0
    rate: float = 2.0

    def turns(self, random: Random, engines: int) -> list[Turn]:
        """The requests."""
        asked = Lengths(self.prompt_median, self.prompt_mean, 16, 30_000)
        answered = Lengths(self.answer_median, self.answer_mean, 4, 2_000)
        several = range(self.requests * engines)
        prompts = [((new(random, asked.draw(random)),), new(random, answered.draw(random))) for _ in several]
        return _at_random(random, self.rate * engines, prompts)


@dataclass(frozen=True)
class Bursts:
    """Many equal requests at the same moment, nothing shared, then a pause.

    Attributes:
        bursts: how many.
        size: requests of one, for each engine.
        pause: seconds between two.
        prompt: tokens of a prompt.
        answer: tokens of an answer.
    """

    bursts: int = 5
    size: int = 10
    pause: float = 20.0
    prompt: int = 2_000
    answer: int = 200

    def turns(self, random: Random, engines: int) -> list[Turn]:
        """The requests."""
        return [
            Turn(burst * self.pause, (new(random, self.prompt),), new(random, self.answer))
            for burst in range(self.bursts)
            for _ in range(self.size * engines)
        ]


SHAPES: dict[str, type[Any]] = {
    "shared-prompts": SharedPrompts,
    "long-documents": LongDocuments,
    "chat": Chat,
    "agents": Agents,
    "unshared": Unshared,
    "bursts": Bursts,
}


def generate(said: str, engines: int, seed: int) -> Workload:
    """A generated workload: a name of `SHAPES`, perhaps with numbers, as `chat:sessions=30,requests=100`.

    Equal arguments give equal workloads.

    Raises:
        ConfigError: there is no such shape, it has no such number, or the numbers don't fit together.
    """
    name, _, numbers = said.partition(":")
    if name not in SHAPES:
        raise ConfigError(f"no workload {name!r}: there are {', '.join(SHAPES)}, and files")
    shape = SHAPES[name](**_numbers(name, numbers))
    return Workload(said, tuple(shape.turns(Random(f"{said}/{engines}/{seed}"), engines)))


def listing() -> str:
    """The shapes with their numbers and what they are, for a command line."""
    lines = []
    for name, shape in SHAPES.items():
        numbers = ",".join(f"{field.name}={field.default}" for field in fields(shape))
        lines.append(f"{name}:{numbers}\n    {str(shape.__doc__).splitlines()[0]}")
    return "\n".join(lines)


def _numbers(name: str, said: str) -> dict[str, Any]:
    kinds: dict[str, type[int | float]] = {
        field.name: float if isinstance(field.default, float) else int for field in fields(SHAPES[name])
    }
    found: dict[str, Any] = {}
    for item in filter(None, said.split(",")):
        key, _, value = item.partition("=")
        if key not in kinds:
            raise ConfigError(f"workload {name} has no number {key!r}: it has {', '.join(kinds)}")
        try:
            found[key] = kinds[key](value)
        except ValueError:
            raise ConfigError(f"workload {name}: {key}={value}: {kinds[key].__name__} is due") from None
        if not 0 < found[key] < float("inf"):
            raise ConfigError(f"workload {name}: {key}={value} must be above 0")
    return found
