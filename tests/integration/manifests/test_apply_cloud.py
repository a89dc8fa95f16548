"""Files of KServe and Knative on a real cloud: applied, compared, divided, stopped, deleted."""

from __future__ import annotations

import itertools
import json
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from applying_stage import Stage, serving_directory

pytestmark = pytest.mark.integration


def isvc(stage: Stage, *, rev: str = "one", fields: str = "", annotations: str = "{}", image: str = "host") -> str:
    return textwrap.dedent(f"""\
        apiVersion: serving.kserve.io/v1beta1
        kind: InferenceService
        metadata: {{name: echo, annotations: {annotations}}}
        spec:
          predictor:
            {fields or "minReplicas: 1"}
            containers:
            - image: {image}
              command: [python3, {stage.server}]
              env:
              - {{name: REV, value: {rev}}}
              - {{name: MODE, valueFrom: {{configMapKeyRef: {{name: conf, key: mode}}}}}}
              - {{name: TOKEN, valueFrom: {{secretKeyRef: {{name: keys, key: tok.en}}}}}}
        ---
        apiVersion: v1
        kind: ConfigMap
        metadata: {{name: conf}}
        data: {{mode: fast}}
        ---
        apiVersion: v1
        kind: Secret
        metadata: {{name: keys}}
        stringData: {{tok.en: s3cret-of-the-test}}
        """)


def actions(lines: list[str]) -> dict[str, str]:
    """{kind/name: action} of what `apply` prints."""
    return dict(line.split()[:2] for line in lines if not line.startswith(" ") and "/" in line.split()[0])


class Caller:
    """Asks a host again and again from threads; every answer is kept."""

    def __init__(self, stage: Stage, host: str) -> None:
        self.stage, self.host = stage, host
        self.answers: list[tuple[int, str]] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(3)]

    def _run(self) -> None:
        while not self._over.is_set():
            status, found = self.stage.get(self.host)
            self.answers.append((status, str(found.get("REV", found))))

    def until(self, test: Any, what: str) -> None:
        """Wait for something to be true of the answers from now on."""
        begin = len(self.answers)
        self.stage.cloud.wait_for(lambda: test([rev for _, rev in self.answers[begin:]]), what=what)

    def __enter__(self) -> Caller:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)


def test_apply_get_diff_and_apply_again(stage: Stage) -> None:
    text = isvc(stage)
    status, lines, _ = stage.apply(text, "--dry-run")
    assert status == 0
    assert set(actions(lines).values()) == {"created"}
    assert any(line.strip() == "engine: command" for line in lines)
    assert stage.cloud.api("GET", "/v1/manifests")["data"] == []

    status, lines, err = stage.apply(text, "--wait", "--timeout", "60")
    assert status == 0, err
    assert list(actions(lines))[:3] == ["secret/keys", "configmap/conf", "inferenceservice/echo"]
    assert stage.get("echo.localhost", "/x?y=1") == (
        200, {"path": "/x?y=1", "REV": "one", "MODE": "fast", "TOKEN": "s3cret-of-the-test"},
    )  # fmt: skip
    assert stage.get("", "/v1/models/echo:predict", {"instances": []})[1]["path"] == "/v1/models/echo:predict"

    status, lines, _ = stage.apply(text)
    assert (status, set(actions(lines).values())) == (0, {"unchanged"})
    assert stage.manifest("isvc", "echo")["generation"] == 1

    status, out, _ = stage.nanopod("diff", "-f", str(written(stage, text)))
    assert (status, out) == (0, "")
    status, out, _ = stage.nanopod("diff", "-f", str(written(stage, text.replace("mode: fast", "mode: slow"))))
    assert status == 1
    assert "- data.mode: fast\n+ data.mode: slow" in out
    assert "inferenceservice/echo would be configured" in out, "what it takes from the ConfigMap has changed"


def written(stage: Stage, text: str) -> Path:
    path = stage.directory / "input.yaml"
    path.write_text(text)
    return path


def test_get_shows_the_object_with_its_status_and_no_secret(stage: Stage) -> None:
    assert stage.apply(isvc(stage), "--wait", "--timeout", "60")[0] == 0
    for words in (("get", "isvc", "echo", "-o", "kserve"), ("endpoints", "get", "echo", "-o", "kserve")):
        status, out, _ = stage.nanopod(*words)
        assert status == 0
        assert "kind: InferenceService" in out
        assert "latestRolledoutRevision: echo-00001" in out
    made = json.loads(stage.nanopod("get", "inferenceservices", "echo", "-o", "json")[1])
    conditions = {one["type"]: one["status"] for one in made["status"]["conditions"]}
    assert (conditions["Ready"], conditions["PredictorReady"], conditions["IngressReady"]) == ("True", "True", "True")
    assert made["status"]["url"] == f"http://echo.localhost:{stage.cloud.port}"
    status, out, _ = stage.nanopod("get", "all", "-o", "yaml")
    assert status == 0
    assert "s3cret-of-the-test" not in out
    assert "tok.en" in out
    status, _, err = stage.nanopod("get", "isvc", "nobody")
    assert (status, "there are: echo" in err) == (3, True)
    assert stage.nanopod("get", "pods")[0] == 2


def test_one_wrong_document_and_nothing_is_applied(stage: Stage) -> None:
    text = isvc(stage, image="my/image:1")
    status, _, err = stage.apply(text)
    assert status == 1
    assert "-:8:7: error: spec.predictor.containers[0].image: image 'my/image:1' cannot be run here" in err
    assert "1 of 3 documents rejected; nothing was changed" in err
    assert stage.cloud.api("GET", "/v1/manifests")["data"] == []
    assert not any(one["name"] == "keys" for one in stage.cloud.api("GET", "/v1/secrets")["data"])

    status, _, err = stage.apply("kind: [")
    assert (status, "-:1:" in err or "-:2:" in err) == (1, True)
    status, out, err = stage.nanopod("apply", "-f", "-", "--json", text=text)
    body = json.loads(out)
    assert (status, body["applied"], body["error"]["code"]) == (1, False, "manifest_rejected")
    warned = isvc(stage, fields="initContainers: []\n            minReplica: 1")
    status, _, err = stage.apply(warned, "--strict", "--dry-run")
    assert (status, "did you mean 'minReplicas'" in err) == (1, True)
    assert stage.apply(warned, "--dry-run")[0] == 0


def test_canary_pin_promote_and_stop_without_a_failed_request(stage: Stage) -> None:
    tags = "{serving.kserve.io/enable-tag-routing: 'true'}"

    def apply(rev: str, fields: str = "", annotations: str = tags) -> None:
        status, _, err = stage.apply(isvc(stage, rev=rev, fields=fields, annotations=annotations))
        assert status == 0, err

    apply("one", "canaryTrafficPercent: 30")
    stage.cloud.wait_ready("echo")
    assert stage.traffic("echo") == {"echo-00001": 100}, "a first revision has all requests"
    with Caller(stage, "echo.localhost") as caller:
        caller.until(lambda revs: revs.count("one") >= 20, "answers of the first revision")
        apply("two", "canaryTrafficPercent: 30")
        caller.until(lambda revs: "two" in revs and "one" in revs[-20:], "answers of both")
        assert stage.traffic("echo") == {"echo-00002": 30, "echo-00001": 70}
        assert {stage.get("latest-echo.localhost")[1]["REV"] for _ in range(5)} == {"two"}
        assert {stage.get("prev-echo.localhost")[1]["REV"] for _ in range(5)} == {"one"}
        apply("two", "canaryTrafficPercent: 0")
        caller.until(lambda revs: len(revs) > 30 and set(revs[-30:]) == {"one"}, "the pinned revision alone")
        apply("two")
        caller.until(lambda revs: len(revs) > 30 and set(revs[-30:]) == {"two"}, "the promoted revision alone")
        assert stage.traffic("echo") == {"echo-00002": 100}
    assert {status for status, _ in caller.answers} == {200}

    apply("two", annotations="{serving.kserve.io/stop: 'true'}")
    assert stage.manifest("isvc", "echo")["reason"] == "Stopped"
    assert stage.get("echo.localhost")[0] == 503
    apply("two")
    stage.cloud.wait_ready("echo")
    assert stage.get("echo.localhost")[1]["REV"] == "two"


def knative(stage: Stage, rev: str, traffic: str = "") -> str:
    text = textwrap.dedent(f"""\
        apiVersion: serving.knative.dev/v1
        kind: Service
        metadata: {{name: hello}}
        spec:
          template:
            metadata: {{name: hello-{rev}, annotations: {{autoscaling.knative.dev/min-scale: "1"}}}}
            spec:
              containerConcurrency: 8
              containers:
              - image: host
                command: [python3, {stage.server}]
                env: [{{name: REV, value: {rev}}}]
        """)
    return text + (f"  traffic: {traffic}\n" if traffic else "")


def test_a_knative_service_with_named_revisions(stage: Stage) -> None:
    assert stage.apply(knative(stage, "a"), "--wait", "--timeout", "60")[0] == 0
    rows = "[{revisionName: hello-a, percent: 100}, {latestRevision: true, percent: 0, tag: next}]"
    status, _, err = stage.apply(knative(stage, "b", rows))
    assert status == 0, err
    stage.cloud.wait_for(lambda: stage.get("next-hello.localhost")[1].get("REV") == "b", what="the tagged revision")
    assert {stage.get("hello.localhost")[1]["REV"] for _ in range(20)} == {"a"}
    status, _, err = stage.apply(knative(stage, "b"))
    assert status == 0, err
    stage.cloud.wait_for(
        lambda: {stage.get("hello.localhost")[1].get("REV") for _ in range(5)} == {"b"}, what="the newest alone"
    )
    status = stage.manifest("ksvc", "hello")["manifest"]["status"]
    assert status["latestReadyRevisionName"] == "hello-00002"


def test_what_no_node_has_is_accepted_and_unschedulable(stage: Stage) -> None:
    text = isvc(stage).replace(
        "              env:", "              resources: {limits: {amd.com/gpu: 1}}\n              env:"
    )
    text = text.replace("      env:\n", "      resources: {limits: {amd.com/gpu: 1}}\n      env:\n", 1)
    status, _, err = stage.apply(text)
    assert status == 0, err
    stage.cloud.wait_for(lambda: stage.manifest("isvc", "echo")["reason"] == "Unschedulable", what="the condition")
    conditions = stage.manifest("isvc", "echo")["manifest"]["status"]["conditions"]
    assert "no kind of node meets its requirements" in conditions[0]["message"]


def test_a_service_that_cannot_start_says_why(stage: Stage) -> None:
    text = isvc(stage).replace(str(stage.server), "-c, 'raise SystemExit(\"no weights here\")'")
    status, _, err = stage.apply(text, "--wait", "--timeout", "90")
    assert status == 1
    assert "inferenceservice/echo failed" in err
    assert stage.manifest("isvc", "echo")["reason"] == "RevisionFailed"


def test_delete_takes_everything_away(stage: Stage) -> None:
    text = isvc(stage)
    assert stage.apply(text, "--wait", "--timeout", "60")[0] == 0
    status, out, _ = stage.nanopod("delete", "-f", str(written(stage, text)))
    assert status == 0
    assert out.splitlines() == ["inferenceservice/echo deleted", "configmap/conf deleted", "secret/keys deleted"]
    assert stage.cloud.api("GET", "/v1/manifests")["data"] == []
    assert not any(one["name"] == "echo" for one in stage.cloud.api("GET", "/v1/endpoints")["data"])
    status, out, _ = stage.nanopod("delete", "-f", str(written(stage, text)))
    assert (status, {line.split()[1] for line in out.splitlines()}) == (0, {"absent"})


def test_the_installations_limit_refuses_a_larger_scale(stage: Stage) -> None:
    made = stage.cloud.api("PATCH", "/v1/manifest_settings", {"max_scale_limit": 3})
    try:
        assert made == stage.cloud.api("GET", "/v1/manifest_settings") == {"profile": "auto", "max_scale_limit": 3}
        status, _, err = stage.apply(isvc(stage, fields="maxReplicas: 4"), "--dry-run")
        assert (status, "spec.predictor.maxReplicas: 4 is above the 3" in err) == (1, True), err
        assert stage.apply(isvc(stage, fields="maxReplicas: 3"), "--dry-run")[0] == 0
    finally:
        assert stage.cloud.api("PATCH", "/v1/manifest_settings", {"max_scale_limit": 0})["max_scale_limit"] == 0


def test_the_servers_own_profile_counts_where_none_is_named(stage: Stage) -> None:
    stage.cloud.api("PATCH", "/v1/manifest_settings", {"profile": "coreweave"})
    try:
        status, out, _ = stage.nanopod("apply", "-f", "-", "--dry-run", "--json", text=isvc(stage))
        assert status == 0
        made = [one["native"] for one in json.loads(out)["documents"] if one["native"]]
        assert [one["scale"]["profile"] for one in made] == ["coreweave"]
    finally:
        stage.cloud.api("PATCH", "/v1/manifest_settings", {"profile": "auto"})


def test_files_of_a_directory_refer_to_each_other(stage: Stage) -> None:
    parts = isvc(stage).split("---\n")
    folder = stage.directory / "folder"
    folder.mkdir()
    for number, part in zip(itertools.count(), parts, strict=False):
        (folder / f"{number}.yaml").write_text(part)
    (folder / "notes.txt").write_text("not: [a manifest")
    status, out, err = stage.nanopod("apply", "-f", str(folder))
    assert status == 0, err
    assert list(actions(out.splitlines())) == ["secret/keys", "configmap/conf", "inferenceservice/echo"]


def test_a_model_by_its_format_and_a_graph_over_it(stage: Stage) -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    joblib = pytest.importorskip("joblib")
    model = sklearn.LinearRegression().fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0])
    joblib.dump(model, stage.directory / "model.joblib")
    with serving_directory(stage.directory) as url:
        text = textwrap.dedent(f"""\
            apiVersion: serving.kserve.io/v1beta1
            kind: InferenceService
            metadata: {{name: line}}
            spec:
              predictor:
                model: {{modelFormat: {{name: sklearn}}, storageUri: {url}/model.joblib}}
            ---
            apiVersion: serving.kserve.io/v1alpha1
            kind: TrainedModel
            metadata: {{name: other-line}}
            spec:
              inferenceService: line
              model: {{framework: sklearn, storageUri: {url}/model.joblib, memory: 16Mi}}
            ---
            apiVersion: serving.kserve.io/v1alpha1
            kind: InferenceGraph
            metadata: {{name: twice}}
            spec:
              nodes:
                root:
                  routerType: Sequence
                  steps:
                  - {{serviceName: line}}
            """)
        status, _, err = stage.apply(text, "--wait", "--timeout", "90")
    assert status == 0, err
    found = stage.get("line.localhost", "/v1/models/line:predict", {"instances": [[3.0]]})
    assert found == (200, {"predictions": [pytest.approx(7.0)]})
    found = stage.get("line.localhost", "/v1/models/other-line:predict", {"instances": [[0.0]]})
    assert found == (200, {"predictions": [pytest.approx(1.0)]})
    assert stage.manifest("tm", "other-line")["ready"] == "True"
    status, found = stage.get("twice.localhost", "/", {"instances": [[4.0]]})  # type: ignore[assignment]
    assert (status, found) == (200, {"predictions": [pytest.approx(9.0)]})
