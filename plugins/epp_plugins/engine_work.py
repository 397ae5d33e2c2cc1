"""What the default policy knows of each engine: the work that is pending there, and what a token costs.

`work_ahead.py` makes its scores of this; its manual and docs/policy.md have the formulas.
"""

from collections import deque
from dataclasses import dataclass
from itertools import islice
from math import exp, inf, log
from typing import Final

import numpy as np

from epp.keys import FIRST_TOKEN_SECONDS, FIRST_TOKENS, TOKEN_GAP_SECONDS, TOKEN_GAPS
from epp.plugin import (
    CACHE_BLOCK_SIZE,
    CACHE_BLOCKS,
    INFLIGHT_REQUESTS,
    KV_USAGE,
    RUNNING,
    WAITING,
    Candidates,
    Floats,
    Ints,
    Mask,
)

START: Final = 0.02
"""Seconds a request takes at all, before anything is observed."""
GAP: Final = (0.01, 2e-5, 5e-8)
"""Seconds a step of decoding takes at all, for each member of the batch, and for each token read, likewise."""
PRIOR_SAMPLES: Final = 4.0
"""How many observations the prior is worth."""
MEMORY: Final = 500.0
"""Observations after which one has lost all but 1/e of its weight, of all endpoints together."""
OWN_MEMORY: Final = 50.0
"""The same, of one endpoint."""
OUTLIER: Final = 8.0
"""An observation counts as at most so many times what was expected, and at least as that part of it."""
WINDOW: Final = 30.0
"""Seconds over which arrivals and work are averaged."""
OVERDUE: Final = 0.35
"""The share of a prompt that is still to be computed at least, until its first byte is heard."""
_EVERY: Final = 8  # observations between two fits

# Rows of the state, one value a slot.
(
    SPEED,
    SEEN,  # the time of the last scrape that has been taken into account
    CAPACITY,  # tokens that its KV cache holds; infinite where that isn't known
    OTHER,  # tokens that wait and aren't ours, at SEEN
    OTHER_STEP,  # seconds that others' running requests add to a step, fading; see `Work.faded`
    _WRITTEN,  # tokens computed and answered, fading likewise; from here to _MOST_HELD a pick changes all
    _TOKENS,  # pending at _AT, by dead reckoning
    _AT,
    _LOW,  # bounds of what is pending, by what is known to be done
    _HIGH,
    HELD,  # tokens of our prompts in flight
    _QUEUED,  # our prompts that aren't known to be done
    _MOST_QUEUED,  # the highest number of them, of our requests and of their tokens since the last scrape
    _MOST_INFLIGHT,
    _MOST_HELD,
    _COUNT,  # what the last scrape said: first tokens, their seconds, gaps between tokens, their seconds
    _SECONDS,
    _GAPS,
    _GAP_SECONDS,
    _NUMBER,  # observed requests, as far as they are remembered, and the mean of log(observed / expected)
    _LOG,
    _ROWS,
) = range(22)
_SCORED: Final = _QUEUED  # the rows before it are what a score is made of


@dataclass(slots=True, eq=False)
class Sent:
    """A request at an endpoint: `ahead` tokens were to be computed until its first token, `tokens` of them its own.

    Where it doesn't fit into the KV cache (`fits`), the time to its first token tells nothing of the engine's speed.
    """

    slot: int
    at: float
    tokens: float
    ahead: float
    batch: float
    prompt: float
    streamed: bool
    fits: bool
    queued: bool = True


class _Fit:
    """Least squares, older observations fading: seconds = rates @ features, with weights 1 / expected.

    Args:
        prior: the rates before anything is observed.
        typical: features where the prior is meant to hold.
    """

    def __init__(self, prior: tuple[float, ...], typical: tuple[float, ...]) -> None:
        self._prior = np.array(prior)
        self.rates: list[float] = list(prior)
        self._ridge = np.diag(np.array(typical) ** 2) * (PRIOR_SAMPLES / float(self._prior @ typical))
        self._squares, self._products = np.zeros_like(self._ridge), np.zeros_like(self._prior)
        self._new = 0

    def expected(self, features: tuple[float, ...]) -> float:
        """Seconds."""
        return sum(rate * feature for rate, feature in zip(self.rates, features, strict=True))

    def observe(self, features: tuple[float, ...], seconds: float) -> None:
        """So many seconds have been seen."""
        row, expected, fading = np.array(features), self.expected(features), 1.0 - 1.0 / MEMORY
        self._squares = self._squares * fading + np.outer(row, row / expected)
        self._products = self._products * fading + row * (seconds / expected)
        self._new += 1
        if self._new % _EVERY == 0:
            fit = np.linalg.solve(self._squares + self._ridge, self._products + self._ridge @ self._prior)
            self.rates = np.maximum(fit, self._prior / 20.0).tolist()


class _Traffic:
    """What comes to the pool: requests a second, the seconds of work in them, and how much of them was there already.

    All of it over the last `WINDOW`.
    """

    def __init__(self) -> None:
        self._requests = self._work = self._tokens = self._known = 0.0
        self._seconds = 1.0  # over which they came: a second at least
        self._at = -inf

    def add(self, work: float, tokens: float, known: float, now: float) -> None:
        """A request has come: seconds of work, tokens of its prompt, and how many of them some endpoint had cached."""
        self._fade(now)
        self._requests += 1.0
        self._work += work
        self._tokens += tokens
        self._known += known

    @property
    def repeated(self) -> float:
        """The share of the prompts' tokens that had been there before."""
        return self._known / self._tokens if self._tokens else 0.0

    def rates(self, now: float) -> tuple[float, float]:
        """Requests a second, seconds of work a second."""
        self._fade(now)
        return self._requests / self._seconds, self._work / self._seconds

    def _fade(self, now: float) -> None:
        if now > self._at > -inf:
            kept = exp((self._at - now) / WINDOW)
            self._requests, self._work = self._requests * kept, self._work * kept
            self._tokens, self._known = self._tokens * kept, self._known * kept
            self._seconds = WINDOW - (WINDOW - self._seconds) * kept
        self._at = max(self._at, now)


class Work:
    """What is known of each endpoint's work, by slot (see the rows above), and the rates."""

    def __init__(self, rate: float, capacity: int) -> None:
        self.first = _Fit((START, 1.0 / rate), (1.0, 4000.0))
        self.gap = _Fit(GAP, (1.0, 16.0, 50_000.0))
        self.traffic = _Traffic()
        self.rows = np.zeros((_ROWS, 0))
        self._scored = self.rows[:_SCORED]
        self.ones = np.zeros(0)  # as many as slots: a product with them is the quickest sum
        self.queues: list[deque[Sent]] = []
        self.sent: dict[int, list[Sent]] = {}  # by the decision's id, until its request has ended
        self.hears = False  # first bytes pass
        self.mean_tokens = self.mean_duration = 0.0
        self.others = False  # whether anything runs or waits that isn't ours
        self._epoch = -inf  # when what fades weighs 1
        self._faded_at, self._faded = -inf, 1.0  # what it weighs then
        self._noise, self._observed = 0.5, 0  # the variance of log(observed / expected) within one endpoint
        self.hold(capacity - 1)

    def __repr__(self) -> str:
        return f"<{len(self.sent)} requests, {1.0 / self.first.rates[1]:.0f} tokens/s>"

    def hold(self, slot: int) -> None:
        """Makes room for a slot."""
        missing = slot + 1 - self.rows.shape[1]
        if missing > 0:
            more = np.zeros((_ROWS, missing))
            more[SPEED], more[SEEN], more[CAPACITY] = 1.0, -inf, inf
            self.rows = np.concatenate([self.rows, more], axis=1)
            self._scored, self.ones = self.rows[:_SCORED], np.ones(slot + 1)
            self.queues += [deque() for _ in range(missing)]

    def of(self, slots: Ints, now: float) -> Floats:
        """The rows that a score is made of, of these slots; shape (_SCORED, n). They hold for this time."""
        self.faded(now)
        try:
            return self._scored.take(slots, axis=1)
        except IndexError:
            self.hold(int(slots.max()))
            return self._scored.take(slots, axis=1)

    def forget(self, slot: int) -> None:
        """Another endpoint, or the same without its past."""
        if slot < self.rows.shape[1]:
            for sent in (each for several in self.sent.values() for each in several if each.slot == slot):
                sent.queued, sent.slot = False, -1
            self.queues[slot] = deque()
            self.rows[:, slot] = 0.0
            self.rows[SPEED, slot], self.rows[SEEN, slot], self.rows[CAPACITY, slot] = 1.0, -inf, inf

    # --- what is pending

    def pending(self, rows: Floats, pace: Floats, now: float) -> Floats:
        """Our tokens that are still to be computed, for endpoints' rows and their seconds a token; shape (n,)."""
        left: Floats = now - rows[_AT]
        left /= pace
        np.subtract(rows[_TOKENS], left, out=left)
        np.maximum(left, rows[_LOW], out=left)
        np.minimum(left, rows[_HIGH], out=left)
        return left

    def pending_at(self, slot: int, now: float) -> float:
        """The same for one slot."""
        return self._left(self.rows[:_SCORED, slot].tolist(), now)

    def _left(self, row: list[float], now: float) -> float:
        worked_off = (now - row[_AT]) / (row[SPEED] * self.first.rates[1])
        return min(max(row[_TOKENS] - worked_off, row[_LOW]), row[_HIGH])

    def charge(self, sent: Sent, known: float) -> Sent:
        """A request is on its way, of which some endpoint had so many tokens cached; with what is ahead of it."""
        slot = sent.slot
        if slot >= len(self.queues):
            self.hold(slot)
        weight, rows = self.faded(sent.at), self.rows
        row: list[float] = rows[:, slot].tolist()
        sent.ahead = sent.tokens + self._left(row, sent.at)
        self.mean_tokens += (sent.tokens - self.mean_tokens) / OWN_MEMORY
        self.traffic.add(sent.tokens * self.first.rates[1] * row[SPEED], sent.prompt, known, sent.at)
        self.queues[slot].append(sent)
        high, held, queued = row[_HIGH] + sent.tokens, row[HELD] + sent.prompt, row[_QUEUED] + 1.0
        rows[_WRITTEN : _MOST_HELD + 1, slot] = (
            row[_WRITTEN] + sent.tokens / weight,
            sent.ahead,
            sent.at,
            self._low(slot, high),
            high,
            held,
            queued,
            max(row[_MOST_QUEUED], queued),
            max(row[_MOST_INFLIGHT], sent.batch + 1.0),
            max(row[_MOST_HELD], held),
        )
        return sent

    def computed(self, sent: Sent, now: float) -> None:
        """Its prompt is done, and so are those before it: engines take them first come, first served."""
        queue, slot, rows = self.queues[sent.slot], sent.slot, self.rows
        rows[_TOKENS, slot], rows[_AT, slot] = self.pending_at(slot, now), now
        while sent.queued:
            done = queue.popleft()
            done.queued = False
            rows[_HIGH, slot] -= done.tokens
            rows[_QUEUED, slot] -= 1.0
        rows[_LOW, slot] = self._low(slot, float(rows[_HIGH, slot]))

    def ended(self, sent: Sent) -> None:
        """Its request has ended; others may not be done."""
        slot, rows = sent.slot, self.rows
        if sent.queued:
            sent.queued = False
            self.queues[slot].remove(sent)
            high, held, queued = rows[_HIGH : _QUEUED + 1, slot].tolist()
            high -= sent.tokens
            rows[_LOW : _QUEUED + 1, slot] = self._low(slot, high), high, held - sent.prompt, queued - 1.0
        elif slot >= 0:
            rows[HELD, slot] -= sent.prompt

    def first_tokens(self, slot: int, count: int, mean_seconds: float, now: float) -> None:
        """So many requests have had their first token there, after so many seconds on the average: our oldest ones."""
        done = [sent for sent in islice(self.queues[slot], count) if sent.at <= now]
        if done:
            self.computed(done[-1], now)
            self.observe(slot, sum(sent.ahead for sent in done) / len(done), mean_seconds)

    def _low(self, slot: int, high: float) -> float:
        """Where first bytes are heard, only the first in the queue can have been computed, and not all of it."""
        queue = self.queues[slot]
        heard = self.hears and bool(queue) and all(each.streamed for each in queue)
        return high - (1.0 - OVERDUE) * queue[0].tokens if heard else 0.0

    def wrote(self, slot: int, tokens: float, now: float) -> None:
        """So many tokens are new in its KV cache."""
        self.rows[_WRITTEN, slot] += tokens / self.faded(now)

    def written(self, rows: Floats, seconds: float, now: float) -> Floats:
        """Tokens that so many seconds write anew, at the rate of the last `WINDOW`; shape (n,)."""
        tokens: Floats = rows[_WRITTEN] * (seconds / WINDOW * self.faded(now))
        return tokens

    def faded(self, now: float) -> float:
        """What 1 in the rows that fade counts for by now: later entries are larger, in place of fading all at each.

        Now and then it does fade them all, and begins with 1 again.
        """
        if now != self._faded_at:
            if not now - self._epoch < WINDOW:
                self.rows[OTHER_STEP : _WRITTEN + 1] *= exp((self._epoch - now) / WINDOW)
                self._epoch = now
            self._faded_at, self._faded = now, exp((self._epoch - now) / WINDOW)
        return self._faded

    # --- what the engines say

    def take_scrapes(self, c: Candidates, seen: Floats) -> bool:
        """Takes into account what the engines have said since they were `seen`; whether they have said anything."""
        later = c.scraped_at > seen
        if not np.count_nonzero(later):
            return False
        new = np.flatnonzero(later & c.fresh)
        slots, scraped, rows = c.slots[new], c.scraped_at[new], self.rows
        blocks = (c[CACHE_BLOCKS] * c[CACHE_BLOCK_SIZE])[new]
        rows[CAPACITY, slots] = np.where(blocks > 0, blocks, inf)
        counts, waiting = c[FIRST_TOKENS][new], np.fmax(c[WAITING][new], 0.0)
        decoding = (waiting == 0) & (rows[_MOST_QUEUED, slots] == 0) & (counts == rows[_COUNT, slots])
        self._take_gaps(slots, c[TOKEN_GAPS][new], c[TOKEN_GAP_SECONDS][new], c[RUNNING][new], decoding)
        self._take_counts(slots, counts, c[FIRST_TOKEN_SECONDS][new], scraped)
        inflight = c[INFLIGHT_REQUESTS][new]
        used = np.fmax(c[KV_USAGE][new] * blocks, 0.0)
        others = waiting + np.fmax(c[RUNNING][new], 0.0) - np.maximum(rows[_MOST_INFLIGHT, slots], inflight)
        rows[OTHER, slots] = np.maximum(waiting - rows[_MOST_QUEUED, slots], 0.0) * self.mean_tokens
        # Our answers are in the cache, too: what is there beyond our prompts is others' only where others are.
        held = np.where(others > 0, np.maximum(used - rows[_MOST_HELD, slots], 0.0), 0.0)
        _, member, read = self.gap.rates
        now = self.faded(c.now)
        rows[OTHER_STEP, slots] = (
            (np.maximum(others, 0.0) * member + held * read) * np.exp((scraped - c.now) / WINDOW) / now
        )
        self.others = bool(np.count_nonzero(rows[OTHER : OTHER_STEP + 1]))
        rows[_MOST_QUEUED, slots], rows[_MOST_INFLIGHT, slots] = rows[_QUEUED, slots], inflight
        rows[_MOST_HELD, slots], rows[SEEN, slots] = rows[HELD, slots], scraped
        return True

    def _take_counts(self, slots: Ints, counts: Floats, seconds: Floats, scraped: Floats) -> None:
        """Where responses don't pass, the engines' counts of first tokens say which prompts are done."""
        rows = self.rows
        if not self.hears:
            for index in np.flatnonzero((rows[SEEN, slots] > -inf) & (counts > rows[_COUNT, slots])):
                slot, at = int(slots[index]), float(scraped[index])
                count = int(counts[index] - rows[_COUNT, slot])
                self.first_tokens(slot, count, float(seconds[index] - rows[_SECONDS, slot]) / count, at)
        rows[_COUNT, slots], rows[_SECONDS, slots] = counts, seconds

    def _take_gaps(self, slots: Ints, gaps: Floats, seconds: Floats, running: Floats, decoding: Mask) -> None:
        """What steps have taken since the last scrapes where nothing but decoding went on: one observation of all."""
        rows = self.rows
        grown = gaps - rows[_GAPS, slots]
        use = decoding & (rows[SEEN, slots] > -inf) & (grown > 0) & (running > 0)
        if np.count_nonzero(use):
            share = grown[use] / grown[use].sum()
            each = (seconds - rows[_GAP_SECONDS, slots])[use] / grown[use] / rows[SPEED, slots[use]]
            features = (1.0, float(share @ running[use]), float(share @ rows[HELD, slots[use]]))
            self.gap.observe(features, float(share @ each))
        rows[_GAPS, slots], rows[_GAP_SECONDS, slots] = gaps, seconds

    # --- what is learnt

    def observe(self, slot: int, ahead: float, seconds: float) -> None:
        """A request that had so many tokens to be computed until its first token has had it."""
        rows, features = self.rows, (1.0, ahead)
        expected, speed = self.first.expected(features), float(rows[SPEED, slot])
        ratio = log(min(max(seconds / (speed * expected), 1.0 / OUTLIER), OUTLIER)) + log(speed)
        self.first.observe(features, exp(ratio) * expected / speed)
        number = rows[_NUMBER, slot] + 1.0
        off = ratio - rows[_LOG, slot]
        rows[_NUMBER, slot] = number
        rows[_LOG, slot] += off / number
        self._noise += (off * off - self._noise) / MEMORY
        self._observed += 1
        if self._observed % _EVERY == 0:
            self._tell_apart()

    def _tell_apart(self) -> None:
        """Empirical Bayes: the differences of endpoints' means count by the share of them that isn't chance."""
        known = np.flatnonzero(self.rows[_NUMBER])
        self.rows[_NUMBER, known] *= 1.0 - _EVERY / (OWN_MEMORY * len(known))
        means, chance = self.rows[_LOG, known], self._noise / self.rows[_NUMBER, known]
        real = max(float(means.var()) - float(chance.mean()), 0.0)
        self.rows[SPEED, known] = np.exp((means - means.mean()) * (real / (real + chance)))
