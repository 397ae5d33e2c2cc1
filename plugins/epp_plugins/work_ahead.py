"""work-ahead-scorer: sends a request where the least work is ahead of it, in seconds.

What it does
    Estimates for each endpoint the seconds until the request's first token, and gives the best one 1, an endpoint that
    takes twice as long 1/2, and so on: least / own. There are no weights to tune: a cached prefix is worth the seconds
    that it saves there, a queue costs the seconds that it lasts.

        seconds = speed * ((pending + other + own) * token + batch * member + step) + room

    - `pending`: uncached tokens of the prompts that we have sent there and that aren't computed yet. A pick adds its
      own at once, so that a burst spreads. They are worked off at the rate that is believed in, and are corrected by
      what is seen: a first byte says which prompts are done, and that all others behind them aren't; where responses
      don't pass, the engine's count of first tokens does, at each scrape.
    - `other`: what waits there that isn't ours, such as another replica's: the engine's queue at the last scrape beyond
      what we had there, at our mean size, worked off since: the older the scrape, the less is left of it.
    - `own`: the request's uncached tokens.
    - `batch`: requests in flight there, ours by our own count.
    - `room`: if prompts don't fit into the free KV blocks, the seconds until enough of them have come free: by Little's
      law an engine frees used / (mean duration of a request) tokens a second.
    - `token`, `member`, `step`: seconds a token to compute, a request in the batch, and a request at all. Learnt for
      all endpoints together by least squares of the times to the first token, observed in responses that pass or in
      the engines' histograms between two scrapes, old ones forgotten.
    - `speed`: how much longer than that an endpoint takes; learnt for each, 1 at first.

    Without any scrape it works from its own counts. An endpoint whose scrape is overdue, or lacks the KV cache's usage
    while others tell theirs, is never better than the best of those others. Equal seconds are equal points: the picker
    breaks ties at random. docs/policy.md derives the formula, and compares it with others.

Reads
    - `matched_tokens` of the producer that `prefixMatchInfoProducerName` names.
    - `inflight_requests`: our own count.
    - `waiting`, `running`, `kv_usage`, `cache_blocks`, `cache_block_size`, `first_tokens`, `first_token_seconds`.

Writes
    Nothing.

Parameters
    - `prefillTokensPerSecond` (20000): what is believed of the engines before anything is observed. Engines of one kind
      are told apart by experience within some requests, so that a wrong value matters only at the start.
    - `prefixMatchInfoProducerName` (approx-prefix-cache-producer): whose figures to use.

Example:
    plugins:
    - type: work-ahead-scorer
      parameters:
        prefillTokensPerSecond: 8000
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: work-ahead-scorer

Where it departs from llm-d, and why
    llm-d has none like it.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import numpy as np
from pydantic import Field

import epp.plugin
from epp.keys import FIRST_TOKEN_SECONDS, FIRST_TOKENS
from epp.plugin import (
    APPROX_PREFIX_PRODUCER,
    CACHE_BLOCK_SIZE,
    CACHE_BLOCKS,
    INFLIGHT_REQUESTS,
    KV_USAGE,
    RUNNING,
    WAITING,
    Candidates,
    Context,
    Decision,
    Floats,
    Ints,
    Outcome,
    Request,
    matched_tokens,
)

PRIOR: Final = np.array([0.02, 0.0005])
"""Seconds a request, and for each request in the batch, before anything is observed."""
TYPICAL: Final = np.array([1.0, 8.0, 4000.0])
"""A request's features where the prior is meant to hold: itself, its batch, the tokens ahead."""
PRIOR_SAMPLES: Final = 4.0
"""How many observations the prior is worth."""
MEMORY: Final = 500.0
"""Observations after which one has lost all but 1/e of its weight, of all endpoints together."""
OWN_MEMORY: Final = 50.0
"""The same, of one endpoint."""
OUTLIER: Final = 8.0
"""An observation counts as at most so many times what was expected, and at least as that part of it."""
_EVERY: Final = 8  # observations between two fits
_SAME: Final = 1e-6  # seconds by which the time of one scrape may seem to differ

# Rows of the state, one value a slot.
(
    _TOKENS,  # pending at _AT, by dead reckoning
    _AT,
    _LOW,  # bounds of what is pending, by what is known to be done
    _HIGH,
    _SPEED,
    _QUEUED,  # our prompts that aren't known to be done
    _MOST_QUEUED,  # the highest number of them, and of our requests in flight, since the last scrape
    _MOST_INFLIGHT,
    _OTHER,  # tokens of others at _SEEN
    _OTHER_REQUESTS,
    _SEEN,  # the time of the last scrape that has been taken into account
    _COUNT,  # first tokens, and their seconds, at _SEEN
    _SECONDS,
    _EXPECTED,  # sums over observed requests: seconds expected at speed 1, and seconds observed
    _OBSERVED,
) = range(15)


@dataclass(slots=True, eq=False)
class _Sent:
    """A request at an endpoint: `ahead` tokens were to be computed until its first token, `tokens` of them its own."""

    slot: int
    at: float
    tokens: float
    ahead: float
    batch: float
    streamed: bool
    queued: bool = True


@dataclass(eq=False)
class _Rates:
    """Least squares of times to first tokens: seconds = rates @ (1, batch, tokens), with weights 1 / expected."""

    prior: Floats
    rates: Floats = field(init=False)
    expected: float = field(init=False)
    _squares: Floats = field(init=False)
    _products: Floats = field(init=False)
    _new: int = 0

    @property
    def token(self) -> float:
        """Seconds a token at speed 1."""
        return float(self.rates[2])

    def __post_init__(self) -> None:
        self.rates = self.prior.copy()
        self.expected = float(self.prior @ TYPICAL)  # the mean of what observed requests were expected to take
        self._ridge = np.diag(PRIOR_SAMPLES / self.expected * TYPICAL**2)
        self._squares, self._products = np.zeros((3, 3)), np.zeros(3)

    def observe(self, batch: float, ahead: float, seconds: float) -> None:
        """A request has had its first token after so many seconds, at speed 1."""
        features = np.array([1.0, batch, ahead])
        expected = float(self.rates @ features)
        fading = 1.0 - 1.0 / MEMORY
        self.expected += (expected - self.expected) / MEMORY
        self._squares = self._squares * fading + np.outer(features, features / expected)
        self._products = self._products * fading + features * (seconds / expected)
        self._new += 1
        if self._new % _EVERY == 0:
            fit = np.linalg.solve(self._squares + self._ridge, self._products + self._ridge @ self.prior)
            self.rates = np.maximum(fit, self.prior * (0.02, 0.0, 0.01))


class _Work:
    """What is known of each endpoint's work, by slot (see the rows above), and the rates."""

    def __init__(self, prior: Floats, capacity: int) -> None:
        self.rates = _Rates(prior)
        self.rows = np.zeros((15, 0))
        self.queues: list[deque[_Sent]] = []
        self.sent: dict[int, list[_Sent]] = {}  # by the decision's id, until its request has ended
        self.hears = False  # first bytes pass
        self.mean_tokens = 0.0
        self.mean_duration = 0.0
        self.hold(capacity - 1)

    def __repr__(self) -> str:
        return f"<{len(self.sent)} requests, {1.0 / self.rates.rates[2]:.0f} tokens/s>"

    def hold(self, slot: int) -> None:
        """Makes room for a slot."""
        missing = slot + 1 - self.rows.shape[1]
        if missing > 0:
            more = np.zeros((15, missing))
            more[_SPEED], more[_SEEN] = 1.0, -np.inf
            self.rows = np.concatenate([self.rows, more], axis=1)
            self.queues += [deque() for _ in range(missing)]

    def forget(self, slot: int) -> None:
        """Another endpoint, or the same without its past."""
        if slot < self.rows.shape[1]:
            for sent in self.queues[slot]:
                sent.queued = False
            self.queues[slot] = deque()
            self.rows[:, slot] = 0.0
            self.rows[_SPEED, slot], self.rows[_SEEN, slot] = 1.0, -np.inf

    def pending(self, rows: Floats, now: float) -> Floats:
        """Our tokens that are still to be computed, for endpoints' rows; shape (n,)."""
        left: Floats = rows[_TOKENS] - (now - rows[_AT]) / (rows[_SPEED] * self.rates.token)
        np.maximum(left, rows[_LOW], out=left)
        np.minimum(left, rows[_HIGH], out=left)
        return left

    def pending_at(self, slot: int, now: float) -> float:
        """The same for one slot."""
        tokens, at, low, high, speed = map(float, self.rows[:5, slot])
        return min(max(tokens - (now - at) / (speed * self.rates.token), low), high)

    def charge(self, sent: _Sent) -> None:
        """A request is on its way."""
        rows, slot = self.rows, sent.slot
        self.mean_tokens += (sent.tokens - self.mean_tokens) / OWN_MEMORY
        rows[_TOKENS, slot] = sent.ahead
        rows[_AT, slot] = sent.at
        self.queues[slot].append(sent)
        rows[_HIGH, slot] += sent.tokens
        rows[_QUEUED, slot] += 1.0
        rows[_MOST_QUEUED, slot] = max(rows[_MOST_QUEUED, slot], rows[_QUEUED, slot])
        rows[_MOST_INFLIGHT, slot] = max(rows[_MOST_INFLIGHT, slot], sent.batch + 1.0)
        self._bound(slot)

    def computed(self, sent: _Sent, now: float) -> None:
        """Its prompt is done, and so are those before it: engines take them first come, first served."""
        queue = self.queues[sent.slot]
        self.rows[_TOKENS, sent.slot] = self.pending_at(sent.slot, now)
        self.rows[_AT, sent.slot] = now
        while sent.queued:
            self._drop(queue.popleft())
        self._bound(sent.slot)

    def ended(self, sent: _Sent) -> None:
        """Its request has ended; others may not be done."""
        if sent.queued:
            self.queues[sent.slot].remove(sent)
            self._drop(sent)
            self._bound(sent.slot)

    def first_tokens(self, slot: int, count: int, mean_seconds: float, now: float) -> None:
        """So many requests have had their first token there, after so many seconds on the average: our oldest ones."""
        done = [sent for sent in islice(self.queues[slot], count) if sent.at <= now]
        if done:
            self.computed(done[-1], now)
            batch, ahead = (sum(values) / len(done) for values in zip(*((s.batch, s.ahead) for s in done), strict=True))
            self.observe(slot, batch, ahead, mean_seconds)

    def _drop(self, sent: _Sent) -> None:
        sent.queued = False
        self.rows[_HIGH, sent.slot] -= sent.tokens
        self.rows[_QUEUED, sent.slot] -= 1.0

    def _bound(self, slot: int) -> None:
        """Where first bytes are heard, only the first in the queue can have been computed in part."""
        queue = self.queues[slot]
        heard = self.hears and bool(queue) and all(each.streamed for each in queue)
        self.rows[_LOW, slot] = self.rows[_HIGH, slot] - queue[0].tokens if heard else 0.0

    def observe(self, slot: int, batch: float, ahead: float, seconds: float) -> None:
        """A request that had this before it has had its first token."""
        rows, rates = self.rows, self.rates
        expected = float(rates.rates @ (1.0, batch, ahead))
        speed = rows[_SPEED, slot]
        seconds = min(max(seconds, speed * expected / OUTLIER), speed * expected * OUTLIER)
        rates.observe(batch, ahead, seconds / speed)
        fading = 1.0 - 1.0 / OWN_MEMORY
        rows[_EXPECTED, slot] = rows[_EXPECTED, slot] * fading + expected
        rows[_OBSERVED, slot] = rows[_OBSERVED, slot] * fading + seconds
        prior = PRIOR_SAMPLES * rates.expected
        rows[_SPEED, slot] = (rows[_OBSERVED, slot] + prior) / (rows[_EXPECTED, slot] + prior)


class WorkAheadScorer:
    """Prefers the endpoint where a request has the least work ahead of it, in seconds: 1 there, less elsewhere."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        prefill_tokens_per_second: float = Field(default=20_000.0, gt=0.0)
        prefix_match_info_producer_name: str = APPROX_PREFIX_PRODUCER

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._matched = matched_tokens(parameters.prefix_match_info_producer_name or APPROX_PREFIX_PRODUCER)
        self.reads = (self._matched,)
        rate = parameters.prefill_tokens_per_second
        prior = np.array([*PRIOR, 1.0 / rate])
        self._work = context.state(rate, lambda: _Work(prior, len(context.pool.endpoints)))
        self._scored: tuple[Request, Ints, Floats] | None = None  # the last one, with its own tokens by slot
        context.pool.watch(self._work)

    def score(self, request: Request, c: Candidates) -> Floats:
        """Least seconds / seconds, shape (n,)."""
        self._work.hold(int(c.slots.max()))
        self._take_scrapes(c)
        seconds = self._seconds(request, c)
        points: Floats = seconds.min() / seconds
        return points

    def state(self) -> dict[str, Any]:
        """What has been learnt, for `/debug/plugins/state`."""
        step, member, token = self._work.rates.rates.tolist()
        rates = {"seconds_a_request": step, "seconds_a_batch_member": member, "tokens_a_second": 1.0 / token}
        return rates | {"speed_by_slot": self._work.rows[_SPEED].tolist()}

    def _seconds(self, request: Request, c: Candidates) -> Floats:
        """The manual's formula, shape (n,)."""
        work, rows = self._work, self._work.rows[:, c.slots]
        step, member, token = work.rates.rates.tolist()
        pending, own = work.pending(rows, c.now), self._own(request, c)
        self._scored = (request, c.slots, own)
        speed = rows[_SPEED]
        tokens = pending + own
        if np.count_nonzero(rows[_OTHER]):
            tokens += np.maximum(rows[_OTHER] - (c.now - rows[_SEEN]) / (speed * token), 0.0)
        batch = c[INFLIGHT_REQUESTS] + rows[_OTHER_REQUESTS]
        seconds: Floats = speed * (tokens * token + batch * member + step)
        used = c[KV_USAGE]
        self._add_room(seconds, tokens, used, c)
        unknown = np.isnan(used)
        if np.count_nonzero(unknown) not in {0, len(c)}:
            seconds[unknown] = np.maximum(seconds[unknown], seconds[~unknown].min())
        return seconds

    def _own(self, request: Request, c: Candidates) -> Floats:
        own: Floats = request.prompt_tokens - np.fmax(c[self._matched], 0.0)
        return np.maximum(own, 0.0, out=own)

    def _add_room(self, seconds: Floats, tokens: Floats, used: Floats, c: Candidates) -> None:
        """Adds the time until enough KV blocks have come free, where they are short."""
        capacity = c[CACHE_BLOCKS] * c[CACHE_BLOCK_SIZE]
        held = used * capacity
        lacking = tokens + held - capacity
        short = lacking > 0  # nobody whose usage or cache is unknown
        if np.count_nonzero(short):
            short &= held > 0
            seconds[short] += lacking[short] / held[short] * self._work.mean_duration

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """Charges the targets of all profiles."""
        work, scored = self._work, self._scored
        own = scored[2] if scored and scored[0] is request and scored[1] is c.slots else self._own(request, c)
        sent = work.sent[id(decision)] = []
        for slot in {pick.slots[0] for pick in decision.picks.values()}:
            work.hold(slot)
            index = int((c.slots == slot).argmax())
            tokens, batch = float(own[index]), float(c[INFLIGHT_REQUESTS][index])
            ahead = tokens + work.pending_at(slot, c.now)
            sent.append(_Sent(slot, c.now, tokens, ahead, batch, request.body.stream))
            work.charge(sent[-1])

    def first_byte(self, request: Request, decision: Decision, now: float) -> None:
        """The prompt has been computed, if the response is streamed; or else the answer, too."""
        if not request.body.stream:
            return
        self._work.hears = True
        for sent in self._work.sent.get(id(decision), ()):
            if sent.queued:
                self._work.computed(sent, now)
            self._work.observe(sent.slot, sent.batch, sent.ahead, now - sent.at)

    def done(self, request: Request, decision: Decision, outcome: Outcome, now: float) -> None:
        """Nothing of it is left."""
        work = self._work
        for sent in work.sent.pop(id(decision), ()):
            work.ended(sent)
        if outcome.duration is not None:
            work.mean_duration += (outcome.duration - work.mean_duration) / OWN_MEMORY

    def _take_scrapes(self, c: Candidates) -> None:
        """Takes into account what the engines have said since."""
        work = self._work
        scraped = c.now - c.ages
        new = np.flatnonzero(scraped > work.rows[_SEEN, c.slots] + _SAME)
        new = new if c.all_fresh else new[c.fresh[new]]
        if not len(new):
            return
        slots, rows = c.slots[new], work.rows
        if not work.hears:
            self._take_counts(slots, c[FIRST_TOKENS][new], c[FIRST_TOKEN_SECONDS][new], scraped[new])
        waiting, inflight = np.fmax(c[WAITING][new], 0.0), c[INFLIGHT_REQUESTS][new]
        rows[_OTHER, slots] = np.maximum(waiting - rows[_MOST_QUEUED, slots], 0.0) * work.mean_tokens
        others = waiting + np.fmax(c[RUNNING][new], 0.0) - np.maximum(rows[_MOST_INFLIGHT, slots], inflight)
        rows[_OTHER_REQUESTS, slots] = np.maximum(others, 0.0)
        rows[_MOST_QUEUED, slots], rows[_MOST_INFLIGHT, slots] = rows[_QUEUED, slots], inflight
        rows[_SEEN, slots] = scraped[new]

    def _take_counts(self, slots: Ints, counts: Floats, seconds: Floats, scraped: Floats) -> None:
        """Where responses don't pass, the engines' counts of first tokens say which prompts are done."""
        rows = self._work.rows
        for index in np.flatnonzero((rows[_SEEN, slots] > -np.inf) & (counts > rows[_COUNT, slots])):
            slot, at = int(slots[index]), float(scraped[index])
            count = int(counts[index] - rows[_COUNT, slot])
            self._work.first_tokens(slot, count, float(seconds[index] - rows[_SECONDS, slot]) / count, at)
        rows[_COUNT, slots], rows[_SECONDS, slots] = counts, seconds
