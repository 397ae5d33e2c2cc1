"""What one endpoint holds of the tree, in the order in which it will be evicted."""

from array import array
from itertools import repeat

import numpy as np


class Holder:
    """Stamps of runs, a log of the inserts, and the one run of which only the beginning is held.

    There is at most one such run, and it is the oldest: only eviction makes one, and it goes on there next time.
    """

    __slots__ = ("bit", "capacity", "gone", "head", "late", "log", "number", "part", "stamps", "times", "used")

    def __init__(self, number: int, capacity: int) -> None:
        self.number = number
        self.bit = 1 << number
        self.capacity = capacity  # blocks
        self.used = 0  # blocks
        self.gone = False  # forgotten: it is to be emptied and its number freed
        self.late = False  # in the queue of those that hold more than their capacity
        self.stamps: dict[int, int] = {}  # run -> stamp
        self.log = array("i")  # runs, oldest first, from index head on
        self.times = array("Q")  # their stamps
        self.head = 0
        self.part = 0  # blocks held of the run at the head of the log; 0 if it is held in full

    def oldest(self) -> int:
        """The index in the log of the oldest valid record. The log must not be empty of them."""
        while self.stamps.get(self.log[self.head]) != self.times[self.head]:
            self.head += 1
        return self.head

    def record(self, run: int, stamp: int) -> None:
        """Appends to the log, which is compacted when most of it is history."""
        self.log.append(run)
        self.times.append(stamp)
        if len(self.log) > 2 * len(self.stamps) + 64:
            self._compact()

    def _compact(self) -> None:
        stamps = np.fromiter(map(self.stamps.get, self.log, repeat(0)), np.uint64, len(self.log))
        valid = np.flatnonzero(stamps == np.array(self.times, np.uint64))
        self.log, log = array("i"), np.array(self.log, np.int32)
        self.times, times = array("Q"), np.array(self.times, np.uint64)
        self.log.frombytes(log[valid].tobytes())
        self.times.frombytes(times[valid].tobytes())
        self.head = 0
