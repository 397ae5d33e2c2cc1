"""What Kubernetes' InferenceObjective and InferenceModelRewrite say, wherever they come from: one immutable value."""

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

CRITICALITIES: Mapping[str, int] = {"Critical": 10, "Standard": 0, "Default": 0, "Normal": 0, "Sheddable": -10}
"""The priority that takes the place of an InferenceModel's criticality; a request of a negative one may be shed.

v1alpha2 calls the middle Standard, v1alpha1 Default, and some textbooks Normal, which no API server takes.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of an InferenceModelRewrite.

    Attributes:
        name: of the InferenceModelRewrite.
        models: that the rule is for; none of them for every model.
        targets: the models to ask in its place.
        weights: how often each is taken, relative to the others; all None for equally often. A target without a weight
            beside others with one is never taken.
    """

    name: str
    models: tuple[str, ...]
    targets: tuple[str, ...]
    weights: tuple[int | None, ...]

    def target(self, source: random.Random) -> str:
        """One of the targets, by weighted chance."""
        if len(self.targets) == 1:
            return self.targets[0]
        if all(weight is None for weight in self.weights):
            return source.choice(self.targets)
        return source.choices(self.targets, [weight or 0 for weight in self.weights])[0]


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects in force; made by `of`.

    Attributes:
        priorities: by the name of an InferenceObjective.
        by_model: by the model that a request names, from the InferenceModels of old.
        exact: the rule for a model.
        generic: the rule for all others, if there is one.
    """

    priorities: Mapping[str, int] = field(default_factory=dict)
    exact: Mapping[str, Rule] = field(default_factory=dict)
    generic: Rule | None = None
    by_model: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, priorities: Mapping[str, int], rules: Iterable[Rule], by_model: Mapping[str, int] | None = None
    ) -> "Objects":
        """Of several rules for one model the first counts, of several for every model too."""
        exact: dict[str, Rule] = {}
        generic: Rule | None = None
        for rule in rules:
            for model in rule.models:
                exact.setdefault(model, rule)
            if not rule.models:
                generic = generic or rule
        return cls(dict(priorities), exact, generic, dict(by_model or {}))

    def priority(self, objective: str, model: str) -> int:
        """A request's: that of the objective that it names, otherwise that of its model; 0 if there is none."""
        if objective:
            return self.priorities.get(objective, 0)
        return self.by_model.get(model, 0) if self.by_model else 0

    @property
    def rewrites(self) -> bool:
        """Whether there is any rule."""
        return bool(self.exact) or self.generic is not None

    def offered(self, served: Collection[str]) -> list[str]:
        """The names that rules give to models of which some is served."""
        return [name for name, rule in self.exact.items() if any(model in served for model in rule.targets)]

    def rule(self, model: str) -> Rule | None:
        """The rule for a model that a client names; one for it beats one for all."""
        return self.exact.get(model, self.generic)
