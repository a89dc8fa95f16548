"""Vast's JSON: what travels comes back equal, what does not is named by its path, and nothing is imported."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.model import vastjson
from nanopod.model.errors import SerializationError

OWN = __name__


@dataclass
class Point:
    x: float
    label: str = ""


class Odd(ValueError):
    pass


plain = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.binary(), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(plain)
def test_values_come_back_as_they_were(value: object) -> None:
    wire = json.loads(json.dumps(vastjson.encode(value, OWN)))
    assert vastjson.decode(wire, OWN) == value


def test_booleans_are_lowered_because_vasts_reader_knows_none() -> None:
    assert vastjson.encode([True, {"a": False}], OWN) == {
        "type": "list",
        "contents": [1, {"type": "dict", "contents": [["a", 0]]}],
    }
    assert vastjson.decode(True, OWN) is True


def test_objects_of_the_deployments_module_are_relative_and_made_without_their_constructor() -> None:
    wire = vastjson.encode([Point(1.5, "p")], OWN)
    entry = wire["contents"][0]
    assert entry["module"] == {"type": "relative", "path": []}
    assert entry["class"] == "Point"
    assert vastjson.decode(json.loads(json.dumps(wire)), OWN) == [Point(1.5, "p")]


def test_an_error_keeps_class_message_and_notes() -> None:
    error = Odd("hello", 3)
    error.add_note("Remote traceback: line 4")
    back = vastjson.decode(json.loads(json.dumps(vastjson.encode_error(error, OWN))), OWN)
    assert type(back) is Odd
    assert back.args == ("hello", 3)
    assert back.__notes__ == ["Remote traceback: line 4"]


def test_a_failure_without_a_known_class_is_a_runtime_error() -> None:
    back = vastjson.decode(vastjson.failure("WorkerLost", "gone")["err"], OWN)
    assert type(back) is RuntimeError
    assert str(back) == "WorkerLost: gone"


def test_what_cannot_travel_is_named_by_its_path() -> None:
    with pytest.raises(SerializationError, match=r"\[1\]\['k'\]"):
        vastjson.encode([1, {"k": lambda: 1}], OWN)


def test_reading_never_imports() -> None:
    assert "antigravity" not in sys.modules
    wire = {"type": "obj", "module": {"type": "absolute", "path": ["antigravity"]}, "class": "X", "contents": {}}
    with pytest.raises(SerializationError, match="not known here"):
        vastjson.decode(wire, OWN)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "wire",
    [
        {"type": "bytes", "contents": "###"},
        {"type": "dict", "contents": [1]},
        {"type": "dict", "contents": [[{"type": "list", "contents": []}, 1]]},
        {"type": "set", "contents": []},
        {"type": "obj", "module": {}, "class": "X", "contents": {}},
        [1],
    ],
)
def test_what_is_no_value_is_refused(wire: object) -> None:
    with pytest.raises(SerializationError):
        vastjson.decode(wire, OWN)


def test_nesting_has_a_limit() -> None:
    wire: object = 1
    for _ in range(vastjson.DEPTH_MAX + 2):
        wire = {"type": "list", "contents": [wire]}
    with pytest.raises(SerializationError, match="nested"):
        vastjson.decode(wire, OWN)
