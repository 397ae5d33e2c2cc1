"""What an engine is started with: a named profile and what is changed in it."""

from dataclasses import dataclass

from epp.engine.model import ModelConfig
from epp.engine.profiles import PROFILES, Profile


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """One simulated engine. None stands for the profile's value.

    Attributes:
        port: 0 = any free one.
        loras: adapters served beside the model, each under its own name.
        max_loras: adapters that may run at the same time; None = all of them.
        seed: of the answers, of the jitter and of the injected failures.
        time_factor: multiplies the duration of every step.
        jitter: standard deviation of a step's duration as a share of it.
        failure_rate: share of the requests answered with 500, from 0 to 1.
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
    grace: float = 0.0

    def named_profile(self) -> Profile:
        """The profile by its name.

        Raises:
            ValueError: there is none of that name.
        """
        if self.profile not in PROFILES:
            raise ValueError(f"no profile {self.profile!r}; there are {', '.join(PROFILES)}")
        return PROFILES[self.profile]

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
            time_factor=self.time_factor,
            jitter=self.jitter,
        )
