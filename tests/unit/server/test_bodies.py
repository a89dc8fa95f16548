"""Bodies are read strictly; what is wrong is named with its path and the nearest name that exists."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from nanopod.model.endpoint import EndpointSpec, FunctionSpec, ImageSpec, ModelSpec
from nanopod.model.errors import Invalid, NanopodError
from nanopod.server.api.bodies import parse
from nanopod.server.api.errors import BadRequest
from nanopod.server.api.keys import NewKey


def read(body: Any, kind: type[Any] = EndpointSpec) -> Any:
    return parse(json.dumps(body).encode(), kind)


def test_a_whole_specification_comes_back_equal() -> None:
    spec = EndpointSpec(
        "x",
        functions=(FunctionSpec("f", "generator", concurrency=3),),
        image=ImageSpec(env={"A": "1"}, runs=("ls", ("ls", "-l")), query={"num_gpus": {"gte": 1}}),
        ttl_s=5,
    )
    assert read(asdict(spec)) == spec
    model = EndpointSpec("x", kind="model", model=ModelSpec("m", argv=("a",)))
    assert read(asdict(model)) == model


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        ({"name": "x", "scale": {"max_worker": 1}}, "scale.max_worker", "max_workers"),
        ({"name": "x", "nam": 1}, "nam", "name"),
        ({"name": "x", "functions": [{"name": "f"}, {"nome": "g"}]}, "functions[1].nome", "name"),
        ({"name": "x", "model": {"model_i": "m"}}, "model.model_i", "model_id"),
        ({"name": "x", "zzz": 1}, "zzz", "there are: name"),
        ({"name": "x", "image": {"envs": {}}}, "image.envs", "env"),
    ],
)
def test_unknown_fields(body: Any, path: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        read(body)
    assert caught.value.field == path
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"name": 3}, "name"),
        ({"name": "x", "scale": {"max_workers": "3"}}, "scale.max_workers"),
        ({"name": "x", "kind": "other"}, "kind"),
        ({"name": "x", "functions": [{"name": "f", "concurrency": []}]}, "functions[0].concurrency"),
        ({}, "name"),
    ],
)
def test_wrong_types(body: Any, path: str | None) -> None:
    with pytest.raises(Invalid) as caught:
        read(body)
    assert caught.value.field == path


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[1,"])
def test_what_is_not_json(data: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(data, NewKey)


@pytest.mark.parametrize("data", [b"[]", b"3", b'"x"', b"null"])
def test_what_is_not_an_object(data: bytes) -> None:
    with pytest.raises(NanopodError):
        parse(data, NewKey)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"name":"\xff"}', b'{"\xff":1}', b"\xff", b'{"a":' * 100_000])
def test_bytes_that_are_meant_to_break_it(data: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(data, NewKey)


@pytest.mark.parametrize(("text", "field"), [("{}", "a[0].b"), ("-{}", "a[0].b"), ("{}0000", "a[0].b")])
def test_whole_numbers_that_nobody_can_send_on(text: str, field: str) -> None:
    with pytest.raises(Invalid, match=r"a\[0\].b: a whole number of \d+ bits") as refused:
        parse(b'{"a":[{"b":%s}]}' % text.format(10**20).encode(), dict)
    assert refused.value.field == field
    assert parse(b'{"a":9223372036854775807}', dict) == {"a": 2**63 - 1}
