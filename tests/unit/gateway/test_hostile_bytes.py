"""Bytes of callers and workers that are meant to break something."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from nanopod.gateway import heads, prefixes, steps
from nanopod.gateway.families import Anything
from nanopod.gateway.foreign import with_usage
from nanopod.gateway.heads import Failed, Head
from nanopod.gateway.server import BUSY, HttpConnection
from nanopod.gateway.surface import _read
from nanopod.model.wire import RouteRow

DEEP = b'{"model":"m","messages":' + b"[" * 100_000
BODIES = [DEEP, b'{"model":"m","x":' + DEEP, b'{"model":"\xff"}', b"\xff", b'{"model":"\\ud800"}']


@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(Failed) as refused:
        _read(body, "")
    assert refused.value.status == 400
    assert prefixes.chunks_of(body, "wksp_1") == ()
    assert with_usage(body) == body
    route = RouteRow("endp_1", "wksp_1", "m", "default", "model", "rev_1", model_ids=("m",))
    assert steps.path_for(route, body) == ("/v1/chat/completions", body)


def test_a_workers_headers_that_would_end_the_answer_are_left_out() -> None:
    good = {"content-type": "text/plain; x=\xe9", "retry-after": "1"}
    assert heads.fit(good) == good
    assert heads.fit({**good, "x-a": "1\r\nx-b: 2", "x-c": "\u20ac", "x-d": "\0"}) == good


def test_headers_that_connection_names_stay_here() -> None:
    request = Anything.__new__(Anything)
    request._worker_headers = {"connection": "X-Own, close", "x-own": "1", "x-other": "2"}
    assert request._worker_lines() == "x-other: 2\r\n"


class Connection(HttpConnection):
    """A connection without a socket."""

    def __init__(self) -> None:
        self.exchange: Any = None
        self._streaming = False
        self._phase = BUSY
        self._head = Head()
        self.failures: list[Failed] = []
        self.aborted = False

    def fail(self, failed: Failed, *, close: bool = False, extra: str = "") -> None:
        self.failures.append(failed)

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize("begun", [False, True])
def test_a_fault_of_a_handler_is_answered_or_cut_off(begun: bool) -> None:
    def broken(connection: HttpConnection, head: Head, body: bytes) -> None:
        if begun:
            connection.exchange = cast(Any, object())
        raise RecursionError

    connection = Connection()
    connection._handler = broken
    connection._complete(b"")
    assert connection.aborted is begun
    assert [one.status for one in connection.failures] == ([] if begun else [500])


def test_prompts_of_odd_shapes() -> None:
    for content in ([{"text": 5}], [{"text": None}], [[]], {"text": "x"}, 5, [{"text": "x" * 9000}]):
        body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": content}, 5, None]})
        assert isinstance(prefixes.chunks_of(body, "wksp_1"), tuple)
    many = msgspec.json.encode({"model": "m", "messages": [{"content": "x" * 100}] * 30_000})
    assert prefixes.chunks_of(many, "wksp_1") == ()
