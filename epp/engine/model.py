"""vLLM's scheduler as a model: continuous batching, chunked prefill, a paged KV cache, preemption.

No I/O, no clock and no randomness of its own. A step has two halves: ``schedule`` chooses the batch and says how long
it computes, ``update`` applies what was computed. Whoever drives the model lets that time pass in between, for real
(``driver``) or in a virtual clock, and sees in the meantime what a real engine's page would show. Only ``update`` puts
blocks into the prefix cache: a twin that is admitted while they are being computed misses them.

The order is vLLM's: running requests first, each with its next token or its next chunk of prefill; then waiting ones,
first come first served, as long as the token budget, the sequence limit and the blocks last. When blocks run out, the
request admitted last gives its blocks back and computes them again later.
"""

from array import array
from collections import deque
from dataclasses import dataclass, field
from random import Random

from epp.engine.blocks import BlockPool, extend_chain, root_hash
from epp.engine.profiles import Profile, StepCost
from epp.engine.tokens import END, answer_token


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What one engine can do.

    Attributes:
        max_num_batched_tokens: the budget of a step, prefill and decode together.
        max_loras: adapters that may run at the same time; 0 = no limit.
        time_factor: multiplies every step's duration.
        jitter: standard deviation of a step's duration as a share of it; the factor stays within 0.3 and 1.7.
    """

    cost: StepCost
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_loras: int = 0
    time_factor: float = 1.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what vLLM refuses at start.

        Raises:
            ValueError: a limit is below one, or one request of full length does not fit into the blocks.
        """
        for name in ("num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        room = self.num_blocks * self.block_size
        if self.max_model_len > room:
            raise ValueError(
                f"max_model_len {self.max_model_len} needs more than the {room} tokens of {self.num_blocks} blocks "
                f"of {self.block_size}: lower it or add blocks"
            )

    @classmethod
    def of(cls, profile: Profile) -> "ModelConfig":
        """A named engine as it is in the table; ``dataclasses.replace`` changes parts of it."""
        return cls(
            profile.cost,
            profile.blocks,
            profile.block_size,
            profile.max_num_seqs,
            profile.max_num_batched_tokens,
            profile.max_model_len,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What is to be computed.

    Attributes:
        request_id: unique among the requests in the model.
        prompt: at least one token.
        output_tokens: how many tokens to produce; 0 for an embedding, which ends with its prefill.
        ends_itself: the last token is the end of the message (finish reason "stop"), else it is cut ("length").
        seed: chooses the words of the answer.
        lora: the adapter, whose prefix cache is its own.
        cache_salt: separates prefix caches further.
    """

    request_id: str
    prompt: "array[int]"
    output_tokens: int
    ends_itself: bool = False
    seed: int = 0
    lora: str | None = None
    cache_salt: str | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in the model: its tokens so far, the blocks it holds, and how far they are computed."""

    request: Request
    root: int
    tokens: "array[int]"
    arrived: float
    chain: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    committed: int = 0
    produced: int = 0
    admitted: bool = False

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be produced; 1 while decoding."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class Admission:
    """A request has left the waiting queue for the first time, with this much of its prompt found in the cache."""

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    queue_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a step computes, and for how long in seconds."""

    duration: float
    scheduled: tuple[tuple[Sequence, int], ...]
    admissions: tuple[Admission, ...]
    preempted: tuple[str, ...]
    prefill_tokens: int
    decode_sequences: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought: one token for each request in ``tokens``; those in ``finished`` have all of theirs."""

    tokens: tuple[tuple[str, int], ...]
    finished: tuple[tuple[str, str], ...]
    batch: Batch

    @property
    def duration(self) -> float:
        """Seconds from the step's start to these tokens."""
        return self.batch.duration


class Model:
    """One engine.

    State: ``waiting`` and ``running`` (queues of sequences), ``_sequences`` (all of them by id), ``pool`` (the blocks).
    """

    def __init__(self, config: ModelConfig, rng: Random | None = None) -> None:
        """An idle engine; ``rng`` is asked only if the configuration has jitter."""
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._sequences: dict[str, Sequence] = {}
        self._rng = rng or Random(0)

    def __repr__(self) -> str:
        return f"<Model {len(self.running)} running, {len(self.waiting)} waiting, {self.pool!r}>"

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, request: Request, now: float) -> None:
        """Puts a request at the end of the waiting queue.

        Raises:
            ValueError: the prompt is empty, the request is longer than the context, or its id is in use.
        """
        total = len(request.prompt) + request.output_tokens
        if not request.prompt or total > self.config.max_model_len:
            raise ValueError(f"a request of {total} tokens does not fit a context of {self.config.max_model_len}")
        if request.request_id in self._sequences:
            raise ValueError(f"request id {request.request_id!r} is in use")
        root = root_hash(request.lora, request.cache_salt)
        sequence = Sequence(request, root, array("I", request.prompt), now)
        extend_chain(sequence.chain, sequence.tokens, self.config.block_size, root)
        self._sequences[request.request_id] = sequence
        self.waiting.append(sequence)

    def abort(self, request_id: str) -> bool:
        """Forgets a request at once, wherever it is; False if it is not in the model (any more)."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)
        return True

    def step(self, now: float) -> StepResult:
        """Both halves at once, for a driver with nothing to do while the step lasts."""
        return self.update(self.schedule(now))

    def schedule(self, now: float) -> Batch:
        """The first half of a step: who computes how many tokens, in blocks allocated for them."""
        scheduled: list[tuple[Sequence, int]] = []
        preempted: list[str] = []
        budget = self._schedule_running(scheduled, preempted)
        admissions = [] if preempted else self._schedule_waiting(scheduled, budget, now)
        decodes = sum(1 for sequence, count in scheduled if count == 1 and sequence.produced)
        prefill = sum(count for _, count in scheduled) - decodes
        kv_tokens = sum(sequence.computed for sequence, _ in scheduled)
        seconds = self.config.cost.seconds(prefill, decodes, kv_tokens) * self.config.time_factor * self._jitter()
        return Batch(seconds, tuple(scheduled), tuple(admissions), tuple(preempted), prefill, decodes, kv_tokens)

    def _jitter(self) -> float:
        if not self.config.jitter:
            return 1.0
        return min(1.7, max(0.3, self._rng.gauss(1.0, self.config.jitter)))

    def _schedule_running(self, scheduled: list[tuple[Sequence, int]], preempted: list[str]) -> int:
        """Gives each running request its share; returns what is left of the budget."""
        budget = self.config.max_num_batched_tokens
        index = 0
        while index < len(self.running) and budget:
            sequence = self.running[index]
            count = min(sequence.remaining, budget)
            if not self._make_room(sequence, count, preempted):
                break
            scheduled.append((sequence, count))
            budget -= count
            index += 1
        return budget

    def _make_room(self, sequence: Sequence, count: int, preempted: list[str]) -> bool:
        """Allocates the blocks for ``count`` more tokens, preempting from the end of the running queue.

        Returns:
            False if the sequence itself had to go.
        """
        needed = self._blocks_for(sequence.computed + count) - len(sequence.blocks)
        while not self.pool.can_allocate(needed):
            victim = self.running.pop()
            self._release(victim)
            self.waiting.appendleft(victim)
            preempted.append(victim.request.request_id)
            if victim is sequence:
                return False
        sequence.blocks += self.pool.allocate(needed)
        return True

    def _schedule_waiting(self, scheduled: list[tuple[Sequence, int]], budget: int, now: float) -> list[Admission]:
        admissions: list[Admission] = []
        skipped: list[Sequence] = []
        while self.waiting and budget and len(self.running) < self.config.max_num_seqs:
            sequence = self.waiting[0]
            if not self._lora_fits(sequence):
                skipped.append(self.waiting.popleft())
                continue
            if not self._admit(sequence, budget):
                break
            self.running.append(self.waiting.popleft())
            count = min(sequence.remaining, budget)
            scheduled.append((sequence, count))
            budget -= count
            if not sequence.admitted:
                sequence.admitted = True
                request = sequence.request
                admissions.append(
                    Admission(request.request_id, len(request.prompt), sequence.computed, now - sequence.arrived)
                )
        self.waiting.extendleft(reversed(skipped))
        return admissions

    def _lora_fits(self, sequence: Sequence) -> bool:
        lora, limit = sequence.request.lora, self.config.max_loras
        if lora is None or not limit:
            return True
        active = {other.request.lora for other in self.running} - {None}
        return lora in active or len(active) < limit

    def _admit(self, sequence: Sequence, budget: int) -> bool:
        """Takes the cached prefix and the blocks of the first chunk, if the whole of its tokens has room.

        The last token is always computed, since only computing it gives the next one: never all of it is cached.
        Asking for room for all chunks keeps several half-done prefills from starving one another.
        """
        size = self.config.block_size
        hits = self.pool.match(sequence.chain, (len(sequence.tokens) - 1) // size)
        if not self.pool.can_allocate(self._blocks_for(len(sequence.tokens)) - len(hits), hits):
            return False
        cached = len(hits) * size
        first_chunk = self._blocks_for(min(len(sequence.tokens), cached + budget))
        sequence.blocks = hits + self.pool.allocate(first_chunk - len(hits), hits)
        sequence.computed, sequence.committed = cached, len(hits)
        return True

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)

    def update(self, batch: Batch) -> StepResult:
        """The second half of a step: blocks enter the prefix cache, tokens appear, finished requests leave."""
        tokens: list[tuple[str, int]] = []
        finished: list[tuple[str, str]] = []
        for sequence, count in batch.scheduled:
            request = sequence.request
            if self._sequences.get(request.request_id) is not sequence:
                continue  # aborted while it was being computed
            sequence.computed += count
            self._commit(sequence)
            if sequence.remaining:
                continue
            if sequence.produced < request.output_tokens:
                tokens.append((request.request_id, self._produce(sequence)))
            if sequence.produced == request.output_tokens:
                finished.append((request.request_id, "stop" if request.ends_itself else "length"))
        self._finish([request_id for request_id, _ in finished])
        return StepResult(tuple(tokens), tuple(finished), batch)

    def _commit(self, sequence: Sequence) -> None:
        for index in range(sequence.committed, sequence.computed // self.config.block_size):
            self.pool.commit(sequence.blocks[index], sequence.chain[index])
            sequence.committed = index + 1

    def _produce(self, sequence: Sequence) -> int:
        request = sequence.request
        last = sequence.produced + 1 == request.output_tokens
        token = END if last and request.ends_itself else answer_token(request.seed, sequence.produced)
        sequence.produced += 1
        sequence.tokens.append(token)
        extend_chain(sequence.chain, sequence.tokens, self.config.block_size, sequence.root)
        return token

    def _finish(self, request_ids: list[str]) -> None:
        gone = [self._sequences.pop(request_id) for request_id in request_ids]
        if gone:
            self.running = [sequence for sequence in self.running if sequence.request.request_id in self._sequences]
        for sequence in gone:
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.committed = 0
