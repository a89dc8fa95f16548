"""A simulated week of the market: the same seed gives the same week, nothing is lost, and scarcity shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count

import pytest

from nanopod.market.audit import problems
from nanopod.market.events import Burn, Clock, Mint
from nanopod.market.shape import volume
from nanopod.model.errors import Invalid
from nanopod.sim.market import Report, Week, describe, simulate


def ticking() -> Callable[[], float]:
    """A clock that moves by one second each time it is read."""
    numbers = count()
    return lambda: float(next(numbers))


@pytest.fixture(scope="module")
def two_days() -> Report:
    return simulate(2, 60, 7, ticking())


def test_the_same_seed_gives_the_same_week(two_days: Report) -> None:
    assert simulate(2, 60, 7, ticking()) == two_days
    assert simulate(2, 60, 8, ticking()).digest != two_days.digest


def test_time_is_bought_sold_again_and_paid_for(two_days: Report) -> None:
    assert two_days.contracts > two_days.orders / 10
    assert two_days.volume_node_hours > 1000 and 0.6 < two_days.average_price < 4
    assert 0 < two_days.resold_share < 1
    assert two_days.fees_dollars == pytest.approx(two_days.volume_dollars / 100, rel=1e-3)
    assert two_days.utilisation > 0.5 and two_days.spot_availability > 0.5
    assert two_days.audits == 49, "each simulated hour and the end are audited"
    assert two_days.wall_s == 1, "the clock is the caller's"


def test_busy_hours_are_short_of_nodes_and_interrupt(two_days: Report) -> None:
    assert two_days.interruptions > 0 and two_days.unmet_node_hours > 0
    assert two_days.node_losses > 0
    assert two_days.short_of_money > 0


def test_lost_nodes_are_burned_and_what_was_sold_on_them_is_paid_back() -> None:
    week = Week(80, 3)
    for _ in range(100):
        week.tick()
    before = week.till.refunded
    for seller in week.people.sellers:
        seller.missing, seller.back_at = seller.nodes - 1, week.block + 200
    week.tick()
    assert week.till.refunded > before
    up = sum(seller.up for seller in week.people.sellers)
    sold = week.exchange.supply.at(week.block)
    assert sold <= up, "nobody owns a node that is not there"
    week.audit()


def test_the_audit_finds_time_and_money_out_of_nothing() -> None:
    week = Week(20, 1)
    for _ in range(12):
        week.tick()
    week.till.cash["trader-0"] += 1
    with pytest.raises(AssertionError, match="was paid in"):
        week.audit()
    week.till.cash["trader-0"] -= 1
    week.audit()
    seller = week.people.sellers[0]
    free = week.exchange.holdings[seller.policy.capacity_id]
    free.manual.add_run(week.block, week.block + 1, 1)
    assert problems(week.exchange)


def test_delivered_time_releases_revenue_exactly() -> None:
    week = Week(30, 5)
    for _ in range(60):
        week.tick()
    assert week.till.owed, "something is still to be delivered"
    last = max(one.left[-1][1] for one in week.till.owed if one.left)
    assert sum(volume(one.left) for one in week.till.owed) > 0
    week.till.deliver(last)
    assert not week.till.owed
    sellers = {seller.name for seller in week.people.sellers}
    assert all(week.till.holds[name] == 0 for name in sellers)


def test_every_event_of_a_week_can_be_replayed() -> None:
    week = Week(30, 2)
    kinds = set()
    apply = week.exchange.apply
    log = []

    def noting(event):  # type: ignore[no-untyped-def]
        outcome = apply(event)
        log.append(event)
        kinds.add(type(event))
        return outcome

    begun = type(week.exchange).restore(json.loads(json.dumps(week.exchange.canonical())))
    week.exchange.apply = noting  # type: ignore[method-assign]
    for number in range(120):
        if number == 60:
            week.people.sellers[0].missing, week.people.sellers[0].back_at = 3, week.block + 100
        week.tick()
    assert {Mint, Clock, Burn} <= kinds
    assert begun.replay(log).digest() == week.exchange.digest()


def test_senseless_figures_are_refused() -> None:
    for days, traders in ((0, 10), (-1, 10), (400, 10), (1, 0), (1, 20_001)):
        with pytest.raises(Invalid, match="--days"):
            simulate(days, traders, 1, ticking())


def test_the_command_prints_a_table_or_json(two_days: Report) -> None:
    words = [sys.executable, "-m", "nanopod", "sim", "market", "--days", "0.25", "--traders", "20", "--seed", "4"]
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, timeout=60, check=True)
    report = json.loads(done.stdout)
    assert report["traders"] == 20 and report["audits"] == 7
    assert not done.stderr, "no bar where nobody looks"
    table = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "utilisation" in table and report["digest"] in table
    assert "average price" in describe(two_days)
    wrong = subprocess.run([*words[:5], "--days", "0"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and "--days" in wrong.stderr
