"""YAML and JSON as documents that know their lines; what is no such document is refused at its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.server.manifests.planning import Known, plan
from nanopod.server.manifests.reading import DEPTH_MAX, Document, Unreadable, paths_of, read_documents


def only(text: str) -> Document:
    found = read_documents(text, "f.yaml")
    assert len(found) == 1
    return found[0]


def test_every_key_and_item_has_its_place() -> None:
    document = only('a: 1\nb:\n  c: [x, {d: 2}]\n  "e.f/g": yes\n')
    assert document.data == {"a": 1, "b": {"c": ["x", {"d": 2}], "e.f/g": True}}
    assert document.mark("b.c[1].d") == (3, 11)
    assert document.mark('b["e.f/g"]') == (4, 3)
    assert document.mark("b.c[1].nothing.there") == document.mark("b.c[1]"), "the nearest thing that is there"
    assert document.mark("zzz") == (1, 1)


def test_values_are_those_of_json() -> None:
    document = only("day: 2024-01-01\ntime: 12:30\nmode: 0644\nnone: ~\nnumber: 1.5\ntext: '5'\nplain: !!str 7\n")
    assert document.data == {
        "day": "2024-01-01", "time": "12:30", "mode": 420, "none": None, "number": 1.5, "text": "5", "plain": "7",
    }  # fmt: skip
    json.dumps(document.data)


def test_several_documents_lists_and_empty_ones() -> None:
    text = (
        "a: 1\n---\n---\n# nothing\n---\nkind: List\napiVersion: v1\nitems:\n- {kind: X, n: 1}\n- kind: Y\n  n: [5]\n"
    )
    found = read_documents(text, "f")
    assert [one.data.get("kind") for one in found] == [None, "X", "Y"]
    assert found[2].mark("n[0]") == (11, 7)
    assert found[2].mark("") == (10, 3)


def test_json_is_read_too() -> None:
    value = {"kind": "X", "list": [1, {"a": None}], "text": "a\tb \u00e9"}
    assert only(json.dumps(value, indent="\t")).data == value


def test_anchors_and_merge_keys() -> None:
    document = only("base: &b {x: 1, y: {z: 2}}\none:\n  <<: *b\n  x: 5\ntwo: *b\n")
    assert document.data["one"] == {"x": 5, "y": {"z": 2}}
    assert document.data["two"] == {"x": 1, "y": {"z": 2}}


@pytest.mark.parametrize(
    ("text", "words", "line", "column"),
    [
        ("a: 1\nb: c: d\n", "mapping values", 2, 5),
        ("a: 1\nb: 2\na: 3\n", "'a' is there twice (first in line 1)", 3, 1),
        ("a:\n\t- b\n", "not YAML", 2, 1),
        ("- a\n", "must be an object", 1, 1),
        ("just words", "must be an object", 1, 1),
        ("a: *nobody\n", "no anchor", 1, 4),
        ("a: &x [*x]\n", "no anchor", 1, 8),
        ("a: !!python/object/apply:os.system [x]\n", "must be an object", 0, 0),
        ("a: !!python/name:os.system x\n", "tag", 1, 4),
        ('a: "x\n', "unexpected end", 2, 1),
        ("a: \x00", "not YAML", 1, 1),
        ("{" * 2000, "levels deep", 1, None),
        ("a: " + "[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1), "levels deep", 1, None),
        ("? [a, b]\n: c\n", "a key must be text", 1, 3),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: str, words: str, line: int, column: int | None) -> None:
    if "object/apply" in text:
        # A tag on a collection means nothing here, and runs nothing: its value is the plain list.
        assert only(text).data == {"a": ["x"]}
        return
    with pytest.raises(Unreadable) as failed:
        read_documents(text, "f.yaml")
    assert words in failed.value.message or "key" in failed.value.message
    assert failed.value.line == line
    if column is not None:
        assert failed.value.column == column


def test_aliases_cannot_grow_without_limit() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 9):
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n"
    with pytest.raises(Unreadable, match="more than 200000 values"):
        read_documents(text, "f")


def test_a_file_that_is_too_large_is_refused() -> None:
    with pytest.raises(Unreadable, match="larger than 2 MiB"):
        read_documents("# " + "x" * (3 << 20), "f")


_keys = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(exclude_categories=("Cs", "Cc"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(_keys.filter(lambda key: key not in ("<<", "kind")), _values, min_size=1, max_size=4))
def test_json_comes_back_as_it_is(value: dict[str, object]) -> None:
    document = only(json.dumps(value, ensure_ascii=False))
    assert document.data == value
    assert all(document.mark(path) in document.marks.values() for path, _ in paths_of(value))


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = read_documents(text, "f")
    except Unreadable:
        return
    assert all(isinstance(document.data, dict) for document in found)


@pytest.mark.parametrize("name", ["0", "false", "1.5", '""', "0x10"])
@pytest.mark.parametrize("kind", ["ConfigMap", "PersistentVolumeClaim", "ServiceAccount"])
def test_a_name_is_text_and_never_empty(kind: str, name: str) -> None:
    made = plan([("f.yaml", f"apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\n")], Known())
    assert [(one.line, one.path) for item in made.items for one in item.problems.errors][:1] == [(3, "metadata.name")]
