"""Named engines: what a step costs and how much fits, as a small table of round numbers.

The costs come from a roofline, not from a measurement; docs/engine.md has the sums. ``base`` reads the weights once
(bytes / memory bandwidth) plus about 1.5 ms of launching and scheduling, ``prefill_token`` is 2 * parameters / usable
FLOP/s, ``decode_sequence`` is sampling and detokenising, ``kv_token`` reads the K and V of one token of context
(2 * layers * KV heads * head size * 2 bytes / bandwidth), ``adapter_load`` copies an adapter of rank 16 over PCIe.
Memory left after the weights gives the blocks.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds a step takes: ``base + prefill_token * p + decode_sequence * s + kv_token * k``.

    ``adapter_load`` comes on top for each LoRA adapter that is brought into a slot.
    """

    base: float
    prefill_token: float
    decode_sequence: float
    kv_token: float
    adapter_load: float = 0.0

    def seconds(self, prefill_tokens: int, decode_sequences: int, kv_tokens: int) -> float:
        """The duration of a step that computes and reads as much as this."""
        return (
            self.base
            + self.prefill_token * prefill_tokens
            + self.decode_sequence * decode_sequences
            + self.kv_token * kv_tokens
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of engine; ``answer_tokens`` is the mean length of an answer that nothing cuts."""

    cost: StepCost
    blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    answer_tokens: int
    about: str


PROFILES = {
    "tiny": Profile(
        StepCost(2e-3, 10e-6, 50e-6, 10e-9, 1e-3),
        1024,
        16,
        32,
        2048,
        8192,
        32,
        "no real model: fast, for tests and demos",
    ),
    "llama-8b-l40s": Profile(
        StepCost(20e-3, 90e-6, 30e-6, 150e-9, 5e-3), 10_900, 16, 256, 2048, 32_768, 256, "8B in BF16 on one L40S"
    ),
    "llama-8b-h100": Profile(
        StepCost(6.5e-3, 35e-6, 20e-6, 44e-9, 3e-3), 25_700, 16, 256, 8192, 131_072, 256, "8B in BF16 on one H100"
    ),
    "llama-70b-h100x8": Profile(
        StepCost(9e-3, 45e-6, 25e-6, 14e-9, 3e-3), 80_000, 16, 256, 8192, 131_072, 256, "70B in BF16 on eight H100"
    ),
}


def table() -> str:
    """The profiles as lines of text, for a command line."""
    head = f"{'profile':17} {'base':>8} {'prefill/tok':>12} {'decode/seq':>11} {'KV/tok':>8} {'adapter':>8}"
    lines = [f"{head} {'blocks':>7} {'seqs':>5} {'budget':>7} {'context':>8}"]
    for name, p in PROFILES.items():
        c = p.cost
        lines.append(
            f"{name:17} {c.base * 1e3:5.1f} ms {c.prefill_token * 1e6:9.1f} us {c.decode_sequence * 1e6:8.1f} us "
            f"{c.kv_token * 1e9:5.0f} ns {c.adapter_load * 1e3:5.1f} ms {p.blocks:7} {p.max_num_seqs:5} "
            f"{p.max_num_batched_tokens:7} {p.max_model_len:8}  {p.about}"
        )
    return "\n".join(lines)
