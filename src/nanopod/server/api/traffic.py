"""How the calls of an endpoint are divided among its revisions: look at it, state it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control import rollouts
from nanopod.control.checking import check_traffic
from nanopod.model.chain import Endpoint, Key, Revision
from nanopod.model.endpoint import Traffic
from nanopod.model.errors import Conflict
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.endpoint_answers import TrafficAnswer
from nanopod.server.api.endpoint_changes import moment, state_traffic
from nanopod.server.api.endpoints import find_endpoint
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)


class TrafficRow(msgspec.Struct, frozen=True):
    """A row of the body. `revision`: its name, number, id or version label; "" or "latest": the newest one."""

    revision: int | str = ""
    percent: int = 0
    tag: str = ""


class TrafficBody(msgspec.Struct, frozen=True):
    """Shares of the calls by revision; none: the newest revision has all, by the endpoint's rollout."""

    traffic: tuple[TrafficRow, ...] = ()


def traffic_view(
    endpoint: Endpoint, known: Sequence[Revision], shares: Sequence[Traffic], serving: str
) -> dict[str, Any]:  # fmt: skip
    """What is stated, and what holds now, with the names of revisions."""
    numbers = {one.revision_id: one.number for one in known}

    def row(one: Traffic) -> dict[str, Any]:
        number = numbers.get(one.revision)
        return {
            "revision_id": one.revision or None,
            "revision": rollouts.name_of(endpoint, number) if number is not None else None,
            "latest": not one.revision or one.revision == endpoint.revision_id,
            "percent": one.percent,
            "tag": one.tag or None,
        }

    return {
        "id": endpoint.endpoint_id,
        "object": "traffic",
        "name": endpoint.name,
        "tag": endpoint.tag,
        "stated": [row(one) for one in endpoint.traffic],
        "traffic": [row(one) for one in shares or (Traffic(serving, 100),)],
    }


async def get_traffic(context: Context, request: Request, key: Key) -> Response:
    """How calls are divided now, and what was stated."""
    reference = request.path_params["id"]
    return answer(await context.store.read(lambda read: _shown(context, read, find_endpoint(read, key, reference))))


async def put_traffic(context: Context, request: Request, key: Key) -> Response:
    """State how calls are divided. They move to a revision once it is ready; an empty list takes the statement back."""
    body = await body_as(request, TrafficBody)
    rows = tuple(Traffic(str(one.revision), one.percent, one.tag) for one in body.traffic)
    check_traffic(rows)
    reference, now = request.path_params["id"], moment(context)

    def write(write: Transaction) -> dict[str, Any]:
        found = find_endpoint(write, key, reference)
        if found.kind == "graph":
            raise Conflict(f"{found.full_name} is a graph: its steps divide the calls", field="traffic")
        known = write.revisions_of(found.endpoint_id)
        made = state_traffic(context, write, found, rollouts.with_ids(found, known, rows), now)
        log.info("endpoint=%s action=traffic rows=%d key=%s", found.full_name, len(rows), key.key_id)
        return _shown(context, write, made)

    shown = await context.store.write(write)
    await context.tables.settle()
    return answer(shown)


def _shown(context: Context, read: Transaction, endpoint: Endpoint) -> dict[str, Any]:
    deployment = read.deployment_of(endpoint.endpoint_id)
    assert deployment is not None, "written together with the endpoint"
    known = read.revisions_of(endpoint.endpoint_id)
    ready: dict[str, int] = {}
    for one in read.instances_of(endpoint.endpoint_id):
        if one.intent == "run" and context.live.ready(one.instance_id, one.epoch):
            ready[one.revision_id] = ready.get(one.revision_id, 0) + 1
    shares = rollouts.shares_of(endpoint, known, ready, deployment.target_instance_count)
    rows = rollouts.traffic_of(endpoint, deployment.revision_id, shares)
    return traffic_view(endpoint, known, rows, deployment.revision_id)


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/endpoints/{id}/traffic", get_traffic, "How calls are divided among revisions", scope="read",
        answer=TrafficAnswer,
    ),
    Operation(
        "PUT", "/v1/endpoints/{id}/traffic", put_traffic, "Divide calls among revisions", body=TrafficBody,
        answer=TrafficAnswer, errors=(404, 409),
    ),
)  # fmt: skip
