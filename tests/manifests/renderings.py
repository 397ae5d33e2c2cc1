"""Every rendering of config/kubernetes: each kustomization, and the chart with each of its files of values."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.manifests.tools import kustomize, template

KUBERNETES = Path(__file__).parents[2] / "config" / "kubernetes"
CHART = KUBERNETES / "chart"
Document = dict[str, Any]


def _kustomizations() -> Iterator[Path]:
    for file in sorted(KUBERNETES.rglob("kustomization.yaml")):
        if yaml.safe_load(file.read_text("utf-8"))["kind"] == "Kustomization":  # a component is no rendering by itself
            yield file.parent


NAMES = [f"kustomize/{folder.relative_to(KUBERNETES)}" for folder in _kustomizations()]
NAMES += [f"chart/{file.name.removesuffix('-values.yaml')}" for file in sorted((CHART / "ci").glob("*.yaml"))]
PICKERS = [name for name in NAMES if not name.startswith("kustomize/kserve/") or name.endswith("f-own-picker")]
"""Those with a picker of ours."""


@functools.cache
def documents(name: str) -> tuple[Document, ...]:
    """The manifests of one rendering. They are shared: copy what you change."""
    tool, _, what = name.partition("/")
    if tool == "kustomize":
        return tuple(kustomize(KUBERNETES / what))
    return tuple(template(CHART, "--values", str(CHART / "ci" / f"{what}-values.yaml")))


def of(name: str, kind: str) -> list[Document]:
    """The manifests of one kind in a rendering."""
    return [document for document in documents(name) if document["kind"] == kind]


@dataclass(frozen=True)
class Pod:
    """A rendered Deployment, read."""

    deployment: Document

    @classmethod
    def rendered(cls, name: str) -> "Pod":
        (deployment,) = of(name, "Deployment")
        return cls(deployment)

    @property
    def spec(self) -> Document:
        return self.deployment["spec"]["template"]["spec"]

    @property
    def labels(self) -> Document:
        return self.deployment["spec"]["template"]["metadata"]["labels"]

    @property
    def ports(self) -> dict[str, int]:
        """By name, of all containers."""
        ports = [port for container in self.spec["containers"] for port in container.get("ports", ())]
        return {port["name"]: port["containerPort"] for port in ports}

    def container(self, name: str) -> Document | None:
        """A container, or an init container."""
        found = [
            each for each in (*self.spec["containers"], *self.spec.get("initContainers", ())) if each["name"] == name
        ]
        return found[0] if found else None

    @property
    def main(self) -> Document:
        found = self.container("main")
        assert found is not None
        return found
