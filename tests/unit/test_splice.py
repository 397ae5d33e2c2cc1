"""The model's name in JSON as bytes: found where it stands, replaced there, and nowhere else."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.splice import Renamer, replaced, spans

PATHS = (("model",), ("response", "model"), ("message", "model"))

REQUESTS = {
    "plain": ('{"model":"old","x":1}', '{"model":"new","x":1}'),
    "spaces": ('\n{ "x" : 1 ,\t"model" :  "old" }\n', '\n{ "x" : 1 ,\t"model" :  "new" }\n'),
    "numbers": (
        '{"seed":9007199254740993,"t":1.0e0,"model":"old"}',
        '{"seed":9007199254740993,"t":1.0e0,"model":"new"}',
    ),
    "twice": ('{"model":"a","x":1,"model":"old"}', '{"model":"new","x":1,"model":"new"}'),
    "escaped key": ('{"mod\\u0065l":"old"}', '{"mod\\u0065l":"new"}'),
    "nested": (
        '{"a":{"model":"old"},"b":[{"model":"old"}],"model":"old"}',
        '{"a":{"model":"old"},"b":[{"model":"old"}],"model":"new"}',
    ),
    "in a text": ('{"a":"\\"model\\":\\"old\\"","model":"old"}', '{"a":"\\"model\\":\\"old\\"","model":"new"}'),
    "as a value": ('{"a":"model","b":"old","model":"old"}', '{"a":"model","b":"old","model":"new"}'),
    "brackets in a text": ('{"a":["}",{"b":"]\\\\"}],"model":"old"}', '{"a":["}",{"b":"]\\\\"}],"model":"new"}'),
    "odd values": ('{"model":null}', '{"model":"new"}'),
    "a longer key": ('{"models":"old","xmodel":"old","model":"old"}', '{"models":"old","xmodel":"old","model":"new"}'),
    "absent": ('{"x":1}', '{"model":"new","x":1}'),
    "empty": ("{ }", '{"model":"new" }'),
    "BOM": ('\ufeff{"model":"old"}', '\ufeff{"model":"new"}'),
}


@pytest.mark.parametrize(("before", "after"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_is_changed_where_the_name_stands(before: str, after: str) -> None:
    assert replaced(before.encode(), "model", "new").decode() == after


def test_the_name_is_written_as_json() -> None:
    """Whatever characters it has."""
    body = replaced(b'{"model":"a"}', "model", 'ä"\\\n')
    assert json.loads(body) == {"model": 'ä"\\\n'}


def test_what_is_no_object_is_not_changed() -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        replaced(b"[]", "model", "new")


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"model', b'{"model":', b'{"model":"x', b'{"a":{"b"', b'{"a":1 "model":2']
)
def test_no_json_does_no_harm(body: bytes) -> None:
    """What was never parsed ends the search somewhere."""
    assert all(0 <= start <= end <= len(body) for start, end in spans(body, "model"))


texts = st.text(st.sampled_from('model old"\\{}[]:,ä\n'), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.sampled_from(["old", "model"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(["model", "response"]), inner, max_size=3)
    ),
    max_leaves=12,
)
objects = st.dictionaries(texts | st.sampled_from(["model", "response", "message"]), values, max_size=5)
styles = st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])


@given(objects, styles, texts)
@settings(deadline=None)
def test_any_request(fields: dict[str, Any], style: dict[str, Any], name: str) -> None:
    """Parsed again, it is the same but for the name; and the bytes around the name are the same."""
    body = json.dumps(fields, **style).encode()
    changed = replaced(body, "model", name)
    assert json.loads(changed) == fields | {"model": name}
    if "model" in fields:
        ((start, end),) = spans(body, "model")
        assert json.loads(body[start:end]) == fields["model"]
        assert (changed[:start], changed[len(changed) - (len(body) - end) :]) == (body[:start], body[end:])


def renamed(data: bytes, places: Sequence[int] = (), *, events: bool = False) -> bytes:
    renamer = Renamer(PATHS, "old", "new", events=events)
    cuts = [0, *sorted(place for place in places if place <= len(data)), len(data)]
    return b"".join(renamer.feed(data[start:end]) for start, end in pairwise(cuts)) + renamer.feed(b"", end=True)


def expected(value: Any) -> Any:
    """What an answer says once its names are the client's; as the engine's reader understands it."""
    if not isinstance(value, dict):
        return value
    new = dict(value)
    if new.get("model") == "old":
        new["model"] = "new"
    for key in ("response", "message"):
        if isinstance(new.get(key), dict) and new[key].get("model") == "old":
            new[key] = new[key] | {"model": "new"}
    return new


def once(fields: dict[str, Any]) -> dict[str, Any]:
    """An answer with one place of the name, as answers have: what follows a replaced name passes."""
    places = [fields, *(fields[key] for key in ("response", "message") if isinstance(fields.get(key), dict))]
    named = [place for place in places if "model" in place]
    for place in named[1:]:
        del place["model"]
    return fields


ANSWERS = {
    "first": ('{"model":"old","a":1}', '{"model":"new","a":1}'),
    "last": ('{"a":[{"model":"old"}], "model" : "old"}', '{"a":[{"model":"old"}], "model" : "new"}'),
    "another name": ('{"model":"older"}', '{"model":"older"}'),
    "escaped": ('{"model":"\\u006fld"}', '{"model":"new"}'),
    "no text": ('{"model":["old"]}', '{"model":["old"]}'),
    "nested": ('{"choices":[{"message":{"model":"old"}}],"x":{"model":"old"}}', None),
    "text": ('{"choices":[{"text":"\\"model\\":\\"old\\""}]}', None),
    "response": (
        '{"type":"t","response":{"id":"1","model":"old"}}',
        '{"type":"t","response":{"id":"1","model":"new"}}',
    ),
    "deeper": ('{"response":{"response":{"model":"old"}},"model":1}', None),
    "list": ('[{"model":"old"}]', None),
    "number": ("1", None),
    "empty": ("", None),
    "long text": ('{"model":"%s","b":"old"}' % ("o" * 200), None),
    "cut off": ('{"model":"ol', None),
    "two documents": ('{"model":"x"}{"model":"old"}', None),
    "indented": (
        json.dumps({"a": {"b": 1}, "model": "old"}, indent=2),
        json.dumps({"a": {"b": 1}, "model": "new"}, indent=2),
    ),
}


@pytest.mark.parametrize(("before", "after"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_split_anywhere(before: str, after: str | None) -> None:
    """The name is found wherever the pieces are cut, in the middle of an escape too."""
    data, wanted = before.encode(), (before if after is None else after).encode()
    assert renamed(data) == wanted
    assert renamed(data, range(1, len(data))) == wanted
    assert {renamed(data, [place]) for place in range(len(data) + 1)} == {wanted}


@given(objects.map(once), styles, st.lists(st.integers(0, 400), max_size=8))
@settings(deadline=None)
def test_any_answer(fields: dict[str, Any], style: dict[str, Any], places: list[int]) -> None:
    data = json.dumps(fields, **style).encode()
    changed = renamed(data, places)
    assert json.loads(changed) == expected(fields)
    if expected(fields) == fields:
        assert changed == data


@given(
    st.lists(objects.map(once), max_size=4),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", " "]),
    st.lists(st.integers(0, 800), max_size=12),
)
@settings(deadline=None)
def test_any_event_stream(events: list[dict[str, Any]], end: str, space: str, places: list[int]) -> None:
    """Each event has its own name; comments, other fields and what isn't JSON pass."""
    head = f': {{"model":"old"}}{end}event: x{end}'

    def stream(said: list[dict[str, Any]]) -> bytes:
        lines = [f"{head}data:{space}{json.dumps(event)}{end}{end}" for event in said]
        return f'{"".join(lines)}data:{space}[DONE]{end}{end}datum{end}data: {{cut{end}data: "model"'.encode()

    assert renamed(stream(events), places, events=True) == stream([expected(event) for event in events])


def test_an_event_that_is_cut_off_spoils_no_other() -> None:
    begun = (
        '{"a":',
        '{"a":{"b":[',
        '{"a":"x',
        '{"a',
        '{"model"',
        '{"model":',
        '{"model":"ol',
        '{"model":"o\\',
        "{",
        "",
    )
    for each in begun:
        data = f'data: {each}\ndata: {{"model":"old"}}\n\n'.encode()
        for places in ((), range(len(data))):
            assert renamed(data, places, events=True) == data.replace(b'"old"', b'"new"')


def test_nothing_is_held_back_but_a_name() -> None:
    """Everything else goes on at once; what is held is bounded."""
    renamer = Renamer(PATHS, "old", "new", events=True)
    assert renamer.feed(b'data: {"id":"1","mod') == b'data: {"id":"1","mod'
    assert renamer.feed(b'el":"ol') == b'el":'
    assert renamer.feed(b'd","x":"') == b'"new","x":"'
    assert renamer.feed(b"abc") == b"abc"
    renamer = Renamer(PATHS, "old", "new", events=False)
    assert renamer.feed(b'{"model":"') == b'{"model":'
    assert renamer.feed(b"x" * 1000) == b'"' + b"x" * 1000
    assert renamer.feed(b"x" * 1000) == b"x" * 1000


def test_events_that_begin_alike() -> None:
    """An event with the beginning of the one before is changed as that one was; one that differs is looked at anew."""
    one = b'data: {"id":"1","model":"old","x":"a"}\n\n'
    others = [
        one.replace(b'"a"', b'{"model":"old"}'),
        one.replace(b'"1"', b'"2"'),
        b'data: {"id":"1","model":"old\n',
        one,
    ]
    data = one + b"".join(others) + one.replace(b'"old"', b'"older"')
    wanted = data.replace(b'"model":"old","x"', b'"model":"new","x"')
    for places in ((), range(len(data)), range(0, len(data), 7)):
        assert renamed(data, places, events=True) == wanted
