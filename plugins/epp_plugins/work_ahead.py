"""work-ahead-scorer: sends a request where the least work is ahead of it, in seconds, its own cost to others included.

What it does
    Estimates for each endpoint the seconds that pass until the request has its first tokens, adds those that it costs
    the requests after it, and gives the best endpoint 1, one that takes twice as long 1/2, and so on: least / own.
    There are no weights to tune: a cached prefix is worth the seconds that it saves, a queue costs those that it lasts.

        seconds = wait + delay + eviction + room + answer
        wait     = speed * ((pending + other + own) * token + start)
        delay    = work * arrivals * backlog / (1 - busy),    work = own * token
        eviction = work * repeated * (full / (1 - full) + min(800 s / age, 2.5))
        room     = duration * lacking / used
        answer   = speed * answerTokens * (batch * member + held * read + step)

    - `pending`: uncached tokens of the prompts that we have sent there and that aren't computed yet. A pick adds its
      own at once, so that a burst spreads. They are worked off at the rate that is believed in, and are corrected by
      what is seen: a first byte says which prompts are done, and that all others behind them aren't; where responses
      don't pass, the engine's count of first tokens does, at each scrape.
    - `other`: what waits there that isn't ours, such as another replica's: the engine's queue at the last scrape beyond
      what we had there, at our mean size, worked off since: the older the scrape, the less is left of it.
    - `own`: the request's uncached tokens.
    - `delay`: work that is done here and would be spared elsewhere is waited for by those who come until the engines
      are idle again, unless they find an idle one. `arrivals` a second an endpoint and the share of time that engines
      are `busy` with prompts are those of the pool, over the last half minute; `backlog` is its mean, in seconds.
      `work` is without `speed`: an engine that takes twice as long gets half of the arrivals, and both delay as many.
      So the fuller the pool, the more a cached prefix is worth; while some are idle, this makes no difference.
    - `eviction`: what is computed takes the place of something cached, that somebody may come back for: as likely as
      tokens of prompts are `repeated` at all, by the share of them that some endpoint had, over the last half minute;
      the less of the KV cache is left to prefixes, the sooner; and the younger is what goes, the likelier. `full` is
      the share in use, with what is pending and this request. `age`: an engine that writes so many tokens a second
      (computed ones and answers, over the last half minute) writes all that is left to prefixes anew in so many
      seconds. So contexts settle where caches are used least.
    - `room`: if that is more than there is, the seconds until enough has come free: by Little's law an engine frees
      what is `used` once in the mean `duration` of a request.
    - `answer`: `batch` are the requests in flight there, `held` the tokens of their prompts, which decoding reads: both
      ours by our own count, and what the engine's page has beyond that (`running`, and the KV cache in use).
    - `token`, `start`, `member`, `read`, `step`: seconds a token to compute, a request at all, and of a step of
      decoding a member of the batch, a token read, and a step at all. Learnt for all endpoints together by least
      squares: the first two from the times to first tokens, in responses that pass or in the engines' histograms
      between two scrapes; the others from the engines' times between tokens while no prompt was being computed.
    - `speed`: how much longer than that an endpoint takes, as far as the differences between endpoints exceed chance.
      Requests that had no room in the KV cache tell nothing of it, and what was seen long ago counts for less.

    Without any scrape it works from its own counts. An endpoint whose scrape is overdue, or lacks the KV cache's usage
    while others tell theirs, is never better than the best of those others. Equal seconds are equal points: the picker
    breaks ties at random. docs/policy.md derives the formula, and compares it with others.

Reads
    - `matched_tokens` of the producer that `prefixMatchInfoProducerName` names.
    - `inflight_requests`: our own count.
    - `waiting`, `running`, `kv_usage`, `cache_blocks`, `cache_block_size`, `first_tokens`, `first_token_seconds`,
      `token_gaps`, `token_gap_seconds`.

Writes
    Nothing.

Parameters
    - `prefillTokensPerSecond` (20000): what is believed of the engines before anything is observed. A wrong value
      matters for the first dozens of requests only.
    - `answerTokens` (50): how much of the answer counts as waiting. 0 looks at the first token alone; more keeps
      batches more equal, at the cost of prefix hits.
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
from dataclasses import dataclass
from itertools import islice
from math import exp, inf, isnan, log
from typing import Any, Final

import numpy as np
from pydantic import Field

import epp.plugin
from epp.keys import FIRST_TOKEN_SECONDS, FIRST_TOKENS, TOKEN_GAP_SECONDS, TOKEN_GAPS
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
    Mask,
    Outcome,
    Request,
    matched_tokens,
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
BUSIEST: Final = 0.9
"""The share of time above which engines don't count as busier: beyond it the estimate says nothing any more."""
HORIZON: Final = 800.0
"""Seconds that a prefix has to stay for a computed token to cost the prefixes one token more."""
MOST_EVICTED: Final = 2.5
"""Tokens that a computed one costs at most by that."""
FULLEST: Final = 0.95
"""The share of the KV cache above which it doesn't count as fuller."""
# Arrays: numpy takes longer over plain numbers.
_ZERO, _ONE, _FULLEST, _MOST_EVICTED = np.zeros(()), np.ones(()), np.array(FULLEST), np.array(MOST_EVICTED)
_EVERY: Final = 8  # observations between two fits
_SAME: Final = 1e-6  # seconds by which the time of one scrape may seem to differ

# Rows of the state, one value a slot.
(
    _TOKENS,  # pending at _AT, by dead reckoning
    _AT,
    _LOW,  # bounds of what is pending, by what is known to be done
    _HIGH,
    _SPEED,
    _HELD,  # tokens of our prompts in flight
    _SEEN,  # the time of the last scrape that has been taken into account
    _OTHER,  # what isn't ours, at _SEEN: tokens that wait, requests, tokens held
    _OTHER_REQUESTS,
    _OTHER_HELD,
    _WRITTEN,  # tokens computed and answered, fading; see `_Work.written`
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
class _Sent:
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


class _Work:
    """What is known of each endpoint's work, by slot (see the rows above), and the rates."""

    def __init__(self, rate: float, capacity: int) -> None:
        self.first = _Fit((START, 1.0 / rate), (1.0, 4000.0))
        self.gap = _Fit(GAP, (1.0, 16.0, 50_000.0))
        self.traffic = _Traffic()
        self.rows = np.zeros((_ROWS, 0))
        self.queues: list[deque[_Sent]] = []
        self.sent: dict[int, list[_Sent]] = {}  # by the decision's id, until its request has ended
        self.hears = False  # first bytes pass
        self.mean_tokens = self.mean_duration = 0.0
        self._epoch = -inf  # when a written token weighs 1
        self._noise, self._observed = 0.5, 0  # the variance of log(observed / expected) within one endpoint
        self.hold(capacity - 1)

    def __repr__(self) -> str:
        return f"<{len(self.sent)} requests, {1.0 / self.first.rates[1]:.0f} tokens/s>"

    def hold(self, slot: int) -> None:
        """Makes room for a slot."""
        missing = slot + 1 - self.rows.shape[1]
        if missing > 0:
            more = np.zeros((_ROWS, missing))
            more[_SPEED], more[_SEEN] = 1.0, -inf
            self.rows = np.concatenate([self.rows, more], axis=1)
            self.queues += [deque() for _ in range(missing)]

    def of(self, slots: Ints) -> Floats:
        """The rows that a score is made of, of these slots; shape (_SCORED, n)."""
        try:
            return self.rows[:_SCORED].take(slots, axis=1)
        except IndexError:
            self.hold(int(slots.max()))
            return self.rows[:_SCORED].take(slots, axis=1)

    def forget(self, slot: int) -> None:
        """Another endpoint, or the same without its past."""
        if slot < self.rows.shape[1]:
            for sent in (each for several in self.sent.values() for each in several if each.slot == slot):
                sent.queued, sent.slot = False, -1
            self.queues[slot] = deque()
            self.rows[:, slot] = 0.0
            self.rows[_SPEED, slot], self.rows[_SEEN, slot] = 1.0, -inf

    # --- what is pending

    def pending(self, rows: Floats, now: float) -> Floats:
        """Our tokens that are still to be computed, for endpoints' rows; shape (n,)."""
        left: Floats = now - rows[_AT]
        left /= rows[_SPEED] * self.first.rates[1]
        np.subtract(rows[_TOKENS], left, out=left)
        np.maximum(left, rows[_LOW], out=left)
        np.minimum(left, rows[_HIGH], out=left)
        return left

    def pending_at(self, slot: int, now: float) -> float:
        """The same for one slot."""
        tokens, at, low, high, speed = self.rows[: _SPEED + 1, slot].tolist()
        return float(min(max(tokens - (now - at) / (speed * self.first.rates[1]), low), high))

    def charge(self, sent: _Sent, known: float) -> None:
        """A request is on its way, of which some endpoint had so many tokens cached."""
        slot, at = sent.slot, self.rows[:, sent.slot]
        self.mean_tokens += (sent.tokens - self.mean_tokens) / OWN_MEMORY
        self.traffic.add(sent.tokens * self.first.rates[1] * at.item(_SPEED), sent.prompt, known, sent.at)
        held, queued = at.item(_HELD) + sent.prompt, at.item(_QUEUED) + 1.0
        for row, most in ((_MOST_QUEUED, queued), (_MOST_INFLIGHT, sent.batch + 1.0), (_MOST_HELD, held)):
            if most > at.item(row):
                at[row] = most
        at[_HELD], at[_QUEUED], at[_TOKENS], at[_AT] = held, queued, sent.ahead, sent.at
        at[_HIGH] = at.item(_HIGH) + sent.tokens
        self.wrote(slot, sent.tokens, sent.at)
        self.queues[slot].append(sent)
        self._bound(slot)

    def computed(self, sent: _Sent, now: float) -> None:
        """Its prompt is done, and so are those before it: engines take them first come, first served."""
        queue, slot = self.queues[sent.slot], sent.slot
        self.rows[_TOKENS, slot], self.rows[_AT, slot] = self.pending_at(slot, now), now
        while sent.queued:
            self._drop(queue.popleft())
        self._bound(slot)

    def ended(self, sent: _Sent) -> None:
        """Its request has ended; others may not be done."""
        if sent.queued:
            self.queues[sent.slot].remove(sent)
            self._drop(sent)
            self._bound(sent.slot)
        if sent.slot >= 0:
            self.rows[_HELD, sent.slot] -= sent.prompt

    def first_tokens(self, slot: int, count: int, mean_seconds: float, now: float) -> None:
        """So many requests have had their first token there, after so many seconds on the average: our oldest ones."""
        done = [sent for sent in islice(self.queues[slot], count) if sent.at <= now]
        if done:
            self.computed(done[-1], now)
            self.observe(slot, sum(sent.ahead for sent in done) / len(done), mean_seconds)

    def _drop(self, sent: _Sent) -> None:
        sent.queued = False
        self.rows[_HIGH, sent.slot] -= sent.tokens
        self.rows[_QUEUED, sent.slot] -= 1.0

    def _bound(self, slot: int) -> None:
        """Where first bytes are heard, only the first in the queue can have been computed in part."""
        queue = self.queues[slot]
        heard = self.hears and bool(queue) and all(each.streamed for each in queue)
        self.rows[_LOW, slot] = self.rows[_HIGH, slot] - queue[0].tokens if heard else 0.0

    def wrote(self, slot: int, tokens: float, now: float) -> None:
        """So many tokens are new in its KV cache."""
        if not now - self._epoch < WINDOW:  # later ones weigh more, in place of fading all at each
            self.rows[_WRITTEN] *= exp((self._epoch - now) / WINDOW)
            self._epoch = now
        self.rows[_WRITTEN, slot] += tokens * exp((now - self._epoch) / WINDOW)

    def written(self, rows: Floats, seconds: float, now: float) -> Floats:
        """Tokens that so many seconds write anew, at the rate of the last `WINDOW`; shape (n,)."""
        tokens: Floats = rows[_WRITTEN] * (seconds / WINDOW * exp((self._epoch - now) / WINDOW))
        return tokens

    # --- what is learnt

    def observe(self, slot: int, ahead: float, seconds: float) -> None:
        """A request that had so many tokens to be computed until its first token has had it."""
        rows, features = self.rows, (1.0, ahead)
        expected, speed = self.first.expected(features), float(rows[_SPEED, slot])
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
        self.rows[_SPEED, known] = np.exp((means - means.mean()) * (real / (real + chance)))


def _least(values: Floats) -> float:
    """The least value, NaN if there is one: `values.min()` takes four times as long."""
    return float(values[values.argmin()])


class WorkAheadScorer:
    """Prefers the endpoint where a request has the least work ahead of it, in seconds: 1 there, less elsewhere."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        prefill_tokens_per_second: float = Field(default=20_000.0, gt=0.0)
        answer_tokens: float = Field(default=50.0, ge=0.0)
        prefix_match_info_producer_name: str = APPROX_PREFIX_PRODUCER

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._matched = matched_tokens(parameters.prefix_match_info_producer_name or APPROX_PREFIX_PRODUCER)
        self.reads = (self._matched,)
        self._answer, self._now = parameters.answer_tokens, context.now
        rate = parameters.prefill_tokens_per_second
        self._work = context.state(rate, lambda: _Work(rate, len(context.pool.endpoints)))
        self._scored: tuple[Request, Ints, Floats] | None = None  # the last one, with its own tokens by slot
        self._short: Mask | None = None  # where it didn't fit; None for nowhere
        context.pool.watch(self._work)

    def score(self, request: Request, c: Candidates) -> Floats:
        """Least seconds / seconds, shape (n,)."""
        work = self._work
        rows = work.of(c.slots)
        if self._take_scrapes(c, rows[_SEEN]):
            rows = work.of(c.slots)
        seconds = self._seconds(request, c, rows)
        points: Floats = _least(seconds) / seconds
        return points

    def state(self) -> dict[str, Any]:
        """What has been learnt, for `/debug/plugins/state`."""
        work = self._work
        start, token = work.first.rates
        step, member, read = work.gap.rates
        arrivals, busy = work.traffic.rates(self._now())
        return {
            "seconds_a_request": start,
            "tokens_a_second": 1.0 / token,
            "seconds_a_step": step,
            "seconds_a_member": member,
            "seconds_a_token_read": read,
            "requests_a_second": arrivals,
            "engines_busy": busy,
            "share_repeated": work.traffic.repeated,
            "speed_by_slot": work.rows[_SPEED].tolist(),
        }

    def _seconds(self, request: Request, c: Candidates, rows: Floats) -> Floats:
        """The manual's formula over these endpoints' rows, shape (n,)."""
        work = self._work
        start, token = work.first.rates
        step, member, read = work.gap.rates
        own, speed = self._own(request, c), rows[_SPEED]
        tokens = work.pending(rows, c.now)
        batch, held = c[INFLIGHT_REQUESTS], rows[_HELD]
        if np.count_nonzero(rows[_OTHER : _OTHER_HELD + 1]):
            tokens += np.maximum(rows[_OTHER] - (c.now - rows[_SEEN]) / (speed * token), 0.0)
            batch, held = batch + rows[_OTHER_REQUESTS], held + rows[_OTHER_HELD]
        arrivals, busy = work.traffic.rates(c.now)
        backlog = float(np.add.reduce(tokens)) / len(c) * token
        delay = arrivals / len(c) * backlog / (1.0 - min(busy / len(c), BUSIEST))
        tokens += own
        seconds: Floats = tokens * token
        seconds += batch * (self._answer * member)
        seconds += held * (self._answer * read)
        seconds += start + self._answer * step
        seconds *= speed
        eviction, room = self._memory(tokens, work.written(rows, HORIZON, c.now), c)
        eviction += delay
        eviction *= own
        eviction *= token
        seconds += eviction
        if room is not None:
            seconds += room
        self._scored = (request, c.slots, own)
        if isnan(_least(c[KV_USAGE])):  # of some
            unknown = np.isnan(c[KV_USAGE])
            if not unknown.all():
                seconds[unknown] = np.maximum(seconds[unknown], seconds[~unknown].min())
        return seconds

    def _memory(self, tokens: Floats, written: Floats, c: Candidates) -> tuple[Floats, Floats | None]:
        """Eviction, in seconds for one of work, and room, in seconds, or None; what isn't known costs nothing.

        Args:
            tokens: that are still to come, shape (n,).
            written: tokens in a `HORIZON`; overwritten.
            c: the candidates.
        """
        capacity = c[CACHE_BLOCKS] * c[CACHE_BLOCK_SIZE]
        if not _least(capacity) > 0.0:
            capacity = np.where(capacity > 0.0, capacity, inf)
        usage = np.fmax(c[KV_USAGE], _ZERO)
        full = tokens / capacity
        full += usage
        self._short, room = None, None
        if full[full.argmax()] >= FULLEST:
            self._short, room = full >= _FULLEST, np.maximum(full - _ONE, _ZERO)
            room *= self._work.mean_duration
            room /= usage if _least(usage) > 0.0 else np.where(usage > 0.0, usage, inf)
            np.minimum(full, _FULLEST, out=full)
        left = _ONE - full
        written /= capacity
        written /= left
        eviction: Floats = np.divide(full, left, out=full)
        eviction += np.minimum(written, _MOST_EVICTED, out=written)
        eviction *= self._work.traffic.repeated
        return eviction, room

    def _own(self, request: Request, c: Candidates) -> Floats:
        own = np.fmax(c[self._matched], _ZERO)
        np.subtract(request.prompt_tokens, own, out=own)
        return np.maximum(own, _ZERO, out=own)

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """Charges the targets of all profiles."""
        work, scored = self._work, self._scored
        inflight = c[INFLIGHT_REQUESTS]
        ours = scored is not None and scored[0] is request and scored[1] is c.slots
        own, short = (scored[2], self._short) if scored is not None and ours else (self._own(request, c), None)
        self._scored = None
        sent = work.sent[id(decision)] = []
        prompt, streamed = request.prompt_tokens, request.body.stream
        known = prompt - _least(own)
        for slot in {pick.slots[0] for pick in decision.picks.values()}:
            work.hold(slot)
            index = int((c.slots == slot).argmax())
            tokens, batch = own.item(index), inflight.item(index)
            ahead = tokens + work.pending_at(slot, c.now)
            fits = short is None or not short[index]
            sent.append(_Sent(slot, c.now, tokens, ahead, batch, prompt, streamed, fits))
            work.charge(sent[-1], known)

    def first_byte(self, request: Request, decision: Decision, now: float) -> None:
        """The prompt has been computed, if the response is streamed; or else the answer, too."""
        if not request.body.stream:
            return
        self._work.hears = True
        for sent in self._work.sent.get(id(decision), ()):
            if sent.queued:
                self._work.computed(sent, now)
            if sent.slot >= 0 and sent.fits:
                self._work.observe(sent.slot, sent.ahead, now - sent.at)

    def done(self, request: Request, decision: Decision, outcome: Outcome, now: float) -> None:
        """Nothing of it is left."""
        for sent in self._work.sent.pop(id(decision), ()):
            self._work.ended(sent)
            if sent.slot >= 0:
                self._work.wrote(sent.slot, outcome.usage.completion_tokens or 0, now)
        if outcome.duration is not None:
            self._work.mean_duration += (outcome.duration - self._work.mean_duration) / OWN_MEMORY

    def _take_scrapes(self, c: Candidates, seen: Floats) -> bool:
        """Takes into account what the engines have said since they were `seen`; whether they have said anything."""
        work, ages = self._work, c.ages
        later = ages < (c.now - _SAME) - seen
        if not np.count_nonzero(later):
            return False
        new, scraped = np.flatnonzero(later & c.fresh), c.now - ages
        slots, rows = c.slots[new], work.rows
        counts, waiting = c[FIRST_TOKENS][new], np.fmax(c[WAITING][new], 0.0)
        decoding = (waiting == 0) & (rows[_MOST_QUEUED, slots] == 0) & (counts == rows[_COUNT, slots])
        self._take_gaps(slots, c[TOKEN_GAPS][new], c[TOKEN_GAP_SECONDS][new], c[RUNNING][new], decoding)
        self._take_counts(slots, counts, c[FIRST_TOKEN_SECONDS][new], scraped[new])
        inflight = c[INFLIGHT_REQUESTS][new]
        used = np.fmax((c[KV_USAGE] * c[CACHE_BLOCKS] * c[CACHE_BLOCK_SIZE])[new], 0.0)
        others = waiting + np.fmax(c[RUNNING][new], 0.0) - np.maximum(rows[_MOST_INFLIGHT, slots], inflight)
        rows[_OTHER, slots] = np.maximum(waiting - rows[_MOST_QUEUED, slots], 0.0) * work.mean_tokens
        rows[_OTHER_REQUESTS, slots] = np.maximum(others, 0.0)
        # Our answers are in the cache, too: what is there beyond our prompts is others' only where others are.
        rows[_OTHER_HELD, slots] = np.where(others > 0, np.maximum(used - rows[_MOST_HELD, slots], 0.0), 0.0)
        rows[_MOST_QUEUED, slots], rows[_MOST_INFLIGHT, slots] = rows[_QUEUED, slots], inflight
        rows[_MOST_HELD, slots], rows[_SEEN, slots] = rows[_HELD, slots], scraped[new]
        return True

    def _take_counts(self, slots: Ints, counts: Floats, seconds: Floats, scraped: Floats) -> None:
        """Where responses don't pass, the engines' counts of first tokens say which prompts are done."""
        work, rows = self._work, self._work.rows
        if not work.hears:
            for index in np.flatnonzero((rows[_SEEN, slots] > -inf) & (counts > rows[_COUNT, slots])):
                slot, at = int(slots[index]), float(scraped[index])
                count = int(counts[index] - rows[_COUNT, slot])
                work.first_tokens(slot, count, float(seconds[index] - rows[_SECONDS, slot]) / count, at)
        rows[_COUNT, slots], rows[_SECONDS, slots] = counts, seconds

    def _take_gaps(self, slots: Ints, gaps: Floats, seconds: Floats, running: Floats, decoding: Mask) -> None:
        """What steps have taken since the last scrapes where nothing but decoding went on: one observation of all."""
        work, rows = self._work, self._work.rows
        grown = gaps - rows[_GAPS, slots]
        use = decoding & (rows[_SEEN, slots] > -inf) & (grown > 0) & (running > 0)
        if np.count_nonzero(use):
            share = grown[use] / grown[use].sum()
            each = (seconds - rows[_GAP_SECONDS, slots])[use] / grown[use] / rows[_SPEED, slots[use]]
            features = (1.0, float(share @ running[use]), float(share @ rows[_HELD, slots[use]]))
            work.gap.observe(features, float(share @ each))
        rows[_GAPS, slots], rows[_GAP_SECONDS, slots] = gaps, seconds
