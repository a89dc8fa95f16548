"""Arguments from requests, answers from values."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from nanopod.node.runtime.webvalues import BadCall, Binder, answer_of, event_of, problem, problem_answer

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


class Color(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: float
    y: float = 0.5


def bound(
    function: Any, path: dict[str, str] | None = None, query: str = "", body: Any = None, kind: str = JSON
) -> Any:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    places, names = Binder(function).bind(path or {}, query, kind, data)
    return (*places, names) if places else names


def errors(function: Any, *args: Any, **kwargs: Any) -> dict[str, str]:
    with pytest.raises(BadCall) as caught:
        bound(function, *args, **kwargs)
    assert caught.value.status == 422
    return dict(caught.value.errors)


def plain(a: int, b: float = 1.0, c: bool = False, d: str = "", e: list[int] | None = None) -> None: ...


def test_texts_become_what_the_annotations_say() -> None:
    assert bound(plain, {"a": "7"}, "b=2&c=true&d=5&e=1&e=2") == {"a": 7, "b": 2.0, "c": True, "d": "5", "e": [1, 2]}
    assert bound(plain, {}, "a=1&e=3&d=a%20b") == {"a": 1, "e": [3], "d": "a b"}
    assert bound(plain, {"a": "1"}, "c=0&b=1e3") == {"a": 1, "c": False, "b": 1000.0}


def test_the_body_gives_parameters_by_name() -> None:
    assert bound(plain, body={"a": 1, "b": 2, "e": [1]}) == {"a": 1, "b": 2.0, "e": [1]}
    assert bound(plain, {"a": "1"}, "b=2", {"c": True}) == {"a": 1, "b": 2.0, "c": True}
    assert bound(plain, body=b"a=1&d=x&e=1&e=2", kind=FORM) == {"a": 1, "d": "x", "e": [1, 2]}
    # What curl -d sends when nobody says what it is.
    assert bound(plain, body={"a": 1}, kind=FORM) == {"a": 1}
    assert bound(plain, body={"a": 1}, kind="") == {"a": 1}


def test_everything_wrong_is_told_at_once_by_parameter() -> None:
    found = errors(plain, {}, "b=x&zz=1", {"d": 5})
    assert set(found) == {"a", "b", "d", "zz"}
    assert "missing" in found["a"]
    assert "float" in found["b"]
    assert "query" in found["b"]
    assert "str" in found["d"]
    assert "there are: a, b, c, d, e" in found["zz"]
    assert "give it once" in errors(plain, {"a": "1"}, "a=2")["a"]
    assert "give it once" in errors(plain, {}, "a=2", {"a": 3})["a"]
    assert "2 times" in errors(plain, {}, "a=1&a=2")["a"]


def test_json_types_are_not_bent() -> None:
    assert set(errors(plain, body={"a": "1"})) == {"a"}
    assert set(errors(plain, body={"a": 1, "c": "true"})) == {"c"}
    assert set(errors(plain, body={"a": 1.5})) == {"a"}


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"nope"])
def test_a_body_that_is_not_json(body: bytes) -> None:
    with pytest.raises(BadCall, match="not JSON"):
        bound(plain, body=body)


def test_a_body_of_another_kind() -> None:
    with pytest.raises(BadCall, match="image/png") as caught:
        bound(plain, body=b"x", kind="image/png")
    assert caught.value.status == 415


def test_structured_parameters() -> None:
    def one(point: Point) -> None: ...
    def two(point: Point, n: int) -> None: ...
    def rich(color: Color, when: datetime, how: Literal["a", "b"] = "a") -> None: ...

    for function in (one, two):
        function.__annotations__ = {"point": Point, "n": int} if function is two else {"point": Point}
    rich.__annotations__ = {"color": Color, "when": datetime, "how": Literal["a", "b"]}
    assert bound(one, body={"x": 1}) == {"point": Point(1.0, 0.5)}
    assert bound(one, body={"point": {"x": 1}}) == {"point": Point(1.0)}
    assert bound(one, query="point=%7B%22x%22%3A%202%7D") == {"point": Point(2.0)}
    assert bound(two, query="n=3", body={"x": 1}) == {"point": Point(1.0), "n": 3}
    assert bound(two, body={"point": {"x": 1}, "n": 3}) == {"point": Point(1.0), "n": 3}
    assert "x" in errors(one, body={"y": 1})["point"]
    found = bound(rich, query="color=red&when=2026-01-02T03:04:05")
    assert found == {"color": Color.RED, "when": datetime(2026, 1, 2, 3, 4, 5)}
    assert set(errors(rich, query="color=blue&when=soon&how=c")) == {"color", "when", "how"}


def test_models_of_pydantic() -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", x=(int, ...), name=(str, "n"))

    def one(item: Any) -> None: ...
    def many(items: Any, flag: bool = False) -> None: ...

    one.__annotations__ = {"item": model}
    many.__annotations__ = {"items": list[model], "flag": bool}
    assert bound(one, body={"x": 1})["item"] == model(x=1)
    assert bound(many, body={"items": [{"x": 1}], "flag": True})["items"] == [model(x=1)]
    assert "x" in errors(one, body={"x": "q"})["item"]
    assert json.loads(answer_of(model(x=2)).body) == {"x": 2, "name": "n"}


def test_bytes_lists_and_whatever_is_left() -> None:
    def raw(data: bytes, n: int = 0) -> None: ...
    def numbers(values: list[float]) -> None: ...
    def loose(x, *args, y=2, **rest): ...  # type: ignore[no-untyped-def]
    def places(a: int, b: int = 5, /, c: int = 6) -> None: ...

    raw.__annotations__ = {"data": bytes, "n": int}
    numbers.__annotations__ = {"values": list[float]}
    places.__annotations__ = {"a": int, "b": int, "c": int}
    assert bound(raw, query="n=2", body=b"\0\xff", kind="application/octet-stream") == {"data": b"\0\xff", "n": 2}
    assert bound(numbers, body=[1, 2.5]) == {"values": [1.0, 2.5]}
    assert bound(loose, query="x=1&z=3", body={"w": [1]}) == {"x": "1", "z": "3", "w": [1]}
    assert bound(places, query="a=1&c=3") == (1, 5, {"c": 3})
    with pytest.raises(BadCall, match="JSON object"):
        bound(plain, body=[1, 2])


def test_a_method_skips_its_object() -> None:
    class Thing:
        def method(self, x: int) -> None: ...

    Thing.method.__annotations__ = {"x": int}
    assert Binder(Thing.method, skip=1).bind({}, "x=4", "", b"") == ([], {"x": 4})


def test_answers() -> None:
    def headers(value: Any) -> dict[str, str]:
        return dict(answer_of(value).headers)

    assert answer_of({"a": [1, None]}).body == b'{"a":[1,null]}'
    assert headers(1)["content-type"] == JSON
    assert (answer_of("ü").body, headers("ü")["content-type"]) == ("ü".encode(), "text/plain; charset=utf-8")
    assert (answer_of(b"x").body, headers(b"x")["content-type"]) == (b"x", "application/octet-stream")
    assert answer_of(None).body == b"null"
    assert answer_of((1, 2)).body == b"[1,2]"
    assert answer_of(("a", "b")).body == b'["a","b"]'
    assert answer_of(("a", 7)).body == b'["a",7]'
    made = answer_of(({"x": 1}, 201, {"X-Own": "1", "Content-Type": "a/b", "Content-Length": "9"}))
    assert (made.status, made.body) == (201, b'{"x":1}')
    assert made.headers == [("x-own", "1"), ("content-type", "a/b"), ("content-length", "7")]
    empty = answer_of((None, 204))
    assert (empty.status, empty.body, dict(empty.headers)) == (204, b"", {"content-length": "0"})


def test_values_of_other_libraries() -> None:
    assert answer_of({"a": np.arange(3), "b": np.float32(0.5), "p": Path("/x"), "r": range(2)}).body == (
        b'{"a":[0,1,2],"b":0.5,"p":"/x","r":[0,1]}'
    )
    with pytest.raises(TypeError, match="class object"):
        answer_of({"lock": object()})


def test_events_and_problems() -> None:
    assert event_of({"x": "a\nb"}) == b'data: {"x":"a\\nb"}\n\n'
    assert event_of(b": mine\n\n") == b": mine\n\n"
    answer = problem_answer(problem(422, "T", "d", [("x", "bad")]), {"X-A": "1"})
    assert answer.status == 422
    assert ("x-a", "1") in answer.headers
    assert json.loads(answer.body) == {
        "type": "about:blank", "title": "T", "status": 422, "detail": "d",
        "errors": [{"parameter": "x", "message": "bad"}],
    }  # fmt: skip
