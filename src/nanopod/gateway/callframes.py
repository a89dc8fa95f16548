"""What the gateway reads of call frames, and the errors it writes itself."""

from __future__ import annotations

from typing import Final

import msgspec

from nanopod.model import calls
from nanopod.model.errors import DeploymentFailed, NanopodError

LOG_TAIL_CHARS_MAX: Final = 8192


class CallEnd(msgspec.Struct, frozen=True):
    """Payload of END."""

    run_us: int = 0
    ok: bool = True


decode_end: Final = msgspec.json.Decoder(CallEnd).decode


def tag_of(frame: bytes) -> str:
    """The type name of a call frame's header, without decoding the rest. Raises `ValueError` for anything else."""
    # A header is a small msgpack map whose first key is "t" (the encoder writes the tag first).
    if len(frame) > 8 and frame[5:7] == b"\xa1t" and frame[7] & 0xE0 == 0xA0:
        return frame[8 : 8 + (frame[7] & 31)].decode("latin-1")
    header = calls.decode(frame)[0]
    return str(header.__struct_config__.tag)


def error_frame(call_id: bytes, error: NanopodError, started: bool | None, attempt: int) -> bytes:
    """The frame that tells a client of an error of the gateway's own."""
    return calls.encode(
        calls.Error(
            call_id, error.code, error.message, started=started, attempt=attempt, retry_after_s=error.retry_after_s,
            stage=error.stage if isinstance(error, DeploymentFailed) else "",
            log_tail=error.log_tail[-LOG_TAIL_CHARS_MAX:] if isinstance(error, DeploymentFailed) else "",
        )
    )  # fmt: skip
