"""Types that load without all of their effect yet: their parameters are checked all the same."""

import pytest

from epp.settings import InvalidConfig, Registry, resolve
from epp.testing import context

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
FLOW = "is accepted, has no effect yet: flow control is not enabled"
TOKENS = "a tokenizer at a socket isn't asked: tokens are estimated, 4 bytes each"


def load(entry):
    return resolve(f"{HEAD}plugins: [{entry}]", "f", Registry.installed(), context).router


@pytest.mark.parametrize(
    ("entry", "warnings"),
    [
        ("{type: round-robin-fairness-policy}", [f'plugins[0].type: "round-robin-fairness-policy" {FLOW}']),
        (
            "{type: program-aware-fairness, parameters: {strategy: las, lasHalfLifeSeconds: 5}}",
            [f'plugins[0].type: "program-aware-fairness" {FLOW}'],
        ),
        (
            "{type: static-usage-limit-policy, parameters: {threshold: 0.5}}",
            [f'plugins[0].type: "static-usage-limit-policy" {FLOW}'],
        ),
        (
            "{type: priority-holdback-policy, parameters: {minCeiling: 0.5, domain: value}}",
            [
                'plugins[0].type: "priority-holdback-policy" is alpha: its parameters and effect may change',
                f'plugins[0].type: "priority-holdback-policy" {FLOW}',
            ],
        ),
        ("{type: token-producer}", []),
        ("{type: token-producer, parameters: {estimate: {image: {mode: static}}}}", []),
        ("{type: token-producer, parameters: {modelName: m, vllm: {url: 'http://t:8000', timeout: 2s}}}", []),
        (
            "{type: tokenizer, parameters: {udsTokenizerConfig: {socketFile: /s}}}",
            [
                'plugins[0].type: "tokenizer" is deprecated: write "token-producer"',
                'plugins[0].parameters.udsTokenizerConfig: is deprecated: write "vllm"',
                f"plugins[0].parameters: {TOKENS}",
            ],
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_loads(entry, warnings):
    """It loads, and says what is missing."""
    assert list(load(entry).warnings) == warnings


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (
            "{type: fcfs-ordering-policy, parameters: {a: 1}}",
            'plugins[0].parameters.a: "fcfs-ordering-policy" takes no parameters',
        ),
        ("{type: program-aware-fairness, parameters: {strategy: x}}", "plugins[0].parameters.strategy: must be 'las'"),
        ("{type: priority-holdback-policy}", "plugins[0].parameters.minCeiling: is required"),
        (
            "{type: priority-holdback-policy, parameters: {minCeiling: 1}}",
            "plugins[0].parameters.minCeiling: must be less",
        ),
        (
            "{type: priority-holdback-policy, parameters: {minCeiling: 0.5, maxCeiling: 0.4}}",
            "plugins[0].parameters.minCeiling: must not be above maxCeiling: 0.5 and 0.4",
        ),
        ("{type: token-producer, parameters: {vllm: {}}}", "plugins[0].parameters.modelName: is required by vllm"),
        (
            "{type: token-producer, parameters: {estimate: {}, vllm: {}, modelName: m}}",
            "plugins[0].parameters: one of estimate, vllm and udsTokenizerConfig may be given",
        ),
    ],
)
def test_errors(entry, error):
    """Parameters that can't be are errors at their place."""
    with pytest.raises(InvalidConfig) as caught:
        load(entry)
    (problem,) = caught.value.problems
    assert str(problem).startswith(error)
