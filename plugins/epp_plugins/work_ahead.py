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
        answer   = answerTokens * (batch * member + held * read + step)

    - `pending`: uncached tokens of the prompts that we have sent there and that aren't computed yet. A pick adds its
      own at once, so that a burst spreads. They are worked off at the rate that is believed in, and are corrected by
      what is seen: a first byte says which prompts are done, and that all others behind them aren't; however late it
      is, 0.35 of the prompt at whose turn it is are still to come. Where responses don't pass, the engine's count of
      first tokens says what is done, at each scrape.
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
      ours by our own count, and what the engine's page has beyond that (`running`, and the KV cache in use), which is
      believed less by the second: by 1/e after half a minute without a scrape. It is without `speed`: an engine that
      takes twice as long keeps its requests twice as long, so equal batches already give it half of them.
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
    - `answerTokens` (35): how much of the answer counts as waiting. 0 looks at the first token alone; more keeps
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

from math import inf, isnan
from typing import Any, Final

import numpy as np
from pydantic import Field

import epp.plugin
from epp.plugin import (
    APPROX_PREFIX_PRODUCER,
    INFLIGHT_REQUESTS,
    KV_USAGE,
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
from epp_plugins.engine_work import CAPACITY, HELD, OTHER, OTHER_STEP, OWN_MEMORY, SEEN, SPEED, Sent, Work

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


def _least(values: Floats) -> float:
    """The least value, NaN if there is one: `values.min()` takes four times as long."""
    return float(values[values.argmin()])


class WorkAheadScorer:
    """Prefers the endpoint where a request has the least work ahead of it, in seconds: 1 there, less elsewhere."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        prefill_tokens_per_second: float = Field(default=20_000.0, gt=0.0)
        answer_tokens: float = Field(default=35.0, ge=0.0)
        prefix_match_info_producer_name: str = APPROX_PREFIX_PRODUCER

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._matched = matched_tokens(parameters.prefix_match_info_producer_name or APPROX_PREFIX_PRODUCER)
        self.reads = (self._matched,)
        self._answer, self._now = parameters.answer_tokens, context.now
        rate = parameters.prefill_tokens_per_second
        self._work = context.state(rate, lambda: Work(rate, len(context.pool.endpoints)))
        self._scored: tuple[Request, Ints, Floats, float] | None = None  # the last one: own tokens, most known anywhere
        self._full: Floats | None = None  # with it, up to FULLEST
        context.pool.watch(self._work)

    def score(self, request: Request, c: Candidates) -> Floats:
        """Least seconds / seconds, shape (n,)."""
        work = self._work
        rows = work.of(c.slots, c.now)
        if work.take_scrapes(c, rows[SEEN]):
            rows = work.of(c.slots, c.now)
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
            "speed_by_slot": work.rows[SPEED].tolist(),
        }

    def _seconds(self, request: Request, c: Candidates, rows: Floats) -> Floats:
        """The manual's formula over these endpoints' rows, shape (n,)."""
        work = self._work
        start, token = work.first.rates
        step, member, read = work.gap.rates
        own, least = self._own(request, c)
        pace = rows[SPEED] * token
        tokens = work.pending(rows, pace, c.now)
        seconds: Floats = c[INFLIGHT_REQUESTS] * (self._answer * member)
        seconds += rows[HELD] * (self._answer * read)
        if work.others:
            tokens += np.maximum(rows[OTHER] - (c.now - rows[SEEN]) / pace, _ZERO)
            seconds += rows[OTHER_STEP] * (self._answer * work.faded(c.now))
        arrivals, busy = work.traffic.rates(c.now)
        backlog = float(tokens.dot(work.ones[: len(c)])) / len(c) * token
        delay = arrivals / len(c) * backlog / (1.0 - min(busy / len(c), BUSIEST))
        tokens += own
        evicted, room, unknown = self._memory(tokens, rows, c)
        tokens += start / token
        tokens *= pace
        seconds += tokens
        seconds += self._answer * step
        evicted *= work.traffic.repeated * token
        evicted += delay * token
        evicted *= own
        seconds += evicted
        if room is not None:
            seconds += room
        if unknown is not None:
            seconds[unknown] = np.maximum(seconds[unknown], seconds[~unknown].min())
        self._scored = (request, c.slots, own, request.prompt_tokens - least)
        return seconds

    def _memory(self, tokens: Floats, rows: Floats, c: Candidates) -> tuple[Floats, Floats | None, Mask | None]:
        """What the KV caches cost; what isn't known costs nothing.

        Args:
            tokens: that are still to come, shape (n,).
            rows: of the candidates.
            c: the candidates.

        Returns:
            Tokens that a computed one evicts, weighed; room, in seconds, None for none; and whose usage isn't known,
            None where that is of nobody or of all.
        """
        capacity, usage, unknown = rows[CAPACITY], c[KV_USAGE], None
        full = tokens / capacity
        full += usage
        room = None
        most = full[full.argmax()]
        if isnan(most):  # argmax finds it first
            unknown, usage = np.isnan(usage), np.fmax(usage, _ZERO)
            full = tokens / capacity
            full += usage
            most, unknown = full[full.argmax()], None if unknown.all() else unknown
        if most >= FULLEST:
            room = np.maximum(full - _ONE, _ZERO)
            room *= self._work.mean_duration
            room /= usage if _least(usage) > 0.0 else np.where(usage > 0.0, usage, inf)
            np.minimum(full, _FULLEST, out=full)
        self._full, left = full, _ONE - full
        evicted: Floats = full / left
        left *= capacity
        written = self._work.written(rows, HORIZON, c.now)
        written /= left
        evicted += np.minimum(written, _MOST_EVICTED, out=written)
        return evicted, room, unknown

    def _own(self, request: Request, c: Candidates) -> tuple[Floats, float]:
        """The request's uncached tokens, shape (n,), and the least of them."""
        own: Floats = request.prompt_tokens - c[self._matched]
        least = _least(own)
        if not least >= 0.0:  # nor NaN
            own = np.maximum(request.prompt_tokens - np.fmax(c[self._matched], _ZERO), _ZERO)
            least = _least(own)
        return own, least

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """Charges the targets of all profiles."""
        work, scored = self._work, self._scored
        inflight = c[INFLIGHT_REQUESTS]
        if scored is not None and scored[0] is request and scored[1] is c.slots:
            own, known, full = scored[2], scored[3], self._full
        else:
            own, least = self._own(request, c)
            known, full = request.prompt_tokens - least, None
        self._scored = None
        sent = work.sent[id(decision)] = []
        prompt, streamed = request.prompt_tokens, request.body.stream
        for slot in {pick.slots[0] for pick in decision.picks.values()}:
            index = c.index(slot)
            tokens, batch = own.item(index), inflight.item(index)
            fits = full is None or full.item(index) < FULLEST
            sent.append(work.charge(Sent(slot, c.now, tokens, 0.0, batch, prompt, streamed, fits), known))

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
            if sent.slot >= 0 and outcome.usage.completion_tokens:
                self._work.wrote(sent.slot, outcome.usage.completion_tokens, now)
        if outcome.duration is not None:
            self._work.mean_duration += (outcome.duration - self._work.mean_duration) / OWN_MEMORY
