"""What discovery and scrapes ask of the pool beside columns."""

import numpy as np
import pytest

from epp.keys import INFLIGHT_REQUESTS, WAITING
from epp.pool import Candidates, Endpoint, Pool


def test_rename() -> None:
    """An endpoint under a new name keeps its slot, its generation, its columns and what is in flight."""
    pool = Pool(2)
    slot = pool.add(Endpoint("a", "10.0.0.1", 8000))
    generation, version = pool.generations[slot], pool.version
    leg = pool.charge(slot, 1, 10)
    pool.write(slot, {WAITING: 3}, now=1.0, fresh_until=2.0)
    renamed = Endpoint("b", "10.0.0.1", 8000, labels={"x": "y"})
    assert pool.rename("default/a", renamed) == slot
    assert pool.slots == {"default/b": slot}
    assert pool.endpoints[slot] == renamed
    assert pool.generations[slot] == generation
    assert pool.version > version
    assert pool.slot_at("10.0.0.1:8000") == slot
    assert (pool.column(WAITING)[slot], pool.column(INFLIGHT_REQUESTS)[slot]) == (3, 1)
    pool.release(leg)
    assert pool.column(INFLIGHT_REQUESTS)[slot] == 0
    with pytest.raises(KeyError):
        pool.rename("default/a", renamed)


def test_stale() -> None:
    """What is stale reads as missing, and fresh again after the next scrape."""
    pool = Pool(2)
    slot = pool.add(Endpoint("a", "10.0.0.1", 8000))
    pool.write(slot, {WAITING: 3}, now=1.0, fresh_until=2.0)
    pool.stale(slot)
    assert np.isnan(Candidates(pool, pool.all_slots(), 1.0)[WAITING][0])
    pool.write(slot, {WAITING: 4}, now=1.0, fresh_until=2.0)
    assert Candidates(pool, pool.all_slots(), 1.0)[WAITING][0] == 4


def test_listeners_hear_every_change_of_the_membership() -> None:
    """Adding, relabelling, renaming and removing are told, repeating what is known isn't; until `unlisten`."""
    pool = Pool(2)
    seen: list[set[str]] = []

    def listener() -> None:
        seen.append(set(pool.slots))

    pool.listen(listener)
    pool.add(Endpoint("a", "10.0.0.1", 8000))
    pool.add(Endpoint("a", "10.0.0.1", 8000))
    pool.add(Endpoint("a", "10.0.0.1", 8000, labels={"x": "y"}))
    pool.rename("default/a", Endpoint("b", "10.0.0.1", 8000))
    pool.remove("default/b")
    pool.remove("default/b")
    pool.unlisten(listener)
    pool.unlisten(listener)
    pool.add(Endpoint("c", "10.0.0.1", 8000))
    assert seen == [{"default/a"}, {"default/a"}, {"default/b"}, set()]
