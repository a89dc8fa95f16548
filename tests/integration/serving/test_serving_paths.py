"""V1, V2 and OpenAI's paths through a real gateway: without a host, by host and by prefix."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from model_stage import FAR, NEAR, onnx_model, sklearn_model
from serving_stage import ServingStage
from stage import OTHER_KEY, READ_KEY, until

from nanopod.model.endpoint import ModelSpec, Traffic
from nanopod.node.engines.reference import resolve_model

pytestmark = pytest.mark.integration

BOTH = ("v1", "v2")


@pytest.fixture(scope="module")
def served(stage: ServingStage, tmp_path_factory: pytest.TempPathFactory) -> ServingStage:
    pytest.importorskip("sklearn")
    pytest.importorskip("onnxruntime")
    home = tmp_path_factory.mktemp("models")
    iris = ModelSpec("flowers", "server", str(sklearn_model(home / "iris")), slots=2, format="sklearn", protocols=BOTH)
    stage.serve("iris", iris)
    stage.serve(
        "sums", ModelSpec("sums", "server", str(onnx_model(home / "sums")), slots=2, format="onnx", protocols=("v2",))
    )
    stage.serve("words", ModelSpec("tiny-words", "reference", "nanopod-tiny", slots=2))
    return stage


def test_predictions_by_the_models_name_and_by_the_endpoints(served: ServingStage) -> None:
    body = {"instances": [FAR, NEAR]}
    for path, host in (
        ("/v1/models/flowers:predict", ""),
        ("/v1/models/iris:predict", ""),
        ("/v1/models/flowers:predict", "iris.localhost"),
        ("/v1/models/iris:predict", f"iris.example.org:{served.port}"),
        ("/services/iris/v1/models/flowers:predict", ""),
    ):
        assert served.json(path, body, host=host) == {"predictions": [1, 0]}, (path, host)
    until(lambda: sum(one.kind == "predict" for one in served.control.records) >= 5, 30.0, "the usage records")


def test_v2_by_json_and_binary(served: ServingStage) -> None:
    asked = {"id": "7", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2]]}]}
    found = served.json("/v2/models/sums/infer", asked)
    assert (found["model_name"], found["id"]) == ("sums", "7")
    assert found["outputs"][0] == {"name": "sum", "shape": [1, 1], "datatype": "FP32", "data": [3.0]}
    head = json.dumps(
        {
            "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
            "outputs": [{"name": "twice", "parameters": {"binary_data": True}}],
        }
    ).encode()
    status, headers, body = served.ask(
        "/v2/models/sums/infer", head + struct.pack("<2f", 1, 2),
        headers={"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
    )  # fmt: skip
    assert (status, headers["content-type"]) == (200, "application/octet-stream"), body
    length = int(headers["inference-header-content-length"])
    assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert struct.unpack("<2f", body[length:]) == (2.0, 4.0)


def test_the_servers_own_routes_of_v2(served: ServingStage) -> None:
    assert served.json("/v2")["extensions"]
    assert served.json("/v2/health/live") == {"live": True}
    assert served.json("/v2/health/ready") == {"ready": True}
    assert served.json("/v2/models") == {"models": ["flowers", "sums"]}
    assert served.json("/v2/models/sums/ready") == {"name": "sums", "ready": True}
    assert [one["name"] for one in served.json("/v2/models/sums")["outputs"]] == ["sum", "twice"]
    for path in ("/v2/models/sums/config", "/v2/models/sums/stats", "/v2/repository/index", "/v2/nothing"):
        assert "error" in served.json(path, status=404), path
        assert isinstance(served.json(path, {}, status=404)["error"], str), path


def test_a_repository_unloads_and_loads(served: ServingStage) -> None:
    assert served.json("/v2/repository/models/sums/unload", {})["name"] == "sums"
    assert served.json("/v2/models/sums/ready", status=503)["error"]
    assert served.json("/v2/models/sums/infer", {"inputs": []}, status=503)["error"]
    served.json("/v2/repository/models/sums/load", {})
    assert served.json("/v2/models/sums/ready") == {"name": "sums", "ready": True}


@pytest.mark.parametrize(
    ("status", "path", "body"),
    [
        (404, "/v1/models/nobody:predict", {"instances": [1]}),
        (404, "/v2/models/nobody/infer", {"inputs": []}),
        (404, "/v1/models/sums:predict", {"instances": [FAR]}),
        (400, "/v1/models/flowers:predict", b"{"),
        (400, "/v1/models/flowers:predict", {"rows": []}),
        (400, "/v1/models/flowers:predict", {"instances": [[1, 2, 3]]}),
        (400, "/v2/models/sums/infer", {"inputs": [{"name": "x", "shape": [1], "datatype": "FP8", "data": [1]}]}),
        (400, "/v2/models/sums/infer", {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1]}]}),
        (501, "/v2/models/sums/versions/1/infer", {"inputs": []}),
        (501, "/v1/models/flowers:explain", {"instances": [FAR]}),
    ],
)  # fmt: skip
def test_refusals(served: ServingStage, status: int, path: str, body: object) -> None:
    for given in (path, f"/services/{'iris' if 'flowers' in path else 'sums'}{path}"):
        found, headers, text = served.ask(given, body)
        assert found == status, (given, text)
        assert headers["content-type"] == "application/json"
        assert isinstance(json.loads(text)["error"], str), text


def test_who_may_ask(served: ServingStage) -> None:
    body = {"instances": [FAR]}
    for path, host in (("/v1/models/flowers:predict", "x"), ("/v1/models/flowers:predict", "iris.localhost")):
        assert served.at(host, path, body, key=OTHER_KEY)[0] == 404
        assert served.at(host, path, body, key=READ_KEY)[0] == 403
        status, _, text = served.at(host, path, body, key=None)
        assert (status, type(json.loads(text)["error"])) == (401, str)


def test_models_are_openais_list_and_v1s(served: ServingStage) -> None:
    listed = served.json("/v1/models")
    assert (listed["object"], [one["id"] for one in listed["data"]]) == ("list", ["tiny-words"])
    assert served.json("/openai/v1/models") == listed
    assert served.json("/v1/models/flowers") == {"name": "flowers", "ready": True}
    assert served.json("/v1/models/tiny-words")["object"] == "model"
    assert served.json("/v1/models", host="iris.localhost") == {"models": ["flowers"]}
    assert served.json("/v1/models", host="words.localhost")["data"][0]["id"] == "tiny-words"
    assert served.json("/", host="iris.localhost") == {"status": "alive"}
    assert served.json("/v1/models/nobody", status=404)["error"]["code"] == "model_not_found"


def test_openai_below_both_prefixes_by_host_and_by_service(served: ServingStage) -> None:
    body = {"model": "tiny-words", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 3}
    for path, host in (
        ("/openai/v1/chat/completions", ""),
        ("/v1/chat/completions", "words.localhost"),
        ("/services/words/openai/v1/chat/completions", ""),
    ):
        found = served.json(path, body, host=host)
        assert found["usage"]["completion_tokens"] <= 3
        assert found["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    by_host = {"messages": body["messages"], "max_tokens": 1}
    assert served.json("/v1/chat/completions", by_host, host="words.localhost")["object"] == "chat.completion"
    assert served.json("/v1/chat/completions", by_host, status=400)["error"]["param"] == "model"
    # A model that does not speak OpenAI's paths is none of its models.
    assert served.json("/v1/chat/completions", {**body, "model": "iris"}, status=404)["error"]["type"]
    assert served.json("/v1/chat/completions", body, host="iris.localhost", status=404)["error"]


def test_a_directory_of_hugging_face_that_generates(served: ServingStage, tmp_path: Path) -> None:
    directory = resolve_model("nanopod-tiny", tmp_path, offline=True)
    model = ModelSpec("hf", "server", str(directory), slots=2, format="huggingface", protocols=("openai", *BOTH))
    served.serve("hf", model)
    body = {"model": "hf", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": True}
    status, headers, data = served.ask("/v1/chat/completions", body)
    assert (status, headers["x-nanopod-continuation"]) == (200, "exact"), "by the reference engine"
    assert data.endswith(b"data: [DONE]\n\n")
    card = served.json("/v1/models/hf")
    assert (card["object"], card["name"], card["ready"]) == ("model", "hf", True)
    assert served.json("/v2/models/hf/ready")["ready"] is True
    assert "OpenAI" in served.json("/v1/models/hf:predict", {"instances": ["Hi"]}, status=400)["error"]


def test_names_that_mean_no_endpoint_are_left_alone(served: ServingStage) -> None:
    assert served.json("/healthz", host="nobody.localhost")["status"] == "ok"
    assert served.json("/v1/models", host="maths.example.org")["object"] == "list"
    # The management API stays where it is, even if the cluster's own name is also an endpoint's.
    assert served.at("iris.example.org", "/v1/endpoints")[0] == 503, "this stage has no server to pass it to"
    assert "iris" in served.json("/services/nobody/v1/models", status=404)["error"]["message"]
    assert served.ask("/services/iris/somewhere")[0] == 404


def test_what_is_unloaded_is_unloaded_in_every_worker(served: ServingStage, tmp_path: Path) -> None:
    model = ModelSpec("twice", "server", str(onnx_model(tmp_path)), slots=2, format="onnx", protocols=BOTH)
    served.serve("twice", model)
    served.serve("twice", model, more="_2")
    served.json("/v2/repository/models/twice/unload", {})
    for _ in range(12):
        assert served.json("/v2/models/twice/ready", status=503)["error"]
    served.json("/v2/repository/models/twice/load", {})
    for _ in range(12):
        assert served.json("/v2/models/twice/ready")["ready"] is True
    assert "POST" in served.json("/v2/repository/models/twice/load", status=405)["error"]


def test_a_workspace_without_openai_has_v1s_list(served: ServingStage) -> None:
    served.route(
        "endp_b",
        workspace_id="wksp_b",
        kind="model",
        name="lone",
        model_ids=("lone",),
        protocols=("v1",),
        serves=("lone",),
    )
    served.push()
    until(lambda: served.ask("/v1/models", key=OTHER_KEY)[2] == b'{"models":["lone"]}', 30.0, "V1's list")
    status, _, body = served.ask("/v1/models/nobody", key=OTHER_KEY)
    assert (status, type(json.loads(body)["error"])) == (404, str)


def test_a_tag_before_the_name_or_in_a_header_chooses_the_revision(served: ServingStage, tmp_path: Path) -> None:
    model = ModelSpec("tagged", "server", str(onnx_model(tmp_path)), slots=2, format="onnx", protocols=BOTH)
    traffic = (Traffic("rev_1", 100), Traffic("rev_2", 0, "next"))
    served.serve("tagged", model, traffic=traffic)
    served.serve("tagged", model, more="_2", revision="rev_2", traffic=traffic)
    body = {"instances": [FAR]}
    path = "/v1/models/tagged:predict"
    for host, headers, revision in (
        ("tagged.localhost", {}, "rev_1"),
        ("next-tagged.localhost", {}, "rev_2"),
        ("tagged.localhost", {"Knative-Serving-Tag": "next"}, "rev_2"),
    ):
        status, shown, _ = served.at(host, path, body, headers=headers)
        assert (status, shown["x-nanopod-revision"]) == (200, revision), (host, headers)
    status, shown, _ = served.ask(f"/services/next-tagged{path}", body)
    assert (status, shown["x-nanopod-revision"]) == (200, "rev_2")


def test_a_missing_package_says_what_to_install(stage: ServingStage, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"x")
    directory = stage.serve(
        "torchless", ModelSpec("t", "server", str(tmp_path), format="pytorch", protocols=BOTH), ready=False
    )
    process = stage.processes[-1]
    until(lambda: process.poll() is not None, 60.0, "the worker's end")
    failure = json.loads((directory / "failure.json").read_text())
    assert failure["stage"] == "engine"
    assert "pip install 'nanopod[torch]'" in failure["message"] or "model.pt" in failure["message"]
