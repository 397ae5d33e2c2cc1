import pytest

from epp.data.health import Health
from epp.pool import Endpoint, Pool


class Bench:
    """A pool of endpoints a, b, c ... and what the health of it said."""

    def __init__(self, names: str, threshold: int = 3) -> None:
        self.pool = Pool(2)
        self.said: list[str] = []
        self.health = Health(self.pool, threshold, lambda endpoint, state: self.said.append(f"{endpoint.name} {state}"))
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        self.pool.add(Endpoint(name, "10.0.0.1", ord(name)))
        self.health.joined()

    def remove(self, name: str) -> None:
        slot = self.pool.slots[f"default/{name}"]
        self.pool.remove(f"default/{name}")
        self.health.forget(slot)

    def run(self, script: str) -> None:
        """`a!` an unreachable failure, `a?` a scrape that failed, `a.` one that worked, `+a` joins, `-a` leaves."""
        for step in script.split():
            if step[0] == "+":
                self.add(step[1])
            elif step[0] == "-":
                self.remove(step[1])
            elif step[1] == ".":
                self.health.worked(self.pool.slots[f"default/{step[0]}"])
            else:
                self.health.failed(self.pool.slots[f"default/{step[0]}"], reachable=step[1] == "?")

    @property
    def eligible(self) -> str:
        named = [(e.name, slot) for slot, e in enumerate(self.pool.endpoints) if e is not None]
        return "".join(sorted(name for name, slot in named if self.pool.eligible[slot]))


CASES = {
    "new ones may serve": ("", "ab", ""),
    "two failures are not enough": ("a! a!", "ab", ""),
    "three in a row are": ("a! a! a!", "b", "a out"),
    "of either kind": ("a! a? a!", "b", "a out"),
    "a scrape that works begins anew": ("a! a! a. a! a!", "ab", ""),
    "back in": ("a! a! a! a! a.", "ab", "a out,a in"),
    "unscrapable alone is out": ("a? a? a?", "b", "a out"),
    "everybody unscrapable: all serve": ("a? a? a? b? b? b?", "ab", "a out,b out"),
    "everybody unreachable: nobody serves": ("a! a! a! b! b! b!", "", "a out,b out"),
    "one of each: the reachable one serves": ("a! a! a! b? b? b?", "b", "a out,b out"),
    "the last failure says which it is": ("a? a? a! b? b? b?", "b", "a out,b out"),
    "from unscrapable to unreachable": ("a? a? a? b? b? b? a!", "b", "a out,b out"),
    "from unreachable to unscrapable": ("a! a! a! b! b! b! a?", "a", "a out,b out"),
    "one comes back: the unscrapable ones are out again": ("a? a? a? b? b? b? b.", "b", "a out,b out,b in"),
    "a new one comes: likewise": ("a? a? a? b? b? b? +c", "c", "a out,b out"),
    "the last good one leaves": ("a? a? a? -b", "a", "a out"),
    "the last good one leaves, the other is unreachable": ("a! a! a! -b", "", "a out"),
    "one that left is forgotten with its slot": ("a! a! a! -a +a a! a!", "ab", "a out"),
    "everybody leaves": ("a! a! a! b! b! b! -a -b +c", "c", "a out,b out"),
}


@pytest.mark.parametrize(("script", "eligible", "said"), CASES.values(), ids=CASES.keys())
def test_who_may_serve(script: str, eligible: str, said: str) -> None:
    """Three failures in a row take an endpoint out; those that are only unscrapable stay if nobody else is left."""
    bench = Bench("ab")
    bench.run(script)
    assert (bench.eligible, ",".join(bench.said)) == (eligible, said)


def test_how_it_is_shown() -> None:
    bench = Bench("abc")
    bench.run("a! a! a! b? b? b?")
    assert repr(bench.health) == "<Health: 2 of 3 out>"
