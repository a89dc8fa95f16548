"""The postings of each kind of business, as chains of transfers that are done together or not at all.

`key` is the client's own name for the business. Ids come from it, so repeating a recipe repeats the same transfers,
and a repeated chain answers `exists`. A refused key stays refused: a new try needs a new key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from nanopod.ledger import chart
from nanopod.ledger.funding import Part, take
from nanopod.ledger.transfers import AMOUNT_MAX, Entry, Kind, Transfer, id_text, transfer_id
from nanopod.model.errors import Invalid

Chain = tuple[Transfer, ...]
Move = tuple[str, str, int]
"""(debit, credit, amount)."""

CODES: Final = (
    "top_up", "hold", "use", "release", "payment", "line", "grant", "expire", "supply", "payout", "refund",
    "buy", "sell", "fee", "delivered", "correction", "credit", "tax", "bad_debt",
)  # fmt: skip
"""What a transfer's `code` may say."""


def together(*chains: Iterable[Transfer]) -> Chain:
    """One chain out of several: all or none."""
    whole = [transfer for chain in chains for transfer in chain]
    last = len(whole) - 1
    return tuple(
        transfer if transfer.linked == (n < last) else msgspec.structs.replace(transfer, linked=n < last)
        for n, transfer in enumerate(whole)
    )


def moves(
    key: str, code: str, wanted: Iterable[Move], ref: str = "", *, kind: Kind = "single", timeout_s: int = 0
) -> Chain:
    """A chain of transfers of one kind; moves of nothing are left out, so it may be empty."""
    return together(
        Transfer(
            transfer_id(key, f"{code}/{n}"), kind, debit, credit, amount, timeout_s=timeout_s, code=code, ref=ref or key
        )
        for n, (debit, credit, amount) in enumerate(wanted)
        if amount
    )


# --- money in and out ---


def top_up(key: str, workspace_id: str, amount: int, ref: str = "") -> Chain:
    """A verified payment into the prepaid balance; `key` is the payment processor's id."""
    return moves(key, "top_up", [(chart.CASH, chart.prepaid(workspace_id), amount)], ref)


def pay_back(key: str, workspace_id: str, amount: int, ref: str = "") -> Chain:
    """Prepaid money goes back to the customer."""
    return moves(key, "refund", [(chart.prepaid(workspace_id), chart.CASH, amount)], ref)


def set_line(key: str, workspace_id: str, change: int, ref: str = "") -> Chain:
    """Raise a credit line by `change`, or lower it (refused where it is in use)."""
    line = chart.credit_line(workspace_id)
    sides = (chart.LINE_CONTROL, line) if change > 0 else (line, chart.LINE_CONTROL)
    return moves(key, "line", [(*sides, abs(change))], ref)


def payment(key: str, workspace_id: str, amount: int, ref: str = "", *, line: int | None = None) -> Chain:
    """The customer pays what it owes; the line is restored by as much, or by `line` (tax never used the line)."""
    return moves(
        key,
        "payment",
        [
            (chart.CASH, chart.receivable(workspace_id), amount),
            (chart.LINE_CONTROL, chart.credit_line(workspace_id), amount if line is None else line),
        ],
        ref,
    )


def issue_grant(key: str, grant_id: str, amount: int, ref: str = "") -> Chain:
    """A subsidy grant or a coupon gets its amount. It is a limit, not an expense: using it is."""
    return moves(key, "grant", [(chart.GRANT_BUDGET, chart.grant(grant_id), amount)], ref)


def expire_grant(key: str, grant_id: str, ref: str = "") -> Chain:
    """What is left of a grant goes back, at no expense to anybody."""
    asked = Transfer(
        transfer_id(key, "expire"),
        "single",
        chart.grant(grant_id),
        chart.GRANT_BUDGET,
        AMOUNT_MAX,
        balancing=True,
        code="expire",
        ref=ref or key,
    )
    return (asked,)


# --- use ---


def use(key: str, parts: Sequence[Part], target: str, ref: str = "", code: str = "use") -> Chain:
    """Charge what was used. `target` is normally `revenue:<sku>`; every part is its own transfer with one `ref`."""
    return moves(key, code, _legs(parts, target), ref)


def supply(key: str, sku: str, owner: str, amount: int, ref: str = "") -> Chain:
    """A delivered unit, paid or subsidised, earns its node's owner `amount`."""
    return moves(key, "supply", [(chart.supply_cost(sku), chart.supplier_payable(owner), amount)], ref)


def payout(key: str, owner: str, amount: int = AMOUNT_MAX, ref: str = "") -> Chain:
    """Pay an owner `amount`, or as much of it as is owed."""
    asked = Transfer(
        transfer_id(key, "payout"),
        "single",
        chart.supplier_payable(owner),
        chart.CASH,
        amount,
        balancing=True,
        code="payout",
        ref=ref or key,
    )
    return (asked,)


def bad_debt(key: str, target: str, amount: int, ref: str = "") -> Chain:
    """The operator carries what nobody could be charged for, so that revenue and supply stay whole."""
    return moves(key, "bad_debt", [(chart.BAD_DEBT, target, amount)], ref)


def refund(key: str, parts: Sequence[Part], target: str, ref: str = "") -> Chain:
    """The reverse of `use`: every source gets back what it gave."""
    return moves(key, "refund", [(credit, debit, amount) for debit, credit, amount in _legs(parts, target)], ref)


def reverse(key: str, entry: Entry) -> Chain:
    """A correcting transfer: the same amount the other way, with the corrected entry's id as its `ref`.

    Raises `Invalid` for a pending entry: it is voided instead.
    """
    if entry.transfer.kind == "pending":
        raise Invalid("entry: a hold is not corrected; void it", field="entry")
    return moves(key, "correction", [(entry.credit, entry.debit, entry.amount)], id_text(entry.transfer.id))


# --- holds ---


class Hold(msgspec.Struct, frozen=True):
    """Money set aside for `target`: the parts in the order in which they will be used.

    `charged_before` is what the parts were split with, so that what is posted of the hold is shared like the whole.
    """

    key: str
    target: str
    parts: tuple[Part, ...]
    ref: str = ""
    timeout_s: int = 0
    charged_before: int = 0

    @property
    def amount(self) -> int:
        """Everything that is held."""
        return sum(part.amount for part in self.parts)

    def chain(self) -> Chain:
        """The pending transfers."""
        wanted = _legs(self.parts, self.target)
        return moves(self.key, "hold", wanted, self.ref, kind="pending", timeout_s=self.timeout_s)


def settle(key: str, hold: Hold, amount: int, code: str = "use") -> tuple[Chain, int]:
    """Post `amount` of a hold and give back the rest: (the chain, how much is beyond the hold).

    What is beyond goes through `use` with parts of its own, and `bad_debt` when that is refused.
    """
    chain: list[Transfer] = []
    leg = 0
    for part, taken in zip(hold.parts, _taken(hold, amount), strict=True):
        for _ in part.source.legs(hold.target):
            held = transfer_id(hold.key, f"hold/{leg}")
            chain.append(
                Transfer(
                    transfer_id(key, f"{code}/{leg}"),
                    "post" if taken else "void",
                    amount=taken,
                    pending_id=held,
                    code=code if taken else "release",
                    ref=hold.ref or hold.key,
                )
            )
            leg += 1
    return together(chain), max(0, amount - hold.amount)


def release(key: str, hold: Hold) -> Chain:
    """Give a whole hold back: nothing was delivered."""
    return settle(key, hold, 0, "release")[0]


def rest(key: str, hold: Hold, used: int, amount: int, timeout_s: int | None = None) -> Hold:
    """A hold of `amount` out of what remains of `hold` after `used`; chain it after `settle`, and it cannot fail.

    Raises `Invalid` when more is wanted than remains.
    """
    if used + amount > hold.amount:
        raise Invalid(f"amount: {amount} is more than the {hold.amount - used} that remain of the hold", field="amount")
    remains = tuple(
        Part(part.source, part.amount - gone)
        for part, gone in zip(hold.parts, _taken(hold, used), strict=True)
        if part.amount > gone
    )
    fresh = Hold(
        key,
        hold.target,
        remains,
        hold.ref,
        hold.timeout_s if timeout_s is None else timeout_s,
        hold.charged_before + used,
    )
    kept = (Part(part.source, some) for part, some in zip(remains, _taken(fresh, amount), strict=True) if some)
    return msgspec.structs.replace(fresh, parts=tuple(kept))


def renew(key: str, hold: Hold, used: int, fresh: Hold) -> Chain:
    """Post what was used of a hold and hold anew (a lease, a long stream): refused as a whole when money ran out."""
    chain, beyond = settle(key, hold, used)
    if beyond:
        raise Invalid(f"used: {used} is more than the {hold.amount} held; charge the excess first", field="used")
    return together(chain, fresh.chain())


def _taken(hold: Hold, amount: int) -> list[int]:
    return take(hold.parts, amount, hold.charged_before)


def _legs(parts: Sequence[Part], target: str) -> list[Move]:
    return [(debit, credit, part.amount) for part in parts for debit, credit in part.source.legs(target)]
