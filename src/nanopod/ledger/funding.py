"""Who pays: the sources of money of a charge, in which order they are used, and how a charge is split over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import msgspec

from nanopod.ledger import chart
from nanopod.ledger.rating import half_even
from nanopod.model.errors import Invalid, PaymentRequired
from nanopod.model.money import Money

PRIORITY_MAX: Final = 50
BPS: Final = 10_000

SourceKind = Literal["subsidy", "discount", "coupon", "prepaid", "credit_line"]
_RANK: Final[dict[SourceKind, int]] = {"subsidy": 0, "discount": 0, "coupon": 1, "prepaid": 2, "credit_line": 3}


class Source(msgspec.Struct, frozen=True):
    """One purse. `guarded` is the account that limits it ("" for none), `payer` the one that is debited for the use."""

    kind: SourceKind
    guarded: str
    payer: str
    priority: int = 1
    """1 (first) to 50, among coupons."""
    expires_at_us: int | None = None
    share_bps: int = BPS
    """The customer's share of a price once this source has carried its own; 10,000: not a carrier of shares."""

    @property
    def carries(self) -> bool:
        """True for a source that pays a share of each price in the customer's place, and never more than that."""
        return self.kind == "subsidy" or self.kind == "discount"

    def legs(self, target: str) -> tuple[tuple[str, str], ...]:
        """(debit, credit) of the transfers that move an amount from here to `target`."""
        if self.kind == "prepaid" or self.kind == "discount":
            return ((self.payer, target),)
        control = chart.LINE_CONTROL if self.kind == "credit_line" else chart.GRANT_BUDGET
        return ((self.guarded, control), (self.payer, target))


class Part(msgspec.Struct, frozen=True):
    """`amount` micro-dollars out of one source."""

    source: Source
    amount: int


def prepaid(workspace_id: str) -> Source:
    """What the workspace paid in."""
    account = chart.prepaid(workspace_id)
    return Source("prepaid", account, account)


def credit_line(workspace_id: str) -> Source:
    """What the workspace will pay later."""
    return Source("credit_line", chart.credit_line(workspace_id), chart.receivable(workspace_id))


def subsidy(grant_id: str, funder: str, billing_rate_bps: int, expires_at_us: int | None = None) -> Source:
    """A grant by which `funder` carries all but `billing_rate_bps` of each price. Raises `Invalid` beyond 0..10,000."""
    return Source(
        "subsidy", chart.grant(grant_id), chart.subsidy_expense(funder), 1, expires_at_us, _rate(billing_rate_bps)
    )


def coupon(grant_id: str, priority: int = 1, expires_at_us: int | None = None) -> Source:
    """A promotional amount. Raises `Invalid` for a priority outside 1..50."""
    if not 1 <= priority <= PRIORITY_MAX:
        raise Invalid(f"priority: {priority} must be from 1 to {PRIORITY_MAX}", field="priority")
    return Source("coupon", chart.grant(grant_id), chart.DISCOUNT_EXPENSE, priority, expires_at_us)


def discount(share_bps: int) -> Source:
    """Percentage coupons: the operator carries what is between an earlier source's share and this one."""
    return Source("discount", "", chart.DISCOUNT_EXPENSE, share_bps=_rate(share_bps))


def in_order(sources: Iterable[Source], now_us: int) -> tuple[Source, ...]:
    """Sources that are still good, in the order in which they are used.

    Subsidy and discount, then coupons by (priority, earliest expiry, id), then prepaid money, then the credit line.
    """
    good = [source for source in sources if source.expires_at_us is None or source.expires_at_us > now_us]
    forever = 2**63

    def rank(source: Source) -> tuple[int, int, int, str]:
        expiry = forever if source.expires_at_us is None else source.expires_at_us
        return _RANK[source.kind], source.priority, expiry, source.guarded

    return tuple(sorted(good, key=rank))


def customer_share(total: int, billing_rate_bps: int) -> int:
    """What the customer pays of `total` micro-dollars so far; the subsidy is the rest. 10,000 bps: everything.

    Raises `Invalid` for a rate outside 0..10,000.
    """
    return half_even(total * _rate(billing_rate_bps), BPS)


def split(
    amount: int, sources: Sequence[Source], available: Callable[[str], int], *, charged_before: int = 0
) -> tuple[Part, ...]:
    """Divide a charge over sources (already in order), each giving what it can.

    `available` says what a guarded account has left. Subsidy and discount carry at most their share, counted
    cumulatively over `charged_before`, so that parts of a total never drift; what a grant cannot carry falls to the
    customer. Raises `PaymentRequired` with what is missing.
    """
    left, parts = amount, []
    for source, limit in zip(sources, _limits(sources, amount, charged_before), strict=True):
        most = min(left, limit)
        if source.guarded:
            most = min(most, available(source.guarded))
        if most > 0:
            parts.append(Part(source, most))
            left -= most
    if left > 0:
        raise PaymentRequired(f"${Money(amount)} is needed and ${Money(amount - left)} is there; top up ${Money(left)}")
    return tuple(parts)


def take(parts: Sequence[Part], amount: int, charged_before: int = 0) -> list[int]:
    """How much of each part is used when `amount` of all of them is: in order, carried shares in proportion.

    Everything up to the sum of the parts can be taken.
    """
    left = min(amount, sum(part.amount for part in parts))
    limits = _limits([part.source for part in parts], left, charged_before)
    taken: list[int] = []
    for part, limit in zip(parts, limits, strict=True):
        some = min(left, part.amount, limit)
        taken.append(some)
        left -= some
    for n, part in enumerate(parts):
        # Shares of two carriers are rounded apart, which may leave a micro-dollar for whoever has it.
        more = min(left, part.amount - taken[n])
        taken[n] += more
        left -= more
    return taken


def _limits(sources: Sequence[Source], amount: int, before: int) -> list[int]:
    """The most that each source may give of a charge: carriers their share, others everything."""
    limits: list[int] = []
    above = amount
    for source in sources:
        if source.carries:
            share = customer_share(before + amount, source.share_bps) - customer_share(before, source.share_bps)
            limits.append(max(0, above - share))
            above = min(above, share)
        else:
            limits.append(amount)
    return limits


def _rate(bps: int) -> int:
    if not 0 <= bps <= BPS:
        raise Invalid(f"billing_rate_bps: {bps} must be from 0 to {BPS}", field="billing_rate_bps")
    return bps
