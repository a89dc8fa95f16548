"""Arrays of any kind, exceptions of any content, and what values cost on the wire."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import BaseModel

from nanopod.model import codec
from nanopod.model.errors import RemoteError, SerializationError

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner), max_leaves=6)


class Outer:
    """Holds classes that are found by their qualified names."""

    class Trouble(LookupError):
        def __init__(self, *args: Any, **attributes: Any) -> None:
            super().__init__(*args)
            self.__dict__.update(attributes)

    @dataclass
    class Reading:
        at: tuple[int, ...]
        by: dict[Any, Any]

    class Form(BaseModel):
        name: str
        parts: list[Outer.Form] = []


Outer.Form.model_rebuild()


def back(value: object) -> Any:
    return codec.decode(codec.encode(value), module=__name__)


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
def test_any_array_is_the_same_writable_and_alone(array: Any) -> None:
    found = back([{"a": (array,)}])[0]["a"][0]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()
    assert found.flags.writeable
    sent = codec.encode(array)
    first, second = codec.decode(sent), codec.decode(sent)
    assert not np.shares_memory(first, second)


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(arrays.array_dtypes(), (2,)))
def test_structured_arrays_too(array: Any) -> None:
    found = back(array)
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(values, max_size=3), st.dictionaries(st.sampled_from(["code", "detail", "hint"]), values, max_size=3),
    st.lists(st.text(st.characters(codec="utf-8")), max_size=2), st.booleans(),
)  # fmt: skip
def test_any_exception_keeps_what_it_says(
    args: list[Any], attributes: dict[str, Any], notes: list[str], caused: bool
) -> None:
    error = Outer.Trouble(*args, **attributes)
    for note in notes:
        error.add_note(note)
    cause = KeyError(*args)
    if caused:
        error.__cause__ = cause
    else:
        error.__context__ = cause
    found = codec.decode_exception(codec.encode_exception(error), module=__name__)
    assert type(found) is Outer.Trouble
    assert found.args == error.args
    assert {name: part for name, part in vars(found).items() if name != "__notes__"} == attributes
    assert getattr(found, "__notes__", [])[: len(notes)] == notes
    chained = found.__cause__ if caused else found.__context__
    assert type(chained) is KeyError
    assert chained.args == cause.args
    assert (found.__cause__ is None) is not caused


def test_nested_and_ordered_things() -> None:
    form = Outer.Form(name="a", parts=[Outer.Form(name="b")])
    assert back(form) == form
    reading = Outer.Reading((1, 2), {(1, 2): {3}, frozenset({4}): deque([5], maxlen=3)})
    found = back(reading)
    assert found == reading
    assert found.by[frozenset({4})].maxlen == 3
    ordered = OrderedDict([("z", 1 << 200), ("a", -(1 << 200))])
    assert list(back(ordered).items()) == list(ordered.items())


def test_an_array_of_objects_is_read_like_a_list() -> None:
    array = np.array([{"a": (1,)}, {2, 3}, None], dtype=object)
    assert back(array).tolist() == array.tolist()
    with pytest.raises(SerializationError):
        codec.encode(np.array([threading.Lock()], dtype=object))


def test_bytes_cost_what_they_are() -> None:
    data = bytes(10_000_000)
    for value in (data, bytearray(data), np.zeros(10_000_000, "u1")):
        assert len(codec.encode(((value,), {}))) <= len(msgspec.msgpack.encode([[data], {}])) + 64


def test_classes_that_nobody_has_are_quoted() -> None:
    local = type("Local", (ValueError,), {"__module__": "a.module.of.elsewhere"})
    found = codec.decode_exception(codec.encode_exception(local("what", 1)), module=__name__)
    assert isinstance(found, RemoteError)
    assert found.type_name.endswith("Local")
    assert "('what', 1)" in found.message
