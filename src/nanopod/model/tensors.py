"""numpy arrays and scalars and torch tensors as bytes. Neither library is ever imported here, only used when present.

An array travels as [dtype, shape, order, bytes]: `dtype` is numpy's text (or field list of a structured type), `order`
is `F` for arrays in column-major order, `O` arrays hold their items as values instead of bytes. A tensor travels as
[dtype name, shape, requires_grad, bytes] and arrives on the CPU. What arrives owns its memory and can be written to.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from msgspec.msgpack import Ext

from nanopod.model import codec, revive
from nanopod.model.errors import SerializationError


def lower_for(cls: type) -> codec.Lower | None:
    """The function that lowers values of `cls`, or None when it is neither an array, a scalar nor a tensor."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "generic"):
        if cls is numpy.ndarray:
            return _array
        if issubclass(cls, numpy.generic):
            return _scalar
        if issubclass(cls, numpy.dtype):
            return _refuse_dtype
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "Tensor") and issubclass(cls, torch.Tensor):
        return _tensor
    return None


def read_array(parts: list[Any]) -> Any:
    """The array of [dtype, shape, order, data]."""
    numpy = _loaded("numpy", "an array")
    text, shape, order, data = parts
    if order == "O":
        array = numpy.empty(math.prod(shape), dtype=object)
        for index, item in enumerate(data):
            array[index] = item
        return array.reshape(shape)
    array = numpy.frombuffer(bytearray(data), dtype=_read_dtype(numpy, text))
    return array.reshape(shape, order=order)


def read_scalar(parts: list[Any]) -> Any:
    """The scalar of [dtype, data]."""
    numpy = _loaded("numpy", "a numpy scalar")
    return numpy.frombuffer(bytes(parts[1]), dtype=_read_dtype(numpy, parts[0]))[0]


def read_tensor(parts: list[Any]) -> Any:
    """The tensor of [dtype name, shape, requires_grad, data]."""
    torch = _loaded("torch", "a tensor")
    name, shape, grad, data = parts
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is not a dtype of torch")
    if not data:
        return torch.empty(tuple(shape), dtype=dtype).requires_grad_(grad)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(tuple(shape)).requires_grad_(grad)


def _loaded(name: str, what: str) -> Any:
    module = sys.modules.get(name)
    if module is None:
        raise SerializationError(f"the value holds {what}; write `import {name}` before it arrives")
    return module


def _read_dtype(numpy: Any, text: Any) -> Any:
    if isinstance(text, list):
        text = [tuple(tuple(part) if isinstance(part, list) else part for part in field) for field in text]
    return numpy.dtype(text)


def _dtype(array: Any) -> Any:
    """numpy's own text for a dtype, or its list of fields."""
    if array.dtype.hasobject:
        raise codec.Refused(f"an array of dtype {array.dtype} cannot travel; use a dtype without Python objects in it")
    if array.dtype.names:
        return [[part if isinstance(part, str) else list(part) for part in field] for field in array.dtype.descr]
    return array.dtype.str


def _array(value: Any, wide: bool) -> Ext:
    shape = list(value.shape)
    if value.dtype.kind == "O":
        return codec.ext(revive.ARRAY, ["O", shape, "O", codec.lower(value.ravel().tolist(), wide)])
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    text = _dtype(value)
    if not value.size:
        return codec.ext(revive.ARRAY, [text, shape, order, b""])
    numpy: Any = sys.modules["numpy"]
    flat = numpy.ascontiguousarray(value.T if order == "F" else value)
    # A view of the same memory as bytes: dates and structured types do not offer a buffer by themselves.
    return codec.ext(revive.ARRAY, [text, shape, order, flat.reshape(-1).view("u1").data])


def _scalar(value: Any, wide: bool) -> Ext:
    return codec.ext(revive.SCALAR, [_dtype(value), value.tobytes()])


def _refuse_dtype(value: Any, wide: bool) -> Ext:
    raise codec.Refused(f"a numpy dtype cannot travel; pass its text {value.str!r}")


def _tensor(value: Any, wide: bool) -> Ext:
    torch: Any = sys.modules["torch"]
    if value.layout is not torch.strided or value.is_quantized:
        raise codec.Refused("a sparse or quantized tensor cannot travel; send .to_dense() or .dequantize()")
    plain = value.detach().cpu().contiguous().reshape(-1)
    data = plain.view(torch.uint8).numpy().data if plain.numel() else b""
    name = str(value.dtype).removeprefix("torch.")
    return codec.ext(revive.TENSOR, [name, list(value.shape), bool(value.requires_grad), data])
