"""`nanopod contracts list|get`: what was bought and sold, at which rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nanopod.client import prices
from nanopod.client.cli import ordering, orders
from nanopod.client.cli.nouns import Noun, commands, field_of, moment_of, name_of, named
from nanopod.client.cli.ordering import PRICE
from nanopod.client.cli.parser import option
from nanopod.client.cli.session import Session


def _money(name: str) -> Any:
    return lambda _session, row: None if row.get(name) is None else prices.money_text(row[name])


def _capacity(_session: Session, row: Mapping[str, Any]) -> Any:
    return named(row.get("capacity") or row.get("buyer_capacity") or row.get("seller_capacity"))


def _side(_session: Session, row: Mapping[str, Any]) -> Any:
    return row.get("side") or ("buy" if row.get("buyer_capacity") else "sell")


NOUN: Final = Noun(
    "contract", "contracts", "/v1/contracts",
    columns=[
        ("CONTRACT ID", field_of("id")), ("SIDE", _side), ("STATUS", field_of("status")), ("CAPACITY", _capacity),
        ("NODES", lambda _s, row: orders.nodes(row)), ("PERIOD", orders.period),
        ("RATE", field_of(f"price_{PRICE}")), ("AMOUNT", _money("amount")),
    ],
    wide=[
        ("FEE", _money("fee")), ("INSTANCE SKU", name_of("instance_sku")), ("FILLED", moment_of("filled_at")),
        ("ORDER", name_of("order")),
    ],
    empty="no contracts; orders that fill make them",
)  # fmt: skip


def _query(session: Session) -> Mapping[str, Any]:
    args = session.args
    found = {name: getattr(args, name) for name in ("capacity", "instance_sku", "status", "side", "order")}
    return {name: value for name, value in found.items() if value}


configure, run = commands(
    NOUN.list_verb(
        option("--capacity", "--pool", metavar="C", completes=ordering.CAPACITIES),
        option("--instance-sku", metavar="SKU", completes=ordering.SKUS),
        option("--status", choices=("upcoming", "active", "expired")),
        option("--side", choices=("buy", "sell")),
        option("--order", metavar="ORDER", help="the fills of one order"),
        query=_query, examples=("nanopod contracts list --status active",),
    ),
    NOUN.get_verb(examples=("nanopod contracts get cont_...",)),
)  # fmt: skip
