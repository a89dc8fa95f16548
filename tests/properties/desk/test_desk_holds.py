"""Random traffic on the desk and a real store: whatever happens, books, rows, ledger, log and replica agree.

Traffic: orders of every kind by several accounts, cancels, transfers, procurements, deployments, machines that come,
shrink and are lost, clock jumps, transactions that fail in the middle, restarts.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from desk_stage import SKU, Stage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanopod.control.market.desk import Fee, Market, MarketSettings
from nanopod.ledger import chart
from nanopod.market.shape import volume
from nanopod.model.errors import NanopodError
from nanopod.model.order import Order
from nanopod.store.transaction import Transaction

WHO = ("ann", "bob", "cat")


class Planned(Exception):
    """A failure on purpose."""


class Traffic:
    """Carries out actions; each is a kind and five small numbers."""

    def __init__(self, path: Path, *, group_purchase: bool = False) -> None:
        self.stage = Stage(path, settings=MarketSettings(group_purchase=group_purchase, fees={SKU: Fee(1, 500)}))
        self.stage.write(lambda write: self.stage.capacity(write, "ann2", "ann"))
        self.orders: list[Order] = []
        self.procurements: list[str] = []
        self.fleets = 0
        self.paid = sum(self._money(who) for who in WHO)

    def _money(self, who: str) -> int:
        return self.stage.balance(chart.prepaid(f"wksp_{who}"))

    def act(self, kind: int, numbers: list[int]) -> None:
        try:
            (
                self.order, self.order, self.order, self.cancel, self.transfer, self.procure, self.retarget,
                self.nodes, self.fleet, self.clock, self.fail, self.restart, self.order,
            )[kind](*numbers)  # fmt: skip
        except NanopodError:
            pass  # refused: nothing may have changed

    def order(self, a: int, b: int, c: int, d: int, e: int) -> None:
        side = "buy" if e % 2 else "sell"
        made = self.stage.order(
            WHO[a % 3], side, 50 * (1 + b % 5), c % 12, 1 + d % 9, 1 + (b + d) % 3, standing=bool(e & 2), partial=bool(e & 4),
            capacity="ann2" if WHO[a % 3] == "ann" and e & 8 else None,
        )  # fmt: skip
        self.orders.append(made)

    def cancel(self, a: int, *_: int) -> None:
        if self.orders:
            self.stage.cancel(self.orders[a % len(self.orders)])

    def transfer(self, a: int, b: int, c: int, d: int, e: int) -> None:
        source, target = (("ann", "ann2"), ("ann2", "ann"), ("bob", "cat"))[a % 3]
        self.stage.transfer("ann" if a % 3 < 2 else "bob", source, target, b % 10, 1 + c % 8, 1 + d % 2)

    def procure(self, a: int, b: int, c: int, d: int, e: int) -> None:
        name = "ann2" if WHO[a % 3] == "ann" and c % 2 else WHO[a % 3]
        if self.stage.read(lambda read: read.procurement_of_pair(f"cap_{name}", SKU)) is not None:
            return
        made = self.stage.procure(
            WHO[a % 3], target="node_count" if b % 2 else c % 3, max_buy=100 * (1 + d % 4), min_sell=20 * (1 + e % 4),
            window=5 + b % 20, capacity=name, name=f"{'default-' if d % 2 else 'p'}{len(self.procurements)}",
            protect_manual=bool(e % 2), extend_quantum_minutes=1 + d % 6,
        )  # fmt: skip
        self.procurements.append(made.procurement_id)

    def retarget(self, a: int, b: int, c: int, d: int, e: int) -> None:
        if not self.procurements:
            return

        def within(write: Transaction) -> None:
            seen = write.procurement(self.procurements[a % len(self.procurements)])
            assert seen is not None
            with self.stage.desk.session(write, self.stage.now) as market:
                write.set_procurement(seen, target=b % 4, enabled=c % 4 != 0)
                market.changed(seen.capacity_id)

        self.stage.write(within)

    def nodes(self, a: int, b: int, c: int, d: int, e: int) -> None:
        states = ("up", "up", "up", "draining", "lost")
        self.stage.nodes(1 + b % 4, name=f"n{a % 2}", state=states[c % 5], floor=40 * (d % 4), quantum_minutes=10,
                         horizon_minutes=60, lead_s=60 * (e % 3))  # fmt: skip

    def fleet(self, a: int, b: int, c: int, d: int, e: int) -> None:
        self.fleets += 1
        self.stage.deploy(WHO[a % 3], b % 4, name=f"f{self.fleets}", sku_id=SKU if c % 3 else "")
        self.stage.end_stopped()

    def clock(self, a: int, b: int, c: int, d: int, e: int) -> None:
        self.stage.to(self.stage.now + (13, 60, 60, 120, 600, 3600)[a % 6])
        self.stage.end_stopped()

    def fail(self, a: int, b: int, c: int, d: int, e: int) -> None:
        """A write that did something is undone: in the session, or after it."""

        def within(write: Transaction) -> None:
            def burst(market: Market) -> None:
                exchange = market.exchange(SKU)
                for name in ("cap_ann", "cap_bob"):
                    market.opened(exchange, name)
                if self.orders:
                    market.cancel(self.orders[b % len(self.orders)].order_id)

            with self.stage.desk.session(write, self.stage.now + 60 * (c % 3)) as market:
                burst(market)
                if a % 2:
                    raise Planned
            if d % 2:
                self.stage.desk.boundary(write, self.stage.now + 60 * (1 + e % 5))
            raise Planned

        with pytest.raises((Planned, NanopodError)):
            self.stage.write(within)

    def restart(self, *_: int) -> None:
        self.stage.restart()

    def check(self) -> None:
        self.stage.check()
        self._money_is_kept()
        self._nobody_runs_for_free()

    def _money_is_kept(self) -> None:
        """What users lost is with the provider, or earned by it, or a fee; nothing else moves money."""
        others = ("undelivered:wksp_north", "supplier_payable:wksp_north", f"fees:{SKU}")
        assert sum(self._money(who) for who in WHO) + sum(self.stage.balance(name) for name in others) == self.paid

    def _nobody_runs_for_free(self) -> None:
        """Running instances never exceed the allocation of the present block, but for early starts (R20)."""
        for name in (*WHO, "ann2"):
            running = [
                one for one in self.stage.instances(name) if one.granted_at is not None and one.early_until is None
            ]
            assert len(running) <= self.stage.owned(name)

    def close(self) -> None:
        self.stage.close()


def play(seed: int, length: int) -> None:
    """`length` actions drawn from a seed; a shorter run of a seed is the beginning of a longer one."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        traffic = Traffic(Path(directory), group_purchase=bool(seed % 2))
        try:
            traffic.stage.nodes(3, name="n0", floor=50, quantum_minutes=10, horizon_minutes=60)
            for place in range(length):
                kind, *numbers = draw.randrange(13), *(draw.randrange(61) for _ in range(5))
                traffic.act(kind, numbers)
                if place % 5 == 4:
                    traffic.check()
            traffic.check()
        finally:
            traffic.close()


SEEDS = st.integers(0, 2**32)
LENGTHS = st.integers(20, 60)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SEEDS, LENGTHS)
def test_books_rows_ledger_log_and_replica_agree(seed: int, length: int) -> None:
    play(seed, length)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SEEDS, LENGTHS)
def test_they_agree_for_a_thousand_seeds(seed: int, length: int) -> None:
    play(seed, length)


def test_the_traffic_trades(tmp_path: Path) -> None:
    """The property says something: this traffic fills orders, and what is checked is not empty."""
    traffic = Traffic(tmp_path)
    traffic.stage.nodes(3, name="n0", floor=50, quantum_minutes=10, horizon_minutes=60)
    traffic.act(0, [0, 3, 2, 4, 7])
    traffic.act(5, [1, 1, 0, 3, 1])
    traffic.act(8, [1, 2, 1, 0, 0])
    traffic.check()
    exchange = traffic.stage.books.exchange(SKU)
    assert exchange is not None and exchange.contracts >= 2
    assert volume(exchange.holdings["cap_bob"].owned()) > 0
    traffic.close()
