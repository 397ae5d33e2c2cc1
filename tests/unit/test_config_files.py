"""Every EndpointPickerConfig in config/ is loaded and built, those inside of Kubernetes ConfigMaps, too."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from epp.plugin import Router
from epp.settings import Registry, defaults, load
from epp.testing import candidates, context, request

CONFIG = Path(__file__).parents[2] / "config"


def documents(path: Path) -> Iterator[dict]:
    text = path.read_text("utf-8")
    if "EndpointPickerConfig" in text:  # others may be no plain YAML, such as a chart's templates
        yield from (document for document in yaml.safe_load_all(text) if isinstance(document, dict))


def texts() -> Iterator[tuple[str, Path, str]]:
    """An id, the file and the text of each configuration."""
    for path in sorted(p for pattern in ("*.yaml", "*.yml", "*.json") for p in CONFIG.rglob(pattern)):
        name = str(path.relative_to(CONFIG))
        for document in documents(path):
            if document.get("kind") == "EndpointPickerConfig":
                yield name, path, path.read_text("utf-8")
            if document.get("kind") == "ConfigMap":
                for key, text in document.get("data", {}).items():
                    if "kind: EndpointPickerConfig" in text:
                        yield f"{name}:{key}", path, text


CONFIGS = list(texts())


def build(path: Path, text: str) -> Router:
    return load(text, path, Registry.installed(), context)


def test_there_are_some():
    """The folder is where it is looked for."""
    assert "llm-d-default.yaml" in [name for name, _, _ in CONFIGS]


@pytest.mark.parametrize(("path", "text"), [c[1:] for c in CONFIGS], ids=[c[0] for c in CONFIGS])
def test_file(path, text):
    """The file loads, has no errors, and nothing in it is deprecated."""
    router = build(path, text)
    assert router.profiles
    assert not [warning for warning in router.warnings if "deprecated" in warning]


def test_default():
    """The built-in default is the file's text, word for word: one scorer, and what is filled in."""
    assert (CONFIG / "default.yaml").read_text("utf-8") == defaults.TEXT
    router = build(Path("/nowhere/epp.yaml"), defaults.TEXT)
    assert [(p.type, weight) for p, weight in router.profiles["default"].scorers] == [("work-ahead-scorer", 1.0)]
    filled_in(router)


def test_default_of_llm_d():
    """The file has llm-d's weights."""
    path = CONFIG / "llm-d-default.yaml"
    router = build(path, path.read_text("utf-8"))
    assert [(p.type, weight) for p, weight in router.profiles["default"].scorers] == [
        ("queue-scorer", 2.0),
        ("kv-cache-utilization-scorer", 2.0),
        ("prefix-cache-scorer", 3.0),
    ]
    filled_in(router)


def filled_in(router: Router) -> None:
    """What llm-d fills in, is."""
    assert router.profiles["default"].picker.type == "max-score-picker"
    assert router.handler.type == "single-profile-handler"
    assert [p.type for p in router.producers] == ["approx-prefix-cache-producer"]
    parsers = ["openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser"]
    assert [p.type for p in router.parsers] == parsers
    assert router.warnings == ()


def test_plugin_in_a_file():
    """The example of a plugin in a file does what its manual says."""
    path = CONFIG / "examples" / "plugin-in-a-file.yaml"
    plugged, weight = build(path, path.read_text("utf-8")).profiles["default"].scorers[0]
    assert (plugged.name, weight) == ("least-tokens-scorer", 2.0)
    c = candidates(inflight_tokens=[100, 512, 1512, 2512])
    assert plugged.plugin.score(request("prompt"), c).tolist() == [1.0, 1.0, 0.5, 0.0]
