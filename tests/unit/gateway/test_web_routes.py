"""Who answers which path: literals before parameters, the longest match, and what is said when nobody does."""

from __future__ import annotations

from typing import Any

import pytest

from nanopod.gateway.webroutes import Refusal, Target, WebTable, WebTables, split
from nanopod.model.endpoint import AsgiSpec, FunctionSpec, WebSpec
from nanopod.model.wire import RouteRow


def function(name: str, method: str, path: str, auth: Any = "key") -> FunctionSpec:
    return FunctionSpec(name, web=WebSpec(method, path, auth))


def route(*specs: FunctionSpec | AsgiSpec) -> RouteRow:
    functions = {spec.name: spec for spec in specs if isinstance(spec, FunctionSpec)}
    mounts = tuple(spec for spec in specs if isinstance(spec, AsgiSpec))
    return RouteRow("endp_1", "wksp", "site", "default", "function", "rev", functions=functions, asgi=mounts)


TABLE = WebTable(
    route(
        FunctionSpec("plain"),
        function("list_items", "GET", "/items"),
        function("get_item", "GET", "/items/{id}", "public"),
        function("put_item", "PUT", "/items/{id}"),
        function("newest", "GET", "/items/newest"),
        function("part", "GET", "/items/{id}/parts/{part}"),
        function("any", "ANY", "/any"),
        function("below", "POST", "/app/hook"),
        AsgiSpec("app", "/app", "public", 7),
        AsgiSpec("deep", "/app/deep"),
    )
)


@pytest.mark.parametrize(
    ("method", "path", "name", "params"),
    [
        ("GET", "/items", "list_items", {}),
        ("GET", "/items/", "list_items", {}),
        ("HEAD", "/items", "list_items", {}),
        ("GET", "/items/7", "get_item", {"id": "7"}),
        ("GET", "/items/a%2Fb%20c", "get_item", {"id": "a/b c"}),
        ("PUT", "/items/7", "put_item", {"id": "7"}),
        ("GET", "/items/newest", "newest", {}),
        ("PUT", "/items/newest", "put_item", {"id": "newest"}),
        ("GET", "/items/7/parts/x", "part", {"id": "7", "part": "x"}),
        ("PATCH", "/any", "any", {}),
        ("POST", "/app/hook", "below", {}),
        ("GET", "/app", "asgi:app", {}),
        ("GET", "/app/", "asgi:app", {}),
        ("DELETE", "/app/x/y", "asgi:app", {}),
        ("GET", "/app/deep/x", "asgi:deep", {}),
        ("GET", "/app/deeper", "asgi:app", {}),
    ],
)
def test_the_longest_match_answers(method: str, path: str, name: str, params: dict[str, str]) -> None:
    found = TABLE.find(method, path)
    assert isinstance(found, Target)
    assert (found.name, found.params) == (name, params)


@pytest.mark.parametrize("path", ["/", "/item", "/items/7/parts", "/items//", "/application", "/plain"])
def test_other_paths_are_told_what_there_is(path: str) -> None:
    found = TABLE.find("GET", path)
    assert isinstance(found, Refusal)
    assert found.status == 404
    assert "GET /items" in found.message
    assert "/app/*" in found.message


def test_another_method_is_told_which_there_are() -> None:
    found = TABLE.find("DELETE", "/items/7")
    assert isinstance(found, Refusal)
    assert (found.status, found.allowed) == (405, ("GET", "HEAD", "PUT", "OPTIONS"))
    # A function that fits the whole path is not replaced by the application around it.
    hook = TABLE.find("GET", "/app/hook")
    assert isinstance(hook, Refusal)
    assert hook.status == 405


def test_auth_and_concurrency_are_those_of_what_answers() -> None:
    item, listing, app = (TABLE.find("GET", path) for path in ("/items/7", "/items", "/app/x"))
    assert isinstance(app, Target)
    assert (item.auth, listing.auth, app.auth, app.concurrency) == ("public", "key", "public", 7)


def test_a_mount_at_the_root_takes_the_rest() -> None:
    table = WebTable(route(AsgiSpec("all", "/"), function("square", "POST", "/square")))
    for path in ("/", "/x", "/x/y"):
        found = table.find("GET", path)
        assert isinstance(found, Target)
        assert found.name == "asgi:all"
    square = table.find("POST", "/square")
    assert isinstance(square, Target)
    assert square.name == "square"


def test_nothing_at_all() -> None:
    found = WebTable(route(FunctionSpec("plain"))).find("GET", "/x")
    assert isinstance(found, Refusal)
    assert "no web path" in found.message


def test_tables_follow_their_route() -> None:
    tables = WebTables()
    before = route(function("a", "GET", "/a"))
    assert tables.of(before) is tables.of(before)
    after = route(function("b", "GET", "/b"))
    assert isinstance(tables.of(after).find("GET", "/b"), Target)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/web/site/a/b", ("site", "/web/site", "/a/b")),
        ("/web/site", ("site", "/web/site", "/")),
        ("/web/site/", ("site", "/web/site", "/")),
        ("/web/site:dev/x", ("site:dev", "/web/site:dev", "/x")),
        ("/web/site%3Adev/x", ("site:dev", "/web/site%3Adev", "/x")),
        ("/web/", ("", "/web/", "/")),
    ],
)
def test_the_endpoint_is_the_first_segment(path: str, expected: tuple[str, str, str]) -> None:
    assert split(path) == expected
