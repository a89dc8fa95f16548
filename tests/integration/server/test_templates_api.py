"""Instance templates over the API."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from things_stage import SCRIPT, Cloud

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("templates") / "data").running() as running:
        yield running


def test_made_shown_changed_deleted(cloud: Cloud) -> None:
    name = cloud.name("template")
    made = cloud.make("/v1/instance_templates", {"name": name, "cloud_init_user_data": SCRIPT, "tags": {"team": "a"}})
    assert made.status == 201
    assert made["image"]["name"] == "host"
    assert made["cloud_init_user_data_used"] is True
    assert "cloud_init_user_data" not in made.body
    assert made["resource_path"] == f"np:instance_template:local:default:{name}"
    whole = cloud.call("GET", f"/v1/instance_templates/{name}?include=cloud_init_user_data")
    assert whole["cloud_init_user_data"] == SCRIPT
    other = base64.b64encode(b"#cloud-config\nruncmd: [[echo, hi]]\n").decode()
    changed = cloud.call("PATCH", f"/v1/instance_templates/{made['id']}", {"cloud_init_user_data": other})
    assert (changed.status, changed["name"], changed["tags"]) == (200, name, {"team": "a"})
    cleared = cloud.call("PATCH", f"/v1/instance_templates/{name}", {"cloud_init_user_data": None, "tags": {}})
    assert (cleared["cloud_init_user_data_used"], cleared["tags"]) == (False, {})
    read = cloud.call("GET", f"/v1/instance_templates/{made['id'].replace('itmpl_', 'ntmpl_')}")
    assert read["id"] == made["id"]
    assert cloud.call("GET", f"/v1/instance_templates/{made['resource_path']}")["id"] == made["id"]
    gone = cloud.call("DELETE", f"/v1/instance_templates/{name}")
    assert (gone.status, gone["deleted"]) == (200, True)
    assert cloud.call("GET", f"/v1/instance_templates/{name}").status == 404


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"cloud_init_user_data": "%%%"}, 422, "cloud_init_user_data"),
        ({"cloud_init_user_data": base64.b64encode(b"echo hi").decode()}, 422, "cloud_init_user_data"),
        ({"cloud_init_user_data": base64.b64encode(b"#!" + bytes(65_535)).decode()}, 422, "cloud_init_user_data"),
        ({"image": "nothing"}, 404, "image"),
        ({"tags": {"a": "b,c"}}, 422, "tags.a"),
        ({"name": "-"}, 422, "name"),
        ({"cloud_init": ""}, 422, "cloud_init"),
    ],
)
def test_wrong_templates_are_refused(cloud: Cloud, body: dict[str, Any], status: int, field: str) -> None:
    refused = cloud.call("POST", "/v1/instance_templates", {"name": cloud.name("template"), **body})
    assert refused.status == status, refused.body
    assert refused.error["details"][0]["field"] == field


def test_names_are_unique(cloud: Cloud) -> None:
    name, other = cloud.name("template"), cloud.name("template")
    for each in (name, other):
        cloud.make("/v1/instance_templates", {"name": each})
    again = cloud.call("POST", "/v1/instance_templates", {"name": name})
    assert (again.status, again.error["type"]) == (400, "invalid_request_error")
    assert cloud.call("PATCH", f"/v1/instance_templates/{other}", {"name": name}).status == 400
    _, key = cloud.workspace()
    assert cloud.call("POST", "/v1/instance_templates", {"name": name}, key=key).status == 201


def test_a_template_in_use_stays(cloud: Cloud) -> None:
    name = cloud.name("template")
    cloud.make("/v1/instance_templates", {"name": name})
    body = {"name": name, "capacity": "default", "instance_template": name, "target_instance_count": 0}
    cloud.make("/v1/deployments", body)
    refused = cloud.call("DELETE", f"/v1/instance_templates/{name}")
    assert (refused.status, refused.error["type"]) == (422, "unprocessable_entity")
    assert name in refused.error["message"]
    cloud.call("DELETE", f"/v1/deployments/{name}")
    assert cloud.call("DELETE", f"/v1/instance_templates/{name}").status == 200


def test_lists(cloud: Cloud) -> None:
    tag = cloud.name("tag")
    names = [cloud.name("template") for _ in range(3)]
    for number, name in enumerate(names):
        cloud.make("/v1/instance_templates", {"name": name, "tags": {tag: str(number)}})
    found = cloud.call("GET", f"/v1/instance_templates?tag_key={tag}&limit=2")
    assert [row["name"] for row in found["data"]] == names[:0:-1]
    assert (found["has_more"], found["cursor"]) == (True, found["data"][-1]["id"])
    rest = cloud.call("GET", f"/v1/instance_templates?tag_key={tag}&starting_after={found['cursor']}")
    assert ([row["name"] for row in rest["data"]], rest["has_more"]) == (names[:1], False)
    assert [row["name"] for row in cloud.call("GET", f"/v1/instance_templates?tag={tag}=1")["data"]] == names[1:2]
    assert cloud.call("GET", "/v1/instance_templates?limit=201").status == 422
    assert cloud.call("GET", "/v1/instance_templates?include=everything").status == 422
    _, key = cloud.workspace()
    assert cloud.call("GET", "/v1/instance_templates", key=key)["data"] == []
    assert cloud.call("GET", f"/v1/instance_templates/{names[0]}", key=key).status == 404
