"""The `EndpointPickerConfig` file as pydantic models: llm-d's keys, strict at every level.

Durations are Go strings and become seconds, quantities are Kubernetes strings and become integers.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from epp.plugin import Duration
from epp.quantities import parse_quantity

API_VERSION = "llm-d.ai/v1alpha1"
DEPRECATED_API_VERSION = "inference.networking.x-k8s.io/v1alpha1"
KIND = "EndpointPickerConfig"


def _quantity(value: Any) -> Any:
    """A quantity may be a bare number, too."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError('a quantity is a whole number or a string, such as 5000 or "64Mi"')
    count = parse_quantity(str(value))
    if count < 0:
        raise ValueError(f"{value!r} is negative: a quantity is 0 or more")
    return count


Quantity = Annotated[int, BeforeValidator(_quantity, json_schema_input_type=int | str)]


class Section(BaseModel):
    """The base of every section: camelCase keys, unknown ones refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)


class PluginSpec(Section):
    """One entry of `plugins`; `name` defaults to `type` (for a file to the name of its class)."""

    type: str = Field(min_length=1)
    name: str | None = Field(default=None, min_length=1)
    parameters: dict[str, Any] = {}


class PluginRef(Section):
    """A reference to a plugin by name."""

    plugin_ref: str = Field(min_length=1)


class ProfilePlugin(PluginRef):
    """A plugin's part in a profile; the weight matters to a scorer only, any finite number goes."""

    weight: float | None = Field(default=None, allow_inf_nan=False)


class ProfileSpec(Section):
    """One entry of `schedulingProfiles`."""

    name: str = Field(min_length=1)
    plugins: tuple[ProfilePlugin, ...] = ()


class RequestHandler(Section):
    """`requestHandler`: the parsers, in order."""

    parsers: tuple[PluginRef, ...] = ()
    propagate_priority: bool = False


class DataSource(PluginRef):
    """One entry of `dataLayer.sources`."""

    extractors: tuple[PluginRef, ...] = ()


class Discovery(Section):
    """`dataLayer.discovery`: who says which endpoints there are, `endpoints` or as in v1alpha1 `pluginRef`; peers."""

    plugin_ref: str | None = Field(default=None, min_length=1)
    endpoints: PluginRef | None = None
    peers: PluginRef | None = None

    @model_validator(mode="after")
    def _some(self) -> "Discovery":
        if not self.model_fields_set:
            raise ValueError("names no plugin: write pluginRef, or endpoints with one")
        return self

    @property
    def reference(self) -> tuple[tuple[str, ...], str] | None:
        """Where the reference to the discovery of endpoints stands, and the name."""
        if self.endpoints is not None:
            return ("endpoints", "pluginRef"), self.endpoints.plugin_ref
        return (("pluginRef",), self.plugin_ref) if self.plugin_ref else None


class CrossReplica(Section):
    """`dataLayer.crossReplica` of v1: what replicas of the picker tell each other; times of 0 mean the defaults."""

    syncer_plugin_ref: str | None = None
    sync_interval: Duration | None = None
    publish_timeout: Duration | None = None


class DataLayer(Section):
    """`dataLayer`: where the numbers about endpoints come from."""

    inject_defaults: bool = True
    sources: tuple[DataSource, ...] = ()
    discovery: Discovery | None = None
    peer_discovery: PluginRef | None = None
    cross_replica: CrossReplica | None = None
    cross_replica_syncer_plugin_ref: str | None = None
    cross_replica_sync_interval: Duration = 0.2
    cross_replica_publish_timeout: Duration | None = None


class PriorityBand(Section):
    """Limits and policies of one priority; 0 or omitted limits mean the defaults of 1 GB and 5,000 requests."""

    max_bytes: Quantity = 0
    max_requests: Quantity = 0
    default_request_ttl: Duration | None = Field(default=None, alias="defaultRequestTTL")
    fairness_policy_ref: str | None = None
    ordering_policy_ref: str | None = None


class ConfiguredBand(PriorityBand):
    """One entry of `flowControl.priorityBands`."""

    priority: int


class FlowControl(Section):
    """`flowControl`: admission by priority, fairness and saturation."""

    max_bytes: Quantity = 0
    max_requests: Quantity = 0
    default_request_ttl: Duration = Field(default=60.0, alias="defaultRequestTTL")
    no_endpoint_request_ttl: Duration | None = Field(default=None, alias="noEndpointRequestTTL")
    priority_bands: tuple[ConfiguredBand, ...] = ()
    default_priority_band: PriorityBand | None = None
    default_negative_priority_band: PriorityBand | None = None
    usage_limit_policy_plugin_ref: str | None = None
    saturation_detector: PluginRef | None = None
    enable_eviction: bool = False


class OldDetector(Section):
    """The deprecated `saturationDetector`: a reference, or as up to v0.5 thresholds, of which 0 means the default."""

    plugin_ref: str | None = Field(default=None, min_length=1)
    queue_depth_threshold: int | None = None
    kv_cache_util_threshold: float | None = None
    metrics_staleness_threshold: str | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """The thresholds that are given, as parameters of a detector."""
        given = self.model_dump(by_alias=True, exclude_none=True, exclude={"plugin_ref"})
        return {key: value for key, value in given.items() if value not in (0, "0s")}


class Shadow(Section):
    """`shadow` (ours): profiles that decide beside the others without effect.

    They may refer to the file's `plugins`, of which the shadow has instances of its own; `plugins` are its alone.
    """

    plugins: tuple[PluginSpec, ...] = ()
    scheduling_profiles: tuple[ProfileSpec, ...]


class EndpointPickerConfig(Section):
    """The whole file."""

    api_version: Literal["llm-d.ai/v1alpha1", "llm-d.ai/v1", "inference.networking.x-k8s.io/v1alpha1"]
    kind: Literal["EndpointPickerConfig"]
    feature_gates: tuple[str, ...] = ()
    plugins: tuple[PluginSpec, ...] = ()
    scheduling_profiles: tuple[ProfileSpec, ...] = ()
    request_handler: RequestHandler = RequestHandler()
    parser: PluginRef | None = None
    data_layer: DataLayer | None = None
    flow_control: FlowControl | None = None
    saturation_detector: OldDetector | None = None
    shadow: Shadow | None = None
    data: DataLayer | None = None

    @property
    def data_section(self) -> tuple[str, DataLayer]:
        """`dataLayer`, or `data` as it was called up to v0.5, with its key."""
        if self.data is not None and self.data_layer is None:
            return "data", self.data
        return "dataLayer", self.data_layer or DataLayer()


def keys_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that are known at a place inside the model."""
    found: type[BaseModel] | None = model
    for step in path:
        if found is None or isinstance(step, int):
            continue
        by_key = {field.alias or name: field.annotation for name, field in found.model_fields.items()}
        found = model_in(by_key.get(str(step)))
    return [field.alias or name for name, field in found.model_fields.items()] if found else []


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as `tuple[Model, ...]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := model_in(inner))), None)
