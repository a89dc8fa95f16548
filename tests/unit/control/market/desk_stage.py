"""A desk on a real SQLite store with an injected clock: accounts, a provider with nodes, and one-line calls."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nanopod.control.market.books import Books
from nanopod.control.market.desk import Desk, Market, MarketSettings, OrderDraft, TransferDraft
from nanopod.ledger import chart
from nanopod.ledger.recipes import set_line, top_up
from nanopod.market.audit import problems
from nanopod.market.shape import cut, from_schedule, total, volume
from nanopod.model.capacity import Capacity, Node, Sku
from nanopod.model.chain import Account, Deployment, Event, Instance, Template, Workspace
from nanopod.model.ids import PREFIXES
from nanopod.model.money import Rate
from nanopod.model.order import Order, Side, Transfer
from nanopod.model.procurement import OfferPolicy, Procurement, Provider
from nanopod.store.sqlite import SqliteStore
from nanopod.store.transaction import Transaction

T = TypeVar("T")
SKU = "isku_box"
T0 = 1_800_000_000 // 3600 * 3600
"""A whole hour."""


class Stage:
    """`ann`, `bob` and `cat` are accounts with a workspace and a capacity of their own names; `north` provides."""

    def __init__(self, path: Path, *, now: float = T0, settings: MarketSettings | None = None) -> None:
        self.settings = settings or MarketSettings()
        self.block_s = self.settings.block_s
        self.loop = asyncio.new_event_loop()
        self.path = path
        self.now = float(now)
        self.news: list[object] = []
        self._ids = itertools.count(1)
        self._open()
        self.write(self._people)

    def _open(self) -> None:
        async def make() -> SqliteStore:
            return SqliteStore(self.path / "server.db", block_s=self.block_s)

        self.store = self.loop.run_until_complete(make())
        self.store.on_news = self._on_news
        self.desk = Desk(self.new_id, self.settings)
        self.books = Books(self.store, self.block_s)
        self.loop.run_until_complete(self.books.start())

    def _on_news(self, items: list[object]) -> None:
        self.news.extend(items)
        self.books.feed(items)

    def close(self) -> None:
        self.loop.run_until_complete(self.store.close())
        self.loop.close()

    def restart(self) -> None:
        """The process ends; a new one begins on the same files."""
        self.loop.run_until_complete(self.store.close())
        self._open()

    def new_id(self, kind: str) -> str:
        return f"{PREFIXES[kind]}{next(self._ids):07d}"

    # --- transactions ---

    def write(self, fn: Callable[[Transaction], T]) -> T:
        return self.loop.run_until_complete(self.store.write(fn, durable=False))

    def read(self, fn: Callable[[Transaction], T]) -> T:
        return self.loop.run_until_complete(self.store.read(fn))

    def do(self, fn: Callable[[Market], T]) -> T:
        def within(write: Transaction) -> T:
            with self.desk.session(write, self.now) as market:
                return fn(market)

        return self.write(within)

    def _people(self, write: Transaction) -> None:
        write.put_sku(Sku(SKU, "box"))
        for name in ("ann", "bob", "cat", "north"):
            write.add_account(Account(f"acct_{name}", name, "provider" if name == "north" else "user", self.now))
            write.add_workspace(Workspace(f"wksp_{name}", name, f"acct_{name}", self.now))
            kind: Any = "originating" if name == "north" else "market"
            self.capacity(write, name, name, kind)
        write.add_provider(
            Provider("prov_north", "north", "acct_north", "wksp_north", "cap_north", created_at=self.now)
        )
        for name in ("ann", "bob", "cat"):
            self.pay(write, name, 10**12)

    def capacity(self, write: Transaction, name: str, owner: str, kind: Any = "market") -> None:
        made = Capacity(f"cap_{name}", f"wksp_{owner}", name, kind, {}, 0, f"acct_{owner}", {}, self.now, self.now)
        write.add_capacity(made, self.now)

    def pay(self, write: Transaction, name: str, amount: int) -> None:
        chain = top_up(f"pay{next(self._ids)}", f"wksp_{name}", amount)
        write.open_accounts(chart.accounts_of(chain))
        assert all(one.done for one in write.post_transfers(chain, int(self.now * 1e6)))

    def line(self, write: Transaction, name: str, amount: int) -> None:
        chain = set_line(f"line{next(self._ids)}", f"wksp_{name}", amount)
        write.open_accounts(chart.accounts_of(chain))
        assert all(one.done for one in write.post_transfers(chain, int(self.now * 1e6)))

    # --- supply ---

    def nodes(
        self, slots: int, *, name: str = "n1", state: Any = "up", floor: int = 0, sku_id: str = SKU, **policy: Any
    ) -> None:
        """One machine of the provider with so many places; its offer has this floor."""

        def within(write: Transaction) -> None:
            with self.desk.session(write, self.now) as market:
                node = Node(f"node_{name}", f"mach_{name}", sku_id, slots, state, self.now)
                write.put_node(node, "boot", "1", {}, self.now, "prov_north")
                if write.offer_of_pair("prov_north", sku_id) is None:
                    write.add_offer(
                        OfferPolicy(
                            "prov_north",
                            "cap_north",
                            sku_id,
                            Rate(floor),
                            offer_id=self.new_id("offer"),
                            created_at=self.now,
                            updated_at=self.now,
                            **{"horizon_minutes": 1440, **policy},
                        )
                    )
                market.supply_changed(sku_id)

        self.write(within)

    # --- trade ---

    def order(
        self, who: str, side: Side, rate: int, start: int, blocks: int, nodes: int, *,
        standing: bool = False, partial: bool = False, capacity: str | None = None,
    ) -> Order:  # fmt: skip
        """An order whose window begins `start` blocks after the next one."""
        first = int(self.now // self.block_s) + 1 + start
        draft = OrderDraft(
            f"wksp_{who}", f"acct_{who}", f"cap_{capacity or who}", SKU, side, first * self.block_s,
            (first + blocks) * self.block_s, nodes, Rate(rate), str(rate), standing, partial, "key_" + who,
        )  # fmt: skip
        return self.do(lambda market: market.place(draft))

    def cancel(self, order: Order) -> Order:
        return self.do(lambda market: market.cancel(order.order_id))

    def transfer(self, who: str, source: str, target: str, start: int, blocks: int, nodes: int) -> Transfer:
        first = int(self.now // self.block_s) + 1 + start
        draft = TransferDraft(
            f"wksp_{who}", f"cap_{source}", f"cap_{target}", SKU, first * self.block_s,
            (first + blocks) * self.block_s, nodes,
        )  # fmt: skip
        return self.do(lambda market: market.transfer(draft))

    def procure(
        self, who: str, *, target: Any = "node_count", max_buy: int = 1000, min_sell: int = 10, window: int = 60,
        capacity: str | None = None, **more: Any,
    ) -> Procurement:  # fmt: skip
        made = Procurement(
            self.new_id("procurement"), f"cap_{capacity or who}", SKU, target, Rate(max_buy), Rate(min_sell), window,
            created_at=self.now, workspace_id=f"wksp_{who}", updated_at=self.now,
            **{"name": f"{capacity or who}-box", **more},
        )  # fmt: skip

        def within(write: Transaction) -> None:
            with self.desk.session(write, self.now) as market:
                write.add_procurement(made)
                market.changed(made.capacity_id)

        self.write(within)
        return self.procurement(made.procurement_id)

    def procurement(self, procurement_id: str) -> Procurement:
        found = self.read(lambda read: read.procurement(procurement_id))
        assert found is not None
        return found

    # --- instances ---

    def deploy(self, who: str, target: int, *, name: str = "fleet", sku_id: str = SKU, **more: Any) -> Deployment:
        def within(write: Transaction) -> str:
            template_id, deployment_id = self.new_id("template"), self.new_id("deployment")
            with self.desk.session(write, self.now) as market:
                write.add_template(
                    Template(template_id, f"wksp_{who}", name, "image_1", "IyEvYmluL3No", "", {}, self.now, self.now)
                )
                write.add_deployment(
                    Deployment(
                        deployment_id,
                        "",
                        f"wksp_{who}",
                        f"cap_{who}",
                        "",
                        target,
                        0,
                        (),
                        0,
                        0.0,
                        self.now,
                        self.now,
                        name=name,
                        sku_id=sku_id,
                        template_id=template_id,
                        **more,
                    )
                )
                market.changed(f"cap_{who}")
            return deployment_id

        deployment_id = self.write(within)
        found = self.read(lambda read: read.deployment(deployment_id))
        assert found is not None
        return found

    def scale(self, deployment: Deployment, **values: Any) -> None:
        def within(write: Transaction) -> None:
            with self.desk.session(write, self.now) as market:
                seen = write.deployment(deployment.deployment_id)
                assert seen is not None
                write.set_deployment(seen, **values)
                market.changed(deployment.capacity_id)

        self.write(within)

    def instances(self, who: str) -> list[Instance]:
        """Live ones of a capacity, oldest first."""
        return self.do(lambda market: market.live_instances(f"cap_{who}"))

    def end_stopped(self) -> None:
        """What an agent and the chain do: instances that were told to stop are gone."""

        def within(write: Transaction) -> None:
            with self.desk.session(write, self.now) as market:
                for one in write.instances_live():
                    if one.intent == "stop":
                        write.set_instance(one, phase="ended", ended_at=self.now)
                        market.changed(one.capacity_id)

        self.write(within)

    # --- time ---

    def to(self, now: float) -> None:
        """Go on to `now`, passing every boundary."""
        self.now = float(now)
        while self.write(lambda write: self.desk.boundary(write, self.now)):
            pass

    def blocks(self, count: int) -> None:
        """Pass `count` boundaries, one by one."""
        for _ in range(count):
            self.to((int(self.now // self.block_s) + 1) * self.block_s)

    # --- looking ---

    def spending(self, who: str) -> int:
        return self.do(lambda market: market.spending(f"wksp_{who}"))

    def balance(self, account_id: str) -> int:
        found = self.read(lambda read: read.ledger_account(account_id))
        return found.balance if found else 0

    def held(self, who: str) -> int:
        found = self.read(lambda read: read.ledger_account(chart.prepaid(f"wksp_{who}")))
        return found.debits_pending if found else 0

    def owned(self, who: str, block: int | None = None, sku_id: str = SKU) -> int:
        """Nodes in a block; by default in the present one."""
        exchange = self.do(lambda market: market.exchange(sku_id))
        holding = exchange.holdings.get(f"cap_{who}")
        at = exchange.block - 1 if block is None else block
        return holding.manual.at(at) + holding.auto.at(at) if holding else 0

    def notices(self, who: str, *types: str) -> list[Event]:
        return self.read(lambda read: read.notices_after(f"wksp_{who}", 0, 10_000, types or None))

    def check(self) -> None:
        """Books, rows, holds, ledger, log and replica all say the same."""

        def within(write: Transaction) -> None:
            from nanopod.control.market.replay import replay_all

            assert write.check_ledger() == ()
            with self.desk.session(write, self.now) as market:
                exchanges = market.all_exchanges()
            held = 0
            for exchange in exchanges:
                assert problems(exchange) == []
                policies = [one for one in write.offers() if one.sku_id == exchange.sku_id]
                minted = total(cut(from_schedule(one.minted, self.block_s), exchange.block) for one in policies)
                assert minted == exchange.supply.shape(exchange.block)
                row = write.market_book(exchange.sku_id)
                assert row is not None
                assert row.seq == exchange.seq
                assert replay_all(write, row).digest() == exchange.digest()
                replica = self.books.exchange(exchange.sku_id)
                assert replica is not None
                assert replica.digest() == exchange.digest()
                for resting in exchange.orders.values():
                    order = write.order(resting.order_id)
                    assert order is not None
                    assert from_schedule(order.open, self.block_s) == resting.left
                    assert order.status == resting.status
                    if order.side == "buy":
                        held += resting.rate * volume(resting.left)
            pending = sum(one.debits_pending for one in write.ledger_accounts("prepaid:"))
            pending += sum(one.debits_pending for one in write.ledger_accounts("credit_line:"))
            assert pending == held
            orders = write.ledger_account("orders")
            assert orders is None or orders.balance == 0

        self.write(within)
