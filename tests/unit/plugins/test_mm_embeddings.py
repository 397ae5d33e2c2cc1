"""Media by endpoint: what is remembered, and what is made of it."""

import pytest
from epp_plugins.mm_embeddings import MmEmbeddingsCacheProducer, MmEmbeddingsCacheScorer

from epp.keys import matched_media
from epp.plugin import Body, Request
from epp.testing import candidates, context, decided, pool


def sent(*media):
    return Request("id", "/", {}, Body(media=tuple(medium.encode() for medium in media)))


class Cache:
    """A producer over three endpoints, and requests that went to some of them."""

    def __init__(self, **parameters):
        self.pool = pool(count=3)
        cls = MmEmbeddingsCacheProducer
        self.producer = cls(cls.Parameters.model_validate(parameters), context("mine", pool=self.pool))

    def send(self, index, *media, **others):
        c = candidates(of=self.pool)
        self.producer.picked(sent(*media), decided(c, *index, others=others), c)

    def matched(self, *media):
        (values,) = self.producer.produce(sent(*media), candidates(of=self.pool)).values()
        return values.tolist()


def test_remembers_where_media_went():
    """Of two pictures the first endpoint has both, the second one; the fallback has none."""
    cache = Cache()
    cache.send([0, 2], "a", "b")
    cache.send([1], "b", "c")
    assert cache.matched("a", "b") == [2, 1, 0]
    assert cache.matched("c") == [0, 1, 0]
    assert cache.matched() == [0, 0, 0]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        pytest.param({}, [1, 0, 0], id="the destination"),
        pytest.param({"prefill": 1}, [1, 1, 0], id="every stage"),
        pytest.param({"prefill": 1, "encode": 2}, [0, 0, 1], id="the encoder"),
    ],
)
def test_who_encodes(others, expected):
    """The encode profile's pick, if it ran; else every profile's."""
    cache = Cache()
    cache.send([0], "a", **others)
    assert cache.matched("a") == expected


@pytest.mark.parametrize(
    "parameters",
    [{"cacheSizeInMBPerServer": 4}, {"cacheSizeInMB": 4}, {"cacheSizeInMB": 64, "cacheSizeInMBPerServer": 4}],
)
def test_capacity(parameters):
    """4 MB are two items: the one used longest ago goes; the new spelling counts before the old one."""
    cache = Cache(**parameters)
    cache.send([0], "a", "b")
    cache.send([0], "a")
    cache.send([0], "c")
    assert [cache.matched(medium)[0] for medium in "abc"] == [1, 0, 1]


def test_forgets():
    """A restart empties the cache."""
    cache = Cache()
    cache.send([0], "a")
    cache.send([1], "a")
    cache.pool.restarted(0)
    assert cache.matched("a") == [0, 1, 0]
    cache.pool.restarted(1)
    assert cache.matched("a") == [0, 0, 0]


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        pytest.param("ab", [1, 0.5, 0, 0], id="shares of two"),
        pytest.param("", [0, 0, 0, 0], id="no media"),
    ],
)
def test_scores(media, expected):
    """The share of the request's media; nothing where that is unknown."""
    scorer = MmEmbeddingsCacheScorer(MmEmbeddingsCacheScorer.Parameters())
    values = [2, 1, 0, float("nan")] if media else [0, 0, 0, float("nan")]
    c = candidates(columns={matched_media(): values})
    assert scorer.score(sent(*media), c).tolist() == expected
