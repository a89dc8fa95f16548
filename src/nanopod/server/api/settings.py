"""Settings of the market: fees per kind of node, the default chain's highest bid, notices of maintenance."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final, Literal, TypedDict

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.market.drafts import FEES_SETTING, SPOT_MAX_BUY, SPOT_SETTING
from nanopod.control.market.market import fees_of
from nanopod.market.terms import BPS, parse_rate
from nanopod.model.chain import Key
from nanopod.model.errors import Invalid
from nanopod.model.money import Rate
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.fields import Price
from nanopod.server.api.references import find_sku
from nanopod.server.api.showing import price
from nanopod.server.api.tenants import operator_only
from nanopod.store.transaction import Transaction

NOTICES: Final = "market_notices"
NOTICES_MAX: Final = 20

MaintenanceType = Literal["info", "degraded_performance", "marketplace_unavailable"]


class Fee(msgspec.Struct, frozen=True):
    """What a seller pays per contract of a kind of node: a flat price per node-hour, and hundredths of a percent."""

    flat_dollars_per_node_hour: Price = "0.0"
    percentage_bps: Annotated[int, msgspec.Meta(ge=0, le=BPS)] = 0


class Maintenance(msgspec.Struct, frozen=True):
    """A maintenance window that previews tell of."""

    start_at: int
    end_at: int
    title: str
    maintenance_type: MaintenanceType = "info"
    description: str = ""
    action_message: str = ""


class Notice(TypedDict):
    """A maintenance window that is not over."""

    start_at: int
    end_at: int
    maintenance_type: Literal["info", "degraded_performance", "marketplace_unavailable"]
    title: str
    description: str
    action_message: str


class SettingsChange(msgspec.Struct, frozen=True):
    """What to change; fields left out stay. `fees` maps kinds of nodes (id or alias) to fees, others stay."""

    fees: dict[str, Fee] | UnsetType = UNSET
    spot_max_buy_price_dollars_per_node_hour: Price | UnsetType = UNSET
    notices: list[Maintenance] | UnsetType = UNSET


class FeeShown(TypedDict):
    """A fee as it is in force."""

    flat_dollars_per_node_hour: str
    percentage_bps: int


class SettingsAnswer(TypedDict):
    """The market's settings; `fees` by id of the kind of node, kinds without one pay nothing."""

    object: Literal["market_settings"]
    block_s: int
    fees: dict[str, FeeShown]
    spot_max_buy_price_dollars_per_node_hour: str
    notices: list[Notice]


_notices: Final = msgspec.json.Decoder(list[Maintenance]).decode


def notices_of(read: Transaction, now: float) -> list[Notice]:
    """Maintenance windows that are not over."""
    text = read.setting(NOTICES)
    return [
        {
            "start_at": found.start_at,
            "end_at": found.end_at,
            "maintenance_type": found.maintenance_type,
            "title": found.title,
            "description": found.description,
            "action_message": found.action_message,
        }
        for found in (_notices(text) if text else [])
        if found.end_at > now
    ]


def _show(read: Transaction, context: Context, now: float) -> SettingsAnswer:
    block_s = context.block_s
    spot = parse_rate(read.setting(SPOT_SETTING) or SPOT_MAX_BUY, "buy", block_s=block_s)
    return {
        "object": "market_settings",
        "block_s": block_s,
        "fees": {
            sku_id: {
                "flat_dollars_per_node_hour": price(Rate(fee.flat), block_s),
                "percentage_bps": fee.bps,
            }
            for sku_id, fee in sorted(fees_of(read.setting(FEES_SETTING)).items())
        },
        "spot_max_buy_price_dollars_per_node_hour": price(spot, block_s),
        "notices": notices_of(read, now),
    }


async def get_settings(context: Context, _request: Request, _key: Key) -> Response:
    """The market's settings."""
    now = context.clock()
    return answer(await context.store.read(lambda read: _show(read, context, now)))


def _check_notices(found: list[Maintenance]) -> None:
    if len(found) > NOTICES_MAX:
        raise Invalid(f"notices: {len(found)} of them; at most {NOTICES_MAX}", field="notices")
    for index, notice in enumerate(found):
        if notice.end_at <= notice.start_at:
            field = f"notices[{index}].end_at"
            raise Invalid(f"{field}: {notice.end_at} must be after start_at {notice.start_at}", field=field)


async def change_settings(context: Context, request: Request, key: Key) -> Response:
    """Change the market's settings. Fees hold for fills from now on."""
    change = await body_as(request, SettingsChange)
    now, block_s = context.clock(), context.block_s
    if change.notices is not UNSET:
        _check_notices(change.notices)
    spot = change.spot_max_buy_price_dollars_per_node_hour
    most = context.desk.settings.spot_max_buy
    if spot is not UNSET:
        most = parse_rate(spot, "buy", block_s=block_s, field="spot_max_buy_price_dollars_per_node_hour")

    def write(write: Transaction) -> SettingsAnswer:
        operator_only(write, key, "change the market's settings")
        if change.fees is not UNSET:
            _set_fees(context, write, change.fees, now)
        if spot is not UNSET:
            write.put_setting(SPOT_SETTING, spot)
            context.desk.settings = dataclasses.replace(context.desk.settings, spot_max_buy=most)
        if change.notices is not UNSET:
            write.put_setting(NOTICES, msgspec.json.encode(change.notices).decode())
        return _show(write, context, now)

    return answer(await context.store.write(write))


def _set_fees(context: Context, write: Transaction, wanted: dict[str, Fee], now: float) -> None:
    found = []
    for reference, fee in wanted.items():
        field = f"fees.{reference}"
        sku = find_sku(write, reference, field)
        name = f"{field}.flat_dollars_per_node_hour"
        flat = parse_rate(fee.flat_dollars_per_node_hour, "sell", block_s=context.block_s, field=name)
        found.append((sku.sku_id, flat.micro_per_block, fee.percentage_bps))
    with context.desk.session(write, now) as market:
        for sku_id, micro, bps in found:
            market.configure(sku_id, micro, bps)


OPERATIONS: Final = (
    Operation(
        "GET", "/v1/market_settings", get_settings, "The market's settings", scope="read", answer=SettingsAnswer,
    ),
    Operation(
        "PATCH", "/v1/market_settings", change_settings, "Change the market's settings", body=SettingsChange,
        answer=SettingsAnswer, errors=(404,),
    ),
)  # fmt: skip
