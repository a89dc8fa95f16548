"""Which endpoint a host or prefix names, which model a path of V1 or V2, and errors in the shape of a family."""

from __future__ import annotations

import json

import pytest

from nanopod.gateway import families, heads, hosts, kserve
from nanopod.gateway.families import plain, refused
from nanopod.gateway.heads import Failed, Head
from nanopod.gateway.tables import Known
from nanopod.model.endpoint import Traffic
from nanopod.model.wire import KeyRow, RouteRow, Tables

KEY = KeyRow("key_1", "w1")


def known(*routes: RouteRow) -> Known:
    made = Known(Tables(1, b"", {}, {route.endpoint_id: route for route in routes}, {}, default_workspace="w1"))
    made._auth["Bearer k"] = KEY
    return made


def route(name: str, *, workspace: str = "w1", kind: str = "model", **fields: object) -> RouteRow:
    given = {"protocols": ("v1", "v2"), "serves": (f"m-{name}",), "model_ids": (f"m-{name}",), **fields}
    return RouteRow(f"endp_{workspace}_{name}", workspace, name, "default", kind, "rev_1", **given)  # type: ignore[arg-type]


def head(target: str, host: str = "", key: str = "Bearer k") -> Head:
    made = Head()
    made.method, made.target, made.path = "GET", target, target.partition("?")[0]
    made.headers = {"host": host, "x-mine": "1"}
    made.authorization = key
    return made


@pytest.mark.parametrize(
    ("host", "label"),
    [
        ("iris.localhost", "iris"),
        ("IRIS.localhost:8000", "iris"),
        ("iris.team.example.org", "iris"),
        ("iris.localhost.", "iris"),
        ("localhost", ""),
        ("localhost:8000", ""),
        ("127.0.0.1:80", ""),
        ("[::1]:80", ""),
        ("iris.", ""),
        ("", ""),
    ],
)
def test_the_label_of_a_host(host: str, label: str) -> None:
    assert hosts.label_of(host) == label
    assert hosts.label_of(host) == label, "remembered"


def test_a_host_names_an_endpoint_of_the_keys_workspace() -> None:
    tables = known(route("iris"), route("theirs", workspace="w2"), route("maths", kind="function", protocols=()))
    found = hosts.addressed(tables, head("/v1/models?x=1", "iris.localhost"))
    assert found is not None
    assert (found.route.name, found.head.target, found.by_prefix) == ("iris", "/v1/models?x=1", False)
    for host in ("theirs.localhost", "maths.localhost", "nobody.localhost", "localhost"):
        assert hosts.addressed(tables, head("/", host)) is None, host
    with pytest.raises(Failed) as failed:
        hosts.addressed(tables, head("/", "iris.localhost", key=""))
    assert failed.value.status == 401
    assert hosts.addressed(tables, head("/", "nobody.localhost", key="")) is None


def test_a_prefix_is_taken_off() -> None:
    tables = known(route("iris"), route("theirs", workspace="w2"))
    given = head("/services/iris/v2/models/a%2Fb?x=%20")
    found = hosts.addressed(tables, given)
    assert found is not None
    assert (found.head.target, found.head.path, found.by_prefix) == ("/v2/models/a%2Fb?x=%20", "/v2/models/a%2Fb", True)
    assert found.head.headers == {"host": "", "x-mine": "1", "x-forwarded-prefix": "/services/iris"}
    assert "x-forwarded-prefix" not in given.headers, "heads are shared between requests"
    for target, path in (("/services/iris", "/"), ("/services/iris/", "/"), ("/services/iris?x=1", "/?x=1")):
        bare = hosts.addressed(tables, head(target))
        assert bare is not None
        assert bare.head.target == path
    for target in ("/services/theirs/x", "/services/"):
        with pytest.raises(Failed) as failed:
            hosts.addressed(tables, head(target))
        assert failed.value.status == 404
        assert "iris" in failed.value.message


def test_a_tag_before_a_name_with_dashes() -> None:
    traffic = (Traffic("rev_1", 100, "blue-ish"), Traffic("rev_2", 0, "next"))
    tables = known(route("my-iris", traffic=traffic), route("next"))
    for label, name, tag in (
        ("my-iris", "my-iris", ""),
        ("next-my-iris", "my-iris", "next"),
        ("blue-ish-my-iris", "my-iris", "blue-ish"),
        ("next", "next", ""),
    ):
        found = hosts.find(tables, "w1", label)
        assert found is not None
        assert (found[0].name, found[1]) == (name, tag)
    assert hosts.find(tables, "w1", "other-my-iris") is None
    moved = hosts.addressed(tables, head("/", "next-my-iris.localhost"))
    assert moved is not None
    assert moved.head.headers["knative-serving-tag"] == "next"


def test_models_of_v1_and_v2_are_found_by_their_names_first() -> None:
    one = route("one", serves=("shared", "two"), model_ids=("shared", "two"))
    two = route("two", serves=("m-two",))
    words = route("words", protocols=("openai",))
    tables = known(one, two, words)
    served = tables.served["w1"]
    assert {name: row.name for name, row in served.items()} == {
        "shared": "one", "two": "one", "m-two": "two", "one": "one",
    }  # fmt: skip
    assert set(tables.models["w1"]) == {"m-words"}
    assert tables.model("w1", "words") is not None
    assert tables.model("w1", "one") is None, "it does not speak OpenAI's paths"


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/models/a:predict", "a"),
        ("/v1/models/a%2Fb:explain", "a/b"),
        ("/v2/models/a", "a"),
        ("/v2/models/a/infer", "a"),
        ("/v2/models/org/a/versions/1/infer", "org/a"),
        ("/v2/models/a/versions/1", "a"),
        ("/v2/models/a/config", "a"),
        ("/v2/repository/models/a/load", "a"),
        ("/v2/repository/index", ""),
        ("/v2/health/live", ""),
    ],
)
def test_the_model_of_a_path(path: str, model: str) -> None:
    assert kserve.model_of(path) == model


def test_which_paths_are_whose() -> None:
    assert [kserve.is_v2(path) for path in ("/v2", "/v2/x", "/v20", "/v1/models")] == [True, True, False, False]
    assert [kserve.is_v1(path) for path in ("/v1/models/a:predict", "/v1/models/a", "/v1/x:predict")] == [
        True, False, False,
    ]  # fmt: skip


def test_errors_have_the_familys_shape() -> None:
    failed = heads.overloaded("busy", retry_s=3)
    told = plain(failed)
    assert (told.status, json.loads(told.body()), told.extra) == (503, {"error": "busy"}, failed.extra)
    assert plain(told) is told
    assert json.loads(refused(404, "no").body()) == {"error": "no"}
    assert families.protocols_of(route("x", protocols=())) == ("openai",)
