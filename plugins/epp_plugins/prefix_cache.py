"""approx-prefix-cache-producer, precise-prefix-cache-producer, prefix-cache-scorer: send prompts where they are cached.

What it does
    The producer keeps an index of what each endpoint should have in its KV cache: the prompts that were sent there, in
    blocks, least recently used first out, as many as the engine says it can hold. For each request it tells how many
    tokens at the start of the prompt every endpoint has, contiguously, and how many there are in all. The index learns
    from the picks alone: a pick enters the prompt at once, for the target of every profile that ran, except for those
    that only encode pictures and other media, where nothing of the prompt is computed. It never hears
    what an engine really evicts; an endpoint that leaves or restarts is forgotten in the same moment. The index stays
    when the configuration changes, unless the length of a block or `memoryBytes` does.

    The scorer turns that into points: the cached share of the prompt, mixed with the cached length,

        w * min(1, matched / scale)**2 + (1 - w) * matched / matchable

    with w = `matchLengthWeight` and scale = `matchLengthScaleTokens`. The share alone prefers a short prompt's full hit
    to a long prompt's half, though the latter saves more work.

    Tokens are estimated at 4 bytes of prompt each, as llm-d does without a tokenizer. That is about right for English
    text; for others the shares are right and the lengths are not. The trailing part of a block is no part of the
    prompt here, as engines cache whole blocks. Prompts share blocks only under the same model and cache salt.

    precise-prefix-cache-producer is to hear from the engines' KV events what each endpoint has. It doesn't yet, and
    predicts it from the picks as approx-prefix-cache-producer does, in blocks of its `blockSizeTokens`, 64 at least.

    The producers are endpoint extractors: they hear of endpoints that go, whether or not `dataLayer.sources` names them
    at an `endpoint-notification-source`.

    Where endpoints are clusters, `multicluster-approx-prefix-cache-producer` tells which cluster has had a prompt, and
    `multicluster-prefix-cache-scorer` goes by it: they are the producer and the scorer under names of their own. A
    cluster reports no cache, so give it a capacity, `lruCapacityPerServer`, of all its engines together.

Reads
    - `cache_blocks`, `cache_block_size`: the engine's `vllm:cache_config_info`, with `autoTune`.
    - the scorer: `matched_tokens` and `matchable_tokens` of the producer that `prefixMatchInfoProducerName` names.

Writes
    - `matched_tokens`: the tokens at the start of the prompt that the endpoint is believed to have cached.
    - `matchable_tokens`: the tokens of the prompt's whole blocks, up to `maxPrefixTokensToMatch`.

    With `autoTune` both are rounded down to whole blocks of the endpoint's own. Several prompts in one request are
    added up.

Parameters
    of approx-prefix-cache-producer and multicluster-approx-prefix-cache-producer:

    - `autoTune` (true): take each endpoint's capacity and block size from what its engine reports, once it has.
    - `blockSizeTokens` (16): the length of a block; less than 64 means 64.
    - `lruCapacityPerServer` (31250): the blocks that an endpoint holds, without `autoTune` or until its engine reports.
    - `maxPrefixTokensToMatch` (131072): what comes after in a prompt is not looked at; 0 for `maxPrefixBlocksToMatch`.
    - `memoryBytes` (268435456, ours): the memory of the index. The oldest blocks of all go when it is used up; a
      million blocks take from 10 MB (long prompts) to 100 MB (prompts of four blocks).
    - `maxPrefixBlocksToMatch` (2048): deprecated; the same in blocks, 0 for no limit.
    - `blockSize` (0): deprecated; in tokens, for `blockSizeTokens` if that is 16.

    of precise-prefix-cache-producer; all but the block size are accepted without an effect yet:

    - `tokenProcessorConfig`: `blockSizeTokens` (16); `blockSize`, deprecated, for it if that is 16; `hashSeed` (""),
      `hashAlgorithm` (cbor-fnv), or xxh64.
    - `indexerConfig`: `kvBlockIndexConfig` with `costAwareMemoryConfig` (`size` 2GiB), `valkeyConfig` (`address`
      valkey://127.0.0.1:6379, `backendType` valkey, `enableRDMA` false), `redisConfig` (`address`
      redis://127.0.0.1:6379, `backendType` redis, `enableRDMA` false) or `inMemoryConfig` (`size` 1e8, `podCacheSize`
      10), which is there without the others, `enableMetrics` (false), `metricsLoggingInterval`;
      `kvCacheBackendConfigs` (gpu with 1, cpu with 0.8), of each `name` and `weight` (1).
    - `kvEventsConfig`: `zmqEndpoint` (""), `topicFilter` (kv@), `concurrency` (4), `engineType` (vllm), or sglang,
      `discoverPods` (true), `podDiscoveryConfig` (`podLabelSelector` llm-d.ai/inference-serving=true, `podNamespace`
      "", `socketPort` 5557, `replaySocketPort` 0).
    - `speculativeIndexing` (false), `speculativeTTL` (2s, also for "" and for 0).

    of prefix-cache-scorer and multicluster-prefix-cache-scorer:

    - `prefixMatchInfoProducerName` (approx-prefix-cache-producer, multicluster-approx-prefix-cache-producer): whose
      figures to use.
    - `matchLengthWeight` (0): between 0, the share alone, and 1, the length alone.
    - `matchLengthScaleTokens` (8192): the cached length from which on more makes no difference; above 0 if the weight
      is.

Example:
    plugins:
    - type: approx-prefix-cache-producer
      parameters:
        lruCapacityPerServer: 50000
    - type: prefix-cache-scorer
      parameters:
        matchLengthWeight: 0.5
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: prefix-cache-scorer
        weight: 3

Where it departs from llm-d, and why
    - A match is contiguous from the start of the prompt, and the end of a prompt is evicted before its beginning. There
      an endpoint is credited for blocks after a gap, and loses beginnings first: it scores for what no engine can use.
    - Blocks have one length for the whole pool, whatever engines report. There the first candidate's block size cuts
      all prompts, so that in a mixed pool, or before its first scrape, nothing matches any more.
    - The capacity follows the engine's report, converted from its tokens. There it is fixed at an endpoint's first
      prompt, and engine blocks of 16 tokens count as index blocks of 64: a modelled cache of four times the real one.
    - A prompt longer than the capacity leaves its beginning; there it leaves blocks that are never removed.
    - The pick of every profile that computes the prompt is entered, whatever its name; there the primary's and that of
      one named `prefill`.
    - Entering is part of the decision; there it comes later, and requests in a burst don't see each other.
    - Model and cache salt are kept apart (there "a" + "bc" is "ab" + "c"), and hashes depend on a random secret, so
      that nobody can make up prompts that collide.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

import epp.plugin
from epp.plugin import (
    APPROX_PREFIX_PRODUCER,
    BYTES_PER_TOKEN,
    CACHE_BLOCK_SIZE,
    CACHE_BLOCKS,
    Candidates,
    Chain,
    Context,
    Decision,
    Duration,
    Floats,
    Hasher,
    Key,
    PrefixIndex,
    Request,
    WrongParameters,
    matchable_tokens,
    matched_tokens,
    parse_size,
)

DEFAULT_BLOCK: Final = 16
MULTICLUSTER_PRODUCER: Final = "multicluster-approx-prefix-cache-producer"
SMALLEST_BLOCK: Final = 64
"""Tokens, as in llm-d."""


class ProducerParameters(epp.plugin.Parameters):
    """See the module's manual."""

    auto_tune: bool = True
    block_size_tokens: int = Field(default=DEFAULT_BLOCK, gt=0)
    lru_capacity_per_server: int = Field(default=31_250, gt=0)
    max_prefix_tokens_to_match: int = Field(default=131_072, ge=0)
    memory_bytes: int = Field(default=256 * 2**20, gt=0)
    max_prefix_blocks_to_match: int = Field(default=2048, ge=0, deprecated='write "maxPrefixTokensToMatch"')
    block_size: int = Field(default=0, ge=0, deprecated='write "blockSizeTokens"')

    @property
    def block_tokens(self) -> int:
        """The length of a block, in tokens."""
        old: int = dict(self)["block_size"]  # the attribute would warn of itself
        size = old if old and self.block_size_tokens == DEFAULT_BLOCK else self.block_size_tokens
        return max(size, SMALLEST_BLOCK)

    @property
    def most_blocks(self) -> int | None:
        """The blocks of a prompt that are looked at; None for all."""
        if self.max_prefix_tokens_to_match:
            return self.max_prefix_tokens_to_match // self.block_tokens
        return dict(self)["max_prefix_blocks_to_match"] or None

    def effective(self) -> Self:
        """With the length of a block, and the limit in tokens where there is one."""
        limit = (self.most_blocks or 0) * self.block_tokens if not self.max_prefix_tokens_to_match else None
        new = {"block_size_tokens": self.block_tokens} | ({"max_prefix_tokens_to_match": limit} if limit else {})
        old = {"block_size"} | ({"max_prefix_blocks_to_match"} if limit != 0 else set())
        kept = self.model_dump(by_alias=False, exclude=old, exclude_unset=True)
        return self.model_validate(kept | new)


def _empty(memory_bytes: int, context: Context) -> tuple[Hasher, PrefixIndex]:
    """A new index, and the hasher without whose secret it is worth nothing."""
    return Hasher(secret=context.random.getrandbits(64)), PrefixIndex(memory_bytes=memory_bytes)


class ApproxPrefixCacheProducer:
    """Tells how much of the prompt each endpoint has cached, from what has been sent there.

    State: the index and the hasher with its memo, which the next configuration takes over unless the block size or the
    memory changes; what the last candidates' block sizes come to; and, between `produce` and
    `picked` of one decision, the request's chains.
    """

    Parameters = ProducerParameters

    def __init__(self, parameters: ProducerParameters, context: Context) -> None:
        self._auto_tune = parameters.auto_tune
        self._block = parameters.block_tokens
        self._block_bytes = parameters.block_tokens * BYTES_PER_TOKEN
        self._default_capacity = parameters.lru_capacity_per_server
        most = parameters.most_blocks
        self._most_bytes = None if most is None else most * self._block_bytes
        self._sizes: tuple[bytes, Floats | None] = (b"", None)  # of the last candidates: they hardly ever change
        self._hashed: tuple[Request, list[Chain]] | None = None
        shape = (parameters.block_tokens, parameters.memory_bytes)
        self._hasher, self.index = context.state(shape, lambda: _empty(parameters.memory_bytes, context))
        self._matched, self._matchable = matched_tokens(context.name), matchable_tokens(context.name)
        self.writes = (self._matched, self._matchable)
        context.pool.watch(self)

    def forget(self, slot: int) -> None:
        """The endpoint has gone, or has restarted: it has nothing cached any more."""
        self.index.forget(slot)

    def __repr__(self) -> str:
        return f"<ApproxPrefixCacheProducer: blocks of {self._block} tokens, {self.index!r}>"

    def produce(self, request: Request, c: Candidates) -> Mapping[Key, Floats]:
        """The tokens that match and those that could, each of shape (n,)."""
        chains = self._chains(request)
        self._hashed = (request, chains)
        matched = np.zeros(len(c))
        for chain in chains:
            matched += self.index.match(chain, c.slots)
        matched *= self._block
        matchable = np.full(len(c), float(self._block * sum(map(len, chains))))
        own = self._other_blocks(c) if self._auto_tune else None
        if own is not None:
            matched, matchable = matched - matched % own, matchable - matchable % own
        return {self._matched: matched, self._matchable: matchable}

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """Enters the prompt for the target of every profile that has it computed."""
        known, self._hashed = self._hashed, None
        chains = known[1] if known and known[0] is request else self._chains(request)
        for slot in {pick.slots[0] for pick in decision.computing.values()}:
            self.index.set_capacity(slot, self._capacity(slot, c))
            for chain in chains:
                self.index.insert(slot, chain)

    def _other_blocks(self, c: Candidates) -> Floats | None:
        """The endpoints' own block sizes in tokens, shape (n,); None where all of them divide ours."""
        sizes = c[CACHE_BLOCK_SIZE]
        known = sizes.tobytes()
        if known != self._sizes[0]:
            own = np.where(sizes > 0, sizes, 1.0)
            self._sizes = (known, own if (self._block % own).any() else None)
        return self._sizes[1]

    def _chains(self, request: Request) -> list[Chain]:
        seed = self._hasher.seed(request.model, request.body.cache_salt)
        prompts = [memoryview(prompt)[: self._most_bytes] for prompt in request.body.prompts]
        return [self._hasher.chain(seed, prompt, self._block_bytes) for prompt in prompts]

    def _capacity(self, slot: int, c: Candidates) -> int:
        """Blocks of ours that the endpoint can hold."""
        if not self._auto_tune:
            return self._default_capacity
        tokens = (c[CACHE_BLOCKS] * c[CACHE_BLOCK_SIZE])[c.slots == slot]
        return int(tokens[0]) // self._block if tokens.size and tokens[0] > 0 else self._default_capacity


class TokenProcessor(epp.plugin.Parameters):
    """`tokenProcessorConfig`."""

    block_size_tokens: int = Field(default=DEFAULT_BLOCK, gt=0)
    block_size: int | None = Field(default=None, gt=0, deprecated='write "blockSizeTokens"')
    hash_seed: str = ""
    hash_algorithm: Literal["cbor-fnv", "xxh64"] = "cbor-fnv"

    @property
    def block_tokens(self) -> int:
        """The length of a block, in tokens: the old spelling counts where the new one says nothing else."""
        old = dict(self)["block_size"]
        return int(old if old and self.block_size_tokens == DEFAULT_BLOCK else self.block_size_tokens)


class InMemory(epp.plugin.Parameters):
    """`inMemoryConfig`."""

    size: float = Field(default=1e8, gt=0)
    pod_cache_size: int = Field(default=10, gt=0)


def _size(text: str) -> str:
    parse_size(text)
    return text


class CostAware(epp.plugin.Parameters):
    """`costAwareMemoryConfig`."""

    size: Annotated[str, AfterValidator(_size)] = "2GiB"


class Redis(epp.plugin.Parameters):
    """`redisConfig`."""

    address: str = "redis://127.0.0.1:6379"
    backend_type: Literal["redis", "valkey"] = "redis"
    enable_rdma: bool = Field(default=False, alias="enableRDMA")


class Valkey(Redis):
    """`valkeyConfig`."""

    address: str = "valkey://127.0.0.1:6379"
    backend_type: Literal["redis", "valkey"] = "valkey"


class BlockIndex(epp.plugin.Parameters):
    """`kvBlockIndexConfig`."""

    in_memory_config: InMemory | None = None
    cost_aware_memory_config: CostAware | None = None
    valkey_config: Valkey | None = None
    redis_config: Redis | None = None
    enable_metrics: bool = False
    metrics_logging_interval: int | None = Field(default=None, ge=0)

    def effective(self) -> Self:
        """With the one index that counts, of several the first of these."""
        if self.cost_aware_memory_config is not None:
            return self.model_copy(update={"valkey_config": None, "redis_config": None, "in_memory_config": None})
        if self.valkey_config is not None:
            return self.model_copy(update={"redis_config": None, "in_memory_config": None})
        if self.redis_config is not None:
            return self.model_copy(update={"in_memory_config": None})
        return self.model_copy(update={"in_memory_config": self.in_memory_config or InMemory()})


class Tier(epp.plugin.Parameters):
    """One entry of `kvCacheBackendConfigs`."""

    name: str = Field(min_length=1)
    weight: float = Field(default=1.0, ge=0)


class Indexer(epp.plugin.Parameters):
    """`indexerConfig`."""

    kv_block_index_config: BlockIndex = BlockIndex()
    kv_cache_backend_configs: tuple[Tier, ...] = (Tier(name="gpu"), Tier(name="cpu", weight=0.8))


class PodDiscovery(epp.plugin.Parameters):
    """`podDiscoveryConfig`."""

    pod_label_selector: str = "llm-d.ai/inference-serving=true"
    pod_namespace: str = ""
    socket_port: int = Field(default=5557, ge=1, le=65535)
    replay_socket_port: int = Field(default=0, ge=0, le=65535)


class Events(epp.plugin.Parameters):
    """`kvEventsConfig`."""

    topic_filter: str = "kv@"
    concurrency: int = Field(default=4, gt=0)
    engine_type: Literal["vllm", "sglang"] = "vllm"
    discover_pods: bool = True
    zmq_endpoint: str = ""
    pod_discovery_config: PodDiscovery = PodDiscovery()


DEFAULT_TTL: Final = 2.0
Ttl = Annotated[
    Duration,
    BeforeValidator(lambda value: "0s" if value == "" else value),
    AfterValidator(lambda seconds: seconds or DEFAULT_TTL),
]
"""As in llm-d, no time at all means the default."""


class PreciseParameters(epp.plugin.Parameters):
    """See the module's manual."""

    token_processor_config: TokenProcessor = TokenProcessor()
    indexer_config: Indexer = Indexer()
    kv_events_config: Events = Events()
    speculative_indexing: bool = False
    speculative_ttl: Ttl = Field(default=DEFAULT_TTL, alias="speculativeTTL")

    @property
    def block_tokens(self) -> int:
        """The length of a block, in tokens."""
        return self.token_processor_config.block_tokens

    def effective(self) -> Self:
        """With the length of a block, and the one index that counts."""
        tokens = {"block_size_tokens": self.block_tokens, "block_size": None}
        index = self.indexer_config.kv_block_index_config.effective()
        new = {
            "token_processor_config": self.token_processor_config.model_copy(update=tokens),
            "indexer_config": self.indexer_config.model_copy(update={"kv_block_index_config": index}),
        }
        return self.model_copy(update=new)


class PrecisePrefixCacheProducer(ApproxPrefixCacheProducer):
    """Tells how much of the prompt each endpoint has cached; from the picks, as long as no events come."""

    loads_only = "has no KV events yet: it goes by the picks, as approx-prefix-cache-producer does"
    Parameters = PreciseParameters  # type: ignore[assignment]

    def __init__(self, parameters: PreciseParameters, context: Context) -> None:
        super().__init__(ProducerParameters(block_size_tokens=parameters.block_tokens), context)


class ScorerParameters(epp.plugin.Parameters):
    """See the module's manual."""

    prefix_match_info_producer_name: str = APPROX_PREFIX_PRODUCER
    match_length_weight: float = Field(default=0.0, ge=0.0, le=1.0)
    match_length_scale_tokens: float = 8192.0

    @model_validator(mode="after")
    def _scale(self) -> "ScorerParameters":
        weight = dict(self).get("match_length_weight")  # missing where it is wrong: then 0 isn't what is meant
        if weight != 0 and not self.match_length_scale_tokens > 0:
            raise WrongParameters((("matchLengthScaleTokens",), "must be above 0 if matchLengthWeight is"))
        return self


class MulticlusterApproxPrefixCacheProducer(ApproxPrefixCacheProducer):
    """Tells how much of the prompt each cluster has had, from what has been sent there."""

    stability = "alpha"


class PrefixCacheScorer:
    """Prefers endpoints that have the beginning of the prompt cached: 1 for all of it, 0 for nothing."""

    Parameters = ScorerParameters
    default_producer = APPROX_PREFIX_PRODUCER

    def __init__(self, parameters: ScorerParameters) -> None:
        producer = parameters.prefix_match_info_producer_name or self.default_producer
        self._weight = parameters.match_length_weight
        self._scale = parameters.match_length_scale_tokens
        self._matched, self._matchable = matched_tokens(producer), matchable_tokens(producer)
        self.reads = (self._matched, self._matchable)

    def score(self, request: Request, c: Candidates) -> Floats:
        """W * min(1, m / scale)**2 + (1 - w) * m / M of the matched tokens m out of M, shape (n,); 0 where M is 0."""
        matched, matchable = c[self._matched], c[self._matchable]
        share: Floats = matched / np.maximum(matchable, 1.0)
        if not self._weight:
            return share
        length = np.minimum(1.0, matched / self._scale)
        return self._weight * length * length + (1.0 - self._weight) * share


class MulticlusterScorerParameters(ScorerParameters):
    """See the module's manual."""

    prefix_match_info_producer_name: str = MULTICLUSTER_PRODUCER


class MulticlusterPrefixCacheScorer(PrefixCacheScorer):
    """Prefers clusters that have had the beginning of the prompt: 1 for all of it, 0 for nothing."""

    Parameters = MulticlusterScorerParameters
    stability = "alpha"
    default_producer = MULTICLUSTER_PRODUCER
