"""The revisions of an endpoint: look at them, go back to one, give a canary all calls."""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.views import endpoint_view, revision_view
from nanopod.model.chain import Key
from nanopod.server.api.answers import answer, whole_list
from nanopod.server.api.bodies import parse, read_body
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.endpoint_answers import EndpointAnswer, RevisionAnswer, RollbackBody
from nanopod.server.api.endpoint_changes import moment, promote, roll_back
from nanopod.server.api.endpoints import Whole, find_endpoint, whole_endpoint
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)


class _Rollback(msgspec.Struct, frozen=True):
    revision: int | str | None = None


async def list_revisions(context: Context, request: Request, key: Key) -> Response:
    """The revisions of an endpoint, newest first; the last 20 are kept."""
    reference = request.path_params["id"]

    def read(read: Transaction) -> list[dict[str, Any]]:
        endpoint, deployment, _, _ = whole_endpoint(read, find_endpoint(read, key, reference))
        known = read.revisions_of(endpoint.endpoint_id)
        return [revision_view(endpoint, deployment, one) for one in reversed(known)]

    return whole_list(request, await context.store.read(read), lambda one: one)


async def post_rollback(context: Context, request: Request, key: Key) -> Response:
    """Go back to an earlier revision, by default the previous healthy one: its workers replace the others, rolling."""
    body = await read_body(request)
    asked = parse(body, _Rollback) if body else _Rollback()
    wanted = "" if asked.revision is None else str(asked.revision)
    reference, now = request.path_params["id"], moment(context)

    def write(write: Transaction) -> Whole:
        found = find_endpoint(write, key, reference)
        return whole_endpoint(write, roll_back(context, write, found, wanted, now))

    return await _changed(context, await context.store.write(write), "rollback", key)


async def post_promote(context: Context, request: Request, key: Key) -> Response:
    """Give the canary all calls now."""
    reference, now = request.path_params["id"], moment(context)

    def write(write: Transaction) -> Whole:
        return whole_endpoint(write, promote(context, write, find_endpoint(write, key, reference), now))

    return await _changed(context, await context.store.write(write), "promote", key)


async def _changed(context: Context, whole: Whole, action: str, key: Key) -> Response:
    await context.tables.settle()
    log.info("endpoint=%s action=%s key=%s", whole[0].full_name, action, key.key_id)
    return answer(endpoint_view(*whole, context.live))


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/endpoints/{id}/revisions", list_revisions, "The revisions of an endpoint", scope="read",
        query=("limit", "starting_after"), answer=RevisionAnswer, listed=True,
    ),
    Operation(
        "POST", "/v1/endpoints/{id}/rollback", post_rollback, "Go back to an earlier revision", body=RollbackBody,
        answer=EndpointAnswer, errors=(404, 409),
    ),
    Operation(
        "POST", "/v1/endpoints/{id}/promote", post_promote, "Give the canary all calls", answer=EndpointAnswer,
        errors=(404, 409),
    ),
)  # fmt: skip
