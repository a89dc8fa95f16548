"""V2's tensors: JSON and binary data there and back, and what is refused."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nanopod.node.engines.serving import v2
from nanopod.node.engines.serving.answers import Refused
from nanopod.node.engines.serving.tensors import DTYPES, Tensor, flat, packed, taken, tensor

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
NUMBERS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: st.tuples(st.just(name), arrays.arrays(np.dtype(DTYPES[name]), SHAPES))
)
TEXTS = arrays.arrays(object, SHAPES, elements=st.binary(max_size=8), fill=st.nothing())


def spec(name: str, array: Any, **more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": list(array.shape), "datatype": name, **more}


@given(NUMBERS)
def test_numbers_survive_the_binary_form(given_: tuple[str, Any]) -> None:
    name, array = given_
    found = taken(spec(name, array), packed(array, name))
    assert (found.datatype, found.array.dtype, found.shape) == (name, np.dtype(DTYPES[name]), list(array.shape))
    assert found.array.tobytes() == array.tobytes()


@given(NUMBERS)
def test_numbers_survive_json(given_: tuple[str, Any]) -> None:
    name, array = given_
    if not np.isfinite(array.astype(np.float64)).all():
        return
    data = json.loads(json.dumps(flat(Tensor("x", array, name))))
    assert taken(spec(name, array, data=data), None).array.tolist() == array.tolist()
    nested = json.loads(json.dumps(array.tolist()))
    if array.ndim and array.size:
        assert taken(spec(name, array, data=nested), None).array.tolist() == array.tolist()


@given(TEXTS)
def test_bytes_survive_the_binary_form(array: Any) -> None:
    found = taken(spec("BYTES", array), packed(array, "BYTES"))
    assert found.array.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"shape": [1], "datatype": "FP32", "data": [1]}, "no name"),
        ({"name": "x", "shape": [1], "datatype": "FP8", "data": [1]}, "FP8"),
        ({"name": "x", "shape": [1], "datatype": ["FP32"], "data": [1]}, "datatype"),
        ({"name": "x", "shape": [-1], "datatype": "FP32", "data": [1]}, "shape"),
        ({"name": "x", "shape": "1", "datatype": "FP32", "data": [1]}, "shape"),
        ({"name": "x", "shape": [2], "datatype": "FP32", "data": [1]}, "2 elements"),
        ({"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [[1, 2]]}, "shape"),
        ({"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3]]}, "differ"),
        ({"name": "x", "shape": [1], "datatype": "INT8", "data": [128]}, "outside"),
        ({"name": "x", "shape": [1], "datatype": "UINT8", "data": [-1]}, "outside"),
        ({"name": "x", "shape": [1], "datatype": "INT8", "data": [1.5]}, "not of datatype"),
        ({"name": "x", "shape": [1], "datatype": "BOOL", "data": [2]}, "not of datatype"),
        ({"name": "x", "shape": [1], "datatype": "FP32", "data": ["1"]}, "not of datatype"),
        ({"name": "x", "shape": [1], "datatype": "FP32", "data": [None]}, "not of datatype"),
        ({"name": "x", "shape": [1], "datatype": "BYTES", "data": [1]}, "strings"),
        ({"name": "x", "shape": [1], "datatype": "FP32"}, "neither"),
        ({"name": "x", "shape": [0, 2**63], "datatype": "FP32", "data": []}, "too large"),
        ({"name": "x", "shape": [0, 2**40, 2**40], "datatype": "BYTES", "data": []}, "too large"),
        ({"name": "x", "shape": ["a"] * 100_000, "datatype": "FP32", "data": []}, "^.{,120}$"),
        ("x", "object"),
    ],
)
def test_what_is_no_input(given_: Any, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        taken(given_, None)
    assert refused.value.status == 400


@pytest.mark.parametrize("binary", [b"\1\0\0", b"\5\0\0\0ab", b"\1\0\0\0a\1\0\0\0b"])
def test_bytes_that_are_cut_off_or_too_many(binary: bytes) -> None:
    with pytest.raises(Refused):
        taken({"name": "x", "shape": [1], "datatype": "BYTES"}, binary)


def test_what_models_answer_becomes_tensors() -> None:
    assert tensor("y", np.array(["a", "bé"])).array.tolist() == [b"a", "bé".encode()]
    assert tensor("y", ["a"]).datatype == "BYTES"
    assert tensor("y", [1, 2]).datatype == "INT64"
    assert tensor("y", np.array([1], np.float16)).datatype == "FP16"
    assert tensor("y", np.array([1], ">f4")).datatype == "FP32"
    assert tensor("y", [True]).datatype == "BOOL"


def request(*tail: bytes, **fields: Any) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(fields).encode()
    return b"".join([head, *tail]), {v2.HEADER_LENGTH: str(len(head))} if tail else {}


def test_a_mixed_request_and_its_answer() -> None:
    raw = {"name": "b", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    plain = {"name": "a", "shape": [2], "datatype": "INT64", "data": [1, 2]}
    wanted = [{"name": "z", "parameters": {"binary_data": True}}, {"name": "y"}]
    body, headers = request(struct.pack("<2f", 1, 2), id="7", inputs=[plain, raw], outputs=wanted)
    asked = v2.parse(body, headers)
    assert [one.array.tolist() for one in asked.inputs] == [[1, 2], [1.0, 2.0]]
    made = v2.answer("m", asked, [tensor("y", [1]), tensor("z", np.array([2.0], np.float32)), tensor("w", [3])])
    length = int(made.headers[v2.HEADER_LENGTH])
    head = json.loads(made.body[:length])
    assert [one["name"] for one in head["outputs"]] == ["z", "y"], "in the order they were asked for"
    assert struct.unpack("<f", made.body[length:]) == (2.0,)
    assert head["id"] == "7"


def test_binary_only_where_it_is_asked() -> None:
    one = {"name": "a", "shape": [1], "datatype": "INT64", "data": [1]}
    outputs = [tensor("y", [1]), tensor("z", [2])]
    all_binary, _ = request(inputs=[one], parameters={"binary_data_output": True})
    assert v2.HEADER_LENGTH in v2.answer("m", v2.parse(all_binary, {}), outputs).headers
    plain, _ = request(inputs=[one])
    assert v2.answer("m", v2.parse(plain, {"content-type": "application/octet-stream"}), outputs).headers == {
        "content-type": "application/json"
    }
    but_one, _ = request(
        inputs=[one], outputs=[{"name": "y", "parameters": {"binary_data": False}}],
        parameters={"binary_data_output": True},
    )  # fmt: skip
    assert json.loads(v2.answer("m", v2.parse(but_one, {}), outputs).body)["outputs"][0]["data"] == [1]


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"{", {}, "not JSON"),
        (b"[]", {}, "object"),
        (b"{}", {}, "inputs"),
        (b'{"inputs": []}', {}, "inputs"),
        (b'{"inputs": {}}', {}, "inputs"),
        (b"{}", {v2.HEADER_LENGTH: "3"}, "number up to"),
        (b"{}", {v2.HEADER_LENGTH: "x"}, "number up to"),
        (
            b'{"inputs": [{"name": "a", "shape": [1], "datatype": "INT8", "data": [1]}]}xx',
            {v2.HEADER_LENGTH: "74"},
            "2 bytes follow",
        ),
        (
            b'{"inputs": [{"name": "a", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 9}}]}',
            {},
            "does not fit",
        ),
        (
            b'{"outputs": 3, "inputs": [{"name": "a", "shape": [1], "datatype": "INT8", "data": [1]}]}',
            {},
            "outputs must be a list",
        ),
    ],
)
def test_bodies_that_are_no_request(body: bytes, headers: dict[str, str], words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        v2.parse(body, headers)
    assert refused.value.status == 400


def test_an_output_that_the_model_does_not_have() -> None:
    body, _ = request(
        inputs=[{"name": "a", "shape": [1], "datatype": "INT8", "data": [1]}], outputs=[{"name": "nothing"}]
    )
    with pytest.raises(Refused, match="no output nothing"):
        v2.answer("m", v2.parse(body, {}), [tensor("y", [1])])


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"inputs":' + b"[" * 100_000,
        b"\xff",
        b'{"inputs":[{"name":"x","shape":[%s]}]}' % (b"9" * 5000),
    ],
)
def test_bodies_that_are_meant_to_break_it(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        v2.parse(body, {})
    assert refused.value.status == 400


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "\u00b2", "", "0x1"])
def test_a_length_of_the_head_that_is_none(length: str) -> None:
    with pytest.raises(Refused, match="must be a number") as refused:
        v2.parse(b"{}", {v2.HEADER_LENGTH: length})
    assert len(str(refused.value)) < 200


def test_large_whole_numbers_are_exact() -> None:
    data = [0, 2**63, 2**64 - 1, 2**53 + 1]
    given_ = {"name": "x", "shape": [2, 2], "datatype": "UINT64", "data": data}
    assert taken(given_, None).array.reshape(-1).tolist() == data
    for wrong in ([0, 2**64, 0, 0], [-1, 2**63, 0, 0], [0.5, 2**63, 0, 0]):
        with pytest.raises(Refused):
            taken({**given_, "data": wrong}, None)
