"""Commands inside instances: start one, read what it prints by long polling, write to it, end it."""

from __future__ import annotations

import base64
import binascii
import signal
from typing import Any, Final, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Instance, Key
from nanopod.model.errors import Conflict, Invalid, NotFound
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.instances import WORKSPACE, instance_path, machine_of
from nanopod.server.api.tenants import is_operator
from nanopod.server.execs import ExecSession

WAIT_S_MAX: Final = 30.0


class ExecWish(msgspec.Struct, frozen=True):
    """A command to run: words, as `execve` takes them (no shell). With `tty` it gets a terminal."""

    command: list[str]
    tty: bool = False
    rows: int = 24
    cols: int = 80
    env: dict[str, str] = {}
    cwd: str = ""
    timeout_s: float = 3600.0


class ExecInputWish(msgspec.Struct, frozen=True):
    """Input for a command: base64 `data`; `eof` ends it; `rows` and `cols` resize; `signal` is a name or number."""

    data: str = ""
    eof: bool = False
    rows: int | None = None
    cols: int | None = None
    signal: str | int | None = None


class ExecAnswer(TypedDict):
    """A command inside an instance: `running`, `exited`, or `failed` when it could not be started or was lost."""

    id: str
    object: str
    instance_id: str
    command: list[str]
    tty: bool
    status: str
    exit_code: int | None
    error: str | None
    created_at: int
    ended_at: int | None


class ExecChunk(TypedDict):
    """A piece of output; `data` is base64, `stream` 1 (out) or 2 (err)."""

    offset: int
    stream: int
    data: str


class ExecOutputAnswer(TypedDict):
    """Output from an offset on. `truncated`: some before it was dropped. The status changes with the last output."""

    id: str
    object: str
    chunks: list[ExecChunk]
    next_offset: int
    truncated: bool
    status: str
    exit_code: int | None
    error: str | None


def show(session: ExecSession) -> ExecAnswer:
    """A session as the API shows it."""
    return {
        "id": session.exec_id,
        "object": "exec",
        "instance_id": session.instance_id,
        "command": list(session.command),
        "tty": session.tty,
        "status": session.status,
        "exit_code": session.exit_code,
        "error": session.error or None,
        "created_at": int(session.created_at),
        "ended_at": int(session.ended_at) if session.ended_at is not None else None,
    }


async def start_exec(context: Context, request: Request, key: Key) -> Response:
    """Run a command inside a running instance."""
    wish = await body_as(request, ExecWish)

    def read(read: Any) -> tuple[Instance, str]:
        found = instance_path(read, key, request)
        return found, machine_of(read, found)

    found, machine_id = await context.store.read(read)
    session = context.agents.execs.start(
        machine_id, found.workspace_id, found.instance_id, wish.command,
        env=wish.env, cwd=wish.cwd, tty=wish.tty, rows=wish.rows, cols=wish.cols, timeout_s=wish.timeout_s,
    )  # fmt: skip
    return answer(show(session), 201)


async def _session(context: Context, request: Request, key: Key) -> ExecSession:
    """The session in the path. Raises `NotFound`, also for one of another workspace."""
    exec_id = request.path_params["id"]
    session = context.agents.execs.get(exec_id)
    if session.workspace_id != key.workspace_id and not await context.store.read(lambda read: is_operator(read, key)):
        raise NotFound(f"there is no exec session {exec_id} in this workspace")
    return session


async def get_exec(context: Context, request: Request, key: Key) -> Response:
    """A session without its output."""
    return answer(show(await _session(context, request, key)))


def _number(request: Request, name: str, default: float, most: float) -> float:
    text = request.query_params.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise Invalid(f"{name}: {text!r} is not a number from 0 to {most:g}", field=name)
    return value


async def read_output(context: Context, request: Request, key: Key) -> Response:
    """Output from `offset` on; waits up to `wait_s` (30 at most) for some, or for the end."""
    session = await _session(context, request, key)
    offset = int(_number(request, "offset", 0, 2**53))
    wait_s = _number(request, "wait_s", 0.0, WAIT_S_MAX)
    page = await context.agents.execs.read(session.exec_id, offset, wait_s)
    shown: ExecOutputAnswer = {
        "id": session.exec_id,
        "object": "exec_output",
        "chunks": [
            {"offset": c.offset, "stream": c.stream, "data": base64.b64encode(c.data).decode()} for c in page.chunks
        ],
        "next_offset": page.next_offset,
        "truncated": page.truncated,
        "status": page.status,
        "exit_code": page.exit_code,
        "error": page.error or None,
    }
    return answer(shown)


def _signal(wanted: str | int | None) -> int | None:
    """A signal by number or name (`INT`, `SIGINT`). Raises `Invalid`."""
    if wanted is None or isinstance(wanted, int):
        return wanted
    if wanted.isdigit():
        return int(wanted)
    name = wanted.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name not in signal.Signals.__members__:
        raise Invalid(f"signal: {wanted!r} is not a signal such as INT, TERM or 9", field="signal")
    return int(signal.Signals[name])


async def write_input(context: Context, request: Request, key: Key) -> Response:
    """Give a command input, the end of it, a new terminal size or a signal."""
    wish = await body_as(request, ExecInputWish)
    session = await _session(context, request, key)
    try:
        data = base64.b64decode(wish.data, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid("data: this is not base64", field="data") from None
    if (wish.rows is None) != (wish.cols is None):
        missing = "rows" if wish.rows is None else "cols"
        raise Invalid(f"{missing}: a terminal's size is rows and cols; give both", field=missing)
    resize = (wish.rows, wish.cols) if wish.rows is not None and wish.cols is not None else None
    context.agents.execs.input(session.exec_id, data, eof=wish.eof, resize=resize, signal=_signal(wish.signal))
    return answer(show(session))


async def kill_exec(context: Context, request: Request, key: Key) -> Response:
    """Kill a command and everything it started."""
    session = await _session(context, request, key)
    if session.ended:
        raise Conflict(f"{session.exec_id} is over already (status {session.status})")
    context.agents.execs.kill(session.exec_id)
    return answer(show(session))


async def list_execs(context: Context, request: Request, key: Key) -> Response:
    """The sessions of an instance that this server knows."""
    found = await context.store.read(lambda read: instance_path(read, key, request))
    data = [show(session) for session in context.agents.execs.of_instance(found.instance_id)]
    return answer({"object": "list", "data": data, "has_more": False, "cursor": None})


OPERATIONS: Final = (
    Operation(
        "POST", "/v1/instances/{id}/exec", start_exec, "Run a command inside an instance", body=ExecWish,
        query=(WORKSPACE,), answer=ExecAnswer, status=201, errors=(404, 409, 429),
    ),
    Operation(
        "GET", "/v1/instances/{id}/exec", list_execs, "List the exec sessions of an instance", query=(WORKSPACE,),
        answer=ExecAnswer, listed=True, errors=(404,),
    ),
    Operation("GET", "/v1/execs/{id}", get_exec, "One exec session", answer=ExecAnswer, errors=(404,)),
    Operation(
        "GET", "/v1/execs/{id}/output", read_output, "Read what a command printed",
        query=(
            Query("offset", "Where to go on: the last answer's `next_offset`.", "integer", least=0, default=0),
            Query("wait_s", "How long to wait for output or the end.", "number", least=0, most=30, default=0),
        ),
        answer=ExecOutputAnswer, errors=(404,),
    ),
    Operation(
        "POST", "/v1/execs/{id}/input", write_input, "Write to a command", body=ExecInputWish, answer=ExecAnswer,
        errors=(404, 409),
    ),
    Operation("DELETE", "/v1/execs/{id}", kill_exec, "Kill a command", answer=ExecAnswer, errors=(404, 409)),
)  # fmt: skip
