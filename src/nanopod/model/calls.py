"""Frames of one remote call, between SDK and gateway and, unchanged, between gateway and worker.

```
u32 header length (big endian) | header (msgpack map, field "t" names its type) | payload bytes
```
On the client's websocket one binary message is one frame; on the worker link one DATA frame (or the body of OPEN) is.
A frame is at most 1 MiB; a larger payload continues in `Part` frames, interleaved between calls. Payloads are values of
`nanopod.model.codec`: of a `Call` the pair (args, kwargs), of a `Result` the value, of an `Error` the exception.
"""

from __future__ import annotations

from struct import Struct as Packer
from typing import Final

import msgspec

from nanopod.model.endpoint import RetrySpec

SUBPROTOCOL: Final = "nanopod.1"
PROTOCOL: Final = 1
FRAME_BYTES_MAX: Final = 1 << 20
PART_BYTES: Final = FRAME_BYTES_MAX - 4096
"""How much payload one frame carries; leaves room for the header."""
INLINE_BYTES_MAX: Final = 32 << 20
"""Largest payload of one call or result."""
ITEM_WINDOW: Final = 64
"""Generator items a worker may send beyond what the caller has taken."""
DEPTH_MAX: Final = 16

_LENGTH: Final = Packer(">I")


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a call used. Microseconds."""

    run_us: int = 0
    queue_us: int = 0
    cost_micro: int = 0
    """Micro-dollars, when the gateway knows the price."""


class Frame(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="t"):
    """Base of all headers; `id` is the 128-bit call id chosen by the client (its idempotency key)."""

    id: bytes


class Hello(Frame, frozen=True, tag="hello"):
    """First frame of a client; `id` is the client's own id, equal over its reconnections."""

    protocol: int = PROTOCOL
    python: str = ""
    sdk: str = ""


class Welcome(Frame, frozen=True, tag="welcome"):
    """Answer to Hello; `id` is the gateway process's id (another one after a restart)."""

    ping_s: float = 15.0
    inline_bytes_max: int = INLINE_BYTES_MAX


class Call(Frame, frozen=True, tag="call"):
    """Start (or, with a known id, find again) a call."""

    endpoint: str = ""
    """Endpoint id, or `name` or `name:tag` in the key's workspace."""
    function: str = ""
    workload: float = 100.0
    timeout_s: float = 600.0
    queue_timeout_s: float = 900.0
    idempotent: bool = False
    priority: int = 0
    size: int = 0
    """Bytes of the whole payload; more than this frame holds means Part frames follow."""
    deadline_at: float = 0.0
    """Unix seconds: a call that has not started by then is dropped with `CallTimeout`; 0: no deadline."""
    retries: RetrySpec | None = None
    """Overrides the function's own; None: as the function says."""
    session: str = ""
    """Run on the worker that this session is pinned to."""
    route_key: str = ""
    """Prefer a worker that had this key before (`with_options(model=...)`)."""
    parent: bytes = b""
    """The call that makes this one, when it comes from inside a worker: its slot is lent while it waits."""
    depth: int = 0
    """How many calls are above this one; at most `DEPTH_MAX`."""
    on_behalf: str = ""
    """Key id to meter for; believed only of the server's own keys (scope `internal`)."""
    traceparent: str = ""
    codec: str = ""
    """How the payload and the answer are written: "" as `model.codec` does, or `model.vastjson.CODEC`."""
    gpus: list[str] = []
    """GPU models that it would rather run on, the best first; others do if none of these has a free slot."""
    region: str = ""
    """Where it would rather run; `eu` means `eu-north`, too."""


class Part(Frame, frozen=True, tag="part"):
    """Further payload of the last Call, Result, Error or Item with this id."""


class State(Frame, frozen=True, tag="state"):
    """Progress: `queued`, `waking`, `started`, `requeued`; `reason` is for people."""

    state: str = ""
    reason: str = ""
    attempt: int = 1
    worker: str = ""


class Result(Frame, frozen=True, tag="result"):
    """The function returned; payload is the value."""

    size: int = 0
    usage: Usage | None = None


class Error(Frame, frozen=True, tag="error"):
    """The call failed. `code` is an error class's `code`; a payload, when there is one, is the remote exception."""

    code: str = ""
    message: str = ""
    size: int = 0
    usage: Usage | None = None
    stage: str = ""
    log_tail: str = ""
    started: bool | None = None
    attempt: int = 1
    retry_after_s: float | None = None
    types: list[str] = []
    """Names of the exception's classes, its own first, as `module.qualname`; for retry policies."""


class Item(Frame, frozen=True, tag="item"):
    """One value of a generator."""

    index: int = 0
    size: int = 0


class End(Frame, frozen=True, tag="end"):
    """The generator is exhausted."""

    usage: Usage | None = None


class Credit(Frame, frozen=True, tag="credit"):
    """The client took items: the worker may send up to this many more."""

    items: int = 0


class Cancel(Frame, frozen=True, tag="cancel"):
    """The client gave the call up; answered by Error(cancelled), or by the result if that won the race."""

    reason: str = ""


class Ack(Frame, frozen=True, tag="ack"):
    """The client has these results; `id` is empty. They need not be kept any longer."""

    ids: list[bytes] = []


class Log(Frame, frozen=True, tag="log"):
    """A line that the function printed."""

    stream: str = "stdout"
    line: str = ""


class SessionOpen(Frame, frozen=True, tag="session_open"):
    """Pin a session to a worker; `id` is the client's 128-bit id of this request. Answered by SessionState or Error."""

    endpoint: str = ""
    lifetime_s: float = 60.0
    """The session ends when no call came for so long."""
    on_close: str = ""
    """A function of the endpoint to call on that worker when the session ends; its payload is (args, kwargs)."""
    wait_s: float = 900.0


class SessionState(Frame, frozen=True, tag="session"):
    """The session is open, and where."""

    session: str = ""
    worker: str = ""
    lifetime_s: float = 60.0


class SessionClose(Frame, frozen=True, tag="session_close"):
    """End the session now; answered by SessionState with no worker."""

    session: str = ""


Header = (
    Hello | Welcome | Call | Part | State | Result | Error | Item | End | Credit | Cancel | Ack | Log
    | SessionOpen | SessionState | SessionClose
)  # fmt: skip

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Header)


def encode(header: Header, payload: bytes = b"") -> bytes:
    """One frame. The payload must fit (`PART_BYTES`); see `split` for larger ones."""
    head = _encoder.encode(header)
    return _LENGTH.pack(len(head)) + head + payload


def decode(frame: bytes) -> tuple[Header, bytes]:
    """(header, payload). Raises `ValueError` for anything that is not a frame."""
    header, start = decode_head(frame)
    return header, frame[start:]


def decode_head(frame: bytes) -> tuple[Header, int]:
    """(header, where the payload starts), for who passes the frame on. Raises `ValueError` as `decode` does."""
    if len(frame) < 4:
        raise ValueError("a call frame has at least 4 bytes")
    end = 4 + _LENGTH.unpack_from(frame)[0]
    if end > len(frame):
        raise ValueError("a call frame's header is longer than the frame")
    try:
        return _decoder.decode(frame[4:end]), end
    except msgspec.MsgspecError as error:
        raise ValueError(f"a call frame's header is not valid: {error}") from error


def split(header: Header, payload: bytes) -> list[bytes]:
    """Frames of a payload of any size: the header with the first part, then Part frames."""
    view = memoryview(payload)
    frames = [_joined(_encoder.encode(header), view[:PART_BYTES])]
    head = _encoder.encode(Part(header.id))
    frames += [_joined(head, view[at : at + PART_BYTES]) for at in range(PART_BYTES, len(payload), PART_BYTES)]
    return frames


def _joined(head: bytes, payload: memoryview) -> bytes:
    """One frame, copying the payload once."""
    return b"".join((_LENGTH.pack(len(head)), head, payload))
