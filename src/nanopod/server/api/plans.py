"""The price list by which a workspace's usage is rated."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.ledger import chart, recipes
from nanopod.ledger.plans import Plan
from nanopod.model.chain import Key
from nanopod.model.errors import Invalid
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.tenants import operator_only, workspace_path
from nanopod.server.billing.charging import available, must_post
from nanopod.server.billing.pricing import PlanAnswer, PlanWish, plan_of, show_plan, subsidy_limit
from nanopod.server.billing.rating import begin, settle
from nanopod.store.transaction import Transaction


def _show(read: Transaction, workspace_id: str) -> PlanAnswer:
    row = read.workspace_plan(workspace_id)
    plan = msgspec.json.decode(row[0], type=Plan) if row else None
    return show_plan(workspace_id, plan, row[1] if row else None)


async def get_plan(context: Context, request: Request, key: Key) -> Response:
    """The plan of a workspace; `plan` is null where usage costs nothing."""
    return answer(await context.store.read(lambda read: _show(read, workspace_path(read, key, request).workspace_id)))


async def put_plan(context: Context, request: Request, key: Key) -> Response:
    """Give a workspace a plan. What was used before is rated by what held then."""
    wish = await body_as(request, PlanWish)
    now = context.clock()
    await settle(context.store, context.clock)
    business = context.new_id("event")

    def write(write: Transaction) -> PlanAnswer:
        operator_only(write, key, "set a plan")
        found = workspace_path(write, key, request)
        names = {name: sku.sku_id for sku in write.skus() for name in (sku.alias, sku.sku_id)}
        for name in wish.by_instance_sku:
            if name not in names:
                raise Invalid(
                    f"by_instance_sku: there is no instance SKU {name!r} (there are: {', '.join(names) or 'none yet'})",
                    field="by_instance_sku",
                )
        plan = plan_of(wish, names)
        if plan.code == "subsidised":
            missing = subsidy_limit(wish) - available(write, chart.grant(found.workspace_id))
            if missing > 0:
                chain = recipes.issue_grant(business, found.workspace_id, missing)
                must_post(write, chain, int(now * 1_000_000))
        begin(write, now)
        write.put_plan(found.workspace_id, msgspec.json.encode(plan).decode(), now)
        return _show(write, found.workspace_id)

    return answer(await context.store.write(write))


async def delete_plan(context: Context, request: Request, key: Key) -> Response:
    """Usage of a workspace costs nothing from now on."""
    await settle(context.store, context.clock)

    def write(write: Transaction) -> PlanAnswer:
        operator_only(write, key, "take a plan away")
        found = workspace_path(write, key, request)
        write.drop_plan(found.workspace_id)
        return _show(write, found.workspace_id)

    return answer(await context.store.write(write))


_PATH: Final = "/v1/workspaces/{id}/plan"
OPERATIONS: Final = (
    Operation(
        "GET", _PATH, get_plan, "The price list of a workspace", scope="read", answer=PlanAnswer, errors=(404,)
    ),
    Operation(
        "PUT", _PATH, put_plan, "Set the price list of a workspace", body=PlanWish, answer=PlanAnswer,
        errors=(403, 404),
    ),
    Operation("DELETE", _PATH, delete_plan, "Charge nothing for usage", answer=PlanAnswer, errors=(403, 404)),
)  # fmt: skip
