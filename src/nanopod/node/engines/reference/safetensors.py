"""Own reader of the safetensors file format: mapped, strict, sharded.

A file is `u64 little endian header length | JSON header | data`. The header maps tensor names to
`{dtype, shape, data_offsets: [begin, end)}` relative to the data section, plus an optional `__metadata__` of strings.
Every size and offset is checked before a byte of data is touched, so a truncated or crafted file fails with a sentence
that names the file and the tensor instead of reading past its end.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES_MAX = 100 * 1024 * 1024
"""Refuse headers larger than this: no real checkpoint comes near it."""

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file and, where there is one, the tensor."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: element type name, shape, and its byte range in the data section."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _info(path: Path, name: str, entry: object, data_bytes: int) -> TensorInfo:
    """Check one header entry against the file's size; raises `CheckpointError`."""

    def bad(why: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!r}: {why}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad("the entry must hold exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise bad(f"unknown dtype {dtype!r}; known: {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise bad("shape must be a list of sizes >= 0")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise bad("data_offsets must be two integers")
    begin, end = offsets
    if not 0 <= begin <= end <= data_bytes:
        raise bad(f"data_offsets [{begin}, {end}] leave the data section of {data_bytes} bytes; is the file truncated?")
    need = _DTYPES[dtype].itemsize
    for n in shape:
        need *= n
    if need != end - begin:
        raise bad(f"{dtype} of shape {shape} needs {need} bytes, data_offsets hold {end - begin}")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _reject_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Object hook: the same tensor name twice would make the file mean two things."""
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name appears twice")
    return out


class SafetensorsFile:
    """One mapped file. Tensors are views of the map (or fresh arrays where the element type must be converted)."""

    def __init__(self, path: Path) -> None:
        """Map `path` and check its header; raises `CheckpointError` or `OSError`."""
        self.path = path
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 8:
                raise CheckpointError(f"{path}: {size} bytes are too few for a safetensors file")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header_bytes = int.from_bytes(self._map[:8], "little")
        if not 2 <= header_bytes <= min(HEADER_BYTES_MAX, size - 8):
            raise CheckpointError(f"{path}: header length {header_bytes} does not fit a file of {size} bytes")
        try:
            header = json.loads(self._map[8 : 8 + header_bytes], object_pairs_hook=_reject_duplicates)
        except ValueError as error:
            raise CheckpointError(f"{path}: the header is not valid JSON: {error}") from error
        if not isinstance(header, dict):
            raise CheckpointError(f"{path}: the header must be a JSON object")
        self._data_start = 8 + header_bytes
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.tensors = {k: _info(path, k, v, size - self._data_start) for k, v in header.items()}
        self._check_cover(size - self._data_start)

    def _check_cover(self, data_bytes: int) -> None:
        """Tensors must fill the data section without overlap or holes."""
        at = 0
        for name, info in sorted(self.tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
            if info.begin != at:
                raise CheckpointError(f"{self.path}: tensor {name!r} begins at {info.begin}, expected {at}")
            at = info.end
        if at != data_bytes:
            raise CheckpointError(f"{self.path}: tensors end at {at}, the data section has {data_bytes} bytes")

    def raw(self, name: str) -> NDArray[Any]:
        """The tensor as stored, a read-only view; BF16 comes as its 16-bit patterns."""
        info = self.tensors[name]
        dtype = _DTYPES[info.dtype]
        count = (info.end - info.begin) // dtype.itemsize
        flat = np.frombuffer(self._map, dtype=dtype, count=count, offset=self._data_start + info.begin)
        return flat.reshape(info.shape)

    def load(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The tensor as a fresh contiguous array of `dtype` (float types convert exactly where they can)."""
        raw = self.raw(name)
        if self.tensors[name].dtype == "BF16":
            # A bfloat16 is the upper half of a float32.
            raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return np.array(raw, dtype=dtype, order="C")


class Checkpoint:
    """All tensors of a model directory: one `model.safetensors`, or the shards its index names."""

    def __init__(self, directory: Path) -> None:
        """Open the checkpoint in `directory`; raises `CheckpointError` when it is absent or inconsistent."""
        self.directory = directory
        index = directory / INDEX_NAME
        self._where: dict[str, SafetensorsFile] = {}
        if (directory / SINGLE_NAME).is_file():
            only = SafetensorsFile(directory / SINGLE_NAME)
            self._where = dict.fromkeys(only.tensors, only)
        elif index.is_file():
            self._open_shards(index)
        else:
            raise CheckpointError(f"{directory}: neither {SINGLE_NAME} nor {INDEX_NAME} is there")

    def _open_shards(self, index: Path) -> None:
        try:
            weight_map = json.loads(index.read_bytes())["weight_map"]
            pairs = [(str(name), str(shard)) for name, shard in weight_map.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: expected a JSON object with weight_map: {error!r}") from error
        files: dict[str, SafetensorsFile] = {}
        for name, shard in pairs:
            if Path(shard).name != shard:
                raise CheckpointError(f"{index}: shard {shard!r} must be a plain file name")
            if shard not in files:
                if not (self.directory / shard).is_file():
                    raise CheckpointError(f"{index}: shard {shard!r} of tensor {name!r} is missing")
                files[shard] = SafetensorsFile(self.directory / shard)
            if name not in files[shard].tensors:
                raise CheckpointError(f"{self.directory / shard}: tensor {name!r}, named by the index, is not in it")
            self._where[name] = files[shard]

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def load(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Tensor `name` as `dtype`, its shape checked; raises `CheckpointError` naming file and tensor."""
        file = self._where.get(name)
        if file is None:
            raise CheckpointError(f"{self.directory}: tensor {name!r} is missing from the checkpoint")
        found = list(file.tensors[name].shape)
        if found != list(shape):
            raise CheckpointError(f"{file.path}: tensor {name!r} has shape {found}, config.json wants {list(shape)}")
        return file.load(name, dtype)
