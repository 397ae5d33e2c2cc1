"""How much the engines can take: the rate that loads are fractions of.

The capacity is the highest rate at which the best of the policies keeps its TTFT p90 within five times the unloaded
one. It is found by bisection over whole replays, to 4 %: a policy that has failed at a rate isn't asked at a higher
one, and the one that has succeeded last is asked first, so that further policies cost little.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from epp.errors import ConfigError
from epp.replay.options import Engines, View
from epp.replay.policy import Policy
from epp.replay.result import WARM_UP, quantile
from epp.replay.simulate import simulate
from epp.replay.workload import Workload

WITHIN = 5.0
PRECISION = 0.04

_UNLOADED = 0.05  # of the estimate
_STEP = 1.3
_MOST = 30


@dataclass(frozen=True, slots=True)
class Capacity:
    """What was found.

    Attributes:
        rate: requests a second.
        policy: the name of the policy that takes it.
        unloaded: the TTFT p90 of the first policy at a twentieth of the estimate, seconds.
    """

    rate: float
    policy: str
    unloaded: float


def capacity(
    policies: Sequence[Policy],
    workload: Workload,
    engines: Engines,
    seed: int = 0,
    *,
    view: View | None = None,
    told: Callable[[int], None] = lambda _: None,
) -> Capacity:
    """Measures the capacity of the engines for a workload.

    Args:
        policies: among which the best one counts.
        workload: the requests.
        engines: the simulated servers.
        seed: of the replays.
        view: what the picker gets to see.
        told: hears of every replay, with the number of its requests.

    Raises:
        ConfigError: see `simulate`; or no rate is found.
    """
    search = _Search(policies, workload, engines, seed, view, told)
    guess = estimate(workload, engines)
    unloaded = search.ttft(policies[0], guess * _UNLOADED)
    search.limit = WITHIN * unloaded
    low, high = search.bracket(guess)
    while high / low > 1 + PRECISION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if search.holds(middle) else (low, middle)
    return Capacity(low, search.best.name, unloaded)


def estimate(workload: Workload, engines: Engines, batch: int = 16) -> float:
    """The rate at which the engines would be busy all the time, by the cost of a step; requests a second.

    A request costs its prompt, but for what one endless cache would have, and for each token of its answer the share
    of a step of `batch` sequences.
    """
    cost = engines.config(0).cost
    count = len(workload)
    prompt = sum(turn.prompt_tokens for turn in workload.turns) / count
    answer = sum(turn.answer.tokens for turn in workload.turns) / count
    token = cost.base / batch + cost.decode_sequence + cost.kv_token * prompt
    seconds = cost.prefill_token * prompt * (1 - workload.texts.ideal_hit_ratio()) + answer * token
    return engines.total_speed / seconds


class _Search:
    """Replays at one rate after another.

    State: the limit of the TTFT p90, the policy that has kept it last, and the lowest rate at which each one has not.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        workload: Workload,
        engines: Engines,
        seed: int,
        view: View | None,
        told: Callable[[int], None],
    ) -> None:
        self._workload, self._engines, self._seed, self._view, self._told = workload, engines, seed, view, told
        self._policies = list(policies)
        self._failed: dict[str, float] = {}
        self.limit = float("inf")

    @property
    def best(self) -> Policy:
        """The policy that has kept the limit last."""
        return self._policies[0]

    def ttft(self, policy: Policy, rate: float) -> float:
        """The TTFT p90 at a rate, seconds; endless if requests were refused."""
        result = simulate(policy, self._workload, self._engines, rate, self._seed, view=self._view)
        self._told(len(self._workload))
        return float("inf") if result.refused else quantile(result.requests.since(WARM_UP).ttft, 0.9)

    def holds(self, rate: float) -> bool:
        """Whether any policy keeps the limit at a rate."""
        for policy in list(self._policies):
            if rate >= self._failed.get(policy.name, float("inf")):
                continue
            if self.ttft(policy, rate) <= self.limit:
                self._policies.remove(policy)
                self._policies.insert(0, policy)
                return True
            self._failed[policy.name] = rate
        return False

    def bracket(self, guess: float) -> tuple[float, float]:
        """A rate that holds, and a higher one that doesn't."""
        rate, up = guess, self.holds(guess)
        for _ in range(_MOST):
            following = rate * _STEP if up else rate / _STEP
            if self.holds(following) != up:
                return (rate, following) if up else (following, rate)
            rate = following
        raise ConfigError(
            f"{self._workload.name}: no capacity is found between {min(guess, rate):.3g} and {max(guess, rate):.3g} "
            "requests a second: say it with --capacity"
        )
