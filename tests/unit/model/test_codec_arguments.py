"""Arguments of calls: the short way that small ones take through the decoder says the same as the long one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nanopod.model import codec
from nanopod.model.errors import SerializationError

HEAD = codec.encode(((), {}))[:-2]


@pytest.mark.parametrize("size", [0, 1, 4070, 4080, 4085, 4090, 4096, 5000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_arguments_of_every_size_come_back_exactly(size: int, kind: Callable[[bytes], Any]) -> None:
    call = (("x" * size, (1, 2), {3}), {"flag": True, "more": [None, (4,)]})
    found = codec.decode(kind(codec.encode(call)))
    assert found == call
    assert [type(part) for part in found] == [tuple, dict]
    assert [type(part) for part in found[0]] == [str, tuple, set]


@pytest.mark.parametrize("padding", [0, 8192])
def test_wrong_arguments_are_refused_alike(padding: int) -> None:
    text = codec.encode("x" * padding)
    assert codec.decode(HEAD + b"\x91" + text + b"\x80") == (("x" * padding,), {})
    for wrong in (b"\x91" + text, b"\x91" + text + b"\x80\x80", b"\x92" + text + b"\x80"):
        with pytest.raises(SerializationError):
            codec.decode(HEAD + wrong)


def test_a_pair_that_is_a_value_comes_back_as_it_was() -> None:
    for value in (((1,), {"a": 2}), ((), {}), [(1,), {"a": 2}], ((1,), {2: 3})):
        found = codec.decode(codec.encode(value))
        assert found == value and type(found) is type(value)
