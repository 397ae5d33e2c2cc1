"""round_robin.py: deals requests out in turn, whatever they cost. A baseline.

What it does
    Takes the candidate after the one that it took last, in the order in which endpoints joined the pool. It is the rule
    of Kubernetes' IPVS mode `rr` and of Envoy's ROUND_ROBIN with equal weights.

Reads
    Nothing.

Writes
    Nothing.

Parameters
    None.

Example:
    plugins:
    - type: ./round_robin.py
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: round-robin-picker
"""

from collections.abc import Sequence

from epp.plugin import Candidates, Floats, Request


class RoundRobinPicker:
    """Takes the candidate whose slot follows the last one's."""

    def __init__(self) -> None:
        self._last = -1

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Sequence[int]:
        """The index of the lowest slot above the last one, or else of the lowest slot."""
        after = [index for index, slot in enumerate(c.slots) if slot > self._last]
        index = min(after or range(len(c)), key=lambda each: int(c.slots[each]))
        self._last = int(c.slots[index])
        return [index]
