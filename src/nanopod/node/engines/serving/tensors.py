"""Tensors of the Open Inference Protocol (V2): JSON data, raw little-endian data, and NumPy arrays.

The binary extension: a JSON head of `Inference-Header-Content-Length` bytes is followed by the raw tensors in the order
of the head; a BYTES element is its length in 4 bytes, then so many bytes.
"""

from __future__ import annotations

import math
import reprlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nanopod.node.engines.serving.answers import Refused

Array = npt.NDArray[Any]

DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "|b1", "UINT8": "|u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "|i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
"""NumPy's name of each datatype; BYTES are objects."""
NAMES: Final[Mapping[str, str]] = {np.dtype(code).str: name for name, code in DTYPES.items()}
DIMENSIONS_MAX: Final = 32
SIZE_MAX: Final = 1 << 48
"""Product of the sizes of a shape."""
BINARY_SIZE: Final = "binary_data_size"


@dataclass(slots=True)
class Tensor:
    """A named array. `array` has its shape; of datatype BYTES its elements are `bytes`."""

    name: str
    array: Array
    datatype: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> list[int]:
        """Sizes of its dimensions."""
        return list(self.array.shape)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model says of an input or output: -1 in `shape` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def shown(self) -> dict[str, Any]:
        """As the metadata shows it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


def tensor(name: str, value: Any) -> Tensor:
    """A model's answer as a tensor: numbers keep their type, texts become BYTES."""
    array = np.asarray(value)
    if array.dtype.kind == "S":
        array = array.astype(object)
    elif array.dtype.kind in "UO":
        flat = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1)]
        made = np.empty(len(flat), dtype=object)
        made[:] = flat
        array = made.reshape(array.shape)
    if array.dtype == object:
        return Tensor(name, array, "BYTES")
    datatype = NAMES.get(array.dtype.newbyteorder("<").str)
    if datatype is None:
        array = array.astype(np.float64)
        datatype = "FP64"
    return Tensor(name, array, datatype)


def taken(spec: Any, binary: bytes | None) -> Tensor:
    """An input of a request: its object, and its raw bytes where it has `binary_data_size`. Raises `Refused` 400."""
    if not isinstance(spec, dict):
        raise Refused(400, "inputs: each input is an object with name, shape, datatype and data")
    name = spec.get("name")
    if not isinstance(name, str) or not name:
        raise Refused(400, "inputs: an input has no name")
    datatype = spec.get("datatype")
    if not isinstance(datatype, str) or (datatype != "BYTES" and datatype not in DTYPES):
        known = ", ".join([*DTYPES, "BYTES"])
        raise Refused(400, f"input {name}: datatype {datatype!r} is unknown; use one of {known}")
    shape = spec.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > DIMENSIONS_MAX
        or any(type(size) is not int or size < 0 for size in shape)
    ):
        raise Refused(400, f"input {name}: shape must be a list of sizes from 0 up, found {reprlib.repr(shape)}")
    count = math.prod(shape)
    if math.prod(size or 1 for size in shape) > SIZE_MAX:  # an array without elements has limits as well
        raise Refused(400, f"input {name}: its shape {reprlib.repr(shape)} is too large")
    if binary is not None:
        flat = _from_binary(name, datatype, binary, count)
    elif "data" not in spec:
        raise Refused(400, f"input {name}: it has neither data nor parameters.{BINARY_SIZE}")
    else:
        flat = _from_json(name, datatype, spec["data"], shape, count)
    parameters = spec.get("parameters")
    return Tensor(name, flat.reshape(shape), datatype, dict(parameters) if isinstance(parameters, dict) else {})


def _from_binary(name: str, datatype: str, binary: bytes, count: int) -> Array:
    if datatype == "BYTES":
        items = []
        at = 0
        while at < len(binary):
            if at + 4 > len(binary):
                raise Refused(400, f"input {name}: the length of an element is cut off")
            (size,) = struct.unpack_from("<I", binary, at)
            at += 4
            if at + size > len(binary):
                raise Refused(400, f"input {name}: an element of {size} bytes is cut off")
            items.append(binary[at : at + size])
            at += size
        if len(items) != count:
            raise Refused(400, f"input {name}: its shape has {count} elements, its data {len(items)}")
        return _objects(items)
    dtype = np.dtype(DTYPES[datatype])
    if len(binary) != count * dtype.itemsize:
        text = f"input {name}: its shape takes {count * dtype.itemsize} bytes as {datatype}, {BINARY_SIZE} is"
        raise Refused(400, f"{text} {len(binary)}")
    return np.frombuffer(binary, dtype)


def _from_json(name: str, datatype: str, data: Any, shape: list[int], count: int) -> Array:
    if datatype == "BYTES":
        items = _texts(name, data)
        if len(items) != count:
            raise Refused(400, f"input {name}: its shape {shape} has {count} elements, its data {len(items)}")
        return _objects(items)
    try:
        found = np.asarray(data)
    except (ValueError, OverflowError, TypeError):
        raise Refused(400, f"input {name}: the rows of data differ in length") from None
    if found.size != count or (found.ndim > 1 and list(found.shape) != shape):
        text = f"input {name}: its shape {shape} has {count} elements, its data is of shape {list(found.shape)}"
        raise Refused(400, text)
    found = found.reshape(-1)
    if not found.size:
        return np.empty(0, np.dtype(DTYPES[datatype]))
    if datatype == "UINT64" and found.dtype.kind == "f":
        # NumPy takes small and large whole numbers together for floats, which have not enough digits for them.
        whole = np.asarray(data, dtype=object).reshape(-1)
        if all(type(value) is int and 0 <= value < 1 << 64 for value in whole):
            return whole.astype(np.uint64)
    if datatype == "UINT64" and found.dtype.kind in "fO":
        # NumPy takes lists with values on both sides of 2**63 for floats.
        whole = np.asarray(data, dtype=object).reshape(-1)
        if all(type(value) is int for value in whole):
            if min(whole) < 0 or max(whole) >= 1 << 64:
                raise Refused(400, f"input {name}: a value is outside of {datatype} (0 to {(1 << 64) - 1})")
            return whole.astype(np.uint64)
    if found.dtype.kind not in {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[np.dtype(DTYPES[datatype]).kind]:
        raise Refused(400, f"input {name}: its data is not of datatype {datatype}")
    dtype = np.dtype(DTYPES[datatype])
    if dtype.kind in "iu" and found.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            raise Refused(400, f"input {name}: a value is outside of {datatype} ({limits.min} to {limits.max})")
    return found.astype(dtype)


def _texts(name: str, data: Any) -> list[bytes]:
    """Elements of BYTES given as JSON, in row order."""
    if isinstance(data, str):
        return [data.encode()]
    if not isinstance(data, list):
        raise Refused(400, f"input {name}: BYTES are given as strings, found {type(data).__name__}")
    found: list[bytes] = []
    for item in data:
        found += _texts(name, item)
    return found


def _objects(items: Sequence[bytes]) -> Array:
    made = np.empty(len(items), dtype=object)
    made[:] = items
    return made


def packed(array: Array, datatype: str) -> bytes:
    """An array's raw bytes."""
    if datatype != "BYTES":
        return bytes(np.ascontiguousarray(array, dtype=np.dtype(DTYPES[datatype])).tobytes())
    parts = []
    for item in array.reshape(-1):
        parts += [struct.pack("<I", len(item)), item]
    return b"".join(parts)


def flat(found: Tensor) -> list[Any]:
    """A tensor's elements for JSON, in row order; bytes that are no text get replacement characters."""
    if found.datatype == "BYTES":
        return [bytes(item).decode(errors="replace") for item in found.array.reshape(-1)]
    values: list[Any] = found.array.reshape(-1).tolist()
    return values
