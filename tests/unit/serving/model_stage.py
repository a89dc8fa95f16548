"""Tiny real models, each made in a moment, and an engine that is asked without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nanopod.model.endpoint import ModelSpec
from nanopod.node.engines.base import Attempt, Engine, Request
from nanopod.node.engines.serving.loopback import Collected

X = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [6.0, 5.0], [5.0, 6.0]])
Y = np.array([0, 0, 0, 1, 1, 1])
FAR, NEAR = [5.5, 5.5], [0.2, 0.2]


def sklearn_model(directory: Path) -> Path:
    """A classifier: 0 near the origin, 1 far from it."""
    import joblib
    from sklearn.linear_model import LogisticRegression

    directory.mkdir(parents=True, exist_ok=True)
    joblib.dump(LogisticRegression().fit(X, Y), directory / "model.joblib")
    return directory


def xgboost_model(directory: Path) -> Path:
    import xgboost

    directory.mkdir(parents=True, exist_ok=True)
    data = xgboost.DMatrix(X, label=Y)
    booster = xgboost.train({"objective": "binary:logistic", "min_child_weight": 0, "nthread": 1}, data, 8)
    booster.save_model(str(directory / "model.json"))
    return directory


def lightgbm_model(directory: Path) -> Path:
    import lightgbm

    directory.mkdir(parents=True, exist_ok=True)
    settings = {"objective": "binary", "min_data_in_leaf": 1, "min_data_in_bin": 1, "num_threads": 1, "verbosity": -1}
    lightgbm.train(settings, lightgbm.Dataset(X, label=Y), 8).save_model(str(directory / "model.txt"))
    return directory


def onnx_model(directory: Path) -> Path:
    """sum = x @ [[1], [1]]; twice = x * 2."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    directory.mkdir(parents=True, exist_ok=True)
    weights = numpy_helper.from_array(np.ones((2, 1), np.float32), "w")
    two = numpy_helper.from_array(np.array(2.0, np.float32), "two")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["sum"]), helper.make_node("Mul", ["x", "two"], ["twice"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["n", 2]),
        ],
        [weights, two],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, str(directory / "model.onnx"))
    return directory


async def ask(
    engine: Engine, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Collected:
    """An answer of an engine; `body` is bytes or becomes JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sink = Collected()
    await engine.handle(Request(method, path, dict(headers or {}), data, Attempt("req_1")), sink)
    return sink


def json_of(sink: Collected) -> Any:
    return json.loads(b"".join(sink.parts))


def served(model: ModelSpec, asked: Any) -> Any:
    """Start a server engine, run `asked(engine)` and stop it."""
    from nanopod.node.engines.serving.engine import ServerEngine

    async def main() -> Any:
        engine = ServerEngine(model, name="service")
        try:
            await engine.start()
            return await asked(engine)
        finally:
            await engine.stop(1.0)

    return asyncio.run(main())
