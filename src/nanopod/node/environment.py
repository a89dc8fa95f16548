"""The Python a worker runs in, and the commands that come before: environments are built once and shared by hash.

| asked for | the worker's interpreter |
| --- | --- |
| no packages | the agent's own |
| `pip_install` | a virtual environment in `cache/envs/<hash>`, nanopod's own packages behind the installed ones |
| `use_system_python()`, `venv(path)` | that interpreter; with packages, a virtual environment made by it |

An environment is complete once `complete.json` is in it, written last; without that it is removed and built anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nanopod
from nanopod.model.endpoint import Failure, ImageSpec
from nanopod.node import files, procs

COMPLETE: Final = "complete.json"
BUILD_LOG: Final = "build.log"
BUILD_S_MAX: Final = 1800.0
LOCK_S_MAX: Final = 1900.0
RUN_S_MAX: Final = 1800.0
TAIL_LINES: Final = 40
_NETWORK: Final = (
    "Temporary failure in name resolution", "Connection refused", "Connection reset", "Network is unreachable",
    "Read timed out", "ConnectTimeoutError", "No space left on device", "dns error", "error sending request",
)  # fmt: skip


class EnvironmentFailed(Exception):
    """The environment cannot be had; `failure` says why, with the tail of what the tools printed."""

    def __init__(self, message: str, log_tail: str = "", *, user_fault: bool = True) -> None:
        super().__init__(message)
        self.failure = Failure("environment", message, log_tail=log_tail, user_fault=user_fault)


@dataclass(frozen=True, slots=True)
class Prepared:
    """How a worker is started in its environment."""

    python: str
    env: Mapping[str, str]
    """Variables beyond the agent's own."""
    notes: tuple[str, ...] = ()
    """Lines for the instance's log."""


def key_of(image: ImageSpec, python: str) -> str:
    """The hash under which an environment is shared."""
    facts = [2, python, sys.version, nanopod.__version__, list(image.pip_install), image.python]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def own_paths() -> list[str]:
    """Where nanopod and its dependencies lie: the package's parent, and this interpreter's site directories."""
    paths = sysconfig.get_paths()
    found = [str(Path(nanopod.__file__).parents[1]), paths["purelib"], paths["platlib"]]
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    return list(dict.fromkeys(path for path in found if Path(path).is_dir()))


def interpreter(image: ImageSpec) -> str:
    """The interpreter an image names. Raises `EnvironmentFailed` when there is none."""
    if image.python is None:
        return sys.executable
    if image.python == "":
        # The one outside of the agent's own virtual environment.
        found = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin") or getattr(sys, "_base_executable", "")
        return str(found or sys.executable)
    path = Path(image.python).expanduser()
    for candidate in (path / "bin" / "python", path):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    raise EnvironmentFailed(f"image.venv: there is no interpreter at {image.python} on this node")


def prepare(
    image: ImageSpec, environments: Path, instance: Path, *, local: bool, stop: threading.Event | None = None
) -> Prepared:
    """Build (or find) the environment, then run the image's commands in the instance's directory.

    `local`: embedded local mode, where the person's own interpreter is used and nothing is installed. Blocks, until
    `stop` is set; raises `EnvironmentFailed`.
    """
    tools = _Tools(stop or threading.Event())
    env = dict(image.env)
    asked = [*image.pip_install, *image.apt_get, *map(str, image.runs)]
    if local:
        note = (f"local mode: not installed or run: {', '.join(asked)}"[:500],) if asked else ()
        return Prepared(sys.executable, env, note)
    _apt_get(image.apt_get, instance, tools)
    python = interpreter(image)
    notes: tuple[str, ...] = ()
    if image.pip_install:
        python, notes = _environment(image, python, environments, tools)
    elif python != sys.executable:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [env.get("PYTHONPATH", ""), *own_paths()]))
    whole = {**os.environ, **env, "PATH": f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    for run in image.runs:
        argv = ["sh", "-c", run] if isinstance(run, str) else list(run)
        shown = run if isinstance(run, str) else " ".join(run)
        status, output = tools.run(argv, instance / files.APP, whole, instance / files.LOG, RUN_S_MAX)
        if status:
            raise EnvironmentFailed(f"image.run: `{shown[:200]}` ended with {_status(status)}", output)
    env.setdefault("PATH", whole["PATH"])
    return Prepared(python, env, notes)


def _apt_get(packages: Sequence[str], instance: Path, tools: _Tools) -> None:
    if not packages:
        return
    if os.geteuid() != 0 or os.environ.get("NANOPOD_ALLOW_APT") != "1":
        raise EnvironmentFailed(
            f"image.apt_get: {', '.join(packages)} cannot be installed: workers of this node share its system; "
            "install them on the node, or (as root) start it with NANOPOD_ALLOW_APT=1"
        )
    for argv in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]):
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        status, output = tools.run(argv, instance, env, instance / files.LOG, BUILD_S_MAX)
        if status:
            raise EnvironmentFailed(f"image.apt_get: `{' '.join(argv)[:200]}` ended with {_status(status)}", output)


def _environment(image: ImageSpec, python: str, environments: Path, tools: _Tools) -> tuple[str, tuple[str, ...]]:
    """(interpreter of the environment with the packages, what to note)."""
    root = environments / key_of(image, python)
    found = root / "bin" / "python"
    if (root / COMPLETE).is_file() and found.exists():
        return str(found), ()
    environments.mkdir(parents=True, exist_ok=True)
    with open(environments / f"{root.name}.lock", "a") as lock:
        tools.wait_for(lock.fileno())
        if (root / COMPLETE).is_file() and found.exists():
            return str(found), ()
        shutil.rmtree(root, ignore_errors=True)
        began = time.monotonic()
        log = environments / f"{root.name}.{BUILD_LOG}"
        log.unlink(missing_ok=True)
        try:
            _build(image, python, root, log, tools)
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        files.write_atomic(root / COMPLETE, json.dumps({"pip_install": list(image.pip_install)}).encode())
        return str(found), (f"environment {root.name[:12]} built in {time.monotonic() - began:.1f} s",)


def _build(image: ImageSpec, python: str, root: Path, log: Path, tools: _Tools) -> None:
    uv = shutil.which("uv")
    env = dict(os.environ)
    if uv:
        steps = [
            [uv, "venv", "--python", python, str(root)],
            [uv, "pip", "install", "--python", str(root / "bin" / "python"), *image.pip_install],
        ]
    else:
        pip = [str(root / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        steps = [[python, "-m", "venv", str(root)], [*pip, *image.pip_install]]
    for number, argv in enumerate(steps):
        status, output = tools.run(argv, Path("/"), env, log, BUILD_S_MAX)
        if status:
            what = "making the virtual environment" if number == 0 else f"pip install {' '.join(image.pip_install)}"
            network = any(sign in output for sign in _NETWORK)
            raise EnvironmentFailed(f"{what[:300]} ended with {_status(status)}", output, user_fault=not network)
    packages = next(root.glob("lib/python*/site-packages"), None)
    if packages is None:
        raise EnvironmentFailed(f"{python} made no usable virtual environment", files.tail_of(log), user_fault=False)
    # Behind the installed packages: theirs win, ours fill in what the worker itself needs.
    (packages / "zz_nanopod.pth").write_text("\n".join(own_paths()) + "\n")


def _status(status: int) -> str:
    return f"exit status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"


class _Tools:
    """Runs commands that die with this process, and that `stop` ends."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def wait_for(self, fd: int) -> None:
        """Lock a file."""
        limit = time.monotonic() + LOCK_S_MAX
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() > limit:
                    text = f"another instance has been building the same environment for {LOCK_S_MAX:.0f} s"
                    raise EnvironmentFailed(text, user_fault=False) from None
            self._pause(0.1)

    def _pause(self, wait_s: float) -> None:
        if self._stop.wait(wait_s):
            raise EnvironmentFailed("given up: it is no longer wanted", user_fault=False)

    def run(
        self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], log: Path, wait_s_max: float
    ) -> tuple[int, str]:
        """(exit status, last lines of output) of a command; its output is added to `log`."""
        parent = os.getpid()

        def in_child() -> None:
            procs.die_with_parent()
            if os.getppid() != parent:
                os._exit(1)

        with open(log, "ab") as output:
            output.write(f"$ {' '.join(argv)}\n".encode())
            output.flush()
            start = output.tell()
            try:
                process = subprocess.Popen(
                    list(argv), cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True, preexec_fn=in_child,
                )  # fmt: skip
            except OSError as error:
                return 127, f"{argv[0]}: {error.strerror}"
        limit = time.monotonic() + wait_s_max
        try:
            while True:
                try:
                    status = process.wait(0.1)
                    break
                except subprocess.TimeoutExpired:
                    self._pause(0.001)
                    if time.monotonic() > limit:
                        return -signal.SIGKILL, f"it ran longer than {wait_s_max:.0f} s"
        finally:
            procs.kill_session(process.pid, wait_s_max=2.0)
            process.wait()
        with open(log, "rb") as written:
            written.seek(start)
            text = written.read()[-files.TAIL_BYTES :].decode(errors="replace")
        return status, "\n".join(text.splitlines()[-TAIL_LINES:])
