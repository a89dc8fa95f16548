"""Rating, charge models, aggregations and plans: the worked examples, to the micro-dollar."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import pytest

from nanopod.ledger.aggregate import Event, Rounding, aggregate, rounding
from nanopod.ledger.charges import (
    ChargeModel,
    Graduated,
    Market,
    Package,
    Percentage,
    Standard,
    Tier,
    Volume,
    charge,
)
from nanopod.ledger.coupons import Coupon, redeem, share_bps
from nanopod.ledger.plans import Charge, Plan, Prices, Usage, apply, on_demand, spot, subsidised, usage_of
from nanopod.ledger.rating import Metered, Price, half_even
from nanopod.model.errors import Conflict, Invalid
from nanopod.model.wire import MeterRecord

HOUR = Price(2_190_000, 3_600_000)


def test_the_worked_example() -> None:
    line = Metered()
    each = 0
    for _ in range(3_599):
        line = line.plus(HOUR, 1_000)
        each += Metered().plus(HOUR, 1_000).total
    assert line.total == 2_189_392
    assert each == 2_188_192, "rounding each event would be wrong"


def test_charging_as_it_goes_ends_at_the_same_total() -> None:
    line, posted = Metered(), 0
    for _ in range(3_599):
        line = line.plus(HOUR, 1_000)
        posted += line.due(posted)
    assert posted == 2_189_392
    assert line.due(posted) == 0
    assert line.plus(HOUR, -3_599_000).due(posted) == -posted, "a correction gives back"


def test_fractions_of_several_prices_are_summed_before_rounding() -> None:
    thirds = Metered({Price(1, 3): 1, Price(2, 3): 1, Price(1, 2): 1})
    assert thirds.total == 2, "1.5 goes to the even neighbour"
    assert thirds.units == 3


@pytest.mark.parametrize("n", [-7, -5, -3, -1, 0, 1, 3, 5, 7, 9])
def test_halves_go_to_the_even_side(n: int) -> None:
    assert half_even(n, 2) == int(Decimal(n * 5).scaleb(-1).to_integral_value("ROUND_HALF_EVEN"))


@pytest.mark.parametrize("bad", [(-1, 1), (1, 0), (1.5, 1)])
def test_prices_are_whole(bad: tuple[int, int]) -> None:
    with pytest.raises(Invalid, match="price"):
        Price(*bad)


# --- charge models; dollars in the tables, micro-dollars here ---

TIERS = (
    Tier(0, 10, Price(100_000), 1_000_000),
    Tier(11, 100, Price(50_000)),
    Tier(101, None, Price(10_000), 2_000_000),
)
ADJACENT = (Tier(0, 10, Price(100_000)), Tier(10, None, Price(50_000)))
EXAMPLES: list[tuple[ChargeModel, str, int, int]] = [
    (Standard(Price(100_000)), "10.5", 0, 1_050_000),
    (Graduated(TIERS), "0", 0, 1_000_000),
    (Graduated(TIERS), "10.5", 0, 2_025_000),
    (Graduated(TIERS), "10", 0, 2_000_000),
    (Graduated(TIERS), "101", 0, 8_510_000),
    (Graduated(ADJACENT), "10.5", 0, 1_025_000),
    (Graduated(ADJACENT), "10", 0, 1_000_000),
    (Volume(TIERS), "10.5", 0, 525_000),
    (Volume(TIERS), "10", 0, 2_000_000),
    (Volume(TIERS), "101", 0, 3_010_000),
    (Volume(ADJACENT), "10", 0, 1_000_000),
    (Volume(ADJACENT), "11", 0, 550_000),
    (Package(2_000_000, 1_000), "0", 0, 0),
    (Package(2_000_000, 1_000), "1000", 0, 2_000_000),
    (Package(2_000_000, 1_000), "1001", 0, 4_000_000),
    (Package(2_000_000, 1_000, 500), "1500", 0, 2_000_000),
    (Package(2_000_000, 1_000, 500), "499", 0, 0),
    (Percentage(15, 1_000, 100_000, 1), "200000000", 4, 3_300_000),
    (Percentage(15, 1_000, 100_000, 1), "0", 0, 0),
    (Market(500), "1000000", 0, 1_050_000),
]


@pytest.mark.parametrize(("model", "units", "events", "micro"), EXAMPLES)
def test_charge_models(model: ChargeModel, units: str, events: int, micro: int) -> None:
    assert charge(model, Fraction(units), events) == micro
    assert msgspec.json.decode(msgspec.json.encode(model), type=ChargeModel) == model


@pytest.mark.parametrize(
    "tiers",
    [(), (Tier(1, None),), (Tier(0, 10),), (Tier(0, 10), Tier(12, None)), (Tier(0, None), Tier(5, None))],
)
def test_tiers_have_no_holes(tiers: tuple[Tier, ...]) -> None:
    for model in (Graduated, Volume):
        with pytest.raises(Invalid, match="tiers"):
            model(tiers)


def test_nothing_negative_is_charged() -> None:
    with pytest.raises(Invalid, match="units"):
        charge(Standard(HOUR), -1)
    for wrong in (lambda: Package(1, 0), lambda: Percentage(1, 0)):
        with pytest.raises(Invalid):
            wrong()


# --- aggregations ---

EVENTS = [
    Event(10, 5, "x"),
    Event(20, 9, "y"),
    Event(30, 7, "x"),
    Event(40, -6, "y", removed=True),
    Event(5, 100, "early"),
    Event(50, 100, "late"),
]


@pytest.mark.parametrize(
    ("how", "units"),
    [("count", 4), ("sum", 15), ("max", 9), ("latest", -6), ("unique_count", 1)],
)
def test_aggregations(how: str, units: int) -> None:
    assert aggregate(how, EVENTS, 10, 50) == units  # type: ignore[arg-type]
    assert aggregate(how, [], 10, 50) == 0  # type: ignore[arg-type]


def test_a_level_is_weighed_by_its_time() -> None:
    changes = [Event(10, 100), Event(30, -50)]
    assert aggregate("weighted_sum", changes, 10, 50) == 75
    assert aggregate("weighted_sum", [Event(30, -50)], 10, 50, before=100) == 75
    assert aggregate("weighted_sum", [Event(20, 1)], 10, 40) == Fraction(2, 3)
    with pytest.raises(Invalid, match="end_us"):
        aggregate("sum", [], 5, 5)


@pytest.mark.parametrize(
    ("value", "how", "decimals", "result"),
    [
        ("2.5", "round", 0, "3"), ("-2.5", "round", 0, "-3"), ("2.44", "round", 1, "2.4"), ("2.41", "ceil", 1, "2.5"),
        ("2.49", "floor", 1, "2.4"), ("-2.41", "floor", 0, "-3"), ("1250", "round", -2, "1300"), ("2.5", "none", 0, "2.5"),
    ],
)  # fmt: skip
def test_units_are_rounded_as_asked(value: str, how: Rounding, decimals: int, result: str) -> None:
    assert rounding(Fraction(value), how, decimals) == Fraction(result)


# --- plans ---


def test_on_demand_prices_every_meter_and_a_sku_may_have_its_own() -> None:
    plan = on_demand(Prices(150_000, 75_000, 600_000, 20, 600, 36_500), {"isku_h100": Prices(per_compute_second=1_000)})
    lines = apply(
        plan,
        [
            Usage("input_tokens", 1_000_001),
            Usage("input_tokens", 999_999),
            Usage("cached_input_tokens", 2_000_000),
            Usage("output_tokens", 500_000),
            Usage("requests", 3),
            Usage("compute_time", 1_500_000),
            Usage("gpu_active_time", 1_500, attributes={"sku": "isku_h100"}),
            Usage("node_minutes", 60),
            Usage("wake_time", 9_000),
            Usage("output_tokens", 7, billable=False),
        ],
    )
    assert [(line.meter, line.amount) for line in lines if not line.excluded] == [
        ("input_tokens", 300_000), ("cached_input_tokens", 150_000), ("output_tokens", 300_000), ("requests", 60),
        ("compute_time", 900), ("gpu_active_time", 1_500), ("node_minutes", 2_190_000),
    ]  # fmt: skip
    excluded = [(line.meter, line.units, line.amount) for line in lines if line.excluded]
    assert excluded == [("wake_time", 9_000, 0), ("output_tokens", 7, 0)], "measured, shown, not billed"


def test_spot_is_the_markets_price_and_a_fee() -> None:
    lines = apply(
        spot(Prices(input_per_mtok=100_000), 250), [Usage("market_cost", 6_600_000), Usage("input_tokens", 10)]
    )
    assert [line.amount for line in lines] == [6_765_000, 1]
    with pytest.raises(Invalid, match="no price"):
        apply(spot(Prices()), [Usage("node_minutes", 1)])


def test_subsidised_keeps_full_prices() -> None:
    plan = subsidised(Prices(per_node_minute=36_500), 2_500)
    assert apply(plan, [Usage("node_minutes", 60)])[0].amount == 2_190_000
    assert plan.billing_rate_bps == 2_500
    with pytest.raises(Invalid):
        subsidised(Prices(), -1)


def test_base_minimum_and_commitment() -> None:
    plan = Plan(
        "team",
        (
            Charge("requests", Standard(Price(10)), min_amount=1_000, prorated=True),
            Charge("output_tokens", Standard(Price(1))),
        ),
        base=5_000,
        commitment=10_000,
    )
    half = apply(plan, [Usage("requests", 3)], Fraction(1, 2))
    assert [(line.meter, line.amount) for line in half] == [("requests", 500), ("base", 2_500), ("commitment", 2_000)]
    full = apply(plan, [Usage("requests", 300), Usage("output_tokens", 4_000)])
    assert [line.amount for line in full] == [3_000, 4_000, 5_000], "a commitment that is met adds nothing"
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_an_unknown_meter_is_refused() -> None:
    with pytest.raises(Invalid, match="meter"):
        apply(on_demand(Prices()), [Usage("tokenz", 1)])
    with pytest.raises(Invalid, match="meter"):
        Charge("tokenz", Standard(HOUR))


def test_a_metered_request_becomes_usage() -> None:
    record = MeterRecord("r", "q", "w", "k", "e", "v", "i", "chat", 200, 1_000, 50, 2_000_000, 1.0, 1.5, 2.0)
    plan = on_demand(Prices(150_000, 0, 600_000, 20, 600))
    lines = apply(plan, usage_of(record, {"model": "m"}))
    assert {line.meter: line.amount for line in lines} == {
        "requests": 20, "input_tokens": 150, "output_tokens": 30, "compute_time": 1_200,
    }  # fmt: skip
    failed = apply(plan, usage_of(msgspec.structs.replace(record, status=502, completion_tokens=0)))
    assert [(line.meter, line.excluded, line.amount) for line in failed] == [
        ("requests", True, 0), ("input_tokens", True, 0), ("compute_time", True, 0),
    ]  # fmt: skip


# --- coupons ---


def test_a_fixed_coupon_is_a_grant_per_period() -> None:
    coupon = Coupon("WELCOME", "fixed_amount", 5_000_000, periods=2, priority=7)
    used = redeem(coupon, "w", 10, 0, [])
    assert [used.lasts(period) for period in (9, 10, 11, 12)] == [False, True, True, False]
    first, second = used.source(10, 500), used.source(11, 900)
    assert first.guarded != second.guarded, "what is left of one period is not carried over"
    assert (first.kind, first.priority, first.expires_at_us) == ("coupon", 7, 500)
    with pytest.raises(Conflict, match="already"):
        redeem(coupon, "w", 11, 0, [used])
    assert redeem(coupon, "w2", 11, 0, [used]).workspace_id == "w2"
    again = msgspec.structs.replace(coupon, reusable=True)
    assert redeem(again, "w", 11, 0, [used]).since_period == 11
    with pytest.raises(Conflict, match="over"):
        redeem(msgspec.structs.replace(coupon, expires_at_us=5), "w", 1, 5, [])


def test_percentages_add_up_and_stop_at_everything() -> None:
    tenth = redeem(Coupon("T", "percentage", percent_bps=1_000, periods=None), "w", 0, 0, [])
    tokens = redeem(Coupon("O", "percentage", percent_bps=2_500, meters=("output_tokens",)), "w", 3, 0, [])
    spot_only = redeem(Coupon("S", "percentage", percent_bps=10_000, plans=("spot",)), "w", 3, 0, [])
    mine = [tenth, tokens, spot_only]
    assert share_bps(mine, 3, "on-demand", "output_tokens") == 6_500
    assert share_bps(mine, 3, "on-demand", "input_tokens") == 9_000
    assert share_bps(mine, 4, "on-demand", "output_tokens") == 9_000
    assert share_bps(mine, 3, "spot", "output_tokens") == 0
    assert share_bps([tenth], 3, "subsidised", "requests", 5_000) == 4_500
    fixed = redeem(Coupon("F", "fixed_amount", 1), "w", 0, 0, [])
    assert share_bps([fixed], 0, "spot", "requests") == 10_000


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "fixed_amount"},
        {"kind": "fixed_amount", "amount": 5, "percent_bps": 5},
        {"kind": "percentage"},
        {"kind": "percentage", "percent_bps": 10_001},
        {"kind": "percentage", "percent_bps": 5, "amount": 5},
        {"kind": "fixed_amount", "amount": 5, "periods": 0},
        {"kind": "fixed_amount", "amount": 5, "meters": ("requests",)},
    ],
)
def test_what_no_coupon_can_be(values: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="coupon X"):
        Coupon("X", **values)
