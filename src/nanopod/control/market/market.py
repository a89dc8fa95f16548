"""One session of the desk: what callers may do inside a transaction, and the steps that follow from it (R24)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from nanopod.control.market import deployments, procurements, quota, supply, warnings
from nanopod.control.market.drafts import FEES_SETTING, Fee, MarketSettings, OrderDraft, TransferDraft
from nanopod.control.market.floor import Floor
from nanopod.control.market.news import Ranked
from nanopod.control.market.postings import check_amount
from nanopod.control.market.trading import Asker, Trading
from nanopod.control.ports import Writes
from nanopod.ledger.transfers import AMOUNT_MAX
from nanopod.market.boundary import in_turn
from nanopod.market.events import Cancel, Configure, Place
from nanopod.market.events import Transfer as Move
from nanopod.market.exchange import Exchange
from nanopod.market.shape import to_schedule, volume
from nanopod.market.terms import Fees, admit_window
from nanopod.model.chain import Instance
from nanopod.model.errors import Denied, Invalid, NotFound, count_of
from nanopod.model.money import Rate
from nanopod.model.order import CancelReason, Order, Transfer
from nanopod.model.procurement import OfferPolicy

ROUNDS_MAX: Final = 12
"""Rounds of one settlement; what is not calm after so many goes on at the next boundary."""
LIMIT_FIELD: Final = "limit_price_dollars_per_node_hour"


class Market(Trading):
    """Valid inside one `Desk.session`. `now` is Unix seconds, `block` the first block that has not begun."""

    def __init__(self, floor: Floor, settings: MarketSettings, write: Writes, now: float) -> None:
        super().__init__(floor, settings, write, now)
        self._dirty: set[str] = set()
        self._supply: set[str] = set()
        self._seen: set[str] = set()
        """Capacities whose instances were looked at."""
        self._muted = ""
        self.on_change = self._mark

    # --- orders ---

    def place(self, draft: OrderDraft) -> Order:
        """Place an order and match it at once. Raises `Invalid`, `PaymentRequired`, `Conflict`, `NotFound`."""
        capacity = self.rows.capacity(draft.capacity_id)
        if capacity is None or capacity.workspace_id != draft.workspace_id:
            raise NotFound(f"capacity: {draft.capacity_id} does not exist", field="capacity")
        if self.rows.is_deleted(draft.sku_id):
            raise Invalid("instance_sku: is deleted; choose another one", field="instance_sku")
        shape = admit_window(draft.start_at, draft.end_at, draft.node_count, now=self.now, block_s=self.block_s)
        rate = draft.limit.micro_per_block
        check_amount(rate * volume(shape), LIMIT_FIELD)
        exchange = self.exchange(draft.sku_id)
        spending = self.spending(draft.workspace_id) if draft.side == "buy" else None
        event = Place(
            draft.order_id or self.floor.new_id("order"), draft.capacity_id, draft.side, rate, shape,
            draft.allow_standing, draft.allow_partial, draft.procurement_id, spending,
        )  # fmt: skip
        if draft.capacity_id not in exchange.capacities:
            # What would be refused is refused before the book changes, so that it need not be read again.
            scratch = Exchange(draft.sku_id, exchange.block)
            scratch.apply(self.opening(draft.capacity_id))
            scratch.apply(event)
            self.opened(exchange, draft.capacity_id)
        asker = Asker(
            draft.workspace_id, exchange.capacities[draft.capacity_id].account_id, draft.created_by,
            draft.requested_limit_price, draft.procurement_id,
        )  # fmt: skip
        self.apply(exchange, event, asker)
        placed = self.write.order(event.order_id)
        assert placed is not None, "just written"
        return placed

    def cancel(self, order_id: str, reason: CancelReason = "user") -> Order:
        """End an open order. Raises `NotFound`, or `Conflict` when it is closed already."""
        order = self.refuse_closed(order_id)
        self.apply(self.exchange(order.sku_id), Cancel(order_id, reason))
        ended = self.write.order(order_id)
        assert ended is not None, "it had a row"
        return ended

    def transfer(self, draft: TransferDraft) -> Transfer:
        """Move free time to another capacity of the account: executed, or rejected with the reason; stored both ways.

        Raises `Invalid` for an impossible window, `Denied` for another account's capacity, `NotFound`.
        """
        shape = admit_window(draft.start_at, draft.end_at, draft.node_count, now=self.now, block_s=self.block_s)
        exchange = self.exchange(draft.sku_id)
        ends = [self.opening(capacity_id) for capacity_id in (draft.from_capacity_id, draft.to_capacity_id)]
        if ends[0].account_id != ends[1].account_id:
            raise Denied("to_capacity: belongs to another account; sell the time instead", field="to_capacity")
        if "read_only" in {one.kind for one in ends}:
            raise Invalid("capacity: a read_only capacity neither gives nor takes", field="from_capacity")
        for one in ends:
            self.opened(exchange, one.capacity_id)
        rejected = ""
        try:
            self.apply(exchange, Move(draft.from_capacity_id, draft.to_capacity_id, shape))
        except Invalid as error:
            rejected = error.message
        made = Transfer(
            self.floor.new_id("transfer"), draft.workspace_id, draft.from_capacity_id, draft.to_capacity_id,
            draft.sku_id, to_schedule(shape, self.block_s), "rejected" if rejected else "executed", rejected, self.now,
            draft.created_by,
        )  # fmt: skip
        self.write.add_transfer(made)
        data = {"from_capacity": draft.from_capacity_id, "to_capacity": draft.to_capacity_id, "reason": rejected}
        self.notice(draft.workspace_id, f"transfer.{made.status}", made.transfer_id, data)
        if not rejected:
            self._mark(draft.from_capacity_id)
            self._mark(draft.to_capacity_id)
        return made

    def spending(self, workspace_id: str) -> int:
        """What a workspace may still hold, in micro-dollars: what is available and its overage limit."""
        return self.purse.spending(workspace_id)

    # --- what changed elsewhere ---

    def changed(self, capacity_id: str) -> None:
        """Instances, deployments or procurements of a capacity changed, or what its workspace can pay."""
        self.rows.forget_capacity(capacity_id)
        self.busy().add(capacity_id)
        self._dirty.add(capacity_id)

    def balance_changed(self, workspace_id: str) -> None:
        """Money came in: procurements that lacked it try again."""
        for capacity in self.write.capacities(workspace_id):
            if capacity.capacity_id in self.busy():
                self.changed(capacity.capacity_id)

    def supply_changed(self, sku_id: str | None = None) -> None:
        """Nodes, providers or offers of a SKU (None: of any) changed."""
        self.rows.forget_supply()
        self._ensure_offers()
        known = {one.sku_id for one in self.rows.offers()}
        self._supply |= known if sku_id is None else {sku_id} & known
        for name in self._supply:
            self.exchange(name)
        # An idle node may start somebody early; a lost one may end somebody.
        self._dirty |= self.busy()

    def _ensure_offers(self) -> None:
        """A node of a kind that its provider has not sold before is offered at no floor until he says otherwise."""
        offered = {(one.provider_id, one.sku_id) for one in self.rows.offers()}
        for provider_id, sku_id in sorted({(one.provider_id, one.sku_id) for one in self.write.nodes()} - offered):
            provider = self.rows.provider(provider_id) if provider_id else None
            if provider is None:
                continue
            self.write.add_offer(
                OfferPolicy(
                    provider_id,
                    provider.capacity_id,
                    sku_id,
                    Rate(0),
                    offer_id=self.floor.new_id("offer"),
                    created_at=self.now,
                    updated_at=self.now,
                )
            )
            self.rows.forget_supply()

    def ensure_procurement(self, capacity_id: str, sku_id: str, *, capped: bool = False) -> None:
        """Have the default chain's procurement of a SKU in a capacity. `capped`: who needs it limits what is paid."""
        if procurements.ensure(self, capacity_id, sku_id):
            self.exchange(sku_id)
            self.changed(capacity_id)
        if capped or procurements.is_capped(self, capacity_id, sku_id):
            self.reprice(capacity_id, sku_id)

    def spot_limit(self) -> Rate:
        """The most that the default chain pays, in this cluster."""
        return procurements.spot_limit(self)

    def reprice(self, capacity_id: str, sku_id: str) -> None:
        """The price limit of an endpoint that runs there changed."""
        if procurements.reprice(self, capacity_id, sku_id):
            self.changed(capacity_id)

    def configure(self, sku_id: str, fee_flat: int, fee_bps: int) -> None:
        """Set what sellers of a SKU pay from now on. Raises `Invalid`, `NotFound`."""
        if fee_flat < 0 or fee_flat > AMOUNT_MAX:
            raise Invalid(f"flat: {fee_flat} must be from 0 to {AMOUNT_MAX} micro-dollars per node-block", field="flat")
        if not 0 <= fee_bps <= 10_000:
            raise Invalid(f"percentage_bps: {fee_bps} must be from 0 to 10000", field="percentage_bps")
        Fees(fee_flat, fee_bps)
        exchange = self.exchange(sku_id)
        fees = fees_of(self.write.setting(FEES_SETTING)) | {sku_id: Fee(fee_flat, fee_bps)}
        text = {name: {"flat": fee.flat, "bps": fee.bps} for name, fee in sorted(fees.items())}
        self.write.put_setting(FEES_SETTING, json.dumps(text))
        self.settings = replace(self.settings, fees=fees)
        self.apply(exchange, Configure(fee_flat, fee_bps, self.settings.group_purchase))

    # --- looking ---

    def live_instances(self, capacity_id: str) -> list[Instance]:
        """The awaiting and running instances of a capacity, oldest first."""
        self.rows.forget_capacity(capacity_id)
        return list(self.rows.live(capacity_id))

    def delete_check(self, capacity_id: str) -> None:
        """Raises `Invalid` with everything that keeps a capacity from being deleted."""
        self.rows.forget_capacity(capacity_id)
        found: list[str] = []
        if count := self.write.orders_open_of(capacity_id):
            found.append(count_of(count, "active order"))
        for exchange in self.all_exchanges():
            holding = exchange.holdings.get(capacity_id)
            if holding is not None and holding.owned(exchange.block):
                found.append(f"future allocation of {exchange.sku_id}")
        if count := len([one for one in self.write.instances_on_capacity(capacity_id) if one.ended_at is None]):
            found.append(count_of(count, "active instance"))
        if count := len(self.write.deployments_on(capacity_id)):
            found.append(count_of(count, "deployment"))
        if count := len(self.write.procurements_of(capacity_id)):
            found.append(count_of(count, "procurement"))
        if found:
            raise Invalid(f"capacity: cannot be deleted while it has {', '.join(found)}", field="capacity")

    def sku_check(self, sku_id: str) -> None:
        """Raises `Invalid` with everything that keeps a kind of node from being deleted."""
        found: list[str] = []
        if count := sum(node.slots for node in self.write.nodes() if node.sku_id == sku_id and node.state == "up"):
            found.append(f"{count_of(count, 'node')} up")
        exchange = self.exchange(sku_id)
        if count := sum(1 for own in exchange.of_capacity.values() for _ in own):
            found.append(count_of(count, "open order"))
        if count := sum(bool(one.owned(exchange.block)) for one in exchange.holdings.values()):
            found.append(f"future allocation in {count_of(count, 'capacity', 'capacities')}")
        if found:
            raise Invalid(f"lifecycle: cannot be deleted while it has {', '.join(found)}", field="lifecycle")

    # --- settling ---

    def busy(self) -> set[str]:
        """Capacities that may have instances, deployments or procurements."""
        if self.floor.busy is None:
            self.floor.busy = {one.capacity_id for one in self.write.procurements()}
            self.floor.busy |= {one.capacity_id for one in self.write.deployments()}
            self.floor.busy |= {one.capacity_id for one in self.write.instances_live()}
        return self.floor.busy

    def is_calm(self, capacity_id: str) -> bool:
        """True when nothing can be due for a capacity as time goes by: nobody runs or waits, nothing is managed."""
        if self.rows.live(capacity_id):
            return False
        if any(one.enabled and one.target_instance_count for one in self.rows.deployments(capacity_id)):
            return False
        for procurement in self.rows.procurements(capacity_id):
            exchange = self.exchange(procurement.sku_id)
            wants = procurement.enabled and procurement.target not in ("node_count", 0)
            holding = exchange.holdings.get(capacity_id)
            has = holding is not None and (holding.owned(exchange.block) or exchange.of_capacity[capacity_id])
            if wants or has or procurement.status is None:
                return False
        return True

    def _mark(self, capacity_id: str) -> None:
        if capacity_id != self._muted and capacity_id in self.busy():
            self._dirty.add(capacity_id)

    def settle(self, *, fresh: bool = True) -> None:
        """Do everything that follows from what changed, until nothing does. `fresh`: look at all rows again."""
        if fresh and (self._dirty or self._supply):
            self.rows.forget()
        for _ in range(ROUNDS_MAX):
            if not self._dirty and not self._supply:
                return
            skus, self._supply = sorted(self._supply), set()
            for sku_id in skus:
                supply.supply(self, sku_id)
            names, self._dirty = sorted(self._dirty), set()
            self.steps(names)

    def steps(self, names: Iterable[str]) -> None:
        """Deployments, procurements (oldest first), quota, early starts and warnings of these capacities."""
        names = list(names)
        for name in names:
            for deployment in list(self.rows.deployments(name)):
                if deployments.keep(self, deployment):
                    self._dirty.add(name)
        for procurement in in_turn(one for name in names for one in self.rows.procurements(name)):
            # What it does to its own capacity is looked at right below.
            self._muted = procurement.capacity_id
            try:
                procurements.procure(self, procurement)
            finally:
                self._muted = ""
        for name in names:
            quota.grant(self, name)
        for name in names:
            quota.start_early(self, name)
            warnings.warn_all(self, name)
            self._seen.add(name)

    def save(self) -> None:
        """Write everything down; announce who is where, for the expected times that everybody may see (W2)."""
        super().save()
        for name in sorted(self._seen):
            claims = tuple((one.sku_id, quota.claim_of(one)) for one in self.rows.live(name))
            self.write.announce(Ranked(name, claims))
        self._seen.clear()


def fees_of(text: str | None) -> dict[str, Fee]:
    """The fees by SKU as their setting keeps them."""
    kept = json.loads(text) if text else {}
    return {name: Fee(one["flat"], one["bps"]) for name, one in kept.items()}
