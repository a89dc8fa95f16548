"""Traffic by revision on a real cloud: split, tags, pin, promote, a gradual shift, a slow canary, stopped, graphs."""

from __future__ import annotations

import concurrent.futures
import json
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

pytestmark = pytest.mark.integration
SERVER = str(Path(__file__).parents[2] / "e2e" / "slow_server.py")


class Served:
    """A model that is served by a command whose answer is its version."""

    def __init__(self, cloud: Cloud, name: str) -> None:
        self.cloud, self.name = cloud, name

    def put(self, version: str, *, late_s: float = 0.0, **more: Any) -> dict[str, Any]:
        """Bring the endpoint to a version and settings; the server's answer."""
        argv = [sys.executable, SERVER, "{port}", "{model}", version, str(late_s)]
        scale = {"cold_workers": 1, "min_load": 1, "max_workers": 4, "tuning": {"min_scale": 1}}
        model = {"model_id": self.name, "engine": "command", "argv": argv, "slots": 16}
        spec = {"name": self.name, "kind": "model", "model": model, "scale": scale, **more}
        return dict(self.cloud.api("POST", "/v1/endpoints", spec))

    def ask(self, tag: str = "") -> str:
        """The version that answers one request."""
        body = {"model": self.name, "messages": [{"role": "user", "content": "who?"}]}
        headers = {"Authorization": f"Bearer {self.cloud.key}", "Content-Type": "application/json"}
        if tag:
            headers["Knative-Serving-Tag"] = tag
        request = urllib.request.Request(
            f"{self.cloud.url}/v1/chat/completions", json.dumps(body).encode(), headers
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])

    def asked(self, count: int = 60, tag: str = "") -> Counter[str]:
        """How many of `count` requests each version answered; a request that fails is an error."""
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return Counter(pool.map(lambda _: self.ask(tag), range(count)))

    def shown(self) -> dict[str, Any]:
        return dict(self.cloud.api("GET", f"/v1/endpoints/{self.name}"))

    def traffic(self, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        method, body = ("GET", None) if rows is None else ("PUT", {"traffic": rows})
        return dict(self.cloud.api(method, f"/v1/endpoints/{self.name}/traffic", body))

    def shares(self) -> dict[str, int]:
        """Percent of the calls by name of the revision, now."""
        found: Counter[str] = Counter()
        for row in self.traffic()["traffic"]:
            found[row["revision"]] += row["percent"]
        return dict(+found)

    def until(self, shares: dict[int, int], limit_s: float = 60.0) -> None:
        """Wait until calls are divided like this, by the number of the revision, and its workers are ready."""
        wanted = {f"{self.name}-{number:05d}": percent for number, percent in shares.items()}

        def good() -> bool:
            if self.shares() != wanted:
                return False
            running = [one for one in self.shown()["instances"] if one["ready"] and one["intent"] == "run"]
            ready = Counter(one["revision_id"] for one in running)
            known = self.cloud.api("GET", f"/v1/endpoints/{self.name}/revisions")["data"]
            return all(ready[one["id"]] for one in known if one["name"] in wanted)

        self.cloud.wait_for(good, limit_s, f"{self.name} with {wanted}")

    def only(self, version: str) -> bool:
        """True when this version alone answers, once gateways have heard of what the server knows already."""
        self.cloud.wait_for(lambda: set(self.asked(8)) == {version}, 30, f"{version} alone answers")
        return set(self.asked(20)) == {version}


@pytest.fixture
def served(cloud: Cloud, request: pytest.FixtureRequest) -> Iterator[Served]:
    """An endpoint with one ready version, named `one`."""
    name = "split-" + str(getattr(request, "param", "") or request.node.name.removeprefix("test_")[:8].strip("_"))
    made = Served(cloud, name)
    made.put("one")
    cloud.wait_ready(name)
    yield made
    cloud.api("DELETE", f"/v1/endpoints/{name}")


def refused(call: Any) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        call()
    return caught.value.code, json.load(caught.value)["error"]["message"]


def test_stated_traffic_and_tags(served: Served) -> None:
    name = served.name
    served.put("two")
    served.until({2: 100})
    served.traffic([{"revision": f"{name}-00001", "percent": 50}, {"revision": "latest", "percent": 50}])
    served.until({1: 50, 2: 50})
    found = served.asked(80)
    assert min(found["one"], found["two"]) >= 20, found
    shown = served.traffic([{"revision": 1, "percent": 100}, {"revision": "", "percent": 0, "tag": "next"}])
    assert [row["tag"] for row in shown["stated"]] == [None, "next"]
    served.until({1: 100})
    assert served.only("one")
    assert served.ask("next") == "two", "a revision without a share is woken by its tag"
    assert served.ask("nobody") == "one"
    code, said = refused(lambda: served.traffic([{"revision": 1, "percent": 90}]))
    assert (code, "they must be 100" in said) == (422, True)
    code, said = refused(lambda: served.traffic([{"revision": 9, "percent": 100}]))
    assert code == 422
    assert f"{name}-00002" in said
    served.traffic([])
    served.until({2: 100})
    assert served.only("two")
    assert served.cloud.api("POST", f"/v1/endpoints/{name}/rollback", {"revision": f"{name}-00001"})
    served.until({1: 100})


def test_canary_pin_and_promotion_by_settings(served: Served) -> None:
    by_hand = {"auto_promote": False, "bake_s": 0, "tag_routing": True}
    served.put("two", rollout={**by_hand, "canary_percent": 0, "pinned": True})
    served.until({1: 100})
    served.cloud.wait_for(
        lambda: served.cloud.api("GET", f"/v1/endpoints/{served.name}/revisions")["data"][0]["healthy_at"],
        60, "the new revision is tried",
    )  # fmt: skip
    assert served.only("one")
    assert served.ask("latest") == "two"
    assert served.ask("prev") == "one"
    again = served.put("two", rollout={**by_hand, "canary_percent": 30})
    assert (again["action"], again["tier"]) == ("autoscale_update", 1)
    served.until({1: 70, 2: 30})
    found = served.asked(100)
    assert 10 <= found["two"] <= 55, found
    served.put("two")
    served.until({2: 100})
    assert served.only("two")
    served.put("two", rollout={**by_hand, "canary_percent": 0, "pinned": True})
    served.until({1: 100})
    assert served.only("one"), "a settled revision gives its calls back to the one before"


def test_first_deployment_takes_all(cloud: Cloud) -> None:
    made = Served(cloud, "split-first")
    made.put("one", rollout={"canary_percent": 10, "auto_promote": False})
    cloud.wait_ready(made.name)
    assert set(made.asked(20)) == {"one"}
    made.put("one", rollout={"canary_percent": 10, "auto_promote": False}, stopped=True)
    cloud.wait_for(lambda: not made.shown()["instances"], 60, "nothing runs")
    assert made.shown()["status"] == "stopped"
    code, said = refused(made.ask)
    assert (code, "is stopped" in said) == (503, True)
    made.put("one", rollout={"canary_percent": 10, "auto_promote": False})
    cloud.wait_ready(made.name)
    assert made.ask() == "one"
    cloud.api("DELETE", f"/v1/endpoints/{made.name}")


def test_gradual_shift(served: Served) -> None:
    served.put("two", rollout={"duration_s": 4.0})
    seen: list[int] = []

    def promoted() -> bool:
        rollout = served.shown()["rollout"]
        seen.append(rollout["canary_percent_now"])
        served.asked(8)
        return bool(rollout["state"] == "promoted")

    served.cloud.wait_for(promoted, 60, "the shift is over")
    steps = [one for one in seen if one]
    assert steps == sorted(steps)
    assert steps
    assert steps[0] < 50, "not all at once"
    served.until({2: 100})
    assert served.only("two")


def test_latency_rolls_back(served: Served) -> None:
    settings = {"canary_percent": 50, "bake_s": 600, "min_calls": 5, "max_slowdown_percent": 50}
    served.put("two", late_s=0.4, rollout=settings)

    def back() -> dict[str, Any] | None:
        served.asked(16)
        shown = served.shown()
        return shown if shown["rollout"]["state"] == "rolled_back" else None

    shown = served.cloud.wait_for(back, 60, "the slow canary is rolled back")
    assert "took more than about" in shown["rollout"]["reason"]
    served.until({1: 100})
    assert served.only("one")


def test_graph_needs_no_workers(cloud: Cloud) -> None:
    nodes = {"root": {"router": "Sequence", "steps": [{"service": "split-first"}]}}
    made = cloud.api("POST", "/v1/endpoints", {"name": "split-graph", "kind": "graph", "graph": {"nodes": nodes}})
    assert made["action"] == "created"
    shown = cloud.wait_for(
        lambda: (one := cloud.api("GET", "/v1/endpoints/split-graph"))["reasons"] and one, 30, "it was looked at"
    )
    assert (shown["status"], shown["target_instance_count"], shown["instances"]) == ("ready", 0, [])
    deployment = cloud.api("GET", f"/v1/deployments/{shown['deployment_id']}")
    assert deployment["status"]["state"] == "info"
    changed = {"nodes": {"root": {"router": "Sequence", "steps": [{"service": "other"}]}}}
    again = cloud.api("POST", "/v1/endpoints", {"name": "split-graph", "kind": "graph", "graph": changed})
    assert again["tier"] == 2
    bad = {"nodes": {"root": {"router": "Splitter", "steps": [{"service": "a", "weight": 40}]}}}
    code, said = refused(
        lambda: cloud.api("POST", "/v1/endpoints", {"name": "split-graph", "kind": "graph", "graph": bad})
    )
    assert code == 422
    assert "weights" in said
    cloud.api("DELETE", "/v1/endpoints/split-graph")
