"""core-metrics-extractor: what the engines call their metrics.

What it does
    Tells how an endpoint's metrics page is read: which of its series is the queue, which the KV cache, and so on, for
    each kind of engine. vLLM, SGLang, TensorRT-LLM and Triton (`vllm`, `sglang`, `trtllm-serve`, `triton-tensorrt-llm`,
    `triton`) are known; `engineConfigs` adds others, and metrics of one's own. A configuration without this plugin
    gets one with the defaults; it needn't be referred to.

    An endpoint's engine is the one that its label names. A page that has none of that engine's metrics is read as the
    first one's of which it has some.

    A metric is written `name` or `name{label=value,...}`, values in quotes or not; several series that fit are the
    parts of one engine: they are added, of the KV cache's usage and of the block size the highest counts.

Reads
    The endpoint's label `llm-d.ai/engine-type`, or the older `inference.networking.k8s.io/engine-type`.

Writes
    The columns `waiting`, `running`, `kv_usage`, `cache_block_size`, `cache_blocks`, those of LoRA adapters, and one
    for each custom metric, which `endpoint-attribute-scorer` and `endpoint-attribute-filter` can read.

Parameters
    - `engineLabelKey` (`llm-d.ai/engine-type`): the label that names the engine.
    - `defaultEngine` (vllm): the engine of endpoints without the label, or with an unknown one.
    - `engineConfigs` ([]): for each engine
      `name`, any but "default"; that of a known engine changes what is given and leaves the rest as it is;
      `queuedRequestsSpec`, `runningRequestsSpec`, `kvUsageSpec`: metrics;
      `loraSpec`: the metric with the labels `running_lora_adapters`, `waiting_lora_adapters` and `max_lora`;
      `cacheInfoSpec`: the metric whose labels are the block size and the blocks, called `cacheBlockSizeLabelName`
      (block_size) and `cacheNumBlocksLabelName` (num_gpu_blocks);
      `cacheBlockSizeSpec`, `cacheNumBlocksSpec`: the same as metrics of their own;
      `customMetrics`: of each its `attributeKey` and `metricSpec`.

Example:
    plugins:
    - type: core-metrics-extractor
      parameters:
        engineConfigs:
        - name: mine
          queuedRequestsSpec: my_queue{kind=waiting}
          runningRequestsSpec: my_running
          kvUsageSpec: my_cache_used
          customMetrics:
          - attributeKey: batch_age
            metricSpec: my_batch_age_seconds
    - type: queue-scorer
    dataLayer:
      sources:
      - pluginRef: metrics-data-source
        extractors:
        - pluginRef: core-metrics-extractor

Where it departs from llm-d, and why
    - Several series are combined; there the latest or the first counts, which is one rank of several.
    - A known engine's name changes what is given; there it takes all the other metrics away.
    - Labels of `loraSpec` are not looked at: the newest of each rank's series counts.
"""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

import epp.plugin
from epp.plugin import ENGINE_LABELS, ENGINES, Context, EngineMetrics, Extraction, WrongParameters, parse_selector


def _selector(text: str) -> str:
    if text:
        parse_selector(text)
    return text


Selector = Annotated[str, AfterValidator(_selector)]


class CustomMetric(epp.plugin.Parameters):
    """One entry of `customMetrics`."""

    attribute_key: str = Field(min_length=1)
    metric_spec: Annotated[Selector, Field(min_length=1)]


class EngineConfig(epp.plugin.Parameters):
    """One entry of `engineConfigs`."""

    name: str = Field(min_length=1)
    queued_requests_spec: Selector = ""
    running_requests_spec: Selector = ""
    kv_usage_spec: Selector = ""
    lora_spec: Selector = ""
    cache_info_spec: Selector = ""
    cache_block_size_label_name: str = ""
    cache_num_blocks_label_name: str = ""
    cache_block_size_spec: Selector = ""
    cache_num_blocks_spec: Selector = ""
    custom_metrics: tuple[CustomMetric, ...] = ()

    @property
    def metrics(self) -> EngineMetrics:
        """The same for the scraper."""
        return EngineMetrics(
            self.name,
            waiting=self.queued_requests_spec,
            running=self.running_requests_spec,
            kv_usage=self.kv_usage_spec,
            lora=self.lora_spec,
            cache_info=self.cache_info_spec,
            block_size_label=self.cache_block_size_label_name or "block_size",
            blocks_label=self.cache_num_blocks_label_name or "num_gpu_blocks",
            block_size=self.cache_block_size_spec,
            blocks=self.cache_num_blocks_spec,
            custom=tuple((custom.attribute_key, custom.metric_spec) for custom in self.custom_metrics),
        )


class ExtractorParameters(epp.plugin.Parameters):
    """See the module's manual."""

    engine_label_key: str = Field(default=ENGINE_LABELS[0], min_length=1)
    default_engine: str = Field(default="vllm", min_length=1)
    engine_configs: tuple[EngineConfig, ...] = ()

    @model_validator(mode="after")
    def _names(self) -> "ExtractorParameters":
        names = ["default", *(getattr(engine, "name", None) for engine in self.engine_configs)]  # None for a wrong one
        said = {"default": 'no engine can be called "default": defaultEngine names the one that is'}
        wrong = [
            (("engineConfigs", index, "name"), said.get(name, f'an engine above is called "{name}" already'))
            for index, name in enumerate(names[1:])
            if name is not None and name in names[: index + 1]
        ]
        if wrong:
            raise WrongParameters(*wrong)
        return self

    @model_validator(mode="after")
    def _default(self) -> "ExtractorParameters":
        known = dict.fromkeys((*(engine.name for engine in self.engine_configs), *ENGINES))
        if self.default_engine not in known:
            raise WrongParameters((("defaultEngine",), f'"{self.default_engine}" is none of {", ".join(known)}'))
        return self


class CoreMetricsExtractor:
    """Tells how the metrics page of each engine is read."""

    Parameters = ExtractorParameters

    def __init__(self, parameters: ExtractorParameters, context: Context) -> None:
        self._name, self._parameters = context.name, parameters

    def engine_metrics(self) -> Extraction:
        """The metrics by engine."""
        said = self._parameters
        labels = ENGINE_LABELS if said.engine_label_key == ENGINE_LABELS[0] else (said.engine_label_key,)
        engines = tuple(engine.metrics for engine in said.engine_configs)
        return Extraction(self._name, engines, said.default_engine, labels)
