"""Machines from the agent's side: their directory with image, home and start-up, and how far the start-up got."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from nanopod.model.endpoint import Failure, InstanceSpec
from nanopod.model.job import RunSpec
from nanopod.node import cloudinit, files, image, launch, records
from nanopod.node.bundle import BundleError
from nanopod.node.storage.told import located

KIND: Final = "machine"
NOT_FOR_GUESTS: Final = ("NANOPOD_MODE", "NANOPOD_UP_PID", "NANOPOD_LOCAL")
"""Variables of the agent, or for workers, that mean nothing in a machine."""


class BootFailed(Exception):
    """The machine cannot be started; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class State(msgspec.Struct, frozen=True):
    """state.json: how far the start-up of this epoch got. `note` says what went wrong in it."""

    epoch: int
    ready: bool = False
    note: str = ""
    done: bool = False


_state: Final = msgspec.json.Decoder(State).decode


@dataclass(slots=True)
class Watch:
    """What was read last of a machine's state."""

    ready: bool = False
    note: str = ""
    changed_ns: int = -1

    def look(self, directory: Path, epoch: int) -> bool:
        """Read state.json if it was written since; True when what it says is news."""
        path = directory / files.STATE
        try:
            changed_ns = path.stat().st_mtime_ns
            if changed_ns == self.changed_ns:
                return False
            state = _state(path.read_bytes())
        except (OSError, msgspec.MsgspecError):
            return False
        self.changed_ns = changed_ns
        if state.epoch != epoch or (state.ready, state.note) == (self.ready, self.note):
            return False
        self.ready, self.note = state.ready, state.note
        return True


def is_machine(spec: InstanceSpec) -> bool:
    """True for an instance that runs a start-up script instead of a worker."""
    return spec.app.kind == KIND


def run_of(spec: InstanceSpec) -> RunSpec | None:
    """The one command of a machine that has such; None for every other instance. Raises `BootFailed`."""
    if not is_machine(spec):
        return None
    try:
        return cloudinit.parse(spec.cloud_init).run
    except cloudinit.BootError as error:
        raise BootFailed(Failure("start", str(error), user_fault=True)) from error


@dataclass(frozen=True, slots=True)
class Placed:
    """What was put in place for the one command: variables, paths that lead elsewhere, volumes to keep changes of."""

    env: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[str, str] = field(default_factory=dict)
    commit: tuple[str, ...] = ()


def prepare(
    spec: InstanceSpec,
    directory: Path,
    blob: Callable[[str], Path],
    stop: threading.Event | None = None,
    placed: Placed | None = None,
) -> records.Launch:
    """Fill the directory of a machine; how the shim starts it. On a thread. Raises `BootFailed` and `OSError`."""
    placed = placed or Placed()
    try:
        boot = cloudinit.parse(spec.cloud_init)
        root = None
        if spec.image_sha256:
            root = directory / files.IMAGE
            image.unpack(_blob(spec, blob), spec.image_sha256, root, stop)
        home = directory / files.HOME
        launch.remove_tree(home)  # an agent that was killed may have begun this before
        home.mkdir(mode=0o700)
        cloudinit.write_files(boot.files, home, root)
    except cloudinit.BootError as error:
        raise BootFailed(Failure("start", str(error), user_fault=True)) from error
    except BundleError as error:
        raise BootFailed(Failure("bundle", str(error), user_fault=error.user_fault)) from error
    steps = [(name, str(_program(directory / f"boot-{n}", text))) for n, (name, text) in enumerate(boot.scripts)]
    run = boot.run
    if run is not None:
        words = shlex.join(located(word, placed.table) for word in run.argv)
        steps.append(("command", str(_program(directory / "boot-0", f"#!/bin/sh\nexec {words}\n".encode()))))
    if boot.hook:
        _program(directory / files.HOOK, boot.hook)
    plan = {"epoch": spec.epoch, "steps": steps, "once": run is not None, "commit": list(placed.commit)}
    files.write_atomic(directory / files.BOOT, json.dumps(plan).encode())
    (directory / files.STATE).unlink(missing_ok=True)
    own = {
        "HOME": str(home),
        "NANOPOD_INSTANCE_ID": spec.instance_id,
        "NANOPOD_INSTANCE_NAME": spec.name or spec.app.name,
        **({"NANOPOD_IMAGE_DIR": str(root)} if root is not None else {}),
        **launch.told_in(directory),
        **placed.env,
        **({name: located(value, placed.table) for name, value in run.env.items()} if run is not None else {}),
    }
    given = launch.environment_of(spec.instance_id, dict(spec.app.image.env)).items()
    env = {name: value for name, value in given if name not in NOT_FOR_GUESTS} | own
    argv = [sys.executable, "-P", "-m", "nanopod.node.guest", str(directory)]
    return records.Launch(argv, env, str(home), spec.lease_s, spec.grace_s)


def _blob(spec: InstanceSpec, blob: Callable[[str], Path]) -> Path:
    digest = spec.image_sha256
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise cloudinit.BootError(f"image_sha256: {digest[:80]!r} is not the hex form of a SHA-256")
    return blob(digest)


def _program(path: Path, text: bytes) -> Path:
    """Write a program that its owner may run."""
    files.write_atomic(path, text)
    path.chmod(0o700)
    return path
