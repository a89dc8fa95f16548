"""What typed prices become, and that every rounding is said."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.client import prices
from nanopod.model.errors import Invalid
from nanopod.model.money import Money


def test_a_price_is_rounded_to_the_nearest_step_and_says_so() -> None:
    limit = prices.limit_of("20.00", block_s=60, field="max-rate")
    assert (limit.echo, limit.wire, limit.step) == ("19.999980", "20.00", "0.000060")
    assert limit.note() == " (you typed 20.00; step 0.000060)"
    up = prices.limit_of("2.50", block_s=60, field="max-rate")
    assert up.echo == "2.500020" and up.note() == " (you typed 2.50; step 0.000060; rounded up)"
    assert prices.limit_of("3.60", block_s=60, field="max-rate").note() == ""


@pytest.mark.parametrize(
    ("typed", "wire"), [("20", "20.00"), ("$2.5", "2.5"), (" 1,250.75 ", "1250.75"), ("0.000060", "0.000060")]
)
def test_prices_are_sent_with_a_point(typed: str, wire: str) -> None:
    assert prices.dollars(typed, "max-rate") == wire


@pytest.mark.parametrize("typed", ["", "free", "-1.0", "1.", ".5", "1e3", "2,5€", "nan"])
def test_what_is_no_price_is_refused(typed: str) -> None:
    with pytest.raises(Invalid, match="--min-rate") as caught:
        prices.dollars(typed, "min-rate")
    assert caught.value.field == "min-rate"


def test_the_echo_shows_rate_total_and_hold() -> None:
    limit = prices.limit_of("20.00", block_s=60, field="max-rate")
    line = prices.echo(side="buy", nodes=4, duration="24h", seconds=86_400, limit=limit)
    assert line == (
        "4 nodes x 24h = 96 node-hours, limit 19.999980 $/node-hour (you typed 20.00; step 0.000060), "
        "total at most $1,919.998080, hold $1,919.998080, fee 0 (seller pays)"
    )
    sold = prices.echo(side="sell", nodes=1, duration="1h", seconds=3600, limit=limit, fee=Money(20_000))
    assert "1 node x 1h = 1 node-hours" in sold and "hold 0" in sold and "fee $0.020000 (you pay)" in sold
    assert "fee not known yet" in prices.echo(side="sell", nodes=1, duration="1h", seconds=3600, limit=limit)


@given(st.decimals("0.01", "1000000", places=2), st.integers(1, 1024 * 1440), st.sampled_from([1, 15, 60]))
def test_a_total_never_exceeds_what_was_typed(total: Decimal, blocks: int, block_s: int) -> None:
    micro = int(total * 1_000_000)
    if micro < blocks:
        with pytest.raises(Invalid, match="the least"):
            prices.limit_of_total(str(total), blocks, block_s=block_s)
        return
    limit = prices.limit_of_total(str(total), blocks, block_s=block_s)
    spent = limit.rate.amount(blocks).micro
    assert spent <= micro < spent + blocks
    assert prices.limit_of(limit.wire, block_s=block_s, field="x").rate == limit.rate


@given(st.integers(-(10**15), 10**15))
def test_money_keeps_all_its_digits(micro: int) -> None:
    shown = prices.money_text(Money(micro))
    assert Decimal(shown.replace("$", "").replace(",", "")) * 1_000_000 == micro
    assert prices.amount_of(str(Money(micro))).micro == micro


def test_node_hours() -> None:
    schedule = [
        {"start_at": 0, "end_at": 5400, "node_count": 2},
        {"start_at": 5400, "end_at": 5460, "node_count": 1},
        {"start_at": 9000, "end_at": None, "node_count": 7},
    ]
    assert prices.node_seconds(schedule) == 10_860
    assert prices.hours_text(10_860) == "3.016667" and prices.hours_text(96 * 3600) == "96"
