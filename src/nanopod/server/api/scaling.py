"""Settings of the scaling alone: what is sent is changed, everything else stays, and no worker is replaced."""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.update import check_scale
from nanopod.control.views import endpoint_view
from nanopod.model.chain import Key
from nanopod.model.endpoint import ScaleSpec
from nanopod.model.errors import Invalid
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import parse, read_body
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.endpoint_answers import EndpointAnswer
from nanopod.server.api.endpoint_changes import announce, moment, reprice
from nanopod.server.api.endpoints import Whole, find_endpoint, whole_endpoint
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)


async def change_scaling(context: Context, request: Request, key: Key) -> Response:
    """Change settings of an endpoint's scaling. They hold until the endpoint is deployed with others."""
    body = await read_body(request)
    parse(body, ScaleSpec)  # names unknown fields and wrong types by their path
    sent: dict[str, Any] = msgspec.json.decode(body)
    if not sent:
        raise Invalid("the body: name at least one setting, such as min_load or profile")
    reference, now = request.path_params["id"], moment(context)

    def write(write: Transaction) -> Whole:
        found = find_endpoint(write, key, reference)
        scale = merged(found.scale, sent)
        check_scale(scale)
        if scale != found.scale:
            write.set_endpoint(found, scale=scale, updated_at=now.at)
            if scale.max_price != found.scale.max_price:
                reprice(context, write, found, now)
            announce(write, found.endpoint_id, f"settings: {', '.join(sorted(sent))} by request", now)
        again = write.endpoint(found.endpoint_id)
        assert again is not None
        return whole_endpoint(write, again)

    whole = await context.store.write(write)
    await context.tables.settle()
    log.info("endpoint=%s action=scaling key=%s", whole[0].full_name, key.key_id)
    return answer(endpoint_view(*whole, context.live))


def merged(before: ScaleSpec, sent: dict[str, Any]) -> ScaleSpec:
    """`before` with what was sent; of `tuning` what it names, null taking a parameter back."""
    plain: dict[str, Any] = msgspec.to_builtins(before)
    tuning = {**plain["tuning"], **(sent.get("tuning") or {})}
    return msgspec.convert({**plain, **sent, "tuning": tuning}, ScaleSpec)


OPERATIONS: Final = (
    Operation(
        "PATCH", "/v1/endpoints/{id}/scale", change_scaling, "Change settings of the scaling", body=ScaleSpec,
        answer=EndpointAnswer, text="What is left out stays as it is. No worker is replaced.",
    ),
)  # fmt: skip
