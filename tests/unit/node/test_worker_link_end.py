"""The end of a worker's link: what the gateway sent before it knew of the end is handed back, never left unread."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

from nanopod.model import frames
from nanopod.node.runtime.link import Identity, Link, Stream

WAIT_S_MAX = 20.0


class Silent:
    """A handler that serves nothing: whatever is opened while it runs is noted."""

    def __init__(self) -> None:
        self.opened: list[Stream] = []

    def hello(self) -> dict[str, Any]:
        return {"protocol": frames.PROTOCOL}

    def on_open(self, stream: Stream, payload: bytes, *, end: bool) -> None:
        self.opened.append(stream)

    def on_data(self, stream: Stream, payload: bytes, *, end: bool) -> None: ...

    def on_reset(self, stream: Stream, code: int, text: str) -> None: ...

    def on_release(self, call_ids: list[bytes]) -> None: ...

    def on_lost(self, streams: list[Stream]) -> None: ...

    def on_fenced(self, reason: str) -> None: ...

    def holds_calls(self) -> bool:
        return False


def _until(sock: socket.socket, reader: frames.FrameReader, wanted: int) -> frames.Frame:
    """The next frame of this type."""
    while True:
        data = sock.recv(65_536)
        assert data, f"closed before {frames.NAMES[wanted]}"
        for frame in reader.feed(data):
            if frame[0] == wanted:
                return frame


def test_a_request_that_crosses_the_goodbye_is_handed_back(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "gw.sock"))
    listener.listen()
    listener.settimeout(WAIT_S_MAX)
    read_fd, write_fd = os.pipe()
    handler = Silent()
    link = Link(Identity("inst_a", 1, "token", (f"unix:{tmp_path / 'gw.sock'}",)), handler, write_fd)
    link.start()
    try:
        sock, _ = listener.accept()
        sock.settimeout(WAIT_S_MAX)
        while b"\r\n\r\n" not in sock.recv(65_536):
            pass
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        reader = frames.FrameReader()
        _until(sock, reader, frames.HELLO)
        welcome = json.dumps({"protocol": frames.PROTOCOL}).encode()
        sock.sendall(frames.pack(frames.WELCOME, 0, welcome))
        while link.connection is None:
            pass
        closing = threading.Thread(target=link.close, args=(WAIT_S_MAX,))
        closing.start()
        _until(sock, reader, frames.GOAWAY)
        # It was on its way when the worker said goodbye.
        sock.sendall(frames.pack(frames.OPEN, 7, b"\0\2{}"))
        _, stream, _, _, payload = _until(sock, reader, frames.RESET)
        assert stream == 7
        assert frames.unpack_reset(payload) == (frames.REFUSED, "draining")
        sock.sendall(frames.pack(frames.PONG, 0, b"goodbye!"))
        while sock.recv(65_536):
            pass
        closing.join(WAIT_S_MAX)
        assert not link.is_alive()
        assert handler.opened == []
    finally:
        link.close(WAIT_S_MAX)
        os.close(read_fd)
        listener.close()
