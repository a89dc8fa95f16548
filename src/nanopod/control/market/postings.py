"""The money side of every market event: holds, contracts, releases. A refused posting raises and undoes the session."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from nanopod.control.market.floor import Floor
from nanopod.control.ports import Writes
from nanopod.ledger import chart, funding
from nanopod.ledger.funding import Part
from nanopod.ledger.orders import Seller, deliver, fill, order_hold, refund_undelivered
from nanopod.ledger.recipes import Chain, Hold, moves, release, rest, settle, together
from nanopod.ledger.transfers import AMOUNT_MAX, BATCH_MAX, Transfer
from nanopod.model.errors import Conflict, Invalid
from nanopod.model.money import Money

_hold: Final = msgspec.json.Decoder(Hold).decode
_encode: Final = msgspec.json.Encoder().encode


def hold_text(hold: Hold | None) -> str:
    """A hold as its column keeps it."""
    return "" if hold is None else _encode(hold).decode()


def hold_of_text(text: str) -> Hold | None:
    """The inverse of `hold_text`."""
    return _hold(text) if text else None


def check_amount(micro: int, field: str) -> None:
    """Raises `Invalid` naming `field` for an amount that no ledger entry can hold."""
    if micro > AMOUNT_MAX:
        most = Money(AMOUNT_MAX)
        raise Invalid(f"{field}: ${Money(micro)} in all is more than the largest amount, ${most}", field=field)


class Purse:
    """Postings of one session, at `now_us`. What is collected goes out with `flush`."""

    def __init__(self, write: Writes, floor: Floor, now_us: int) -> None:
        self.write = write
        self.floor = floor
        self.now_us = now_us
        self._chains: list[Chain] = []

    # --- what there is ---

    def available(self, account_id: str) -> int:
        """What a guarded account has left, after everything collected so far was posted."""
        self.flush()
        account = self.write.ledger_account(account_id)
        return max(0, account.available) if account else 0

    def spending(self, workspace_id: str) -> int:
        """What a workspace may still hold: prepaid money and unused credit line."""
        return self.available(chart.prepaid(workspace_id)) + self.available(chart.credit_line(workspace_id))

    def parts(self, workspace_id: str, amount: int) -> tuple[Part, ...]:
        """Where an amount comes from: prepaid money first. Raises `PaymentRequired`."""
        sources = (funding.prepaid(workspace_id), funding.credit_line(workspace_id))
        return funding.split(amount, sources, self.available)

    # --- holds ---

    def hold(self, order_id: str, workspace_id: str, amount: int) -> Hold:
        """Reserve what a buy may cost. Raises `PaymentRequired`."""
        made = order_hold(order_id, self.parts(workspace_id, amount))
        self._add(made.chain())
        return made

    def release(self, key: str, hold: Hold) -> None:
        """Give a whole hold back."""
        self._add(release(key, hold))

    def shrink(self, key: str, hold: Hold, keep: int) -> Hold:
        """Keep only `keep` of a hold."""
        left = rest(key, hold, 0, keep)
        self._add(together(settle(key, hold, 0, "release")[0], left.chain()))
        return left

    # --- contracts ---

    def contract(
        self, contract_id: str, hold: Hold, amount: int, fee: int, keep: int, seller: Seller, sku_id: str
    ) -> Hold | None:
        """The postings of one fill; returns what still is held for the open part of the buy."""
        chain, left = fill(contract_id, hold, amount, fee, keep, seller, sku_id)
        self._add(chain)
        return left

    def delivered(self, contract_id: str, owner: str, net: int, before: int, now: int, total: int) -> None:
        """A provider delivered `now` of `total` node-blocks of a contract."""
        self._add(deliver(contract_id, owner, net, before, now, total))

    def earned(self, key: str, contract_id: str, owner: str, amount: int) -> None:
        """Release an exact amount of what a provider has sold: the rest of a contract that lost some blocks."""
        accounts = (chart.undelivered(owner), chart.supplier_payable(owner), amount)
        self._add(moves(key, "delivered", [accounts], contract_id))

    def refund(
        self, key: str, contract_id: str, buyer: str, owner: str, net: int, fee: int, sku_id: str
    ) -> None:  # fmt: skip
        """Give a workspace back what lost blocks cost: what it owes first, the rest as prepaid money."""
        self.flush()
        owed = self.write.ledger_account(chart.receivable(buyer))
        back = min(net + fee, max(0, -owed.balance) if owed else 0)
        parts = [Part(funding.credit_line(buyer), back)] if back else []
        if net + fee > back:
            parts.append(Part(funding.prepaid(buyer), net + fee - back))
        self._add(refund_undelivered(key, contract_id, parts, Seller(owner, provider=True), net, fee, sku_id))

    # --- posting ---

    def _add(self, chain: Chain) -> None:
        if chain:
            self._chains.append(chain)

    def flush(self) -> None:
        """Post what was collected. Raises `Conflict` when the ledger refuses any of it."""
        chains, self._chains = self._chains, []
        if not chains:
            return
        ids = {side for chain in chains for one in chain for side in (one.debit, one.credit) if side}
        new = ids - self.floor.opened
        if new:
            self.write.open_accounts([chart.account_of(account_id) for account_id in sorted(new)])
            self.floor.opened |= new
        for batch in _batches(chains):
            for result in self.write.post_transfers(batch, self.now_us):
                if not result.done:
                    raise Conflict(f"the ledger refused a posting ({result.outcome}); nothing was changed")


def _batches(chains: Iterable[Chain]) -> Iterable[list[Transfer]]:
    batch: list[Transfer] = []
    for chain in chains:
        if batch and len(batch) + len(chain) > BATCH_MAX:
            yield batch
            batch = []
        batch.extend(chain)
    if batch:
        yield batch
