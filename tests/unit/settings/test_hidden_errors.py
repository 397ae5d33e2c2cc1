"""Within one plugin's parameters, too, every error is told at once, and none that only follows from another."""

import pytest

from epp.settings import InvalidConfig, Registry, resolve
from epp.testing import context

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
REGISTRY = Registry.installed()
NO_DECIDER = '"decode-filter" is no decider: it has no method disaggregate'
NOBODY = 'no plugin is called "nobody"; there are: {type}, decode-filter'
READS = '"prefix-cache-scorer" (plugins[0]) reads matched_tokens and matchable_tokens from the producer "ghost", which'
OF_ENGINES = "vllm, sglang, trtllm-serve, triton-tensorrt-llm, triton"


def errors(type_name, parameters):
    profile = f"{{name: decode, plugins: [{{pluginRef: decode-filter}}, {{pluginRef: {type_name}}}]}}"
    text = f"plugins: [{{type: {type_name}, parameters: {parameters}}}, {{type: decode-filter}}]\n"
    text += f"schedulingProfiles: [{profile}]"
    with pytest.raises(InvalidConfig) as caught:
        resolve(HEAD + text, "f", REGISTRY, context)
    return [(p.place.removeprefix("plugins[0]").removeprefix(".parameters"), p.message) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("type_name", "parameters", "expected"),
    [
        pytest.param(
            "disagg-profile-handler",
            "{deciders: {prefill: nobody, encode: decode-filter}, profiles: {decode: zz}}",
            [
                (".deciders.prefill", NOBODY.format(type="disagg-profile-handler")),
                (".deciders.encode", NO_DECIDER),
                (".profiles.decode", 'no profile is called "zz"; there are: decode'),
            ],
            id="references and profiles",
        ),
        pytest.param(
            "disagg-profile-handler",
            "{stageOrder: bogus, deciders: {prefill: nobody, encode: decode-filter}}",
            [
                (".stageOrder", 'must be "decode-first" or "prefill-first", not \'bogus\''),
                (".deciders.prefill", NOBODY.format(type="disagg-profile-handler")),
                (".deciders.encode", NO_DECIDER),
            ],
            id="references behind a bad value",
        ),
        pytest.param(
            "disagg-profile-handler",
            "{profiles: {decode: 5}}",
            [(".profiles.decode", "must be a valid string, not 5")],
            id="not the default that stands for a bad value",
        ),
        pytest.param(
            "core-metrics-extractor",
            "{defaultEngine: foo, engineConfigs: [{name: a}, {name: a}]}",
            [
                (".engineConfigs[1].name", 'an engine above is called "a" already'),
                (".defaultEngine", f'"foo" is none of a, {OF_ENGINES}'),
            ],
            id="two in one validator",
        ),
        pytest.param(
            "core-metrics-extractor",
            "{engineConfigs: [{name: default}, {name: a, queuedRequestsSpec: 'a{b'}]}",
            [
                (".engineConfigs[1].queuedRequestsSpec", "metric 'a{b': write name or name{label=value,...}"),
                (".engineConfigs[0].name", 'no engine can be called "default": defaultEngine names the one that is'),
            ],
            id="a validator behind a bad value",
        ),
        pytest.param(
            "core-metrics-extractor",
            "{defaultEngine: foo, engineConfigs: [{name: foo, queuedRequestsSpec: 5}]}",
            [(".engineConfigs[0].queuedRequestsSpec", "must be a valid string, not 5")],
            id="what stands beside it still counts",
        ),
        pytest.param(
            "token-producer",
            "{vllm: {timeout: 5}, estimate: {}}",
            [
                (".vllm.timeout", 'a duration is a string, such as "200ms" or "30s"'),
                ("", "one of estimate, vllm and udsTokenizerConfig may be given"),
                (".modelName", "is required by vllm"),
            ],
            id="a validator behind a bad value deep inside",
        ),
        pytest.param(
            "prefix-cache-scorer",
            "{matchLengthWeight: 0.5, matchLengthScaleTokens: 0, prefixMatchInfoProducerName: ghost}",
            [
                (".matchLengthScaleTokens", "must be above 0 if matchLengthWeight is"),
                (".prefixMatchInfoProducerName", f"{READS} is neither configured nor a known type"),
            ],
            id="a producer",
        ),
        pytest.param(
            "endpoint-attribute-scorer",
            "{attributeKey: a, "
            "algorithm: {type: linear_lower_is_better, normalization: {fixedRange: {min: x, max: 1}}}}",
            [(".algorithm.normalization.fixedRange.min", 'must be a valid number, not "x"')],
            id="not that something is missing that was left out",
        ),
    ],
)
def test_none_hides_another(type_name, parameters, expected):
    """They are independent of one another."""
    assert sorted(errors(type_name, parameters)) == sorted(expected)
