"""What agent and worker write into an instance's directory for each other, as types."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec

from nanopod.model.endpoint import Failure, InstanceSpec
from nanopod.node import files

EXIT_FENCED: Final = 75
"""Exit status of a worker that gave way to a newer epoch."""


class Launch(msgspec.Struct, frozen=True):
    """How the shim starts the worker, and when it gives up."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    lease_s: float = 60.0
    grace_s: float = 30.0
    fork: bool = False
    """A fork of an interpreter that has the worker's modules loaded may stand in for a new process."""


class Start(msgspec.Struct, frozen=True):
    """spec.json: everything one epoch of an instance needs to run."""

    instance: InstanceSpec
    gateways: list[str]
    """Where the worker dials, `unix:/path` or `tcp:host:port`, best first."""
    launch: Launch
    models_dir: str = ""
    """Where downloaded models are kept."""
    local: bool = False
    """Embedded local mode: one benchmark round, no packages installed."""
    snapshots_dir: str = ""
    """Where contexts of this deployment keep their snapshots; "": nowhere."""
    benchmarks_dir: str = ""
    """Where the node's workers keep what their benchmarks showed; "": nowhere."""
    gpu: str = ""
    """Model of the node's GPUs; "": it has none."""
    cpu: str = ""
    """Model of its processors."""
    region: str = ""


class Running(msgspec.Struct, frozen=True):
    """instance.json: the shim that runs this epoch. Pid and start time of this boot name it for good."""

    epoch: int
    boot_id: str
    pid: int
    start_time: int
    sid: int


class Verdict(msgspec.Struct, frozen=True):
    """exit.json: how the worker ended. `asked`: it was told to."""

    epoch: int
    exit_code: int | None = None
    signal: int | None = None
    asked: bool = False
    reason: str = ""
    phase: str = ""
    """What the worker said last that it was doing."""
    log_tail: str = ""
    at: float = 0.0


_encode: Final = msgspec.json.Encoder().encode
_start: Final = msgspec.json.Decoder(Start).decode
_running: Final = msgspec.json.Decoder(Running).decode
_verdict: Final = msgspec.json.Decoder(Verdict).decode
_failure: Final = msgspec.json.Decoder(Failure).decode


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def write_start(directory: Path, start: Start) -> None:
    """Write spec.json."""
    files.write_atomic(directory / files.SPEC, _encode(start))


def read_start(directory: Path) -> Start | None:
    """spec.json, None when absent or not readable."""
    data = _read(directory / files.SPEC)
    try:
        return None if data is None else _start(data)
    except msgspec.MsgspecError:
        return None


def read_running(directory: Path) -> Running | None:
    """instance.json, None when absent or not readable."""
    data = _read(directory / files.INSTANCE)
    try:
        return None if data is None else _running(data)
    except msgspec.MsgspecError:
        return None


def write_verdict(directory: Path, verdict: Verdict) -> None:
    """Write exit.json for a shim that could not."""
    files.write_atomic(directory / files.EXIT, _encode(verdict))


def read_verdict(directory: Path) -> Verdict | None:
    """exit.json, None when absent or not readable."""
    data = _read(directory / files.EXIT)
    try:
        return None if data is None else _verdict(data)
    except msgspec.MsgspecError:
        return None


def write_failure(directory: Path, failure: Failure) -> None:
    """Write failure.json."""
    files.write_atomic(directory / files.FAILURE, _encode(failure))


def read_failure(directory: Path) -> Failure | None:
    """failure.json, None when absent or not readable."""
    data = _read(directory / files.FAILURE)
    try:
        return None if data is None else _failure(data)
    except msgspec.MsgspecError:
        return None


def lost(epoch: int, reason: str, log_tail: str) -> Verdict:
    """The verdict on an instance whose shim died without a word."""
    return Verdict(epoch, None, 9, False, reason, "", log_tail, time.time())
