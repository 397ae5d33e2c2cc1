"""A registry of small plugins, and `load` with it: hermetic, whatever else is installed."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from epp_plugins.detectors import ConcurrencyDetector, UtilizationDetector
from epp_plugins.flow_control import (
    EdfOrderingPolicy,
    FcfsOrderingPolicy,
    GlobalStrictFairnessPolicy,
    ProgramAwareFairness,
    StaticUsageLimitPolicy,
)
from epp_plugins.models_source import ModelsDataExtractor, ModelsDataSource
from epp_plugins.multicluster import MulticlusterFileDiscovery
from epp_plugins.notification import K8sNotificationSource
from epp_plugins.pickers import MaxScorePicker, RandomPicker
from epp_plugins.profile_handlers import SingleProfileHandler
from epp_plugins.queue_depth import QueueScorer
from pydantic import Field

import epp.plugin
from epp.plugin import Body, Context, Router, matched_tokens, request_key
from epp.settings import InvalidConfig, Registry, Resolved, resolve
from epp.testing import context

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"

LENGTH = request_key("length", "length-producer")


class PlainFilter:
    def keep(self, request, c):
        return np.ones(len(c), dtype=bool)


class FilterAndScorer(PlainFilter):
    """Fills two parts of a profile."""

    def score(self, request, c):
        return np.zeros(len(c))


class TunedScorer:
    """Has parameters of every sort."""

    class Parameters(epp.plugin.Parameters):
        class Inner(epp.plugin.Parameters):
            upper_bound: float = 1.0

        max_count: int = Field(default=7, ge=0)
        mode: Literal["fast", "slow"] = "fast"
        inner: Inner = Inner()
        old_count: int | None = Field(default=None, deprecated="write maxCount")

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self.parameters, self.context = parameters, context

    def score(self, request, c):
        return np.zeros(len(c))


class NeedyScorer(QueueScorer):
    """Has a parameter without a default."""

    class Parameters(epp.plugin.Parameters):
        need: int

    def __init__(self, parameters: Parameters) -> None:
        pass


class AlphaScorer(QueueScorer):
    stability = "alpha"


class OldScorer(QueueScorer):
    deprecated = 'write "queue-scorer"'


class Choosy:
    def __init__(self) -> None:
        raise RuntimeError("no licence")

    def score(self, request, c):
        return np.zeros(len(c))


class TwoProfiles:
    def bind(self, profiles):
        self.profiles = profiles

    def decide(self, request, run):
        return None


class PrefixScorer:
    class Parameters(epp.plugin.Parameters):
        producer: str = "approx-prefix-cache-producer"

    def __init__(self, parameters: Parameters) -> None:
        self.reads = (matched_tokens(parameters.producer),)

    def score(self, request, c):
        return c[self.reads[0]]


class PrefixProducer:
    reads = (LENGTH,)

    def __init__(self, context: Context) -> None:
        self.writes = (matched_tokens(context.name),)

    def produce(self, request, c):
        return {self.writes[0]: np.zeros(len(c))}


class LengthProducer:
    writes = (LENGTH,)

    def produce(self, request, c):
        return {LENGTH: np.zeros(len(c))}


class Watcher:
    def done(self, request, decision, outcome, now):
        pass


class JsonParser:
    paths = ("completions",)

    def parse(self, path, headers, body):
        return Body()

    def response(self, *, streaming):
        return None


class AnyParser(JsonParser):
    paths = ()


TYPES: dict[str, type] = {
    "queue-scorer": QueueScorer,
    "plain-filter": PlainFilter,
    "filter-and-scorer": FilterAndScorer,
    "tuned-scorer": TunedScorer,
    "needy-scorer": NeedyScorer,
    "alpha-scorer": AlphaScorer,
    "old-scorer": OldScorer,
    "choosy-scorer": Choosy,
    "max-score-picker": MaxScorePicker,
    "random-picker": RandomPicker,
    "single-profile-handler": SingleProfileHandler,
    "two-profiles-handler": TwoProfiles,
    "prefix-scorer": PrefixScorer,
    "approx-prefix-cache-producer": PrefixProducer,
    "length-producer": LengthProducer,
    "watcher": Watcher,
    "utilization-detector": UtilizationDetector,
    "concurrency-detector": ConcurrencyDetector,
    "program-aware-fairness": ProgramAwareFairness,
    "edf-ordering-policy": EdfOrderingPolicy,
    "fcfs-ordering-policy": FcfsOrderingPolicy,
    "global-strict-fairness-policy": GlobalStrictFairnessPolicy,
    "static-usage-limit-policy": StaticUsageLimitPolicy,
    "models-data-source": ModelsDataSource,
    "models-data-extractor": ModelsDataExtractor,
    "k8s-notification-source": K8sNotificationSource,
    "multicluster-file-discovery": MulticlusterFileDiscovery,
    "openai-parser": JsonParser,
    "passthrough-parser": AnyParser,
}


def registry_of(types: dict[str, type]) -> Registry:
    def loader(cls: type) -> Callable[[], Any]:
        return lambda: cls

    return Registry({name: loader(cls) for name, cls in types.items()})


@pytest.fixture
def registry() -> Registry:
    return registry_of(TYPES)


@pytest.fixture
def resolved(registry) -> Callable[[str], Resolved]:
    """Loads a configuration, without its first two lines."""

    def run(text: str) -> Resolved:
        return resolve(HEAD + text, "test.yaml", registry, context)

    return run


@pytest.fixture
def load(resolved) -> Callable[[str], Router]:
    return lambda text: resolved(text).router


@pytest.fixture
def errors(resolved) -> Callable[[str], list[str]]:
    """Loads a configuration that doesn't load; its problems as text."""

    def run(text: str) -> list[str]:
        with pytest.raises(InvalidConfig) as caught:
            resolved(text)
        return [str(problem) for problem in caught.value.problems]

    return run
