"""An HTTP request below `/web/` and its streamed answer.

What the worker sends is checked, because it runs somebody's code: header lines that would break the framing, bodies
that are not as long as they said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nanopod.gateway import heads
from nanopod.gateway.heads import Head, Problem
from nanopod.gateway.pool import Pool
from nanopod.gateway.webjob import DONE, WebHead, WebJob
from nanopod.gateway.webroutes import Target
from nanopod.model import frames
from nanopod.model.wire import KeyRow

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.server import HttpConnection

_OWN: Final = frozenset(
    {
        "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
        "content-length", "x-request-id",
    }
)  # fmt: skip
_BREAKING: Final = frozenset("\r\n\0")


class WebRequest(WebJob):
    """One HTTP request."""

    __slots__ = ("_began", "_bodyless", "_events", "_left")

    def __init__(
        self, gateway: Gateway, connection: HttpConnection, head: Head, pool: Pool, target: Target,
        key: KeyRow | None, root: str, rest: str,
    ) -> None:  # fmt: skip
        super().__init__(gateway, connection, head, pool, target, key, root, rest)
        self._began = False
        self._bodyless = False
        self._events = False
        """The answer is a function's stream of events: trouble can be told in it."""
        self._left: int | None = None
        """Bytes that are still to come of an answer of known length."""

    def _on_head(self, head: WebHead) -> None:
        connection = self.connection
        if connection is None:
            return
        if self._began or not 200 <= head.status <= 599:
            self._broken(f"the worker answered with status {head.status}")
            return
        lines = [f"HTTP/1.1 {head.status} {heads.REASONS.get(head.status, 'Unknown')}\r\n"]
        self._bodyless = connection.head_only or head.status in (204, 304)
        for name, value in head.headers:
            lowered = name.lower()
            if not name or not _BREAKING.isdisjoint(name + value) or " " in name or ":" in name:
                self._broken(f"the worker's header {name!r:.60} is not one")
                return
            if lowered == "content-length" and head.status != 204:
                if not value.isascii() or not value.isdigit() or len(value) > 18:
                    self._broken("the worker's content-length is not a number")
                    return
                self._left = int(value)
            elif lowered == "content-type":
                self._events = self._target.function is not None and value.startswith("text/event-stream")
            if lowered not in _OWN:
                lines.append(f"{name}: {value}\r\n")
        if self._left is not None:
            lines.append(f"content-length: {self._left}\r\n")
        lines.append(f"x-request-id: {self.shown_id}\r\n")
        self._began = True
        self._status = head.status
        chunked = self._left is None and not self._bodyless
        connection.start_stream("".join(lines).encode("latin-1", "replace"), chunked=chunked)
        link = self.link
        if self._events and connection.head_only and link is not None:
            link.reset(self, frames.CANCELLED, "only the head was asked for")
            self._on_end()

    def _on_data(self, payload: bytes) -> None:
        if not self._began:
            self._broken("the worker sent a body before its head")
            return
        connection = self.connection
        if self._bodyless or connection is None or not payload:
            return
        if self._left is not None:
            if len(payload) > self._left:
                self._broken("the worker's answer is longer than its content-length")
                return
            self._left -= len(payload)
        connection.piece(payload)

    def _on_end(self) -> None:
        connection = self.connection
        if self._state == DONE or connection is None:
            return
        if not self._began:
            self.fail(Problem(502, "bad_gateway", "the worker ended without an answer"))
            return
        if self._left and not self._bodyless:
            self._broken("the worker's answer is shorter than its content-length")
            return
        self._meter(self._status)
        self._close()
        self.connection = None
        connection.pause_body(False)
        connection.finish()

    def _broken(self, reason: str) -> None:
        """The answer cannot be completed: a status where none went out yet, else a cut that the caller can tell."""
        link, connection = self.link, self.connection
        if link is not None:
            link.reset(self, frames.CANCELLED, reason)
        if self._state == DONE:
            return
        self._meter(502)
        self._close()
        self.connection = None
        if connection is None:
            return
        problem = Problem(502, "worker_lost", reason)
        if not self._began:
            connection.pause_body(False)
            connection.fail(problem, extra=f"x-request-id: {self.shown_id}\r\n")
        elif self._events:
            connection.piece(problem.event())
            connection.close_after = True
            connection.finish()
        else:
            connection.exchange = None
            connection.abort()
