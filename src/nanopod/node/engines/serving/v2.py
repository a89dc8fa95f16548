"""Bodies of the Open Inference Protocol (V2), as JSON and with the binary extension."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nanopod.node.engines.serving.answers import JSON, Answer, Refused, encode, json_object
from nanopod.node.engines.serving.tensors import BINARY_SIZE, Tensor, flat, packed, taken

HEADER_LENGTH: Final = "inference-header-content-length"
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
EXTENSIONS: Final = ("binary_tensor_data", "model_repository", "model_repository(unload_dependents)")


@dataclass(frozen=True, slots=True)
class Inference:
    """A parsed request. `wanted`: {output: whether it is wanted in binary form}; empty: all outputs."""

    id: str
    inputs: tuple[Tensor, ...]
    wanted: Mapping[str, bool]
    binary: bool
    """Outputs that are not named in `wanted` are binary."""
    parameters: Mapping[str, Any]


def parse(body: bytes, headers: Mapping[str, str]) -> Inference:
    """A request's body; its content type does not matter. Raises `Refused` 400 that names what is wrong."""
    head, rest = _split(body, headers.get(HEADER_LENGTH))
    fields = json_object(head)
    specs = fields.get("inputs")
    if not isinstance(specs, list) or not specs:
        raise Refused(400, "the body must have `inputs`: a list of {name, shape, datatype, data}")
    inputs = []
    at = 0
    for spec in specs:
        size = _parameters(spec).get(BINARY_SIZE)
        if size is None:
            inputs.append(taken(spec, None))
            continue
        if type(size) is not int or size < 0 or at + size > len(rest):
            text = f"parameters.{BINARY_SIZE} {size!r} does not fit into the {len(rest)} bytes after the JSON head"
            raise Refused(400, f"input {spec.get('name')}: {text} (header {HEADER_LENGTH})")
        inputs.append(taken(spec, rest[at : at + size]))
        at += size
    if at != len(rest):
        raise Refused(400, f"{len(rest) - at} bytes follow the tensors: {HEADER_LENGTH} or {BINARY_SIZE} is wrong")
    if len({one.name for one in inputs}) != len(inputs):
        raise Refused(400, "inputs: a name is used twice")
    parameters = _parameters(fields)
    binary = parameters.get("binary_data_output") is True
    identity = fields.get("id")
    return Inference(
        "" if identity is None else str(identity), tuple(inputs), _wanted(fields, binary), binary, parameters
    )


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    if length is None:
        return body, b""
    if not _LENGTH.fullmatch(length) or int(length) > len(body):
        text = f"{HEADER_LENGTH} must be a number up to the body's {len(body)} bytes, found {length[:40]!r}"
        raise Refused(400, text)
    return body[: int(length)], body[int(length) :]


def _parameters(fields: Any) -> dict[str, Any]:
    found = fields.get("parameters") if isinstance(fields, dict) else None
    return found if isinstance(found, dict) else {}


def _wanted(fields: Mapping[str, Any], binary: bool) -> dict[str, bool]:
    outputs = fields.get("outputs")
    if outputs is None:
        return {}
    if not isinstance(outputs, list):
        raise Refused(400, "outputs must be a list of {name}")
    wanted = {}
    for output in outputs:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise Refused(400, "outputs: each output is an object with a name")
        asked = _parameters(output).get("binary_data")
        wanted[output["name"]] = binary if asked is None else asked is True
    return wanted


def answer(model: str, asked: Inference, outputs: Sequence[Tensor]) -> Answer:
    """The outputs that were asked for, flat; binary only where that was asked. Raises `Refused` 400."""
    made = {output.name: output for output in outputs}
    for name in asked.wanted:
        if name not in made:
            raise Refused(400, f"outputs: the model has no output {name}; it has {', '.join(made) or 'none'}")
    shown: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for output in [made[name] for name in asked.wanted] if asked.wanted else outputs:
        one: dict[str, Any] = {"name": output.name, "shape": output.shape, "datatype": output.datatype}
        if asked.wanted.get(output.name, asked.binary):
            data = packed(output.array, output.datatype)
            one["parameters"] = {BINARY_SIZE: len(data)}
            raw.append(data)
        else:
            one["data"] = flat(output)
        shown.append(one)
    fields: dict[str, Any] = {"model_name": model, "outputs": shown}
    if asked.id:
        fields["id"] = asked.id
    head = encode(fields)
    if not raw:
        return Answer(200, head, JSON)
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Answer(200, b"".join([head, *raw]), headers)


def metadata(model: str, platform: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> dict[str, Any]:
    """Of a model."""
    return {
        "name": model,
        "versions": [],
        "platform": platform,
        "inputs": [one.shown() for one in inputs],
        "outputs": [one.shown() for one in outputs],
    }
