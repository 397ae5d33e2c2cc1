"""Replay: traces and generated workloads under several configurations, in virtual time, on the code that routes.

As a library; `epp replay` is the command line over it.

    from epp.replay import Engines, Policy, generate, row, simulate
    from epp.replay.mooncake import load

    engines = Engines(8, profile="llama-8b-h100", speeds=(1.0, 0.5))
    workload = load(Path("trace.jsonl.gz"))                # or generate("chat:sessions=30", engines=8, seed=1)
    result = simulate(Policy.of("config.yaml"), workload, engines, rate=12.0, seed=1)
    result.requests.ttft                                   # one entry a request; result.assigned, .load, .hit_ratio
    row(result, load=0.7)                                  # a row of report.json
"""

from epp.replay.capacity import Capacity, capacity
from epp.replay.generated import SHAPES, generate
from epp.replay.options import Engines, View
from epp.replay.policy import Policy
from epp.replay.result import Requests, Result, mean_row, row
from epp.replay.simulate import simulate
from epp.replay.workload import Piece, Turn, Workload

__all__ = [
    "SHAPES",
    "Capacity",
    "Engines",
    "Piece",
    "Policy",
    "Requests",
    "Result",
    "Turn",
    "View",
    "Workload",
    "capacity",
    "generate",
    "mean_row",
    "row",
    "simulate",
]
