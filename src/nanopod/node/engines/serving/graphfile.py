"""ONNX models by onnxruntime: named, typed tensors in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from nanopod.node.engines.serving.answers import Refused
from nanopod.node.engines.serving.formats import number
from nanopod.node.engines.serving.predictors import Predictor, first_line, matrix_of
from nanopod.node.engines.serving.tensors import DTYPES, Array, Facts, Tensor, tensor

_DATATYPES: Final[Mapping[str, str]] = {
    "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(float16)": "FP16", "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
    **{f"tensor({sign}int{bits})": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


class Onnx(Predictor):
    """A session; it is safe in threads."""

    platform = "onnxruntime_onnx"

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_facts(one) for one in session.get_inputs())
        self.outputs = tuple(_facts(one) for one in session.get_outputs() if one.type in _DATATYPES)
        self._names = [one.name for one in session.get_outputs()]
        self.batchable = all(one.shape[:1] == (-1,) for one in self.inputs)

    def rows(self, instances: list[Any]) -> Any:
        """Rows are values of the only input, or objects with one value per input."""
        if isinstance(instances[0], dict):
            given = {}
            for one in self.inputs:
                if any(not isinstance(row, dict) or one.name not in row for row in instances):
                    raise Refused(400, f"instances: a value for the input {one.name} is missing")
                given[one.name] = matrix_of([row[one.name] for row in instances])
        elif len(self.inputs) == 1:
            given = {self.inputs[0].name: matrix_of(instances)}
        else:
            names = ", ".join(one.name for one in self.inputs)
            raise Refused(400, f"instances: the model has several inputs; give objects with {names}")
        found = self._run({facts.name: _cast(given[facts.name], facts) for facts in self.inputs})
        columns = {name: _listed(value) for name, value in zip(self._names, found, strict=True)}
        if len(columns) == 1:
            return columns[self._names[0]]
        count = min(len(values) for values in columns.values())
        return [{name: values[row] for name, values in columns.items()} for row in range(count)]

    def infer(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """By name; a single input may have any."""
        given = {one.name: one.array for one in inputs}
        if len(inputs) == 1 == len(self.inputs):
            given = {self.inputs[0].name: inputs[0].array}
        known = [facts.name for facts in self.inputs]
        if set(given) != set(known):
            raise Refused(400, f"inputs: the model takes {', '.join(known)}, found {', '.join(given)}")
        found = self._run({facts.name: _cast(given[facts.name], facts) for facts in self.inputs})
        return [tensor(name, _tabled(value)) for name, value in zip(self._names, found, strict=True)]

    def _run(self, given: dict[str, Array]) -> list[Any]:
        try:
            found: list[Any] = self._session.run(None, given)
        except Exception as error:
            # What the runtime says of an input is the request's fault; everything else is said by another class.
            if type(error).__name__ in ("InvalidArgument", "Fail", "ValueError", "RuntimeException"):
                raise Refused(400, f"the model does not take this input: {first_line(error)}") from error
            raise
        return found


def _facts(one: Any) -> Facts:
    shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in one.shape or ())
    return Facts(one.name, _DATATYPES.get(one.type, one.type), shape)


def _cast(array: Array, facts: Facts) -> Array:
    """As the input's type; numbers may change theirs, shapes may not."""
    if facts.shape and len(array.shape) != len(facts.shape):
        text = f"input {facts.name}: the model takes {len(facts.shape)} dimensions {list(facts.shape)}"
        raise Refused(400, f"{text}, found an array of shape {list(array.shape)}")
    if any(wanted not in (-1, size) for wanted, size in zip(facts.shape, array.shape, strict=False)):
        raise Refused(400, f"input {facts.name}: the model takes {list(facts.shape)}, found {list(array.shape)}")
    if facts.datatype == "BYTES":
        texts = [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in array.reshape(-1)]
        return np.array(texts, dtype=object).reshape(array.shape)
    code = DTYPES.get(facts.datatype)
    if code is None:
        raise Refused(400, f"input {facts.name}: its type {facts.datatype} has no tensor of V2")
    if array.dtype.kind not in "biuf":
        raise Refused(400, f"input {facts.name}: its datatype is {facts.datatype}, found values of another kind")
    return np.ascontiguousarray(array, dtype=np.dtype(code))


def _listed(value: Any) -> list[Any]:
    found = value.tolist() if isinstance(value, np.ndarray) else value
    return found if isinstance(found, list) else [found]


def _tabled(value: Any) -> Any:
    """A sequence of maps (probabilities by class) as a matrix, in the order of the first one's keys."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return np.asarray([[row[key] for key in value[0]] for row in value])
    return value


def load_onnx(path: Path, options: Mapping[str, str]) -> Onnx:
    """On the accelerators that onnxruntime finds, else on `nthread` (1) threads of the processor."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = number(options, "nthread", 1)
    settings.log_severity_level = 3
    known = [name for name in onnxruntime.get_available_providers() if not name.startswith("Azure")]
    return Onnx(onnxruntime.InferenceSession(str(path), settings, providers=known))
