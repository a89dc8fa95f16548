"""`nanopod serve` with our model server and with a command of any protocol, on a real cloud."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from applying_stage import Stage, serving_directory

pytestmark = pytest.mark.integration


@pytest.fixture
def served(stage: Stage) -> Iterator[Stage]:
    """The cloud; endpoints are deleted at the end."""
    yield stage
    for row in stage.cloud.api("GET", "/v1/endpoints")["data"]:
        stage.cloud.api("DELETE", f"/v1/endpoints/{row['id']}")


def test_files_by_our_model_server(served: Stage) -> None:
    joblib = pytest.importorskip("joblib")
    model = pytest.importorskip("sklearn.linear_model").LinearRegression().fit([[0.0], [1.0]], [1.0, 3.0])
    joblib.dump(model, served.directory / "model.joblib")
    with serving_directory(served.directory) as url:
        status, out, err = served.nanopod(
            "serve", "line", "--format", "sklearn", "--storage", f"{url}/model.joblib", "--option",
            "max_batch_size=4", "--profile", "knative", "--timeout", "60",
        )  # fmt: skip
    assert status == 0, err
    assert "line is ready at" in out and "/v1/models/line:predict" in out and "/v2/models/line/infer" in out
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [2.0]}
    found = served.get("", "/v2/models/line/infer", {"inputs": [tensor]})
    assert (found[0], found[1]["outputs"][0]["data"]) == (200, [pytest.approx(5.0)])
    assert served.get("", "/v1/models/line:predict", {"instances": [[0.0]]})[1] == {"predictions": [pytest.approx(1)]}
    assert served.cloud.api("GET", "/v1/endpoints/line")["scale"]["profile"] == "knative"


def test_a_command_that_answers_any_path(served: Stage) -> None:
    line = f"python3 '{served.server}'"
    status, out, err = served.nanopod("serve", "web", "--command", line, "--protocol", "http", "--timeout", "60")
    assert status == 0, err
    assert "/services/web" in out
    assert served.get("", "/services/web/any/path")[1]["path"] == "/any/path"
    status, _, err = served.nanopod("serve", "other", "--format", "sklearn")
    assert (status, "--storage: say where the files" in err) == (2, True), err
