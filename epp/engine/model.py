"""vLLM's scheduler as a model: continuous batching, chunked prefill, a paged KV cache, preemption, adapters.

No I/O, no clock and no randomness of its own; times are whatever seconds the caller counts in. It knows no tokens
either: a request says how many there are, and names the contents of its full blocks by chained hashes. The interface:

- ``Model(ModelConfig.of(PROFILES["llama-8b-h100"]), Random(seed))`` is one engine (one data-parallel rank).
- ``add(Request(...), now)`` puts a request into the waiting queue, ``abort(request_id)`` forgets one.
- ``schedule(now, most_steps=1)`` is the first half of a step: it chooses the batch and says how long it computes
  (``Batch.duration``). While nothing but decoding goes on, up to ``most_steps`` equal steps come as one batch, whose
  ``elapsed(n)`` is the time of its first n steps; a caller that has to stop earlier says so in ``update``.
- ``update(batch, now, steps=None)`` is the second half: tokens appear (``StepResult.produced``), requests end
  (``finished``), with their times on each ``Sequence``. The caller lets the duration pass in between.
- ``waiting``, ``running``, ``pool.usage`` are what a real engine's page would show at that moment; ``take_events()``
  gives the KV cache events since the last call, if the configuration has ``kv_events``.

``epp.engine.driver`` lets the time pass for real, ``epp.engine.virtual`` under a virtual clock, with which hundreds of
engines fit into one process; both feed ``epp.engine.metrics``.

The order is vLLM's: running requests first, each with its next token or its next chunk of prefill; then waiting ones,
first come first served, as long as the token budget, the sequence limit and the blocks last. When blocks run out, the
request admitted last gives its blocks back and computes them again later. Blocks enter the prefix cache when the step
that fills them is scheduled, so a twin admitted in the same step shares them.
"""

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Contents
from dataclasses import dataclass, field
from math import nan, sqrt
from random import Random

from epp.engine.blocks import BlockPool, KvEvent, Run
from epp.engine.profiles import Profile, StepCost


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What one engine can do.

    Attributes:
        max_num_batched_tokens: the budget of a step, prefill and decode together.
        max_loras: adapters that may run at the same time; 0 = no limit.
        time_factor: multiplies every step's duration.
        jitter: standard deviation of a step's duration as a share of it; the factor stays within 0.3 and 1.7.
        kv_events: whether to record them.
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
    kv_events: bool = False

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
        prompt_tokens: at least one.
        output_tokens: how many tokens to produce; 0 for an embedding, which ends with its prefill.
        contents: hashes of the full blocks of the prompt and then of the answer, each covering its whole prefix,
            adapter and cache salt included. Blocks beyond the last one given have no content and are never shared.
        ends_itself: the last token is the end of the message (finish reason "stop"), else it is cut ("length").
        lora: the adapter, which needs one of the engine's slots.
        max_tokens: the client's limit, for the statistics; 0 = ``output_tokens``.
    """

    request_id: str
    prompt_tokens: int
    output_tokens: int
    contents: Contents[int] = ()
    ends_itself: bool = False
    lora: str | None = None
    max_tokens: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in the model: the blocks it holds, how far they are computed, and when things happened to it.

    Attributes:
        tokens: those so far, of the prompt and produced.
        blocks: how many it holds.
        runs: those of them that are in the prefix cache, the first ``committed``.
        computed: tokens whose KV is in the blocks (prompt and answer).
        edge: how many have to be computed before its blocks need a look: another one is wanted, or one is full.
        produced: tokens of the answer.
        arrived, admitted, first_token, last_token: times; NaN until then. ``admitted`` is the first time.
        cached_tokens: how much of the prompt was found in the prefix cache when first admitted.
        finish_reason: "stop", "length" or "abort" at the end.
    """

    request: Request
    arrived: float
    tokens: int
    blocks: int = 0
    runs: list[Run] = field(default_factory=list)
    computed: int = 0
    committed: int = 0
    edge: int = 0
    produced: int = 0
    admitted: float = nan
    cached_tokens: int = 0
    first_token: float = nan
    last_token: float = nan
    preemptions: int = 0
    finish_reason: str | None = None

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be produced; 1 while decoding."""
        return self.tokens - self.computed


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a step computes: each sequence with its number of tokens. ``steps`` > 1: so many equal steps of decoding.

    Attributes:
        scale: of the durations, from time factor and jitter.
        admissions: sequences that have left the waiting queue for the first time.
        preempted: sequences that had to give their blocks back.
        prefill_tokens, decode_sequences, kv_tokens: what the (first) step computes and reads.
        adapters_loaded: adapters brought into a slot before it.
        step, growth: seconds of the first step, and by how much the next one is longer; both without the scale.
    """

    cost: StepCost
    scale: float
    steps: int
    scheduled: tuple[tuple[Sequence, int], ...]
    admissions: tuple[Sequence, ...]
    preempted: tuple[Sequence, ...]
    prefill_tokens: int
    decode_sequences: int
    kv_tokens: int
    adapters_loaded: int = 0
    step: float = field(init=False)
    growth: float = field(init=False)

    def __post_init__(self) -> None:
        step = self.cost.seconds(self.prefill_tokens, self.decode_sequences, self.kv_tokens)
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "growth", self.cost.kv_token * self.decode_sequences)

    @property
    def duration(self) -> float:
        """Seconds that all of its steps compute."""
        return self.elapsed(self.steps)

    def elapsed(self, steps: int) -> float:
        """Seconds that its first ``steps`` steps compute: every decoded token is one more to read in the next."""
        growth = self.growth * steps * (steps - 1) / 2
        return self.scale * (steps * self.step + growth + self.cost.adapter_load * self.adapters_loaded)

    def steps_by(self, seconds: float) -> int:
        """How many of its steps have ended after ``seconds``."""
        low, high = 0, self.steps
        if self.step * self.scale > 0:  # no step is shorter than the first one, and none longer than the last
            computing = seconds / self.scale - self.cost.adapter_load * self.adapters_loaded
            low = max(low, min(high, int(computing / (self.step + self.growth * self.steps)) - 1))
            high = max(low, min(high, int(computing / self.step) + 1))
        return bisect_right(range(1, self.steps + 1), seconds, low, high, key=self.elapsed)


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What ``steps`` steps of a batch brought.

    Attributes:
        produced: sequences that got ``steps`` tokens each (one, if it was their prefill that ended).
        started: those of them whose first token it was.
        finished: sequences that have all of their tokens and have left.
    """

    produced: tuple[Sequence, ...]
    started: tuple[Sequence, ...]
    finished: tuple[Sequence, ...]
    batch: Batch
    steps: int


class Model:
    """One engine.

    State: ``waiting`` and ``running`` (queues of sequences), ``_sequences`` (all of them by id), ``pool`` (the blocks),
    ``slots`` (adapters that are loaded, the one used longest ago first), ``deferred`` (how many were passed over by the
    last ``schedule`` for want of a slot), ``adapted`` (how many sequences have an adapter).
    """

    def __init__(self, config: ModelConfig, rng: Random | None = None) -> None:
        """An idle engine; ``rng`` is asked only if the configuration has jitter."""
        self.config = config
        self.pool = BlockPool(config.num_blocks, record=config.kv_events)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.slots: OrderedDict[str, None] = OrderedDict()
        self.deferred = self.adapted = 0
        self._sequences: dict[str, Sequence] = {}
        self._rng = rng or Random(0)

    def __repr__(self) -> str:
        return f"<Model {len(self.running)} running, {len(self.waiting)} waiting, {self.pool!r}>"

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, request: Request, now: float) -> Sequence:
        """Puts a request at the end of the waiting queue.

        Raises:
            ValueError: the prompt is empty, the request is longer than the context, or its id is in use.
        """
        total = request.prompt_tokens + request.output_tokens
        if request.prompt_tokens < 1 or total > self.config.max_model_len:
            raise ValueError(f"a request of {total} tokens does not fit a context of {self.config.max_model_len}")
        if request.request_id in self._sequences:
            raise ValueError(f"request id {request.request_id!r} is in use")
        sequence = self._sequences[request.request_id] = Sequence(request, now, request.prompt_tokens)
        self.waiting.append(sequence)
        self.adapted += request.lora is not None
        return sequence

    def abort(self, request_id: str) -> Sequence | None:
        """Forgets a request at once, wherever it is; None if it is not in the model (any more)."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._forget(sequence)
        sequence.finish_reason = "abort"
        return sequence

    def take_events(self) -> list[KvEvent]:
        """What happened to the prefix cache since the last call, in order."""
        return self.pool.take_events()

    def schedule(self, now: float, most_steps: int = 1, *, admit: bool = True) -> Batch:
        """The first half of a step: who computes how many tokens, in blocks allocated for them.

        Args:
            now: when it begins.
            most_steps: how many equal steps of decoding may come as one batch.
            admit: whether those that wait are looked at.
        """
        scheduled: list[tuple[Sequence, int]] = []
        preempted: list[Sequence] = []
        budget = self._schedule_running(scheduled, preempted)
        before = len(scheduled)
        admissions = self._schedule_waiting(scheduled, budget, now) if admit and not preempted else []
        decodes = len([None for sequence, count in scheduled if count == 1 and sequence.produced])
        prefill = sum([count for _, count in scheduled]) - decodes
        only_decodes = not prefill and not preempted and before == len(scheduled) == len(self.running)
        steps = self._steps_ahead(most_steps) if only_decodes and most_steps > 1 else 1
        return Batch(
            self.config.cost,
            self.config.time_factor * self._jitter(steps),
            steps,
            tuple(scheduled),
            tuple(admissions),
            tuple(preempted),
            prefill,
            decodes,
            sum([sequence.computed for sequence, _ in scheduled]),
            self._load_adapters(scheduled),
        )

    def _steps_ahead(self, most: int) -> int:
        """How many steps of decoding will be equal to the first one: until a request ends, or blocks may run out.

        Whoever waits goes on waiting meanwhile: what held it back only grows, unless a block that it shares is filled.
        """
        steps = min([most, *[s.request.output_tokens - s.produced for s in self.running]])
        if len(self.waiting) > self.deferred:
            steps = min([steps, *self._until_shared(self.waiting[self.deferred].request.contents)])
        while steps > 1 and not self._has_room(steps):
            steps //= 2
        return max(steps, 1)

    def _has_room(self, steps: int) -> bool:
        """Whether the blocks last for so many steps: by the most that they can want, and exactly only if need be."""
        free = self.pool.free
        most = len(self.running) * (steps // self.config.block_size + 1)
        return most <= free or self.blocks_ahead(steps) <= free

    def _until_shared(self, contents: Contents[int]) -> Iterator[int]:
        """For each running sequence whose next block has one of these contents: its steps before that block is full."""
        for sequence in self.running:
            block, own = sequence.committed, sequence.request.contents
            if block < min(len(contents), len(own)) and contents[block] == own[block]:
                yield max((block + 1) * self.config.block_size - sequence.computed - 1, 1)

    def blocks_ahead(self, steps: int) -> int:
        """Blocks yet to be allocated when each running sequence has computed ``steps`` tokens more."""
        size = self.config.block_size
        return sum([-(-(s.computed + steps) // size) - s.blocks for s in self.running])

    def _jitter(self, steps: int) -> float:
        """The factor of a step, or the mean of the factors of several."""
        if not self.config.jitter:
            return 1.0
        return min(1.7, max(0.3, self._rng.gauss(1.0, self.config.jitter / sqrt(steps))))

    def _load_adapters(self, scheduled: Iterable[tuple[Sequence, int]]) -> int:
        """Brings the batch's adapters into slots; returns how many were not there."""
        loaded = 0
        if not self.adapted and not self.slots:
            return loaded
        for lora in dict.fromkeys(sequence.request.lora for sequence, _ in scheduled):
            if lora is None:
                continue
            loaded += lora not in self.slots
            self.slots[lora] = None
            self.slots.move_to_end(lora)
        while self.config.max_loras and len(self.slots) > self.config.max_loras:
            self.slots.popitem(last=False)
        return loaded

    def _schedule_running(self, scheduled: list[tuple[Sequence, int]], preempted: list[Sequence]) -> int:
        """Gives each running request its share; returns what is left of the budget."""
        budget = self.config.max_num_batched_tokens
        for sequence in self.running:  # whose end may be preempted meanwhile
            if not budget:
                break
            computed = sequence.computed
            count = sequence.tokens - computed
            if count > budget:
                count = budget
            if computed + count >= sequence.edge:
                if not self._make_room(sequence, computed + count, preempted):
                    break
                self._commit(sequence, computed + count)
            scheduled.append((sequence, count))
            budget -= count
        return budget

    def _make_room(self, sequence: Sequence, tokens: int, preempted: list[Sequence]) -> bool:
        """Allocates the blocks for so many tokens in all, preempting from the end of the running queue.

        Returns:
            False if the sequence itself had to go.
        """
        needed = self._blocks_for(tokens) - sequence.blocks
        if needed <= 0:
            return True
        while not self.pool.can_allocate(needed):
            victim = self.running.pop()
            self._release(victim)
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        self.pool.allocate(needed)
        sequence.blocks += needed
        return True

    def _schedule_waiting(self, scheduled: list[tuple[Sequence, int]], budget: int, now: float) -> list[Sequence]:
        admissions: list[Sequence] = []
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
            self._commit(sequence, sequence.computed + count)
            scheduled.append((sequence, count))
            budget -= count
            if not sequence.preemptions:
                sequence.admitted, sequence.cached_tokens = now, sequence.computed
                admissions.append(sequence)
        self.waiting.extendleft(reversed(skipped))
        self.deferred = len(skipped)
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
        size, tokens = self.config.block_size, sequence.tokens
        hits = self.pool.match(sequence.request.contents, (tokens - 1) // size)
        matched = hits[-1].stop if hits else 0
        if not self.pool.can_allocate(self._blocks_for(tokens) - matched, hits):
            return False
        cached = matched * size
        first_chunk = self._blocks_for(min(tokens, cached + budget))
        self.pool.allocate(first_chunk - matched, hits)
        sequence.blocks, sequence.runs = first_chunk, hits
        sequence.computed, sequence.committed = cached, matched
        return True

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)

    def _commit(self, sequence: Sequence, tokens: int) -> None:
        """Enters into the prefix cache what ``tokens`` computed tokens fill of its blocks."""
        size, contents = self.config.block_size, sequence.request.contents
        full, limit = tokens // size, len(contents)
        if full > limit:
            full = limit
        if full > sequence.committed:
            self.pool.commit(sequence.runs, contents, sequence.committed, full)
            sequence.committed = full
        edge = sequence.blocks * size + 1
        sequence.edge = (full + 1) * size if full < limit and (full + 1) * size < edge else edge

    def update(self, batch: Batch, now: float, steps: int | None = None) -> StepResult:
        """The second half of a step: tokens appear, finished requests leave.

        Args:
            batch: what ``schedule`` returned last.
            now: when its steps ended.
            steps: how many of its steps are done, if not all of them; the others are forgotten.
        """
        steps = batch.steps if steps is None else steps
        produced: list[Sequence] = []
        started: list[Sequence] = []
        finished: list[Sequence] = []
        ahead: list[Sequence] = []
        for sequence, count in batch.scheduled:
            if sequence.finish_reason is not None:
                continue  # aborted while it was being computed
            computed = sequence.computed = sequence.computed + count * steps
            if steps > 1 and computed >= sequence.edge:
                ahead.append(sequence)
            if computed < sequence.tokens:
                continue  # more of its prompt to come
            wanted = sequence.request.output_tokens
            if sequence.produced < wanted:
                if not sequence.produced:
                    sequence.first_token = now
                    started.append(sequence)
                sequence.produced += steps
                sequence.tokens += steps
                sequence.last_token = now
                produced.append(sequence)
            if sequence.produced == wanted:
                if not wanted:
                    sequence.first_token = sequence.last_token = now
                sequence.finish_reason = "stop" if sequence.request.ends_itself else "length"
                finished.append(sequence)
        self._run_ahead(ahead)
        if finished:
            self._finish(finished)
        return StepResult(tuple(produced), tuple(started), tuple(finished), batch, steps)

    def _run_ahead(self, sequences: list[Sequence]) -> None:
        """Allocates and fills the blocks of the steps after the first, for which ``_steps_ahead`` has seen to room."""
        size = self.config.block_size
        needed = [-(-sequence.computed // size) - sequence.blocks for sequence in sequences]
        self.pool.allocate(sum(needed))
        for sequence, count in zip(sequences, needed, strict=True):
            sequence.blocks += count
            self._commit(sequence, sequence.computed)

    def _finish(self, finished: list[Sequence]) -> None:
        self.running = [sequence for sequence in self.running if sequence.finish_reason is None]
        for sequence in finished:
            self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.request_id]
        self.adapted -= sequence.request.lora is not None
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.runs, sequence.blocks - sequence.committed)
        sequence.runs = []
        sequence.blocks = sequence.computed = sequence.committed = sequence.edge = 0
