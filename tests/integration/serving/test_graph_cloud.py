"""An inference graph on a whole cloud: endpoints as steps, by host and by path, metered step by step, woken from zero."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

SERVER = """
import http.server, json, os
class V1(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self): self.say(200, {"name": "NAME", "ready": True})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "break" in asked: self.say(500, {"error": "broken as asked"})
        else: self.say(200, {"predictions": [FORMULA for x in asked["instances"]]})
    def say(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *about): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), V1).serve_forever()
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    directory = tmp_path_factory.mktemp("graph")
    with Cloud() as made:
        for name, formula in (("double", "2 * x"), ("negate", "-x")):
            script = Path(directory) / f"{name}.py"
            script.write_text(SERVER.replace("NAME", name).replace("FORMULA", formula))
            made.serve(
                name,
                model={
                    "engine": "command", "source": "", "argv": [sys.executable, str(script)], "protocols": ["v1"],
                    "ready_path": f"/v1/models/{name}",
                },
                scale={"cold_workers": 0, "min_load": 0, "max_workers": 1},
            )  # fmt: skip
        yield made


def graph(cloud: Cloud, name: str, **nodes: Any) -> None:
    body = {"name": name, "kind": "graph", "graph": {"nodes": nodes, "timeout_s": 60}}
    cloud.api("POST", "/v1/endpoints", body)


def ask(cloud: Cloud, host: str, path: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", cloud.port, timeout=90)
    headers = {"Authorization": f"Bearer {cloud.key}", "Content-Type": "application/json", "Host": host}
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_endpoints_are_steps_and_are_woken_by_them(cloud: Cloud) -> None:
    graph(
        cloud,
        "chain",
        root={
            "router": "Sequence",
            "steps": [
                {"service": "double"},
                {"service": "negate", "data": "$response", "map_predictions": True},
            ],
        },
    )
    wanted = (200, {"predictions": [-2, -4]})
    assert ask(cloud, "chain.localhost", "/", {"instances": [1, 2]}) == wanted
    assert ask(cloud, "127.0.0.1", "/services/chain/", {"instances": [1, 2]}) == wanted
    kinds = [one["kind"] for one in cloud.wait_for(lambda: cloud.usage_records(), what="usage")]
    assert set(kinds) == {"graph"}


def test_an_ensemble_and_a_switch_of_endpoints(cloud: Cloud) -> None:
    graph(
        cloud,
        "mixed",
        root={
            "router": "Switch",
            "steps": [
                {"node": "both", "condition": '[@this].#(mode=="both")'},
                {"service": "negate", "condition": "instances"},
            ],
        },
        both={"router": "Ensemble", "steps": [{"name": "a", "service": "double"}, {"service": "negate"}]},
    )
    status, found = ask(cloud, "mixed.localhost", "/", {"mode": "both", "instances": [3]})
    assert (status, found) == (200, {"a": {"predictions": [6]}, "1": {"predictions": [-3]}})
    assert ask(cloud, "mixed.localhost", "/", {"instances": [5]}) == (200, {"predictions": [-5]})
    status, found = ask(cloud, "mixed.localhost", "/", {"nothing": 1})
    assert status == 404
    assert "no step of the switch" in found["error"]


def test_what_goes_wrong_in_a_step_is_told(cloud: Cloud) -> None:
    graph(
        cloud,
        "strict",
        root={
            "router": "Sequence",
            "steps": [{"service": "double", "dependency": "Hard"}, {"service": "nobody"}],
        },
    )
    assert ask(cloud, "strict.localhost", "/", {"break": 1, "instances": []}) == (500, {"error": "broken as asked"})
    status, found = ask(cloud, "strict.localhost", "/", {"instances": [1]})
    assert status == 503
    assert "nobody" in found["error"]
