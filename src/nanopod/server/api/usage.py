"""Usage: what was served, summed up or record by record."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.model.errors import Invalid
from nanopod.model.wire import MeterRecord
from nanopod.server.api.answers import after_of, answer, limit_of, number_of, page
from nanopod.server.api.context import Context, Operation
from nanopod.store.transaction import Transaction


async def get_usage(context: Context, request: Request, key: Key) -> Response:
    """Sums by `group_by` (endpoint, key, day, kind; several with commas) over [start, end)."""
    start, end = number_of(request, "start"), number_of(request, "end")
    group_by = [name.strip() for name in request.query_params.get("group_by", "endpoint").split(",") if name.strip()]

    def read(read: Transaction) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, str], dict[str, str]]:
        rows, total = read.usage(key.workspace_id, start, end, group_by)
        names = {e.endpoint_id: e.full_name for e in read.endpoints(key.workspace_id, deleted=True)}
        keys = {k.key_id: k.name for k in read.api_keys(key.workspace_id)}
        return rows, total, names, keys

    rows, total, endpoints, keys = await context.store.read(read)
    for row in rows:
        if "endpoint" in row:
            row["endpoint_name"] = endpoints.get(row["endpoint"])
        if "key" in row:
            row["key_name"] = keys.get(row["key"])
    return answer({"object": "usage", "group_by": group_by, "start": start, "end": end, "data": rows, "total": total})


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
    found = await context.store.read(lambda read: read.usage_records(key.workspace_id, limit + 1, before))
    data = [show(seq, record) for seq, record in found[:limit]]
    more = len(found) > limit
    return page(data, has_more=more, cursor=data[-1]["id"] if more else None)


OPERATIONS: Final = (
    Operation("GET", "/v1/usage", get_usage, "Sum up usage", scope="read", query=("start", "end", "group_by")),
    Operation(
        "GET", "/v1/usage/records", list_records, "List usage records", scope="read", query=("limit", "starting_after")
    ),
)
