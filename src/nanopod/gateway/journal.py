"""The dispatch journal: which call was given to which worker, so that a killed gateway never starts a call twice.

A dispatch is on file (page cache) before its OPEN leaves. After a restart the calls that were given away and not
finished are known: workers report what they have of them, the rest is lost (or started again where that is harmless).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from nanopod.gateway import logfile

ROTATE_BYTES: Final = 8 << 20
_log = logging.getLogger(__name__)


class Dispatch(msgspec.Struct, frozen=True, array_like=True):
    """One call given to one worker. Times are Unix seconds."""

    call_id: bytes
    instance_id: str
    epoch: int
    workspace_id: str
    key_id: str
    endpoint_id: str
    revision_id: str
    function: str
    idempotent: bool
    t_arrival: float
    timeout_s: float
    attempt: int


class Finished(msgspec.Struct, frozen=True, array_like=True):
    """A call that needs no recovery any more."""

    call_id: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_dispatch: Final = msgspec.msgpack.Decoder(Dispatch).decode
_finished: Final = msgspec.msgpack.Decoder(Finished).decode


class Journal:
    """The journal of one gateway. `recovered` holds what the process before left unfinished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._live: dict[bytes, bytes] = {}
        self.recovered: dict[bytes, Dispatch] = {}
        for record in logfile.read(path):
            try:
                # The two kinds differ in their number of fields, so only one of them decodes.
                if record[0] == 0x91:
                    self.recovered.pop(_finished(record).call_id, None)
                else:
                    dispatch = _dispatch(record)
                    self.recovered[dispatch.call_id] = dispatch
            except msgspec.MsgspecError:
                _log.error("journal: a record cannot be read and is skipped")
        for call_id, dispatch in self.recovered.items():
            self._live[call_id] = logfile.frame(_encode(dispatch))
        self.pending: list[bytes] = []
        """Framed dispatches that are not on file yet."""
        self._ended: list[bytes] = []
        self._file = self._rewrite()
        self.failed = False
        """True while the disk refuses writes: no call may be dispatched then."""

    def dispatched(self, dispatch: Dispatch) -> None:
        """Note a dispatch; `write` must follow before the OPEN leaves."""
        record = logfile.frame(_encode(dispatch))
        self._live[dispatch.call_id] = record
        self.pending.append(record)

    def finished(self, call_id: bytes) -> None:
        """Note that a call ended; it goes to the file with the next dispatch, or within 100 ms.

        Losing that note is harmless: the call's record has its id, and its worker (or nobody) is asked about it.
        """
        if self._live.pop(call_id, None) is not None:
            self._ended.append(logfile.frame(_encode(Finished(call_id))))
        self.recovered.pop(call_id, None)

    def write(self) -> None:
        """Put what is pending on file with one write. A failing disk sets `failed` and keeps it pending."""
        data = b"".join(self._ended + self.pending)
        try:
            self._file.write(data)
            if self._file.size > ROTATE_BYTES and self._file.size > 4 * sum(map(len, self._live.values())):
                self._file.close()
                self._file = self._rewrite()
        except OSError as error:
            if not self.failed:
                _log.error("journal: %s; no call is dispatched until it can be written", error.strerror)
            self.failed = True
            return
        self.pending, self._ended = [], []
        self.failed = False

    def tidy(self) -> None:
        """Write what `finished` left; called every 100 ms."""
        if self._ended:
            self.write()

    def _rewrite(self) -> logfile.LogFile:
        """Replace the file by one that holds the live dispatches only."""
        fresh = self._path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        file = logfile.LogFile(fresh)
        if self._live:
            file.write(b"".join(self._live.values()))
        os.replace(fresh, self._path)
        file.path = self._path
        return file

    def close(self) -> None:
        """Write the rest and close."""
        if self.pending or self._ended:
            self.write()
        self._file.close()
