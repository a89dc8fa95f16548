"""Paths into JSON values, as conditions of inference graphs use them."""

from __future__ import annotations

from typing import Any

import pytest

from nanopod.model.errors import Invalid
from nanopod.model.jsonpath import MISSING, exists, find, read

VALUE: Any = {
    "name": {"first": "Ada", "last": "Byron"},
    "age": 36,
    "f.x": "dotted",
    "none": None,
    "children": ["Anne", "Byron", "Ralph"],
    "friends": [
        {"first": "Mary", "age": 44, "nets": ["a", "b"]},
        {"first": "Charles", "age": 58, "nets": ["b"]},
        {"first": "Charly", "age": 47.5, "nets": []},
    ],
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("name.last", "Byron"),
        ("age", 36),
        ("children", VALUE["children"]),
        ("children.1", "Byron"),
        ("children.3", MISSING),
        ("children.#", 3),
        ("ch*ren.0", "Anne"),
        ("na?e.first", "Ada"),
        (r"f\.x", "dotted"),
        ("none", None),
        ("friends.#.first", ["Mary", "Charles", "Charly"]),
        ('friends.#(first=="Charles").age', 58),
        ("friends.#(age>45).first", "Charles"),
        ("friends.#(age>45)#.first", ["Charles", "Charly"]),
        ("friends.#(age <= 47.5)#.age", [44, 47.5]),
        ('friends.#(first%"Char*")#.first', ["Charles", "Charly"]),
        ('friends.#(first!%"Char*").first', "Mary"),
        ('friends.#(nets.#(=="b"))#.first', ["Mary", "Charles"]),
        ('children.#(!%"*a*")', "Anne"),
        ("friends.#(age>100)", MISSING),
        ("friends.#(age>100)#", []),
        ('[@this].#(name.first=="Ada").age', 36),
        ("@this.age", 36),
        ("[age,name.last]", [36, "Byron"]),
        ("name|first", "Ada"),
        ("name.0", MISSING),
        ("age.x", MISSING),
        ("friends.#(nothing)", MISSING),
        ("friends.#(nets).first", "Mary"),
    ],
)
def test_what_a_path_finds(path: str, found: Any) -> None:
    assert find(VALUE, read(path)) == found
    assert exists(VALUE, path) is (found is not MISSING)


def test_conditions_as_graphs_state_them() -> None:
    assert exists({"instances": [{"modelId": "1"}]}, 'instances.#(modelId=="1")')
    assert not exists({"instances": [{"modelId": 1}]}, 'instances.#(modelId=="1")')
    assert exists({"instances": [{"modelId": 1}]}, "instances.#(modelId==1)")
    assert exists({"predictions": ["cat"]}, '[@this].#(predictions.0=="cat")')
    assert not exists({"predictions": ["dog"]}, '[@this].#(predictions.0=="cat")')
    assert exists({"ok": True}, "[@this].#(ok==true)")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("", "1 to 2048"),
        ("a.", "a name is missing"),
        ("a..b", "a name is missing"),
        ('a.#(b=="x"', "`)` is missing"),
        ("a.#(b=x)", "an operator is expected"),
        ("a.#(b==)", "a value is missing"),
        ("[a,b", "`]` is missing"),
        ("a.@reverse", "@reverse is not offered"),
        ("#(" * 40 + "a" + ")" * 40, "inside one another"),
    ],
)
def test_what_cannot_be_read_says_where(path: str, told: str) -> None:
    with pytest.raises(Invalid) as caught:
        read(path)
    assert told in str(caught.value)
