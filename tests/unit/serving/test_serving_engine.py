"""The model server without a socket: every format with a real model, several models, refusals, batches."""

from __future__ import annotations

import asyncio
import gzip
import json
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_stage import FAR, NEAR, X, ask, json_of, lightgbm_model, onnx_model, served, sklearn_model, xgboost_model

from nanopod.model.endpoint import LoadedModel, ModelSpec, StorageSpec
from nanopod.node.engines import command
from nanopod.node.engines.base import Engine
from nanopod.node.engines.serving import formats, fronted
from nanopod.node.engines.serving.answers import Refused, inflated
from nanopod.node.engines.serving.batching import Batcher
from nanopod.node.engines.serving.engine import ServerEngine
from nanopod.node.engines.serving.formats import LoadFailed
from nanopod.node.engines.serving.paths import Place, place

FORMATS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "sklearn": ("sklearn", sklearn_model),
    "xgboost": ("xgboost", xgboost_model),
    "lightgbm": ("lightgbm", lightgbm_model),
}


def tensor(rows: list[list[float]], datatype: str = "FP64", name: str = "input-0") -> dict[str, Any]:
    return {"name": name, "shape": [len(rows), len(rows[0])], "datatype": datatype, "data": rows}


@pytest.mark.parametrize("form", FORMATS)
def test_a_tabular_model_by_v1_and_v2(form: str, tmp_path: Path) -> None:
    pytest.importorskip(FORMATS[form][0])
    model = ModelSpec("iris", "server", str(FORMATS[form][1](tmp_path)), slots=2, format=form)

    async def asked(engine: Engine) -> None:
        one = json_of(await ask(engine, "POST", "/v1/models/iris:predict", {"instances": [FAR, NEAR]}))
        far, near = one["predictions"]
        assert far > 0.5 > near
        two = json_of(await ask(engine, "POST", "/v2/models/iris/infer", {"inputs": [tensor([FAR, NEAR])]}))
        assert two["outputs"][0]["data"] == pytest.approx([far, near])
        facts = json_of(await ask(engine, "GET", "/v2/models/iris"))
        assert (facts["platform"], facts["inputs"][0]["shape"]) == (form, [-1, 2])
        for body in ({"instances": [[1, 2, 3]]}, {"instances": [[1, 2], [3]]}, {"instances": ["a"]}):
            found = await ask(engine, "POST", "/v1/models/iris:predict", body)
            assert found.status == 400, json_of(found)

    served(model, asked)


def test_named_columns_come_in_the_models_order(tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    import xgboost

    data = xgboost.DMatrix(X, label=[0, 0, 0, 1, 1, 1], feature_names=["a", "b"])
    booster = xgboost.train({"objective": "binary:logistic", "min_child_weight": 0, "nthread": 1}, data, 8)
    booster.save_model(str(tmp_path / "m.ubj"))

    async def asked(engine: Engine) -> None:
        rows = {"instances": [{"b": 0.2, "a": 5.5}, {"b": 5.5, "a": 0.2}]}
        named = json_of(await ask(engine, "POST", "/v1/models/m:predict", rows))["predictions"]
        listed = json_of(await ask(engine, "POST", "/v1/models/m:predict", {"instances": [[5.5, 0.2], [0.2, 5.5]]}))
        assert named == listed["predictions"]
        columns = [
            {"name": name, "shape": [2], "datatype": "FP64", "data": values}
            for name, values in (("b", [0.2, 5.5]), ("a", [5.5, 0.2]))
        ]
        found = json_of(await ask(engine, "POST", "/v2/models/m/infer", {"inputs": columns}))
        assert found["outputs"][0]["data"] == named
        missing = await ask(engine, "POST", "/v1/models/m:predict", {"instances": [{"a": 1}]})
        assert (missing.status, "column b" in json_of(missing)["error"]) == (400, True)

    served(ModelSpec("m", "server", str(tmp_path), format="xgboost"), asked)


def test_labels_that_are_words_and_probabilities(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression().fit(X, ["near"] * 3 + ["far"] * 3)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(fitted))

    async def words(engine: Engine) -> None:
        found = json_of(await ask(engine, "POST", "/v1/models/m:predict", {"instances": [FAR, NEAR]}))
        assert found["predictions"] == ["far", "near"]
        (output,) = json_of(await ask(engine, "POST", "/v2/models/m/infer", {"inputs": [tensor([FAR])]}))["outputs"]
        assert (output["datatype"], output["data"]) == ("BYTES", ["far"])

    async def shares(engine: Engine) -> None:
        found = json_of(await ask(engine, "POST", "/v1/models/m:predict", {"instances": [FAR]}))
        assert found["predictions"][0] == pytest.approx(fitted.predict_proba([FAR])[0].tolist())

    served(ModelSpec("m", "server", str(tmp_path), format="sklearn"), words)
    served(ModelSpec("m", "server", str(tmp_path), format="sklearn", options={"predict-proba": "true"}), shares)


def test_onnx_by_names_and_types(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model = ModelSpec("m", "server", str(onnx_model(tmp_path / "1").parent), format="onnx")

    async def asked(engine: Engine) -> None:
        rows = json_of(await ask(engine, "POST", "/v1/models/m:predict", {"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}))
        assert [row["sum"] for row in rows["predictions"]] == [[3.0], [7.0]]
        body = {"inputs": [tensor([[1, 2]], "INT32", "any")], "outputs": [{"name": "twice"}]}
        (output,) = json_of(await ask(engine, "POST", "/v2/models/m/infer", body))["outputs"]
        assert (output["name"], output["datatype"], output["data"]) == ("twice", "FP32", [2.0, 4.0])
        for inputs in (
            [tensor([[1, 2, 3]], "FP32", "x")],
            [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}],
            [{"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "b"]}],
            [tensor([[1, 2]], "FP32", "x"), tensor([[1, 2]], "FP32", "y")],
        ):
            found = await ask(engine, "POST", "/v2/models/m/infer", {"inputs": inputs})
            assert found.status == 400, json_of(found)

    served(model, asked)


def test_several_models_and_the_memory_they_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.delenv("NANOPOD_MODEL_DIR", raising=False)
    models = tuple(
        LoadedModel(name, "sklearn", StorageSpec("file://x", str(sklearn_model(tmp_path / name))), memory)
        for name, memory in (("one", 600), ("two", 600), ("three", 300))
    )
    model = ModelSpec("main", "server", models=models, options={"memory": "1000"}, format="sklearn")

    async def asked(engine: Engine) -> None:
        assert json_of(await ask(engine, "GET", "/v1/models"))["models"] == ["one", "two", "three"]
        assert (await ask(engine, "GET", "/v1/models/one")).status == 200
        two = await ask(engine, "GET", "/v2/models/two/ready")
        assert (two.status, "600 bytes" in json_of(two)["error"]) == (503, True)
        assert (await ask(engine, "POST", "/v2/repository/models/two/load", {})).status == 503
        for name in ("one", "one"):
            assert (await ask(engine, "POST", f"/v2/repository/models/{name}/unload", {})).status == 200
        assert (await ask(engine, "POST", "/v1/models/one:predict", {"instances": [FAR]})).status == 503
        assert json_of(await ask(engine, "POST", "/v2/repository/models/two/load", {})) == {"name": "two", "load": True}
        assert json_of(await ask(engine, "POST", "/v1/models/two:predict", {"instances": [FAR]})) == {
            "predictions": [1]
        }
        assert (await ask(engine, "POST", "/v2/repository/models/one/load", {})).status == 503
        assert (await ask(engine, "POST", "/v2/repository/models/nobody/load", {})).status == 404
        assert json_of(await ask(engine, "GET", "/v2/health/ready")) == {"ready": True}

    served(model, asked)


def test_files_below_the_nodes_directory_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setenv("NANOPOD_MODEL_DIR", str(tmp_path))
    sklearn_model(tmp_path)
    sklearn_model(tmp_path / "a%2Fb")
    other = LoadedModel("a/b", "sklearn", StorageSpec("s3://b/x", "/mnt/models/ab"))
    model = ModelSpec("m", "server", format="sklearn", storage=(StorageSpec("s3://b/m"),), models=(other,))

    async def asked(engine: Engine) -> None:
        for path in ("/v1/models/m:predict", "/v1/models/a%2Fb:predict", "/v1/models/service:predict"):
            assert json_of(await ask(engine, "POST", path, {"instances": [FAR]})) == {"predictions": [1]}

    served(model, asked)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 200),
        ("GET", "/health", None, 200),
        ("GET", "/v2", None, 200),
        ("GET", "/v1/models/nobody", None, 404),
        ("GET", "/v2/models/nobody", None, 404),
        ("GET", "/v2/models/m/versions/2", None, 501),
        ("GET", "/v2/models/nobody/versions/2", None, 404),
        ("GET", "/v2/models/m/stats", None, 404),
        ("POST", "/v2/repository/index", {}, 404),
        ("POST", "/v1/models/m:explain", {"instances": [FAR]}, 501),
        ("POST", "/v1/models/m:predict", {}, 400),
        ("POST", "/v1/models/m:predict", {"instances": []}, 400),
        ("POST", "/v1/models/m:predict", {"inputs": [FAR]}, 200),
        ("GET", "/v1/models/m:predict", None, 405),
        ("POST", "/v1/chat/completions", {"messages": []}, 404),
        ("POST", "/v2/models/m/infer", b"\xff", 400),
    ],
)
def test_statuses(simple: Callable[..., Any], method: str, path: str, body: Any, status: int) -> None:
    found = simple(method, path, body)
    assert found.status == status, b"".join(found.parts)
    if status >= 400:
        assert isinstance(json_of(found)["error"], str)


@pytest.fixture(scope="module")
def simple(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    pytest.importorskip("sklearn")
    directory = sklearn_model(tmp_path_factory.mktemp("simple"))

    def asked(*what: Any) -> Any:
        return served(ModelSpec("m", "server", str(directory), format="sklearn"), lambda engine: ask(engine, *what))

    return asked


def test_what_cannot_be_loaded_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_: Engine) -> None:
        raise AssertionError("it started")

    def failing(words: str, **fields: Any) -> None:
        with pytest.raises(LoadFailed, match=words):
            served(ModelSpec("m", "server", **{"source": str(tmp_path), **fields}), nothing)

    failing("no .*nowhere", source=str(tmp_path / "nowhere"), format="sklearn")
    failing("one of", format="paddle")
    failing("set model.storage", source="", format="sklearn")
    monkeypatch.setitem(formats.PACKAGES, "sklearn", ("no_such_package", "sklearn", ""))
    failing(r"pip install 'nanopod\[sklearn\]'", format="sklearn")
    monkeypatch.undo()
    pytest.importorskip("sklearn")
    failing("no file of format", format="sklearn")
    (tmp_path / "a.joblib").write_bytes(b"no model")
    failing("cannot be loaded as sklearn", format="sklearn")
    (tmp_path / "b.joblib").write_bytes(b"no model")
    failing("several models", format="sklearn")
    (tmp_path / "model.pkl").write_bytes(b"cno_such_module\nThing\n.")
    failing("needs the module no_such_module", format="sklearn")
    failing("must be numbers", options={"max_batch_size": "many"})


def test_a_logger_that_cannot_be(tmp_path: Path) -> None:
    for options in ({"log_url": "ftp://x"}, {"logger-url": "http://x", "logger-mode": "some"}):
        model = ModelSpec("m", "server", str(tmp_path), options=options)
        assert fronted.needed(model)
        with pytest.raises(LoadFailed, match="logger_mode is one of all, request, response"):
            fronted.Fronted(model, ServerEngine(model))
    assert not fronted.needed(ModelSpec("m", "server"))


def test_a_stated_port_is_used_while_it_is_free() -> None:
    with socket.socket() as taken:
        taken.bind((command.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        engine = command.CommandEngine(ModelSpec("m", "command", argv=("x",), port=port))
        assert engine._free_port() != port
    other = command.free_port()
    assert command.CommandEngine(ModelSpec("m", "command", argv=("x",), port=other))._free_port() == other


def test_which_file_is_the_model(tmp_path: Path) -> None:
    for name in ("1/model.onnx", "2/model.onnx", "10/model.onnx", "config.pbtxt"):
        path = tmp_path / "triton" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert formats.model_file("m", "onnx", tmp_path / "triton").parent.name == "10"
    (tmp_path / "both").mkdir()
    for name in ("model.bst", "model.json", "config.json"):
        (tmp_path / "both" / name).write_bytes(b"x")
    assert formats.model_file("m", "xgboost", tmp_path / "both").name == "model.json"
    assert formats.guess(tmp_path / "triton") == "onnx"
    assert formats.guess(tmp_path / "both") == "huggingface"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v1/models/a:predict", Place("predict", "a", method="POST")),
        ("/v1/models/org%2Fa:b:explain", Place("explain", "org/a:b", method="POST")),
        ("/v1/models/a", Place("ready", "a")),
        ("/v2/models/a", Place("metadata", "a")),
        ("/v2/models/a/ready", Place("ready", "a")),
        ("/v2/models/a/versions/3/infer", Place("infer", "a", "3", "POST")),
        ("/v2/models/org/a/infer", Place("infer", "org/a", "", "POST")),
        ("/v2/repository/models/a/load", Place("load", "a", method="POST")),
        ("/v2/models/a/config", Place("unknown", "a")),
        ("/v2/repository/index", Place("unknown")),
        ("/v2/", Place("server")),
    ],
)
def test_paths(path: str, found: Place) -> None:
    assert place(path) == found


def test_a_batch_joins_splits_and_lets_the_bad_one_fail_alone(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    options = {"maxBatchSize": "6", "maxLatency": "60000"}
    model = ModelSpec("m", "server", str(sklearn_model(tmp_path)), format="sklearn", options=options, slots=4)

    async def asked(engine: Any) -> None:
        rows = [[FAR, NEAR], [[1, 2, 3]], [NEAR, NEAR, FAR]]
        found = await asyncio.gather(*(ask(engine, "POST", "/v1/models/m:predict", {"instances": one}) for one in rows))
        assert [one.status for one in found] == [200, 400, 200]
        assert [json_of(one).get("predictions") for one in found] == [[1, 0], None, [0, 0, 1]]
        assert engine._batcher.batches == 1
        body = {"inputs": [tensor([FAR, NEAR, FAR])]}
        both = await asyncio.gather(*(ask(engine, "POST", "/v2/models/m/infer", body) for _ in range(2)))
        assert [json_of(one)["outputs"][0] for one in both] == [
            {"name": "output-0", "shape": [3], "datatype": "INT64", "data": [1, 0, 1]}
        ] * 2
        assert engine._batcher.batches == 2

    served(model, asked)


def test_a_batch_waits_no_longer_than_its_limit_and_forgets_who_left() -> None:
    ran: list[list[int]] = []

    async def run(_: Any, given: Any) -> list[int]:
        ran.append(list(given))
        return [2 * one for one in given]

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(run, 10, 0.02)
        gone = asyncio.ensure_future(batcher.submit("k", 1, 1))
        stays = asyncio.ensure_future(batcher.submit("k", 2, 1))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == 4
        assert await asyncio.gather(batcher.submit("a", 1, 9), batcher.submit("a", 2, 9), batcher.submit("b", 3, 1)) == [
            2, 4, 6,
        ]  # fmt: skip

    asyncio.run(asyncio.wait_for(main(), 30))
    assert ran[0] == [2]
    assert sorted(map(sum, ran[1:])) == [1, 2, 3]


def test_compressed_bodies(simple: Callable[..., Any]) -> None:
    body = gzip.compress(json.dumps({"instances": [FAR]}).encode())
    found = simple("POST", "/v1/models/m:predict", body, {"content-encoding": "gzip"})
    assert json_of(found) == {"predictions": [1]}
    for data, coding in ((b"x", "gzip"), (body[:-9], "gzip"), (b"x", "br")):
        with pytest.raises(Refused):
            inflated(data, {"content-encoding": coding})


def test_metrics_count_answers(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")

    async def asked(engine: Engine) -> None:
        for _ in range(2):
            await ask(engine, "POST", "/v1/models/m:predict", {"instances": np.array([FAR]).tolist()})
        text = b"".join((await ask(engine, "GET", "/metrics")).parts).decode()
        assert 'nanopod_model_requests_total{action="predict",status="200"} 2' in text

    served(ModelSpec("m", "server", str(sklearn_model(tmp_path)), format="sklearn"), asked)
