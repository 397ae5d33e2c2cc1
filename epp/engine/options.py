"""What an engine is started with: a named profile and what is changed in it."""

from dataclasses import dataclass

from epp.engine.kv_events import Format, KvEventsConfig
from epp.engine.model import ModelConfig
from epp.engine.profiles import PROFILES, Profile


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """One simulated engine. None stands for the profile's value.

    Attributes:
        port: 0 = any free one.
        loras: adapters served beside the model from the start, each under its own name.
        max_loras: adapters that may run at the same time; None = as many as there are at the start. If that is none,
            the engine takes no adapters.
        seed: of the answers, of the jitter and of the injected failures.
        time_factor: multiplies the duration of every step.
        jitter: standard deviation of a step's duration as a share of it.
        failure_rate: share of the requests that fail, from 0 to 1, each with one of ``failure_statuses``.
        data_parallel_size: how many ranks, each with a scheduler and a cache of its own, this server has.
        data_parallel_rank: the number of the first of them.
        kv_events: where to publish what happens in the prefix cache; None = nowhere.
        kv_events_format: see ``epp.engine.kv_events``.
        startup_seconds: before the command listens, as if it loaded weights.
        grace: seconds that running requests get to end when the engine is closed; then they are cut.
    """

    model: str = "llama-8b"
    profile: str = "tiny"
    host: str = "127.0.0.1"
    port: int = 0
    blocks: int | None = None
    block_size: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    loras: tuple[str, ...] = ()
    max_loras: int | None = None
    seed: int = 0
    time_factor: float = 1.0
    jitter: float = 0.0
    failure_rate: float = 0.0
    failure_statuses: tuple[int, ...] = (500,)
    data_parallel_size: int = 1
    data_parallel_rank: int = 0
    kv_events: KvEventsConfig | None = None
    kv_events_format: Format = "map"
    startup_seconds: float = 0.0
    grace: float = 0.0

    def named_profile(self) -> Profile:
        """The profile by its name.

        Raises:
            ValueError: there is none of that name.
        """
        if self.profile not in PROFILES:
            raise ValueError(f"no profile {self.profile!r}; there are {', '.join(PROFILES)}")
        return PROFILES[self.profile]

    def ranks(self) -> tuple[int, ...]:
        """The data-parallel ranks of this server.

        Raises:
            ValueError: there would be none.
        """
        if self.data_parallel_size < 1 or self.data_parallel_rank < 0:
            size, first = self.data_parallel_size, self.data_parallel_rank
            raise ValueError(f"data_parallel_size is {size} and the first rank {first}: at least 1 rank from 0 on")
        return tuple(range(self.data_parallel_rank, self.data_parallel_rank + self.data_parallel_size))

    def config(self) -> ModelConfig:
        """The model's configuration; a context that is not asked for shrinks to what the blocks hold.

        Raises:
            ValueError: the numbers don't fit together, or there is no such profile.
        """
        profile = self.named_profile()
        blocks = profile.blocks if self.blocks is None else self.blocks
        block_size = self.block_size or profile.block_size
        context = min(profile.max_model_len, blocks * block_size)
        return ModelConfig(
            cost=profile.cost,
            num_blocks=blocks,
            block_size=block_size,
            max_num_seqs=self.max_num_seqs or profile.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens or profile.max_num_batched_tokens,
            max_model_len=self.max_model_len or context,
            max_loras=self.max_loras or len(self.loras),
            kv_events=self.kv_events is not None and self.kv_events.enabled,
            time_factor=self.time_factor,
            jitter=self.jitter,
        )
