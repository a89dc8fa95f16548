"""TrainedModels that come, change, fail and go while their server answers for another model: no restart, no error."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
from pathlib import Path

import pytest
from applying_stage import Stage, serving_directory

pytestmark = pytest.mark.integration

HOST = "line.localhost"


def line(path: Path, slope: float) -> None:
    """Write a model that answers `slope * x`."""
    joblib = pytest.importorskip("joblib")
    made = pytest.importorskip("sklearn.linear_model").LinearRegression().fit([[0.0], [1.0]], [0.0, slope])
    joblib.dump(made, path)


def service(url: str) -> str:
    return textwrap.dedent(f"""\
        apiVersion: serving.kserve.io/v1beta1
        kind: InferenceService
        metadata: {{name: line}}
        spec:
          predictor:
            minReplicas: 2
            containerConcurrency: 8
            model:
              modelFormat: {{name: sklearn}}
              storageUri: {url}/one.joblib
              resources: {{limits: {{memory: 512Mi}}}}
        """)


def trained(name: str, uri: str, memory: str = "16Mi") -> str:
    return textwrap.dedent(f"""\
        apiVersion: serving.kserve.io/v1alpha1
        kind: TrainedModel
        metadata: {{name: {name}}}
        spec: {{inferenceService: line, model: {{framework: sklearn, storageUri: {uri}, memory: {memory}}}}}
        """)


class Asking:
    """Asks one model for predictions, again and again, from two threads."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.good = 0
        self.bad: list[object] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def _run(self) -> None:
        while not self._over.is_set():
            found = predict(self.stage, "line", 2.0)
            if found == (200, 2.0):
                self.good += 1
            else:
                self.bad.append(found)

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)


def predict(stage: Stage, model: str, x: float) -> tuple[int, object]:
    status, found = stage.get(HOST, f"/v1/models/{model}:predict", {"instances": [[x]]})
    return status, round(found["predictions"][0], 6) if status == 200 else str(found.get("error"))


def workers(stage: Stage) -> dict[str, int]:
    """{instance: pid} of the workers."""
    found = stage.cloud.api("GET", "/v1/endpoints/line")
    return {row["id"]: row["pid"] for row in found["instances"] if row["phase"] == "ready"}


def test_models_come_change_fail_and_go_under_requests_to_another(stage: Stage) -> None:
    for name, slope in (("one", 1.0), ("two", 2.0), ("three", 3.0)):
        line(stage.directory / f"{name}.joblib", slope)
    (stage.directory / "broken.joblib").write_bytes(b"this is no model")
    with serving_directory(stage.directory) as url:
        status, _, err = stage.apply(service(url), "--wait", "--timeout", "90")
        assert status == 0, err
        stage.cloud.wait_for(lambda: len(workers(stage)) == 2, what="two workers")
        before = workers(stage)
        with Asking(stage) as asking:
            for name, slope in (("two", 2.0), ("three", 3.0)):
                status, _, err = stage.apply(trained(name, f"{url}/{name}.joblib"), "--wait", "--timeout", "60")
                assert status == 0, err
                assert predict(stage, name, 5.0) == (200, 5.0 * slope)
            status, _, err = stage.apply(trained("two", f"{url}/three.joblib"), "--wait", "--timeout", "60")
            assert (status, predict(stage, "two", 5.0)) == (0, (200, 15.0)), err
            for name, uri, why in (
                ("broken", "broken.joblib", "cannot be loaded as sklearn"), ("absent", "nothing.joblib", "404"),
            ):  # fmt: skip
                status, _, err = stage.apply(trained(name, f"{url}/{uri}"), "--wait", "--timeout", "60")
                assert (status, why in err) == (1, True), err
                assert stage.get(HOST, f"/v2/models/{name}/ready")[0] == 503
                assert predict(stage, name, 1.0)[0] == 503
                shown = stage.manifest("tm", name)
                assert (shown["ready"], shown["reason"]) == ("False", "ModelFailed")
            assert stage.manifest("isvc", "line")["ready"] == "True"
            status, _, err = stage.apply(trained("large", f"{url}/two.joblib", "600Mi"))
            assert (status, "reserve 664 MiB" in err, "ask for 512 MiB" in err) == (1, True, True), err
            stage.cloud.api("DELETE", "/v1/manifests/tm/two")
            stage.cloud.wait_for(lambda: predict(stage, "two", 1.0)[0] == 404, what="the model is gone")
            assert predict(stage, "three", 5.0) == (200, 15.0)
            seen = asking.good
            stage.cloud.wait_for(lambda: asking.good > seen + 20, what="more answers")
        assert asking.bad == []
        assert workers(stage) == before

        # Workers that start with a broken model beside them start, and say the same of it.
        os.kill(max(before.values()), signal.SIGKILL)
        stage.cloud.wait_for(
            lambda: len(workers(stage)) == 2 and workers(stage) != before, what="another worker in its place"
        )
        for name in ("broken", "absent"):
            stage.cloud.wait_for(lambda name=name: stage.manifest("tm", name)["reason"] == "ModelFailed", what=name)
        assert stage.manifest("tm", "three")["ready"] == "True"
        assert [predict(stage, "three", 5.0) for _ in range(4)] == [(200, 15.0)] * 4
