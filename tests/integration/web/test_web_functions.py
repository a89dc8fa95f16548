"""Functions over HTTP, from a caller's socket to a worker process and back."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import aiohttp
import pytest
from stage import KEY, OTHER_KEY, READ_KEY, until
from web_stage import WebStage

pytestmark = pytest.mark.integration


def ask(
    web: WebStage, method: str, path: str, *, key: str | None = None, body: Any = None, kind: str = "application/json",
    headers: dict[str, str] | None = None, endpoint: str = "site",
) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
    given = {"content-type": kind, **(headers or {})} if body is not None else headers
    return web.get(f"/web/{endpoint}{path}", method=method, key=key, body=body, headers=given)


def problem_of(answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    status, headers, body = answer
    assert headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = json.loads(body)
    assert found["status"] == status
    return found


def test_a_key_is_asked_for_unless_it_is_public(web: WebStage) -> None:
    status, headers, body = ask(web, "POST", "/square", key=KEY, body={"x": 7})
    assert (status, body, headers["content-type"]) == (200, b"49", "application/json")
    assert headers["x-request-id"].startswith("req_")
    for key in (None, "sk_np_wrong"):
        status, headers, body = ask(web, "POST", "/square", key=key, body={"x": 7})
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert ask(web, "POST", "/square", key=READ_KEY, body={"x": 7})[0] == 403
    assert ask(web, "GET", "/items/3", key=None)[0] == 200
    assert ask(web, "GET", "/items/3", key="sk_np_wrong")[0] == 200


def test_names_and_ids(web: WebStage) -> None:
    for endpoint in ("site", "site:default", "site%3Adefault", "endp_site"):
        assert ask(web, "POST", "/square", key=KEY, body={"x": 2}, endpoint=endpoint)[2] == b"4"
        assert ask(web, "GET", "/items/3", endpoint=endpoint)[0] == 200
    # Another workspace's key: public paths by id, and by name those of the default workspace; nothing else.
    assert ask(web, "GET", "/items/3", key=OTHER_KEY, endpoint="endp_site")[0] == 200
    assert ask(web, "POST", "/square", key=OTHER_KEY, body={"x": 2}, endpoint="endp_site")[0] == 404
    assert ask(web, "GET", "/items/3", endpoint="far")[0] == 401  # not in the default workspace
    problem = problem_of(ask(web, "GET", "/x", key=KEY, endpoint="nobody"))
    assert problem["status"] == 404
    assert "site:default" in problem["detail"]


def test_parameters_come_from_path_query_and_body(web: WebStage) -> None:
    _, _, body = ask(web, "GET", "/items/12?q=a%20b&tags=1&tags=2&exact=true")
    assert json.loads(body) == {"id": 12, "q": "a b", "tags": ["1", "2"], "exact": True}
    assert ask(web, "POST", "/norm", body={"x": 3, "y": 4})[2] == b"5.0"
    assert ask(web, "POST", "/norm", body={"point": {"x": 3, "y": 4}})[2] == b"5.0"
    assert ask(web, "POST", "/square", key=KEY, body=b"x=9", kind="application/x-www-form-urlencoded")[2] == b"81"
    assert ask(web, "POST", "/size", body=b"\0" * 300_000, kind="application/octet-stream")[2] == b"300000"
    problem = problem_of(ask(web, "GET", "/items/twelve?wrong=1"))
    assert problem["status"] == 422
    assert {error["parameter"] for error in problem["errors"]} == {"id", "wrong"}
    problem = problem_of(ask(web, "POST", "/square", key=KEY, body={}))
    assert [error["parameter"] for error in problem["errors"]] == ["x"]
    assert problem_of(ask(web, "POST", "/square", key=KEY, body=b"<x/>", kind="text/xml"))["status"] == 415
    assert json.loads(ask(web, "POST", "/me")[2]) == {"id": 32, "function": "me"}


def test_results(web: WebStage) -> None:
    status, headers, body = ask(web, "GET", "/page?kind=text")
    assert (body.decode(), headers["content-type"]) == ("plain ümlaut", "text/plain; charset=utf-8")
    assert ask(web, "GET", "/page?kind=bytes")[2] == b"\0\1\2"
    status, headers, body = ask(web, "GET", "/page?kind=tuple")
    assert (status, headers["x-own"], headers["content-type"], body) == (203, "1", "text/html", b"<b>hi</b>")
    status, headers, body = ask(web, "DELETE", "/items/3")
    assert (status, body) == (204, b"")
    assert "class object" in problem_of(ask(web, "GET", "/page?kind=object"))["detail"]
    # A header that would end the head is not sent.
    assert problem_of(ask(web, "GET", "/page?kind=split"))["status"] == 500


def test_a_response_object_keeps_its_headers(web: WebStage) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as session, session.get(f"{web.url}/page?kind=response") as answer:
            assert answer.status == 201
            assert await answer.text() == "<i>hi</i>"
            assert answer.headers.getall("set-cookie") == [
                "one=1; Path=/; SameSite=lax", "two=2; Path=/; SameSite=lax",
            ]  # fmt: skip

    asyncio.run(main())


def test_exceptions_are_problems(web: WebStage) -> None:
    problem = problem_of(ask(web, "POST", "/fail"))
    assert problem == {"type": "about:blank", "title": "ValueError", "status": 500, "detail": "no luck"}
    answer = ask(web, "POST", "/fail?kind=http")
    assert (answer[0], answer[1]["x-tea"], problem_of(answer)["detail"]) == (418, "yes", "short and stout")
    problem = problem_of(ask(web, "POST", "/sleep?seconds=600&word=late"))
    assert (problem["status"], problem["title"]) == (504, "CallTimeout")
    until(lambda: web.noted("cancelled late"), 20.0, "the cancellation")


def test_generators_are_events(web: WebStage) -> None:
    for path in ("/count?n=3", "/count-sync?n=3"):
        status, headers, body = ask(web, "GET", path)
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        *items, end, rest = body.split(b"\n\n")
        assert [json.loads(item.removeprefix(b"data: ")) for item in items] == (
            [{"i": 0}, {"i": 1}, {"i": 2}] if path == "/count?n=3" else [0, 1, 2]
        )
        assert (end, rest) == (b"event: end\ndata: {}", b"")
    # Before the first item a failure has a status, afterwards it is an event.
    assert problem_of(ask(web, "GET", "/count?n=3&fail_at=0"))["title"] == "ValueError"
    body = ask(web, "GET", "/count?n=3&fail_at=1")[2]
    assert body.startswith(b'data: {"i":0}\n\nevent: error\ndata: {')
    assert b"half way" in body


def test_functions_of_other_kinds(web: WebStage) -> None:
    assert ask(web, "POST", "/timed")[2].startswith(b"data: 0\n\ndata: 1\n\ndata: 2\n\nevent: end")
    assert ask(web, "POST", "/batch", body={"x": 4})[2] == b"40"
    assert ask(web, "GET", "/model/7")[2] == b"21"


def test_methods(web: WebStage) -> None:
    status, headers, body = ask(web, "HEAD", "/items/3")
    assert (status, body, headers["content-length"]) == (200, b"", "45")
    assert ask(web, "HEAD", "/count?n=1000000&pause=1")[0] == 200
    status, headers, _ = ask(web, "OPTIONS", "/items/3")
    assert (status, headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS")
    assert "access-control-allow-origin" not in headers
    status, headers, _ = ask(web, "PUT", "/items/3")
    assert (status, headers["allow"]) == (405, "DELETE, GET, HEAD, OPTIONS")
    assert "GET /items/{id}" in problem_of(ask(web, "GET", "/nope", key=KEY))["detail"]
    assert "GET /items/{id}" not in problem_of(ask(web, "GET", "/nope"))["detail"]
    assert problem_of(ask(web, "GET", "/items/3", headers={"Upgrade": "websocket", "Connection": "Upgrade"}))


def raw(web: WebStage, data: bytes) -> bytes:
    """Everything a plain socket gets for these bytes, until the gateway closes."""
    with web.raw() as sock:
        sock.sendall(data)
        found = b""
        while part := sock.recv(65_536):
            found += part
        return found


def test_requests_byte_by_byte(web: WebStage) -> None:
    head = b"POST /web/site/size HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nConnection: close\r\n"
    chunked = raw(web, head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
    assert chunked.startswith(b"HTTP/1.1 200 OK\r\n")
    assert chunked.endswith(b"\r\n\r\n7")
    expecting = raw(web, head + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nab")
    assert expecting.startswith((b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200", b"HTTP/1.1 200"))
    old = raw(web, b"GET /web/site/count?n=1 HTTP/1.0\r\n\r\n")
    assert b"chunked" not in old
    assert old.endswith(b'data: {"i":0}\n\nevent: end\ndata: {}\n\n')
    assert raw(web, head + b"Content-Length: 99999999\r\n\r\n").startswith(b"HTTP/1.1 413 ")
    assert raw(web, head + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n").startswith(b"HTTP/1.1 400 ")


def test_connections_are_kept_and_pipelined(web: WebStage) -> None:
    one = b"GET /web/site/items/1 HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /web/site/items/2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    found = raw(web, one + one + last)
    assert found.count(b"HTTP/1.1 200 OK") == 3
    assert [found.count(b'"id":%d' % index) for index in (1, 2)] == [2, 1]


def test_two_hundred_at_once(web: WebStage) -> None:
    async def main() -> None:
        connector = aiohttp.TCPConnector(limit=200)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def square(x: int) -> int:
                async with session.post(f"{web.url}/square", json={"x": x}) as answer:
                    assert answer.status == 200
                    return int(await answer.text())

            assert await asyncio.gather(*map(square, range(200))) == [x * x for x in range(200)]

    before = len(web.control.records)
    asyncio.run(main())
    until(lambda: len(web.control.records) >= before + 200, 20.0, "the records")
    record = web.control.records[-1]
    assert (record.kind, record.function, record.key_id, record.workspace_id) == ("web", "square", "abcdefgh", "wksp_a")
    assert (record.status, record.instance_id, record.compute_us > 0) == (200, "inst_site", True)


def test_a_caller_who_leaves_cancels_the_function(web: WebStage) -> None:
    with web.raw() as sock:
        sock.sendall(b"POST /web/site/hold?word=left HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until(lambda: web.noted("hold left"), 20.0, "the start")
    until(lambda: web.noted("cancelled left"), 20.0, "the cancellation")
    until(lambda: any(r.function == "hold" and r.status == 499 for r in web.control.records), 20.0, "its record")


@pytest.mark.parametrize("path", ["/climb", "/climb-sync", "/climb-batch"])
def test_a_function_that_calls_itself_does_not_wait_for_itself(web: WebStage, path: str) -> None:
    """Its place is lent while it waits: one is enough, also for several callers."""
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(web, "POST", path, body={"n": 3})[2])) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [b"3"] * 3
    assert ask(web, "POST", path, body={"n": 1})[2] == b"1", "the places are there again"


def test_events_may_come_from_calls(web: WebStage) -> None:
    text = ask(web, "GET", "/climbed?n=3")[2].decode()
    assert [line for line in text.splitlines() if line.startswith("data: ")][:3] == ["data: 0", "data: 1", "data: 2"]
