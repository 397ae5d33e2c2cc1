"""What a replay is told, beside the workload: the engines, and how the picker hears of them."""

from dataclasses import dataclass, field
from typing import Literal

from epp.data.client import ScrapeOptions
from epp.engine.model import ModelConfig
from epp.engine.profiles import PROFILES
from epp.errors import ConfigError

DEFAULT_PROFILE = "llama-8b-h100"
Responses = Literal["bodies", "headers", "none"]


@dataclass(frozen=True, slots=True)
class Engines:
    """The simulated servers.

    Attributes:
        count: how many there are.
        profile: of all of them, see `epp engine --profile list`.
        speeds: factors of the speed, given to the engines in turn: (1.0, 0.5) makes every second one half as fast.
        jitter: standard deviation of a step's duration as a share of it.
        block_size: tokens of a KV block; None for the profile's.

    Raises:
        ConfigError: there is no such profile, or a number is out of range.
    """

    count: int
    profile: str = DEFAULT_PROFILE
    speeds: tuple[float, ...] = (1.0,)
    jitter: float = 0.05
    block_size: int | None = None

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ConfigError(f"no engine profile {self.profile!r}: there are {', '.join(PROFILES)}")
        if self.count < 1:
            raise ConfigError(f"{self.count} engines: at least 1 is needed")
        if not self.speeds or min(self.speeds) <= 0:
            raise ConfigError("the engines' speeds must be above 0")

    def speed(self, index: int) -> float:
        """The factor of an engine's speed."""
        return self.speeds[index % len(self.speeds)]

    @property
    def total_speed(self) -> float:
        """How many engines of speed 1 they are worth."""
        return sum(self.speed(index) for index in range(self.count))

    def config(self, index: int) -> ModelConfig:
        """The model's configuration of one engine.

        The memory of its KV cache doesn't depend on the block size, and a context is as long as that memory allows:
        traces come from other models.
        """
        profile = PROFILES[self.profile]
        size = self.block_size or profile.block_size
        blocks = profile.blocks * profile.block_size // size
        return ModelConfig(
            cost=profile.cost,
            num_blocks=blocks,
            block_size=size,
            max_num_seqs=profile.max_num_seqs,
            max_num_batched_tokens=profile.max_num_batched_tokens,
            max_model_len=blocks * size,
            time_factor=1 / self.speed(index),
            jitter=self.jitter,
        )


@dataclass(frozen=True, slots=True)
class View:
    """What the picker gets to see, and when.

    Attributes:
        scrapes: whether the metrics pages are scraped at all.
        scrape: interval, budget and timeout, as `epp serve` has them by default.
        scrape_delay: seconds between the state that a page shows and the moment that the picker knows it: at least the
            first, and the second on the average beyond that (exponential).
        responses: what of a response passes through the picker, beside its end: `bodies`, as Envoy sends them in full
            duplex; `headers`, as in `epp envoy`'s standalone mode; or `none` of it.
    """

    scrapes: bool = True
    scrape: ScrapeOptions = field(default_factory=ScrapeOptions)
    scrape_delay: tuple[float, float] = (0.003, 0.004)
    responses: Responses = "bodies"
