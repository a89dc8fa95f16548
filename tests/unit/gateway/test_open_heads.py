"""What a worker is told of a request: part of it is written once for all requests with the same head."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nanopod.gateway.links import WorkerLink
from nanopod.gateway.process import Gateway
from nanopod.gateway.server import HttpConnection
from nanopod.model import frames
from nanopod.model.layout import Layout
from nanopod.model.wire import KeyRow, RouteRow, Tables, WorkerRow

TALK = RouteRow("e1", "w1", "talk", "default", "model", "rev_0123456789abcdef", ("talk",))
IRIS = RouteRow("e2", "w1", "iris", "default", "model", "rev_2", ("iris",), protocols=("v2",), serves=("iris",))
BODY = b'{"model":"talk","seed":7}'


class Transport:
    """A socket that only keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int = 0, low: int = 0) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        pass


class Scene:
    """A gateway with one ready worker for each endpoint, and one caller's connection."""

    def __init__(self, directory: Path) -> None:
        self.gateway = gateway = Gateway(Layout(directory), "g1", asyncio.get_running_loop())
        digest = hmac.digest(b"p", b"sk_np_one", hashlib.sha256).hex()
        rows = {f"i-{one.name}": one for one in (TALK, IRIS)}
        workers = {name: WorkerRow(name, one.endpoint_id, one.revision_id, 1, 8, name) for name, one in rows.items()}
        keys = {digest: KeyRow("k1", "w1", ("call",))}
        gateway.on_message(Tables(1, b"p", keys, {one.endpoint_id: one for one in (TALK, IRIS)}, workers))
        self.sent: dict[str, Transport] = {}
        for name, row in workers.items():
            link = gateway.links[name] = WorkerLink(gateway, row, gateway.pool(rows[name]))
            self.sent[name] = Transport()
            link.connection_made(self.sent[name])  # type: ignore[arg-type]
            hello = {"instance_id": name, "epoch": 1, "endpoint_id": row.endpoint_id, "revision": row.revision_id}
            link.data_received(frames.pack(frames.HELLO, 0, msgspec.json.encode({**hello, "slots": 8, "ready": True})))
            self.sent[name].written.clear()
        self.connection = HttpConnection(gateway)
        self.connection.connection_made(Transport())  # type: ignore[arg-type]

    def ask(self, path: str, lines: str = "", body: bytes = BODY, worker: str = "i-talk") -> dict[str, Any]:
        """The head of the OPEN that a request becomes; the request itself is given up."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: cloud\r\nAuthorization: Bearer sk_np_one\r\n{lines}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.connection.data_received(head.encode("latin-1") + body)
        (data,) = self.sent[worker].written
        self.sent[worker].written.clear()
        size = int.from_bytes(data[12:14], "big")
        assert data[14 + size :] == body
        link = self.gateway.links[worker]
        for job in link.jobs():
            link.data_received(frames.pack_reset(job.stream, frames.TOO_LARGE, "", job.epoch))
        self.sent[worker].written.clear()
        return dict(msgspec.json.decode(data[14 : 14 + size]))

    def close(self) -> None:
        self.gateway.meter.close()
        self.gateway.journal.close()


def test_same_heads_differ_in_what_is_the_requests_own(tmp_path: Path) -> None:
    async def scene() -> None:
        cloud = Scene(tmp_path)
        first, second = (cloud.ask("/v1/completions?a=1", "Accept: text/x\r\nX-Own: 1\r\n") for _ in range(2))
        ids = [one["attempt"].pop("request_id") for one in (first, second)]
        assert ids[0] != ids[1]
        for request_id, one in zip(ids, (first, second), strict=True):
            assert one.pop("headers") == {
                "content-type": "application/json", "accept": "text/x", "x-nanopod-account": "w1",
                "x-request-id": request_id,
            }  # fmt: skip
            attempt = one.pop("attempt")
            assert attempt.pop("created") > 1.7e9
            assert attempt == {
                "epoch": 1, "response_id": f"cmpl-{request_id[4:]}", "system_fingerprint": "fp_456789abcdef", "seed": 7,
            }  # fmt: skip
            assert 599 < one.pop("timeout_s") <= 600
            assert one == {"k": "http", "method": "POST", "path": "/v1/completions"}
        cloud.close()

    asyncio.run(scene())


@pytest.mark.parametrize("given", ["mine", 'a"b\\c', "{}", '","x":"'])
def test_a_callers_own_request_id_is_passed_on_whatever_is_in_it(tmp_path: Path, given: str) -> None:
    async def scene() -> None:
        cloud = Scene(tmp_path)
        found = cloud.ask("/v1/chat/completions", f"X-Request-Id: {given}\r\n")
        assert found["headers"]["x-request-id"] == given
        assert found["attempt"]["request_id"] != given
        assert set(found["headers"]) == {"content-type", "x-nanopod-account", "x-request-id"}
        cloud.close()

    asyncio.run(scene())


def test_predictions_carry_their_headers_and_never_anothers_account(tmp_path: Path) -> None:
    async def scene() -> None:
        cloud = Scene(tmp_path)
        lines = "X-Nanopod-Account: other\r\nX-Word: caf\xe9\r\nX-Request-Id: one\r\n"
        for _ in range(2):
            found = cloud.ask("/v2/models/iris/infer?x=1", lines, b"{}", "i-iris")
            assert (found["path"], found["method"]) == ("/v2/models/iris/infer?x=1", "POST")
            assert found["headers"] == {
                "x-nanopod-account": "w1", "x-word": "caf\xe9", "x-request-id": "one", "x-forwarded-host": "cloud",
                "content-type": "application/json",
            }  # fmt: skip
        cloud.close()

    asyncio.run(scene())
