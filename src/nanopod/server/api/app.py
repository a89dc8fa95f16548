"""The ASGI application: every operation of every noun, behind authentication and the one error mapping."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from nanopod.server.api import (
    balances,
    blobs,
    calls,
    capacities,
    clock,
    contracts,
    deployments,
    dicts,
    endpoints,
    events,
    execs,
    faults,
    flags,
    images,
    instance_changes,
    instances,
    invoices,
    keys,
    logs,
    manifests,
    metrics,
    nodes,
    offers,
    openapi,
    orderbook,
    orders,
    plans,
    preview,
    procurements,
    providers,
    queues,
    revisions,
    scaling,
    schedules,
    secrets,
    settings,
    simulate,
    skus,
    spills,
    status,
    templates,
    traffic,
    transactions,
    transfers,
    usage,
    volume_contents,
    volumes,
    webhooks,
    workspaces,
)
from nanopod.server.api.auth import authenticate
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.draining import Drained
from nanopod.server.api.errors import error_answer, on_http_exception
from nanopod.server.calls import sharing

log = logging.getLogger(__name__)

OPERATIONS: Final[tuple[Operation, ...]] = (
    *endpoints.OPERATIONS,
    *revisions.OPERATIONS,
    *traffic.OPERATIONS,
    *scaling.OPERATIONS,
    *simulate.OPERATIONS,
    *deployments.OPERATIONS,
    *instances.OPERATIONS,
    *instance_changes.OPERATIONS,
    *logs.OPERATIONS,
    *manifests.OPERATIONS,
    *metrics.OPERATIONS,
    *execs.OPERATIONS,
    *templates.OPERATIONS,
    *images.OPERATIONS,
    *nodes.OPERATIONS,
    *capacities.OPERATIONS,
    *keys.OPERATIONS,
    *workspaces.OPERATIONS,
    *balances.OPERATIONS,
    *transactions.OPERATIONS,
    *plans.OPERATIONS,
    *invoices.OPERATIONS,
    *usage.OPERATIONS,
    *calls.OPERATIONS,
    *faults.OPERATIONS,
    *schedules.OPERATIONS,
    *blobs.OPERATIONS,
    *spills.OPERATIONS,
    *status.OPERATIONS,
    *clock.OPERATIONS,
    *contracts.OPERATIONS,
    *events.OPERATIONS,
    *flags.OPERATIONS,
    *offers.OPERATIONS,
    *orderbook.OPERATIONS,
    *orders.OPERATIONS,
    *preview.OPERATIONS,
    *procurements.OPERATIONS,
    *providers.OPERATIONS,
    *settings.OPERATIONS,
    *skus.OPERATIONS,
    *transfers.OPERATIONS,
    *webhooks.OPERATIONS,
    *secrets.OPERATIONS,
    *volumes.OPERATIONS,
    *volume_contents.OPERATIONS,
    *dicts.OPERATIONS,
    *queues.OPERATIONS,
)


def make_app(context: Context, extra: Sequence[Route] = ()) -> Starlette:
    """The application on a context; `extra` are routes beside those of `/v1`."""
    routes = [
        Route(operation.path, _guarded(context, operation), methods=[operation.method]) for operation in OPERATIONS
    ]
    routes.append(Route("/openapi.json", openapi.make_handler(OPERATIONS), methods=["GET"]))
    return Starlette(
        routes=_in_order([*routes, *extra]),
        exception_handlers={HTTPException: on_http_exception},
        middleware=[Middleware(Drained)],
    )


def _in_order(routes: list[Route]) -> list[Route]:
    """Fixed paths before those with a variable, so that a name never hides a path."""
    return sorted(routes, key=lambda route: route.path.count("{"))


def _guarded(context: Context, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    """The handler with authentication in front and errors behind."""

    @functools.wraps(operation.handler)
    async def handle(request: Request) -> Response:
        try:
            who = sharing.visitor(context, request) if operation.shared else None
            key = await (who or authenticate(context, request, operation.scope))
            return await operation.handler(context, request, key)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            answer = error_answer(error)
            if answer.status_code >= 500:
                log.warning("api=%s path=%s status=%d", operation.method, request.url.path, answer.status_code)
            return answer

    return handle
