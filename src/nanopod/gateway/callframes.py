"""What the gateway reads of call frames, what it adds to them, and the errors it writes itself."""

from __future__ import annotations

from struct import Struct
from typing import Final

import msgspec
from msgspec.structs import replace

from nanopod.model import calls, frames
from nanopod.model.errors import DeploymentFailed, NanopodError

LOG_TAIL_CHARS_MAX: Final = 8192
_LENGTH: Final = Struct(">I").unpack_from


class CallEnd(msgspec.Struct, frozen=True):
    """Payload of END. `workload`: what the call was worth by the function's own calculator, if it has one."""

    run_us: int = 0
    ok: bool = True
    workload: float | None = None


decode_end: Final = msgspec.json.Decoder(CallEnd).decode


def tag_of(frame: bytes) -> str:
    """The type name of a call frame's header, without decoding the rest. Raises `ValueError` for anything else."""
    # A header is a small msgpack map whose first key is "t" (the encoder writes the tag first).
    if len(frame) > 8 and frame[5:7] == b"\xa1t" and frame[7] & 0xE0 == 0xA0:
        return frame[8 : 8 + (frame[7] & 31)].decode("latin-1")
    header = calls.decode(frame)[0]
    return str(header.__struct_config__.tag)


def payload_of(frame: bytes) -> bytes:
    """What follows a call frame's header."""
    return frame[4 + _LENGTH(frame)[0] :]


def completed(frame: bytes, attempt: int, cost_micro: int) -> bytes:
    """The first frame of a worker's answer with what the gateway alone knows: which try it was, and what it cost.

    The payload is passed on as it is. A frame that has no room left stays as the worker wrote it.
    """
    header, payload = calls.decode(frame)
    if not isinstance(header, (calls.Result, calls.Error, calls.End)):
        return frame
    if cost_micro:
        header = replace(header, usage=replace(header.usage or calls.Usage(), cost_micro=cost_micro))
    if isinstance(header, calls.Error) and attempt > 1:
        header = replace(header, attempt=attempt)
    made = calls.encode(header, payload)
    return made if len(made) <= frames.FRAME_BYTES_MAX - 64 else frame


def error_frame(call_id: bytes, error: NanopodError, started: bool | None, attempt: int) -> bytes:
    """The frame that tells a client of an error of the gateway's own."""
    return calls.encode(
        calls.Error(
            call_id, error.code, error.message, started=started, attempt=attempt, retry_after_s=error.retry_after_s,
            stage=error.stage if isinstance(error, DeploymentFailed) else "",
            log_tail=error.log_tail[-LOG_TAIL_CHARS_MAX:] if isinstance(error, DeploymentFailed) else "",
        )
    )  # fmt: skip
