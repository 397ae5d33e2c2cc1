"""What a replay costs, in CPU seconds of one process under the built-in configuration.

    python benchmarks/replay.py [--json] [--smoke] [--engines N] [--repeats N]

The Mooncake synthetic trace, where it is there, at a rate that keeps the engines busy and at its own pace, where most
of the work is scrapes; and chats. The least of several repeats counts: other loads on the machine only add to it.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

from epp.replay import Engines, Policy, Workload, generate, simulate
from epp.replay.mooncake import load

TRACE = Path(__file__).parents[2] / "shared" / "data" / "traces" / "mooncake_synthetic.jsonl.gz"

Row = dict[str, str | int | float]


def cost(what: str, workload: Workload, engines: int, rate: float, repeats: int) -> Row:
    """Replays it; the seconds, and microseconds a request."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        simulate(Policy.of("default"), workload, Engines(engines), rate)
        seconds.append(time.process_time() - start)
    return {
        "what": what,
        "requests": len(workload),
        "engines": engines,
        "cpu_s": round(min(seconds), 2),
        "us_a_request": round(min(seconds) / len(workload) * 1e6, 1),
    }


def rows(engines: int, repeats: int, smoke: bool) -> Iterator[Row]:
    """Each workload's cost."""
    if TRACE.is_file() and not smoke:
        trace = load(TRACE)
        _ = trace.texts
        yield cost("mooncake, busy", trace, engines, 1.6 * engines, repeats)
        yield cost("mooncake, its own pace", trace, engines, trace.rate, repeats)
    chats = generate("chat:requests=5,sessions=2" if smoke else "chat:requests=60,sessions=20", engines, 0)
    yield cost("chat, busy", chats, engines, 8.0 * engines, repeats)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON list of rows")
    parser.add_argument("--smoke", action="store_true", help="once, and briefly")
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    engines, repeats = (4, 1) if arguments.smoke else (arguments.engines, arguments.repeats)
    found = list(rows(engines, repeats, arguments.smoke))
    if arguments.json:
        print(json.dumps(found))
        return
    for each in found:
        print(
            f"{each['what']:24} {each['requests']:6} requests {each['cpu_s']:7} s {each['us_a_request']:8} us a request"
        )


if __name__ == "__main__":
    main()
