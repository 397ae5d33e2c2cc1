"""kv-cache-utilization-scorer: prefers endpoints with more free KV cache.

What it does
    Scores each endpoint by the share of its KV cache that is free: 1 - usage. The score is absolute: it does not depend
    on the other candidates.

Reads
    `kv_usage`: `vllm:kv_cache_usage_perc` as last scraped, a fraction in spite of its name.

Writes
    Nothing.

Parameters
    None.

Example:
    plugins:
    - type: kv-cache-utilization-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: kv-cache-utilization-scorer
        weight: 2

Where it departs from llm-d, and why
    An endpoint that was never scraped, or missed its last scrape, gets no points. There its cache counts as empty, and
    it wins.
"""

from epp.plugin import KV_USAGE, Candidates, Floats, Request


class KvCacheUtilizationScorer:
    """Prefers endpoints with more free KV cache: 1 for an empty cache, 0 for a full one."""

    def score(self, request: Request, c: Candidates) -> Floats:
        """1 - usage of the KV cache, shape (n,); NaN where unknown."""
        return 1.0 - c[KV_USAGE]
