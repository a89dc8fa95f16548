"""Usage: what was served, summed up or record by record."""

from __future__ import annotations

from typing import Any, Final, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.model.errors import Invalid
from nanopod.model.wire import MeterRecord
from nanopod.server.api.answers import after_of, answer, limit_of, number_of, page
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.tenants import workspace_of
from nanopod.store.transaction import Transaction


async def get_usage(context: Context, request: Request, key: Key) -> Response:
    """Sums by `group_by` (endpoint, key, day, kind; several with commas) over [start, end)."""
    start, end = number_of(request, "start"), number_of(request, "end")
    group_by = [name.strip() for name in request.query_params.get("group_by", "endpoint").split(",") if name.strip()]

    def read(read: Transaction) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, str], dict[str, str]]:
        workspace_id = workspace_of(read, key, request.query_params.get("workspace")).workspace_id
        rows, total = read.usage(workspace_id, start, end, group_by)
        names = {e.endpoint_id: e.full_name for e in read.endpoints(workspace_id, deleted=True)}
        keys = {k.key_id: k.name for k in read.api_keys(workspace_id)}
        return rows, total, names, keys

    rows, total, endpoints, keys = await context.store.read(read)
    for row in rows:
        if "endpoint" in row:
            row["endpoint_name"] = endpoints.get(row["endpoint"])
        if "key" in row:
            row["key_name"] = keys.get(row["key"])
    return answer({"object": "usage", "group_by": group_by, "start": start, "end": end, "data": rows, "total": total})


class UsageAnswer(TypedDict):
    """Sums of usage, one row per group; the columns of `group_by` and their names are in the rows."""

    object: str
    group_by: list[str]
    start: float | None
    end: float | None
    data: list[dict[str, Any]]
    total: dict[str, int]


class RecordAnswer(TypedDict):
    """One metered request."""

    id: str
    object: str
    record_id: str
    request_id: str
    workspace_id: str
    key_id: str
    endpoint_id: str
    revision_id: str
    instance_id: str
    kind: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    compute_us: int
    t_arrival: float
    t_first: float
    t_end: float
    moves: int
    function: str


def show(seq: int, record: MeterRecord) -> dict[str, Any]:
    """A record as the API shows it; its id is also the cursor."""
    shown = {name: getattr(record, name) for name in record.__struct_fields__}
    return {"id": f"use_{seq}", "object": "usage_record", **shown}


async def list_records(context: Context, request: Request, key: Key) -> Response:
    """Records, newest first."""
    limit, after = limit_of(request), after_of(request)
    before: int | None = None
    if after is not None:
        number = after.removeprefix("use_")
        if not number.isdigit():
            raise Invalid(f"starting_after: {after!r} is not a cursor of this list", field="starting_after")
        before = int(number)

    def read(read: Transaction) -> list[tuple[int, MeterRecord]]:
        found = workspace_of(read, key, request.query_params.get("workspace"))
        return read.usage_records(found.workspace_id, limit + 1, before)

    found = await context.store.read(read)
    data = [show(seq, record) for seq, record in found[:limit]]
    more = len(found) > limit
    return page(data, has_more=more, cursor=data[-1]["id"] if more else None)


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/usage", get_usage, "Sum up usage", scope="read",
        query=(
            Query("start", "From this time on, Unix seconds.", "number"),
            Query("end", "Before this time, Unix seconds.", "number"),
            Query("group_by", "One or several, with commas.", pattern=r"^(endpoint|key|day|kind)(,\w+)*$"), "workspace",
        ),
        answer=UsageAnswer,
    ),
    Operation(
        "GET", "/v1/usage/records", list_records, "List usage records", scope="read",
        query=("limit", "starting_after", "workspace"), answer=RecordAnswer, listed=True,
    ),
)  # fmt: skip
