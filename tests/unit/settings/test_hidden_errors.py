"""Within one plugin's parameters, too, every error is told at once, and none that only follows from another."""

from typing import Self

import pytest
from pydantic import model_validator

import epp.plugin
from epp.plugin import WrongParameters
from epp.settings import InvalidConfig, Registry, resolve
from epp.testing import context
from tests.unit.settings.conftest import TYPES, PlainFilter, registry_of

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
REGISTRY = Registry.installed()
NO_DECIDER = '"decode-filter" is no decider: it has no method disaggregate'
NO_PROFILE = 'no profile is called "zz"; there are: decode'
NO_HEADER = "is no header's name: write letters, digits and hyphens, such as x-session-id"
UNKNOWN = "which is neither configured nor a known type"
OF_DISAGG = (
    "stageOrder, profiles, deciders, decodeProfile, prefillProfile, encodeProfile, prefillDeciderPluginName, "
    "encodeDeciderPluginName, deciderPluginName"
)
NOBODY = 'no plugin is called "nobody"; there are: none'
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
                (".deciders.prefill", NOBODY),
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
                (".deciders.prefill", NOBODY),
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
            "disagg-profile-handler",
            "{stageOrder: prefill-first, deciders: {prefill: nobody, encode: decode-filter}, profiles: {decode: zz}, "
            "bogus: 1}",
            [
                (".bogus", f"unknown key; allowed: {OF_DISAGG}"),
                (".deciders.prefill", NOBODY),
                (".deciders.prefill", "has no place in prefill-first, where the prefill profile always runs"),
                (".deciders.encode", NO_DECIDER),
                (".profiles.decode", NO_PROFILE),
            ],
            id="a rule, references, a profile and an unknown key",
        ),
        pytest.param(
            "disagg-profile-handler",
            "{deciders: {prefill: nobody}, decodeProfile: zz}",
            [
                (".deciders.prefill", NOBODY),
                (".decodeProfile", "is deprecated, and can't stand beside profiles and deciders"),
                (".decodeProfile", NO_PROFILE),
            ],
            id="what one spelling means beside the other",
        ),
        pytest.param(
            "pd-profile-handler",
            "{primaryPort: 0.5, decodeProfile: dd, prefillProfile: pp}",
            [
                (".primaryPort", "must be a valid integer, not 0.5"),
                (".decodeProfile", 'no profile is called "dd"; there are: decode'),
                (".prefillProfile", 'no profile is called "pp"; there are: decode'),
            ],
            id="profiles of the older handler",
        ),
        pytest.param(
            "by-label",
            "{label: 5, validValues: []}",
            [
                (".label", "must be a valid string, not 5"),
                (".validValues", "must not be empty unless allowsNoLabel is true"),
            ],
            id="a rule beside what is required",
        ),
        pytest.param(
            "by-label",
            "{label: a, validValues: [], allowsNoLabel: 5}",
            [(".allowsNoLabel", "must be a valid boolean, not 5")],
            id="not a rule about what is wrong",
        ),
        pytest.param(
            "session-id-producer",
            "{headerName: a, cookieName: b, foo: 1}",
            [
                (".foo", "unknown key; allowed: headerName, cookieName"),
                ("", "exactly one of headerName and cookieName is needed"),
            ],
            id="a rule beside an unknown key",
        ),
        pytest.param(
            "session-id-producer",
            "{headername: a b}",
            [
                (".headername", 'unknown key; allowed: headerName, cookieName; did you mean "headerName"?'),
                (".headerName", f"'a b' {NO_HEADER}"),
            ],
            id="a misspelt key counts as what was meant",
        ),
        pytest.param(
            "request-attribute-reporter",
            "{attributes: [{key: {name: ''}, expression: usage.prompt_tokens +, condition: has(}]}",
            [
                (".attributes[0].key.name", 'string must have at least 1 character, not ""'),
                (".attributes[0].expression", "something is due in the expression at 'its end'"),
                (".attributes[0].condition", "something is due in the expression at 'its end'"),
            ],
            id="each expression",
        ),
        pytest.param(
            "endpoint-attribute-filter",
            "{attribute: a/ghost, algorithm: {threshold: {operator: Equal, value: .inf}}}",
            [
                (".algorithm.threshold.value", "must be a finite number, not Infinity"),
                (".attribute", f'"endpoint-attribute-filter" (plugins[0]) names the producer "ghost", {UNKNOWN}'),
            ],
            id="a producer by its slash",
        ),
        pytest.param(
            "session-affinity-scorer",
            "{profileName: zz, sessionIdConfig: {sources: [{attribute: a, producer: nobody}, {}]}}",
            [
                (".profileName", NO_PROFILE),
                (".sessionIdConfig.sources[0].producer", NOBODY),
                (".sessionIdConfig.sources[1]", "a source is either a header or an attribute"),
            ],
            id="items of a list",
        ),
        pytest.param(
            "topology-affinity-scorer",
            "{topologyProducerName: nobody}",
            [(".topologyProducerName", NOBODY)],
            id="only those that could be meant are named",
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


@pytest.mark.parametrize("reference", ["scorer", "scorre"], ids=["in a profile", "its reference misspelt"])
@pytest.mark.parametrize(
    ("producer", "expected"),
    [
        ("ghost", f'the producer "ghost", {UNKNOWN}'),
        ("queue-scorer", '"queue-scorer", which writes: none'),
        ("load", '"load" (plugins[1]), which writes: none'),
    ],
    ids=["unknown", "a type that writes nothing", "a plugin that writes nothing"],
)
def test_a_misspelt_reference_hides_no_producer(producer, expected, reference):
    """Who is in no profile may be there by another spelling: whose keys he reads is looked at all the same."""
    parameters = f"{{prefixMatchInfoProducerName: {producer}}}"
    scorer = f"{{name: scorer, type: prefix-cache-scorer, parameters: {parameters}}}"
    text = f"plugins: [{scorer}, {{name: load, type: random-picker}}]\n"
    text += f"schedulingProfiles: [{{name: default, plugins: [{{pluginRef: {reference}}}]}}]"
    with pytest.raises(InvalidConfig) as caught:
        resolve(HEAD + text, "f", REGISTRY, context)
    told = {problem.place: problem.message for problem in caught.value.problems}
    reads = '"scorer" (plugins[0]) reads matched_tokens and matchable_tokens from '
    assert told.pop("plugins[0].parameters.prefixMatchInfoProducerName").startswith(reads + expected)
    assert len(told) == (reference != "scorer")


class Foreign(PlainFilter):
    """Complains as a plugin may that knows of no places."""

    class Parameters(epp.plugin.Parameters):
        low: int = 0
        high: int = 9
        word: str

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

        @model_validator(mode="after")
        def _short(self) -> Self:
            if len(self.word) > 3:
                raise WrongParameters((("word",), "is too long"))
            return self

    def __init__(self, parameters: Parameters) -> None:
        if parameters.word != "aye":
            raise ValueError('the word is "aye"')


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param("{low: 10, word: long}", [": low is above high", ".word: is too long"], id="every rule"),
        pytest.param("{low: 10}", [".word: is required", ": low is above high"], id="beside what is missing"),
        pytest.param(
            "{low: 10, high: x, word: long}",
            ['.high: must be a valid integer, not "x"', ".word: is too long"],
            id="not on what is wrong",
        ),
        pytest.param(
            "{low: 10, hihg: 11, word: aye}",
            ['.hihg: unknown key; allowed: low, high, word; did you mean "high"?'],
            id="what a misspelt key says counts",
        ),
        pytest.param("{word: nay}", [': "foreign" can\'t be built: the word is "aye"'], id="the constructor"),
        pytest.param(
            "{low: x, word: nay}", ['.low: must be a valid integer, not "x"'], id="a constructor without what is wrong"
        ),
    ],
)
def test_plugins_of_others(parameters, expected):
    """Their plain errors are told, and not where they may only follow."""
    text = f"{HEAD}plugins: [{{type: foreign, parameters: {parameters}}}]"
    with pytest.raises(InvalidConfig) as caught:
        resolve(text, "f", registry_of(TYPES | {"foreign": Foreign}), context)
    told = [str(problem).removeprefix("plugins[0].parameters") for problem in caught.value.problems]
    assert sorted(told) == sorted(expected)
