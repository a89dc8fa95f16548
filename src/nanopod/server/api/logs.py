"""What an instance printed, asked from the agent of its machine."""

from __future__ import annotations

import base64
from typing import Any, Final, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Instance, Key
from nanopod.model.errors import Conflict, Invalid
from nanopod.model.wire import LogLine, LogQuery
from nanopod.server.api.answers import answer
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.instances import WORKSPACE, instance_path, machine_of

LIMIT_MAX: Final = 2500
LIMIT_DEFAULT: Final = 100
ANSWER_S_MAX: Final = 10.0
SORTS: Final = ("seqnum", "-seqnum")


class LogAnswer(TypedDict):
    """One piece of output; `data` is base64, `stream` 1 (out) or 2 (err). The monotonic time is since boot."""

    object: str
    seqnum: int
    timestamp_realtime: float
    timestamp_monotonic_secs: int
    timestamp_monotonic_nanos: int
    stream: int
    data: str


def show(line: LogLine) -> LogAnswer:
    """One piece of output."""
    secs, nanos = divmod(line.monotonic_ns, 1_000_000_000)
    return {
        "object": "instance_log",
        "seqnum": line.seq,
        "timestamp_realtime": line.at,
        "timestamp_monotonic_secs": secs,
        "timestamp_monotonic_nanos": nanos,
        "stream": line.stream,
        "data": base64.b64encode(line.data).decode(),
    }


def _whole(request: Request, name: str, least: int, most: int) -> int | None:
    text = request.query_params.get(name)
    if not text:
        return None
    if not text.isdigit() or not least <= int(text) <= most:
        raise Invalid(f"{name}: {text!r} is not a whole number from {least} to {most}", field=name)
    return int(text)


def _time(request: Request, *names: str) -> float | None:
    for name in names:
        text = request.query_params.get(name)
        if text:
            try:
                return float(text)
            except ValueError:
                raise Invalid(f"{name}: {text!r} is not a time in Unix seconds", field=name) from None
    return None


async def get_logs(context: Context, request: Request, key: Key) -> Response:
    """Output by sequence number (`seqnum_after`, `seqnum_before`, inclusive) or by time, newest or oldest first."""
    limit = _whole(request, "limit", 1, LIMIT_MAX) or LIMIT_DEFAULT
    after, before = _whole(request, "seqnum_after", 0, 2**62), _whole(request, "seqnum_before", 0, 2**62)
    since = _time(request, "realtime_after", "realtime_timestamp_after", "since")
    until = _time(request, "realtime_before", "realtime_timestamp_before", "until")
    if (after is not None or before is not None) and (since is not None or until is not None):
        raise Invalid("seqnum_after: ask by sequence number or by time, not by both", field="seqnum_after")
    sort_by = request.query_params.get("sort_by") or "seqnum"
    if sort_by not in SORTS:
        raise Invalid(f"sort_by: {sort_by!r} is not one of {', '.join(SORTS)}", field="sort_by")

    def read(read: Any) -> tuple[Instance, str]:
        found = instance_path(read, key, request)
        return found, machine_of(read, found, ended=True)

    found, machine_id = await context.store.read(read)
    query = LogQuery(
        context.new_id("event"), found.instance_id, after, before, since, until, limit + 1, sort_by == "-seqnum"
    )
    page = await context.agents.ask(machine_id, query, ANSWER_S_MAX)
    if page.error:
        raise Conflict(f"the logs of {found.name or found.instance_id} are not there: {page.error}")
    lines = page.lines[:limit]
    return answer(
        {
            "object": "list",
            "data": [show(line) for line in lines],
            "has_more": len(page.lines) > limit,
            "cursor": None,
        }
    )


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/instances/{id}/logs", get_logs, "What an instance printed", scope="read",
        query=(
            WORKSPACE,
            Query("seqnum_after", "From this sequence number on.", "integer", least=0),
            Query("seqnum_before", "Up to this sequence number.", "integer", least=0),
            Query("realtime_after", "From this time on, Unix seconds.", "number"),
            Query("realtime_before", "Up to this time, Unix seconds.", "number"),
            Query("sort_by", "Oldest or newest first.", values=SORTS, default="seqnum"),
            Query("limit", "Pieces of output.", "integer", least=1, most=LIMIT_MAX, default=LIMIT_DEFAULT),
        ),
        answer=LogAnswer, listed=True, errors=(404, 409),
    ),
)  # fmt: skip
