"""What a loaded model can do, whatever its format: predict V1 rows, infer V2 tensors. Called on pool threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from nanopod.node.engines.serving.answers import Refused
from nanopod.node.engines.serving.tensors import Array, Facts, Tensor, tensor

OUTPUT: Final = "output-0"
INPUT: Final = "input-0"


class Predictor:
    """A model in memory. `infer` and `rows` may be called from several threads at once and raise `Refused` 400."""

    platform: str = ""
    inputs: tuple[Facts, ...] = ()
    outputs: tuple[Facts, ...] = ()
    batchable: bool = True
    """Rows are independent: requests may be joined along the first dimension."""

    def rows(self, instances: list[Any]) -> Any:
        """V1: one prediction per instance."""
        raise Refused(400, "this model has no V1 predictions; use the V2 or OpenAI paths")

    def infer(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """V2: outputs for inputs."""
        raise Refused(400, "this model has no V2 inference; use the V1 or OpenAI paths")

    def close(self) -> None:
        """Give up what it holds."""


class Tabular(Predictor):
    """A model of rows of numbers: one matrix in, one array out. `names` are its columns where it knows them."""

    def __init__(self, platform: str, columns: int, names: Sequence[str] = ()) -> None:
        self.platform = platform
        self._columns = columns
        self._names = tuple(names)
        self.inputs = (Facts(INPUT, "FP64", (-1, columns or -1)),)
        self.outputs = (Facts(OUTPUT, "FP64", (-1,)),)

    def predict(self, matrix: Any) -> Any:
        """One prediction per row of a 2-D array (or data frame)."""
        raise AssertionError("a tabular model knows how to predict")

    def rows(self, instances: list[Any]) -> Any:
        """Rows are lists of numbers, or objects by column name."""
        if isinstance(instances[0], dict):
            return self._predict(self._framed({name: [row.get(name) for row in instances] for name in instances[0]}))
        return self._predict(matrix_of(instances))

    def infer(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """One matrix, or one column per input."""
        if len(inputs) == 1:
            array = inputs[0].array
            return [tensor(OUTPUT, self._predict(_texts(inputs[0]) if array.dtype == object else array))]
        columns = {}
        for one in inputs:
            if one.array.size != inputs[0].array.size:
                raise Refused(400, f"input {one.name}: columns differ in length")
            columns[one.name] = _texts(one).reshape(-1) if one.datatype == "BYTES" else one.array.reshape(-1)
        return [tensor(OUTPUT, self._predict(self._framed(columns)))]

    def _framed(self, columns: Mapping[str, Any]) -> Any:
        """Named columns as the model takes them: in its order, as a data frame where there is pandas."""
        order = self._names or tuple(columns)
        missing = [name for name in order if name not in columns]
        if missing:
            raise Refused(400, f"the column {missing[0]} is missing; the model takes {', '.join(order[:20])}")
        try:
            import pandas
        except ImportError:
            return np.stack([np.asarray(columns[name]) for name in order], axis=1)
        return pandas.DataFrame({name: columns[name] for name in order})

    def _predict(self, matrix: Any) -> Any:
        shape = matrix.shape
        if len(shape) == 1 and self._columns and shape[0] == self._columns:
            matrix = matrix.reshape(1, -1)
        elif self._columns and (len(shape) != 2 or shape[1] != self._columns):
            text = f"the model takes rows of {self._columns} numbers, found an array of shape {list(shape)}"
            raise Refused(400, text)
        return guarded(self.predict, matrix)


def matrix_of(instances: list[Any]) -> Array:
    """V1 instances as one array. Raises `Refused` 400 when they differ in shape."""
    try:
        found = np.asarray(instances)
    except ValueError:
        raise Refused(400, "instances differ in shape: each must have as many values as the others") from None
    return found.astype(object) if found.dtype.kind == "U" else found


def _texts(one: Tensor) -> Array:
    """BYTES as strings."""
    flat = [item.decode(errors="replace") if isinstance(item, bytes) else str(item) for item in one.array.reshape(-1)]
    made = np.empty(len(flat), dtype=object)
    made[:] = flat
    return made.reshape(one.array.shape)


def guarded(call: Any, *given: Any) -> Any:
    """Call a library; what it says of values and types is the request's fault. Raises `Refused` 400."""
    try:
        return call(*given)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise Refused(400, f"the model does not take this input: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An exception in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__


class Locked:
    """One at a time, for libraries whose objects are not safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
