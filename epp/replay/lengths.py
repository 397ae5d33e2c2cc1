"""How long recorded answers were, where the log has no usage: Envoy shows it only with the responses' bodies.

What a log has of every answer is how long it took, and the replay's own engines say how many tokens they would have
made in that time:

    tokens = (duration - prefill) / (base + b * (decode_sequence + kv_token * prompt tokens))

with the costs of the profile's step, b the requests that were under way at the same server in the middle of it, and
prefill the seconds for which the prompts that came there meanwhile, its own included, took the steps for themselves.
So the replay of a log on as many engines of the profile, at its own pace, takes about as long as it took. Where the
lengths of some are known, the recorded engines have shown how fast they are: the estimates of the others are multiplied
by known / estimated tokens of those, both summed up.

Of what was streamed and seen it is the seconds since the first byte that count, without what came before.
"""

from collections.abc import Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from epp.engine.profiles import PROFILES
from epp.observe.entries import Entry
from epp.replay.workload import TOKEN_BYTES

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

USUAL = 256
"""Tokens of an answer if nothing is known of any."""

_FAILED = 400


def lengths(entries: Sequence[Entry], profile: str) -> tuple[list[int], list[str]]:
    """The length of each answer in tokens, and how many have been estimated and how, a sentence each.

    Never more than the client has allowed.

    Args:
        entries: in the order of their arrival.
        profile: of the engines that make them again, by name.
    """
    said = np.array([entry.outcome.usage.completion_tokens or 0 for entry in entries])
    found, known = said.astype(np.float64), said > 0
    how: list[str] = []
    open_ = ~known
    for seconds in (_since_first_byte(entries), _durations(entries)):
        measured = open_ & ~np.isnan(seconds)
        if not measured.any():
            continue
        made, examples = _made(entries, seconds, profile), known & ~np.isnan(seconds)
        way = f"by their durations, at the decode speed of {profile}"
        if examples.any():
            made *= found[examples].sum() / made[examples].sum()
            way = f"by their durations, and the durations and lengths of {examples.sum()} that are known"
        found[measured] = made[measured]
        how.append(f"{measured.sum()} {way}")
        open_ &= ~measured
    if open_.any():
        usual = median(found[~open_].tolist()) if not open_.all() else USUAL
        found[open_] = usual
        others = "the median of the others" if not open_.all() else "for want of any better"
        how.append(f"{open_.sum()} as {round(usual)} tokens, {others}")
    allowed = np.array([entry.max_tokens or np.inf for entry in entries])
    found = np.where(known, found, np.clip(np.round(found), 1, np.maximum(allowed, 1)))
    return found.astype(np.int64).tolist(), _told(len(entries), known, how)


def _told(count: int, known: Bools, how: Sequence[str]) -> list[str]:
    unknown = count - int(known.sum())
    if not unknown:
        return []
    text = f"the log has no usage for {unknown} of its {count} answers, their lengths are estimated: {', '.join(how)}"
    return [f"{text}. Recorded with the responses' bodies they are exact: docs/decision-log.md says how."]


def _durations(entries: Sequence[Entry]) -> Floats:
    """Seconds from the arrival to the end, shape (n,); NaN for who got no answer."""
    return np.array([_or_nan(entry.outcome.duration) if _answered(entry) else np.nan for entry in entries])


def _since_first_byte(entries: Sequence[Entry]) -> Floats:
    """Seconds from the first byte of a streamed answer to its end, shape (n,); NaN where that wasn't seen."""
    first = np.array([_or_nan(e.outcome.first_byte) if e.outcome.streaming else np.nan for e in entries])
    since: Floats = _durations(entries) - first
    return since


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _answered(entry: Entry) -> bool:
    return entry.error is None and (entry.outcome.status or 0) < _FAILED


def _made(entries: Sequence[Entry], seconds: Floats, profile: str) -> Floats:
    """Tokens that the profile's engines make in these seconds before the ends, shape (n,)."""
    cost = PROFILES[profile].cost
    prompts = np.array([entry.prompt_bytes / TOKEN_BYTES for entry in entries])
    prefill = cost.prefill_token * _uncached(entries)
    arrived = np.array([entry.arrived for entry in entries])
    ended = arrived + np.nan_to_num(_durations(entries))
    begun = ended - seconds
    batch, stolen = np.ones(len(entries)), np.zeros(len(entries))
    servers = np.array([entry.outcome.served_by or entry.sent_to or "" for entry in entries])
    for server in set(servers.tolist()):
        here = servers == server
        came, went, middle = arrived[here], np.sort(ended[here]), (begun + ended)[here] / 2
        batch[here] = np.searchsorted(came, middle, "right") - np.searchsorted(went, middle, "right")
        work = np.concatenate(([0.0], np.cumsum(prefill[here])))
        stolen[here] = work[np.searchsorted(came, ended[here])] - work[np.searchsorted(came, begun[here])]
    step = cost.base + np.maximum(batch, 1.0) * (cost.decode_sequence + cost.kv_token * prompts)
    made: Floats = np.maximum((seconds - stolen) / step, 1.0)
    return made


def _uncached(entries: Sequence[Entry]) -> Floats:
    """Tokens of the prompts that none before has had, shape (n,)."""
    seen: set[tuple[int, int]] = set()
    found = []
    for entry in entries:
        tokens = entry.prompt_bytes / TOKEN_BYTES
        for chain in entry.chains:
            blocks = [(entry.space, block) for block in chain.tolist()]
            tokens -= entry.block_tokens * next((n for n, each in enumerate(blocks) if each not in seen), len(blocks))
            seen.update(blocks)
        found.append(max(tokens, 0.0))
    return np.array(found)
