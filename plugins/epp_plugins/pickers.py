"""max-score-picker, weighted-random-picker, random-picker: choose by the weighted totals.

What it does
    - `max-score-picker` takes the highest total; ties are broken at random, so that equal endpoints share the load.
    - `weighted-random-picker` draws with probability proportional to the total, without replacement (A-Res, Efraimidis
      and Spirakis, "Weighted random sampling with a reservoir", 2006). Endpoints with a total of 0 or less come after
      all others, in random order; if nobody has more, it is `random-picker` for those with fresh metrics.
    - `random-picker` draws evenly, whatever the totals. It is a baseline to measure others against.

    Each picks up to `maxNumOfEndpoints`: the first is the destination, the others are fallbacks, which Envoy tries in
    order when it can't reach the ones before. One picker per profile; a profile without one gets the first that is
    configured, or else `max-score-picker`.

Reads
    The totals of the profile's scorers. In them an endpoint with stale metrics ranks below all others.

Writes
    Nothing.

Parameters
    - `maxNumOfEndpoints` (1): the length of the list; 0 or less means the default.

Example:
    plugins:
    - type: queue-scorer
    - type: weighted-random-picker
      parameters:
        maxNumOfEndpoints: 3
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: queue-scorer
      - pluginRef: weighted-random-picker

Where it departs from llm-d, and why
    A total that is NaN counts as less than any other. There it makes the order arbitrary.
"""

from collections.abc import Sequence

import numpy as np

import epp.plugin
from epp.plugin import Candidates, Context, Floats, Ints, Request

_NOTHING = 1e-300  # smaller totals would overflow as divisors
_LAST_OF_THE_FRESH = np.finfo(np.float64).max


class PickerParameters(epp.plugin.Parameters):
    """See the module's manual."""

    max_num_of_endpoints: int = 1


class MaxScorePicker:
    """Takes the highest total; ties are broken at random."""

    Parameters = PickerParameters

    def __init__(self, parameters: PickerParameters, context: Context) -> None:
        self._count = max(parameters.max_num_of_endpoints, 1)
        self._random = context.random
        self._generator = np.random.default_rng(context.random.getrandbits(64))

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Sequence[int] | Ints:
        """The indices of the highest totals, highest first."""
        if self._count == 1:
            best = np.flatnonzero(totals == np.fmax.reduce(totals))
            # Nobody equals a maximum of NaN: then nobody has a total.
            return [int(best[self._random.randrange(len(best))])] if len(best) else [self._random.randrange(len(c))]
        order = self._generator.permutation(len(c))
        return order[np.argsort(-totals[order], kind="stable")][: self._count]


class WeightedRandomPicker:
    """Draws with probability proportional to the total, so that the best is not the only one to be chosen."""

    Parameters = PickerParameters

    def __init__(self, parameters: PickerParameters, context: Context) -> None:
        self._count = max(parameters.max_num_of_endpoints, 1)
        self._generator = np.random.default_rng(context.random.getrandbits(64))

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Ints:
        """The indices in the order of arrival of exponential clocks with the totals as rates.

        The keys U^(1/score) of A-Res are in reverse order of -ln(U) / score, which doesn't underflow.
        """
        arrivals = np.where(c.fresh, _LAST_OF_THE_FRESH, np.inf)
        np.divide(self._generator.standard_exponential(len(c)), totals, out=arrivals, where=totals > _NOTHING)
        order = self._generator.permutation(len(c))
        if self._count == 1:
            return order[[arrivals[order].argmin()]]
        return order[np.argsort(arrivals[order], kind="stable")][: self._count]


class RandomPicker:
    """Draws evenly, whatever the totals."""

    Parameters = PickerParameters

    def __init__(self, parameters: PickerParameters, context: Context) -> None:
        self._count = max(parameters.max_num_of_endpoints, 1)
        self._random = context.random
        self._generator = np.random.default_rng(context.random.getrandbits(64))

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Sequence[int] | Ints:
        """Indices in random order."""
        if self._count == 1:
            return [self._random.randrange(len(c))]
        return self._generator.permutation(len(c))[: self._count]
