"""`nanopod buy` and `nanopod sell`: an order in one word; without a limit the market's price is shown first."""

from __future__ import annotations

import argparse

from nanopod.client.cli import ordering, orders
from nanopod.client.cli.parser import Verb, fill, option
from nanopod.client.cli.session import Session

QUOTE = option("--quote", action="store_true", help="only show what it would cost or bring")
SHARED = (ordering.CAPACITY, *ordering.SIZE, *orders.FLAGS, ordering.SKU, orders.REQUIRE, QUOTE)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of both; which one it is stands in the parser's name."""
    buying = parser.prog.endswith("buy")
    limits = (orders.MAX_RATE, orders.MAX_PRICE) if buying else (orders.MIN_RATE,)
    examples = (
        ("nanopod buy --count 32 --duration 3d", "nanopod buy --count 4 --duration 1d --max-rate 20.00")
        if buying
        else ("nanopod sell --count 4 --min-rate 1.50", "nanopod sell --count 4 --duration 1d --quote")
    )
    side = "buy" if buying else "sell"

    def trade(session: Session) -> int:
        session.args.require = orders.requirements_of(session.args.require)
        return ordering.trade(session, side)

    fill(parser, Verb(side, side, trade, (*SHARED, *limits), examples, waits=True))


def run(args: argparse.Namespace) -> int:
    """Buy or sell."""
    return int(args.handler(Session(args)))
