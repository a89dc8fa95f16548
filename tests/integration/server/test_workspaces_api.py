"""Workspaces, accounts and keys over the API: who is whose, and who may see what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from things_stage import Cloud

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("workspaces") / "data").running() as running:
        yield running


def test_a_workspace_has_an_account_and_a_capacity(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    shown = cloud.call("GET", f"/v1/workspaces/{name}")
    assert (shown["name"], shown["owner"], shown["account"]["name"]) == (name, name, name)
    assert shown["resource_path"] == f"np:workspace:{name}:{name}"
    assert cloud.call("GET", f"/v1/workspaces/{shown['id']}")["name"] == name
    assert [row["name"] for row in cloud.call("GET", "/v1/capacities", key=key)["data"]] == ["default"]
    balance = cloud.call("GET", "/v1/balances", key=key)["data"][0]
    assert (balance["current"], balance["spending_power"]) == ("0.000000", "0.000000")
    own = cloud.call("GET", "/v1/workspaces", key=key)["data"]
    assert [row["name"] for row in own] == [name]
    every = [row["name"] for row in cloud.call("GET", "/v1/workspaces")["data"]]
    assert every[0] == "default"
    assert name in every


def test_one_account_may_have_several_workspaces(cloud: Cloud) -> None:
    name, _ = cloud.workspace()
    account = cloud.call("GET", f"/v1/workspaces/{name}")["account"]
    other = cloud.make("/v1/workspaces", {"name": cloud.name("team"), "account": account["id"]})
    assert other["account"] == account
    by_name = cloud.make("/v1/workspaces", {"name": cloud.name("team"), "account": account["name"]})
    assert by_name["account"] == account
    refused = cloud.call("POST", "/v1/workspaces", {"name": cloud.name("team"), "account": "nobody"})
    assert (refused.status, refused.error["details"][0]["field"]) == (422, "account")
    kinds = {row["name"]: row["kind"] for row in cloud.call("GET", "/v1/accounts")["data"]}
    assert kinds["local"] == "user"
    assert kinds[account["name"]] == "user"


def test_names(cloud: Cloud) -> None:
    name, _ = cloud.workspace()
    duplicate = cloud.call("POST", "/v1/workspaces", {"name": name})
    assert (duplicate.status, duplicate.error["type"]) == (400, "invalid_request_error")
    for wrong in ("", "-x", "a b", "wksp_1"):
        assert cloud.call("POST", "/v1/workspaces", {"name": wrong}).status == 422
    id = cloud.call("GET", f"/v1/workspaces/{name}")["id"]
    renamed = cloud.call("PATCH", f"/v1/workspaces/{name}", {"name": cloud.name("team")})
    assert (renamed.status, renamed["id"]) == (200, id)
    assert cloud.call("GET", f"/v1/workspaces/{name}").status == 404
    assert cloud.call("PATCH", f"/v1/workspaces/{id}", {"name": "default"}).status == 400
    assert cloud.call("PATCH", "/v1/workspaces/default", {"name": "other"}).status == 422
    assert cloud.call("PATCH", f"/v1/workspaces/{id}", {})["name"] == renamed["name"]


def test_only_the_operator_makes_workspaces(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    other, _ = cloud.workspace()
    for method, path, body in (
        ("POST", "/v1/workspaces", {"name": cloud.name("team")}),
        ("PATCH", f"/v1/workspaces/{name}", {"name": "x"}),
        ("DELETE", f"/v1/workspaces/{name}", None),
    ):
        refused = cloud.call(method, path, body, key=key)
        assert (refused.status, refused.error["type"]) == (403, "forbidden")
    assert cloud.call("GET", f"/v1/workspaces/{other}", key=key).status == 404
    assert cloud.call("GET", f"/v1/keys?workspace={other}", key=key).status == 404
    assert cloud.call("GET", f"/v1/instance_templates?workspace={other}", key=key).status == 404


def test_only_empty_workspaces_are_deleted(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    for path, body, noun in (
        ("/v1/images", {"name": "i"}, "images"),
        ("/v1/instance_templates", {"name": "t"}, "instance_templates"),
        ("/v1/capacities", {"name": "c"}, "capacities"),
    ):
        cloud.make(path, body, key=key)
        refused = cloud.call("DELETE", f"/v1/workspaces/{name}")
        assert (refused.status, refused.error["type"]) == (409, "conflict")
        assert cloud.call("DELETE", f"/v1/{noun}/{body['name']}", key=key).status == 200
    cloud.make(f"/v1/balances/{name}/top_up", {"amount": "1.00"})
    assert "balance" in cloud.call("DELETE", f"/v1/workspaces/{name}").error["message"]
    empty, key = cloud.workspace()
    assert cloud.call("DELETE", f"/v1/workspaces/{empty}")["deleted"] is True
    assert cloud.call("GET", "/v1/me", key=key).status == 401
    assert cloud.call("GET", f"/v1/workspaces/{empty}").status == 404
    assert cloud.call("DELETE", "/v1/workspaces/default").status == 409
    assert cloud.call("DELETE", "/v1/workspaces/local-node").status == 409


def test_keys_of_another_workspace(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    made = cloud.make("/v1/keys", {"name": "reader", "scopes": ["read"], "workspace": name})
    assert cloud.call("GET", "/v1/me", key=made["key"])["workspace"] == name
    assert {row["name"] for row in cloud.call("GET", f"/v1/keys?workspace={name}")["data"]} == {"admin", "reader"}
    assert made["id"] not in str(cloud.call("GET", "/v1/keys").body)
    assert cloud.call("POST", "/v1/keys", {"name": "x", "workspace": "default"}, key=key).status == 404
    assert cloud.call("DELETE", f"/v1/keys/{made['id']}").status == 404
    assert cloud.call("DELETE", f"/v1/keys/{made['id']}?workspace={name}")["revoked_at"] > 0
    assert cloud.call("GET", "/v1/me", key=made["key"]).status == 401


def test_who_am_i(cloud: Cloud) -> None:
    name, key = cloud.workspace()
    me = cloud.call("GET", "/v1/me")
    assert (me["workspace"], me["account"]["name"], me["operator"], me["scopes"]) == (
        "default",
        "local",
        True,
        ["admin"],
    )
    other = cloud.call("GET", "/v1/me", key=key)
    assert (other["workspace"], other["operator"]) == (name, False)


def test_permissions(cloud: Cloud) -> None:
    name, _ = cloud.workspace()
    reader = cloud.make("/v1/keys", {"name": "reader", "scopes": ["read"]})["key"]

    def may(key: str | None, action: str, workspace: str | None = None) -> bool:
        body = {"resource": "order", "action": action, "workspace": workspace}
        return bool(cloud.call("POST", "/v1/permissions/check", body, key=key)["allowed"])

    assert may(None, "create")
    assert may(None, "create", name)
    assert may(reader, "list")
    assert not may(reader, "create")
    assert not may(reader, "read", name)
    assert cloud.call("POST", "/v1/permissions/check", {"resource": "order", "action": "fly"}).status == 422
