"""Canaries and rollbacks on a real cloud, with calls through the gateway all the while."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud
from rollout_stage import Edited

from nanopod.client.sdk import Deployment
from nanopod.model.errors import DeploymentFailed

pytestmark = pytest.mark.integration

TEXT = """
from nanopod import Deployment

app = Deployment(name="NAME", version_label="LABEL")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=1)
app.configure_rollout(ROLLOUT)
BEFORE


@app.remote
async def number() -> int:
    BODY
"""
BROKEN = 'import os\nif os.environ["NANOPOD_MODE"] == "serve":\n    import nowhere_at_all'
PLAIN = {"LABEL": "one", "ROLLOUT": "canary=0", "BEFORE": "", "BODY": "return 1"}


def text(name: str, **parts: str) -> str:
    made = TEXT.replace("NAME", name)
    for word, value in {**PLAIN, **parts}.items():
        made = made.replace(word, value)
    return made


@pytest.fixture
def place(tmp_path: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a file of a name that is deployed as its first, good version."""
    made: list[str] = []

    def make(name: str, **parts: str) -> Edited:
        file = Edited(cloud, tmp_path, name, monkeypatch)
        made.append(name)
        file.deploy(text(name, **parts))
        file.settled()
        return file

    yield make
    for name in made:
        cloud.api("DELETE", f"/v1/endpoints/{name}")


def states(cloud: Cloud, name: str) -> list[str]:
    """What each revision is, oldest first."""
    return [one["state"] for one in reversed(cloud.api("GET", f"/v1/endpoints/{name}/revisions")["data"])]


def calls(name: str, count: int) -> list[int | str]:
    """Results of calls one after another; the class of the error where one failed."""
    number = Deployment.from_name(name).function("number")
    found: list[int | str] = []
    for _ in range(count):
        try:
            found.append(number.remote())
        except DeploymentFailed:
            raise
        except Exception as error:
            found.append(type(error).__name__)
    return found


def in_state(cloud: Cloud, file: Edited, state: str, *, calling: int = 0) -> dict[str, Any]:
    """Wait until the newest rollout is in a state, with calls meanwhile."""

    def look() -> dict[str, Any] | None:
        if calling:
            calls(file.name, calling)
        shown = file.endpoint()
        return shown if shown["rollout"]["state"] == state else None

    return dict(cloud.wait_for(look, 60.0, f"rollout of {file.name} is {state}"))


def test_a_good_canary_takes_over_and_can_be_taken_back(cloud: Cloud, place: Any) -> None:
    file = place("good")
    old = file.seen().workers
    file.deploy(text("good", ROLLOUT="canary=50, bake=0", BODY="return 2", LABEL="two"))

    def both() -> bool:
        shown = file.endpoint()
        ready = {one["revision_id"] for one in shown["instances"] if one["ready"]}
        return len(ready) == 2 and shown["rollout"]["canary_at"] is not None

    cloud.wait_for(both, 60.0, "a ready worker of each revision")
    assert states(cloud, "good") == ["stable", "canary"]
    assert old <= file.seen().workers, "the stable revision's worker goes on"
    seen = cloud.wait_for(lambda: {1, 2} <= set(calls("good", 20)), 30.0, "answers of both revisions")
    assert seen
    cloud.wait_for(lambda: file.endpoint()["rollout"]["canary_calls"][0], 30.0, "counted calls of the canary")
    shown = file.endpoint()
    assert (shown["rollout"]["canary_percent"], shown["rollout"]["canary_calls"][1]) == (50, 0)
    assert any("to be promoted by hand" in reason for reason in shown["reasons"])
    cloud.api("POST", "/v1/endpoints/good/promote")
    file.settled()
    assert set(calls("good", 10)) == {2}
    assert states(cloud, "good") == ["old", "current"]
    with pytest.raises(urllib.error.HTTPError) as caught:
        cloud.api("POST", "/v1/endpoints/good/promote")
    assert caught.value.code == 409
    back = cloud.api("POST", "/v1/endpoints/good/rollback")
    assert back["revision_number"] == 1
    file.settled()
    assert set(calls("good", 10)) == {1}
    assert states(cloud, "good") == ["current", "rolled_back"]
    cloud.api("POST", "/v1/endpoints/good/rollback", {"revision": 2})
    file.settled()
    assert set(calls("good", 10)) == {2}
    for wanted, code in ((7, 404), (2, 409)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            cloud.api("POST", "/v1/endpoints/good/rollback", {"revision": wanted})
        assert refused.value.code == code
    labels = [one["version_label"] for one in cloud.api("GET", "/v1/endpoints/good/revisions")["data"]]
    assert labels == ["two", "one"]


def test_a_canary_is_promoted_after_it_baked(cloud: Cloud, place: Any) -> None:
    file = place("baked")
    file.deploy(text("baked", ROLLOUT="canary=20, bake=1", BODY="return 2"))
    shown = in_state(cloud, file, "promoted", calling=3)
    assert "the canary is promoted: it ran for 1 s" in shown["rollout"]["reason"]
    file.settled()
    assert set(calls("baked", 5)) == {2}


def test_a_canary_that_fails_its_calls_is_rolled_back(cloud: Cloud, place: Any) -> None:
    file = place("bad")
    old = file.seen().workers
    file.deploy(
        text("bad", ROLLOUT="canary=50, bake=600, min_calls=5", BODY='raise ValueError("no")')
    )  # fmt: skip
    shown = in_state(cloud, file, "rolled_back", calling=10)
    assert "calls of the canary failed" in shown["failure"]["message"]
    assert any("rollout: rolled back" in reason for reason in shown["reasons"])
    cloud.wait_for(lambda: file.endpoint()["status"] == "ready", 30.0, "the endpoint is ready again")
    assert states(cloud, "bad") == ["current", "rolled_back"]
    cloud.wait_for(lambda: file.seen().workers == old, 30.0, "the canary's worker is gone, the other as it was")
    assert set(calls("bad", 10)) == {1}
    again = file.deploy(text("bad", ROLLOUT="canary=50, bake=600, min_calls=5"))
    assert again["tier"] == 0, "the good version is what runs: nothing restarts"
    assert file.seen().workers == old
    assert file.endpoint()["failure"] is None
    assert states(cloud, "bad") == ["current", "rolled_back"]


@pytest.mark.parametrize("rollout", ["canary=10", "canary=0"])
def test_a_version_that_cannot_start_leaves_the_last_healthy_one_serving(
    cloud: Cloud, place: Any, rollout: str
) -> None:
    name = f"broken-{rollout[-2:].strip('=')}"
    file = place(name)
    old = file.seen().workers
    file.deploy(text(name, ROLLOUT=rollout, BEFORE=BROKEN))
    shown = in_state(cloud, file, "rolled_back", calling=1)
    assert shown["failure"]["stage"] == "import"
    assert "nowhere_at_all" in shown["rollout"]["reason"]
    assert states(cloud, name) == ["current", "rolled_back"]
    assert set(calls(name, 5)) == {1}
    cloud.wait_for(lambda: file.seen().workers == old, 30.0, "the workers are those of before")


def test_without_auto_rollback_it_only_tells(cloud: Cloud, place: Any) -> None:
    file = place("told")
    file.deploy(
        text("told", ROLLOUT="canary=50, bake=0, min_calls=3, auto_rollback=False", BODY='raise ValueError("no")')
    )

    def told() -> bool:
        calls("told", 8)
        return any("auto_rollback is off" in reason for reason in file.endpoint()["reasons"])

    cloud.wait_for(told, 60.0, "what is wrong is said")
    assert states(cloud, "told") == ["stable", "canary"]
    cloud.api("POST", "/v1/endpoints/told/rollback")
    file.settled()
    assert set(calls("told", 5)) == {1}


def test_a_first_version_that_cannot_start_is_told_to_its_callers(
    cloud: Cloud, tmp_path: Path, monkeypatch: Any
) -> None:
    file = Edited(cloud, tmp_path, "first", monkeypatch)
    file.deploy(text("first", BEFORE=BROKEN))
    with pytest.raises(DeploymentFailed, match="nowhere_at_all"):
        calls("first", 1)
    assert states(cloud, "first") == ["failed"]
    revision = cloud.api("GET", "/v1/endpoints/first/revisions")["data"][0]
    assert revision["failure"]["type_name"] == "ModuleNotFoundError"
    cloud.api("DELETE", "/v1/endpoints/first")
