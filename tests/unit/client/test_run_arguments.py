"""What is typed after `nanopod run FILE::FUNCTION`, as the function's annotations mean it."""

from __future__ import annotations

from typing import Any, Optional

import pytest

from nanopod.client.cli.run import parse_arguments
from nanopod.model.errors import Invalid


def typed(
    x: int, rate: float | None = None, loud: bool = False, name: str = "", items: list[int] | None = None
) -> None: ...


def untyped(a, b=None, *rest, **more): ...  # type: ignore[no-untyped-def]


def optional(n: Optional[int] = None, data: bytes = b"") -> None: ...  # noqa: UP045


@pytest.mark.parametrize(
    ("function", "words", "places", "names"),
    [
        (typed, ["--x", "5"], [], {"x": 5}),
        (typed, ["5", "--rate=0.5", "--loud", "--name", "7"], [5], {"rate": 0.5, "loud": True, "name": "7"}),
        (typed, ["-5", "--no-loud", "--items", "[1, 2]"], [-5], {"loud": False, "items": [1, 2]}),
        (typed, ["--x", "-3", "--loud", "no"], [], {"x": -3, "loud": False}),
        (untyped, ["1", "two", "(3, 4)", "--key", '{"a": null}'], [1, "two", (3, 4)], {"key": {"a": None}}),
        (optional, ["--n", "4", "--data", "ab"], [], {"n": 4, "data": b"ab"}),
    ],
)
def test_values_have_their_types(function: Any, words: list[str], places: list[Any], names: dict[str, Any]) -> None:
    assert parse_arguments(function, words) == (places, names)


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--y", "1"], "--y is no parameter"), (["--x"], "needs a value"), (["--x", "five"], "'five' is no int")],
)
def test_mistakes_are_named(words: list[str], told: str) -> None:
    with pytest.raises(Invalid, match=told):
        parse_arguments(typed, words)
