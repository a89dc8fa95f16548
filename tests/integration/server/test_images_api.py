"""Images over the API: uploaded in parts, joined, revoked, deleted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest
from things_stage import Cloud

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("images") / "data").running() as running:
        yield running


def upload(cloud: Cloud, *parts: bytes, complete: bool = True) -> str:
    name = cloud.name("image")
    cloud.make("/v1/images", {"name": name})
    for number, data in enumerate(parts, 1):
        assert cloud.call("PUT", f"/v1/images/{name}/parts/{number}", raw=data).status == 201
    if complete:
        assert cloud.call("POST", f"/v1/images/{name}/complete").status == 200
    return name


def test_parts_become_an_image(cloud: Cloud) -> None:
    parts = [os.urandom(3 << 20), os.urandom(1 << 20), b"end"]
    whole = b"".join(parts)
    name = cloud.name("image")
    made = cloud.make("/v1/images", {"name": name})
    assert (made.status, made["upload_status"], made["sha256"], made["size"]) == (201, "started", None, 0)
    assert made["id"].startswith("image_")
    assert made["resource_path"] == f"np:image:local:default:{name}"
    for number in (3, 1, 2):
        sent = cloud.call("PUT", f"/v1/images/{name}/parts/{number}", raw=parts[number - 1])
        assert (sent.status, sent["part_number"], sent["size"]) == (201, number, len(parts[number - 1]))
        assert sent["sha256"] == hashlib.sha256(parts[number - 1]).hexdigest()
    assert cloud.call("GET", f"/v1/images/{name}")["upload_status"] == "uploading"
    listed = cloud.call("GET", f"/v1/images/{name}/parts").body["data"]
    assert [(row["part_number"], row["size"]) for row in listed] == [(1, 3 << 20), (2, 1 << 20), (3, 3)]
    facts = [
        {"part_number": n, "size": len(p), "sha256": hashlib.sha256(p).hexdigest()} for n, p in enumerate(parts, 1)
    ]
    digest = hashlib.sha256(whole).hexdigest()
    done = cloud.call("POST", f"/v1/images/{name}/complete", {"parts": facts, "size": len(whole), "sha256": digest})
    assert (done.status, done["upload_status"], done["sha256"], done["size"]) == (200, "completed", digest, len(whole))
    assert cloud.server.layout.blob(digest).read_bytes() == whole
    assert not (cloud.server.layout.blobs / "images" / done["id"]).exists()
    again = cloud.call("POST", f"/v1/images/{name}/complete")
    assert (again.status, again["sha256"]) == (200, digest)
    refused = cloud.call("PUT", f"/v1/images/{name}/parts/1", raw=b"more")
    assert (refused.status, refused.error["type"]) == (409, "conflict")


def test_what_arrived_is_compared(cloud: Cloud) -> None:
    name = upload(cloud, b"one", b"two", complete=False)
    wrong = cloud.call("PUT", f"/v1/images/{name}/parts/2?sha256={'0' * 64}", raw=b"two")
    assert (wrong.status, wrong.error["details"][0]["field"]) == (422, "sha256")
    assert cloud.call("PUT", f"/v1/images/{name}/parts/4", raw=b"four").status == 201
    missing = cloud.call("POST", f"/v1/images/{name}/complete")
    assert missing.status == 422
    assert "part 3" in missing.error["message"]
    assert cloud.call("PUT", f"/v1/images/{name}/parts/3", raw=b"three").status == 201
    for body, field in (({"size": 3}, "size"), ({"parts": [{"part_number": 1}]}, "parts"),
                        ({"parts": [{"part_number": n, "size": 9} for n in (1, 2, 3, 4)]}, "parts")):  # fmt: skip
        refused = cloud.call("POST", f"/v1/images/{name}/complete", body)
        assert (refused.status, refused.error["details"][0]["field"]) == (422, field)
    bad = cloud.call("POST", f"/v1/images/{name}/complete", {"sha256": "0" * 64})
    assert (bad.status, bad.error["details"][0]["field"]) == (422, "sha256")
    assert cloud.call("GET", f"/v1/images/{name}")["upload_status"] == "failed"
    assert cloud.call("PUT", f"/v1/images/{name}/parts/1", raw=b"ONE").status == 201
    done = cloud.call("POST", f"/v1/images/{name}/complete")
    assert done["sha256"] == hashlib.sha256(b"ONEtwothreefour").hexdigest()


@pytest.mark.parametrize("number", ["0", "x", "10001"])
def test_parts_are_numbered_from_one(cloud: Cloud, number: str) -> None:
    name = upload(cloud, complete=False)
    refused = cloud.call("PUT", f"/v1/images/{name}/parts/{number}", raw=b"x")
    assert (refused.status, refused.error["details"][0]["field"]) == (422, "part_number")


def test_empty_parts_and_uploads_are_refused(cloud: Cloud) -> None:
    name = upload(cloud, complete=False)
    assert cloud.call("PUT", f"/v1/images/{name}/parts/1", raw=b"").status == 422
    assert cloud.call("POST", f"/v1/images/{name}/complete").status == 422


def test_names(cloud: Cloud) -> None:
    taken = upload(cloud, b"x")
    duplicate = cloud.call("POST", "/v1/images", {"name": taken})
    assert (duplicate.status, duplicate.error["type"]) == (400, "invalid_request_error")
    for name in ("generations", "edits", "variations", "host", "-x", "a b"):
        refused = cloud.call("POST", "/v1/images", {"name": name})
        assert (refused.status, refused.error["details"][0]["field"]) == (422, "name")
    renamed = cloud.call("PATCH", f"/v1/images/{taken}", {"name": cloud.name("image")})
    assert renamed.status == 200
    assert cloud.call("GET", f"/v1/images/{taken}").status == 404
    assert cloud.call("GET", f"/v1/images/{renamed['id'].replace('image_', 'vmi_')}")["name"] == renamed["name"]


def test_download(cloud: Cloud) -> None:
    name = upload(cloud, b"tar ", b"bytes")
    assert cloud.raw("GET", f"/v1/images/{name}/download")[0:2] == (200, b"tar bytes")
    assert cloud.call("GET", "/v1/images/host/download").status == 409


def test_revoked_images_make_nothing_new(cloud: Cloud) -> None:
    name = upload(cloud, b"only here")
    template = cloud.name("template")
    cloud.make("/v1/instance_templates", {"name": template, "image": name})
    assert cloud.call("POST", f"/v1/images/{name}/revoke")["upload_status"] == "revoked"
    refused = cloud.call("POST", "/v1/instance_templates", {"name": cloud.name("template"), "image": name})
    assert refused.status == 409
    assert "reinstate" in refused.error["message"]
    assert cloud.call("POST", f"/v1/images/{name}/reinstate")["upload_status"] == "completed"
    in_use = cloud.call("DELETE", f"/v1/images/{name}")
    assert in_use.status == 409
    assert template in in_use.error["message"]
    cloud.call("DELETE", f"/v1/instance_templates/{template}")
    digest = cloud.call("GET", f"/v1/images/{name}")["sha256"]
    copy = upload(cloud, b"only here")
    assert cloud.call("DELETE", f"/v1/images/{name}")["deleted"] is True
    assert cloud.server.layout.blob(digest).exists(), "another image has the same content"
    assert cloud.call("DELETE", f"/v1/images/{copy}").status == 200
    assert not cloud.server.layout.blob(digest).exists()
    unfinished = upload(cloud, b"x", complete=False)
    assert cloud.call("POST", f"/v1/images/{unfinished}/revoke").status == 409


def test_the_built_in_image_stays(cloud: Cloud) -> None:
    host = cloud.call("GET", "/v1/images/host")
    assert (host["upload_status"], host["is_public"], host["sha256"]) == ("completed", True, None)
    for method, path in (("DELETE", ""), ("POST", "/revoke"), ("PATCH", "")):
        refused = cloud.call(method, f"/v1/images/host{path}", {"name": "guest"} if method == "PATCH" else None)
        assert (refused.status, refused.error["type"]) == (403, "forbidden")


def test_images_of_others(cloud: Cloud) -> None:
    _, key = cloud.workspace()
    private, public = upload(cloud, b"private"), upload(cloud, b"public")
    assert cloud.call("PATCH", f"/v1/images/{public}", {"is_public": True})["is_public"] is True
    assert cloud.call("GET", f"/v1/images/{private}", key=key).status == 404
    assert cloud.call("GET", f"/v1/images/{public}", key=key).status == 200
    seen = [row["name"] for row in cloud.call("GET", "/v1/images", key=key).body["data"]]
    assert public in seen
    assert "host" in seen
    assert private not in seen
    assert cloud.call("DELETE", f"/v1/images/{public}", key=key).status == 403
    own = cloud.name("image")
    refused = cloud.call("POST", "/v1/images", {"name": own, "is_public": True}, key=key)
    assert refused.status == 403
    assert cloud.call("POST", "/v1/images", {"name": own}, key=key).status == 201


def test_pages(cloud: Cloud) -> None:
    names = [upload(cloud, complete=False) for _ in range(3)]
    first = cloud.call("GET", "/v1/images?limit=2")
    assert first["has_more"] is True
    assert [row["name"] for row in first["data"]] == names[:0:-1]
    second = cloud.call("GET", f"/v1/images?limit=2&starting_after={first['cursor']}")
    assert second["data"][0]["name"] == names[0]
    assert cloud.call("GET", "/v1/images?starting_after=cap_1").status == 422
