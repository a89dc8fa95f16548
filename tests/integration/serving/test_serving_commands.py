"""Commands that speak V1, V2 or anything; transformers, explainers, the logger and the batcher before a predictor."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from serving_stage import ServingStage
from stage import until

from nanopod.model.endpoint import ModelSpec
from nanopod.node import files

pytestmark = pytest.mark.integration
SERVER = Path(__file__).with_name("plain_server.py")


def command(name: str, *flags: str, **fields: Any) -> ModelSpec:
    argv = (sys.executable, str(SERVER), *flags)
    return ModelSpec(name, "command", argv=argv, slots=4, **{"protocols": ("v1", "v2", "http"), **fields})


@pytest.fixture(scope="module")
def anything(stage: ServingStage) -> ServingStage:
    stage.serve("any", command("any"))
    return stage


def test_any_path_method_and_header_of_an_http_endpoint(anything: ServingStage) -> None:
    status, headers, body = anything.at("any.localhost", "/a%20b/c?x=1&y=%2F", method="PUT", body=b"\0raw")
    told = json.loads(body)
    assert (status, headers["x-own"], headers["x-latin"]) == (201, "yes", "\u00fc")
    assert (told["method"], told["target"], told["body"]) == ("PUT", "/a%20b/c?x=1&y=%2F", "\0raw")
    assert "authorization" not in told["headers"], "the cloud's key is not the worker's business"
    status, _, body = anything.ask("/services/any/deep/path?q=2", headers={"X-Mine": "1"})
    told = json.loads(body)
    assert (told["target"], told["headers"]["x-mine"]) == ("/deep/path?q=2", "1")
    assert told["headers"]["x-forwarded-prefix"] == "/services/any"
    assert anything.at("any.localhost", "/moved")[1]["location"] == "/elsewhere"
    assert anything.at("any.localhost", "/x", method="HEAD")[::2] == (201, b"")


def test_a_stream_comes_in_pieces(anything: ServingStage) -> None:
    with anything.raw() as peer:
        key = anything.at("any.localhost", "/key")[2].decode()
        assert not key, "the worker never sees a key"
        from stage import KEY

        peer.sendall(f"GET /stream HTTP/1.1\r\nHost: any.localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
        seen = b""
        while b"first" not in seen:
            seen += peer.recv(4096)
        assert b"second" not in seen, "the first piece came before the second was made"
        anything.at("any.localhost", "/go", method="POST", body=b"")
        while b"second" not in seen:
            seen += peer.recv(4096)
    assert b"transfer-encoding: chunked" in seen


def test_v1_and_v2_of_a_command_by_the_models_name(anything: ServingStage) -> None:
    assert anything.json("/v1/models/any:predict", {"instances": [1, 2]}) == {"predictions": [2, 4]}
    assert anything.json("/v2/models/any/infer", {"inputs": []})["model_name"] == "any"
    assert "genuine" in anything.json("/v2/models/any/config"), "extras of a real server pass"


def test_a_request_that_may_have_had_an_effect_is_not_repeated(stage: ServingStage) -> None:
    stage.serve("dies", command("dies", protocols=("http",)))
    status, _, body = stage.at("dies.localhost", "/die", method="POST", body=b"x")
    assert status == 502
    assert "not sent again" in json.loads(body)["error"]


def test_ready_when_the_path_says_so(stage: ServingStage, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    model = command("gated", "--gate", str(gate), ready_path="/warm", protocols=("http",))
    directory = stage.serve("gated", model, ready=False)
    until(lambda: "GET /warm" in (directory / files.LOG).read_text(), 60.0, "a look at /warm")
    assert not any(one.instance_id == "inst_gated" for one in stage.control.states)
    gate.touch()
    until(lambda: any(one.instance_id == "inst_gated" and one.ready for one in stage.control.states), 60.0, "ready")
    assert stage.at("gated.localhost", "/x")[0] == 201


def test_openai_below_a_prefix_of_its_own_gets_what_usage_lacks(stage: ServingStage) -> None:
    stage.serve("prefixed", command("prefixed", "--prefix", "/openai", protocols=("openai",)))
    body = {"model": "prefixed", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    found = stage.json("/v1/chat/completions", body)
    assert found["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    status, _, data = stage.ask("/openai/v1/chat/completions", asked)
    chunks = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: {")]
    assert status == 200
    assert data.rstrip().endswith(b"data: [DONE]")
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


class _Collector(ThreadingHTTPServer):
    def __init__(self) -> None:
        self.events: list[tuple[dict[str, str], bytes]] = []
        collector = self

        class Take(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.events.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Silent."""

        super().__init__(("127.0.0.1", 0), Take)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[_Collector]:
    made = _Collector()
    yield made
    made.shutdown()
    made.server_close()


def test_transformer_explainer_and_logger(stage: ServingStage, tmp_path: Path, collector: _Collector) -> None:
    pytest.importorskip("onnxruntime")
    from model_stage import onnx_model

    helper = (sys.executable, str(SERVER), "--helper")
    options = {"log_url": f"http://127.0.0.1:{collector.server_port}/", "log_mode": "all"}
    model = ModelSpec(
        "sums", "server", str(onnx_model(tmp_path)), format="onnx", slots=2, protocols=("v1", "v2"), options=options,
        transformer=(*helper, "transform"), explainer=(*helper, "explain"),
    )  # fmt: skip
    stage.serve("fronted", model)
    found = stage.json("/v1/models/sums:predict", {"instances": ["1,2", "3,4"]})
    assert [row["sum"] for row in found["predictions"]] == [[3.0], [7.0]], "texts became numbers on the way"
    assert found["by"] == "transform sums"
    assert stage.json("/v1/models/sums:explain", {"instances": ["1,2"]})["explained"][0]["sum"] == [3.0]
    assert stage.json("/v2/models/sums")["platform"] == "onnxruntime_onnx"
    until(lambda: len(collector.events) >= 4, 30.0, "the events")
    kinds = [event["ce-type"].rpartition(".")[2] for event, _ in collector.events]
    assert sorted(kinds) == ["request", "request", "response", "response"]
    by_type = {event["ce-endpoint"] + event["ce-type"][-8:]: (event, body) for event, body in collector.events}
    event, body = by_type["/v1/models/sums:predictresponse"]
    assert json.loads(body) == found
    assert event["ce-inferenceservicename"] == "fronted"
    assert json.loads(by_type["/v1/models/sums:predict.request"][1]) == {"instances": ["1,2", "3,4"]}
    assert event["ce-id"] == by_type["/v1/models/sums:predict.request"][0]["ce-id"]


def test_a_transformer_that_ends_ends_the_worker(stage: ServingStage) -> None:
    model = command("mortal", transformer=(sys.executable, str(SERVER), "--helper", "transform"))
    directory = stage.serve("mortal", model)
    process = stage.processes[-1]
    assert stage.ask("/v1/models/mortal:predict", {"instances": ["die"]}, headers={"x-nanopod-wait-s": "2"})[0] >= 500
    until(lambda: process.poll() is not None, 60.0, "the worker's end")
    assert "exit status 3" in json.loads((directory / files.FAILURE).read_text())["message"]


def test_several_requests_are_one_prediction(stage: ServingStage, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from model_stage import FAR, NEAR, sklearn_model

    options = {"max_batch_size": "8", "max_latency_ms": "20000"}
    model = ModelSpec(
        "batched", "server", str(sklearn_model(tmp_path)), format="sklearn", slots=16, protocols=("v1", "v2"),
        options=options,
    )  # fmt: skip
    stage.serve("batched", model)
    with ThreadPoolExecutor(8) as pool:
        bodies = [{"instances": [FAR]} if one % 2 else {"instances": [NEAR]} for one in range(8)]
        found = list(pool.map(lambda body: stage.json("/v1/models/batched:predict", body), bodies))
    assert [one["predictions"] for one in found] == [[one % 2] for one in range(8)], "far below the latency: full"
