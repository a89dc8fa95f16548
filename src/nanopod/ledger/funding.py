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

    @property
    def carries(self) -> bool:
        """True for a source that pays a share in the customer's place, limited by the billing rate."""
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


def subsidy(grant_id: str, funder: str, expires_at_us: int | None = None) -> Source:
    """A grant by which `funder` carries a share of the price."""
    return Source("subsidy", chart.grant(grant_id), chart.subsidy_expense(funder), 1, expires_at_us)


def coupon(grant_id: str, priority: int = 1, expires_at_us: int | None = None) -> Source:
    """A promotional amount. Raises `Invalid` for a priority outside 1..50."""
    if not 1 <= priority <= PRIORITY_MAX:
        raise Invalid(f"priority: {priority} must be from 1 to {PRIORITY_MAX}", field="priority")
    return Source("coupon", chart.grant(grant_id), chart.DISCOUNT_EXPENSE, priority, expires_at_us)


def discount() -> Source:
    """A percentage coupon: the platform carries a share, without a limit of its own."""
    return Source("discount", "", chart.DISCOUNT_EXPENSE)


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
    if not 0 <= billing_rate_bps <= BPS:
        raise Invalid(f"billing_rate_bps: {billing_rate_bps} must be from 0 to {BPS}", field="billing_rate_bps")
    return half_even(total * billing_rate_bps, BPS)


def _own(amount: int, billing_rate_bps: int, charged_before: int) -> int:
    return customer_share(charged_before + amount, billing_rate_bps) - customer_share(charged_before, billing_rate_bps)


def split(
    amount: int,
    sources: Sequence[Source],
    available: Callable[[str], int],
    *,
    billing_rate_bps: int = BPS,
    charged_before: int = 0,
) -> tuple[Part, ...]:
    """Divide a charge over sources (already in order), each giving what it can.

    `available` says what a guarded account has left. Of a charge at `billing_rate_bps`, subsidy and discount carry at
    most their share, counted cumulatively over `charged_before`, so that parts of a total never drift; what a grant
    cannot carry falls to the customer. Raises `PaymentRequired` with what is missing.
    """
    carried = amount - _own(amount, billing_rate_bps, charged_before)
    left, parts = amount, []
    for source in sources:
        limit = min(left, carried) if source.carries else left
        if source.guarded:
            limit = min(limit, available(source.guarded))
        if limit > 0:
            parts.append(Part(source, limit))
            left -= limit
            if source.carries:
                carried -= limit
    if left > 0:
        raise PaymentRequired(f"${Money(amount)} is needed and ${Money(amount - left)} is there; top up ${Money(left)}")
    return tuple(parts)


def take(parts: Sequence[Part], amount: int, billing_rate_bps: int = BPS, charged_before: int = 0) -> list[int]:
    """How much of each part is used when `amount` of all of them is: in order, the carried share in proportion.

    Parts that `split` made for a larger amount, at the same rate, always suffice; the rest stays unused.
    """
    left = min(amount, sum(part.amount for part in parts))
    carried = left - _own(left, billing_rate_bps, charged_before)
    taken: list[int] = []
    for part in parts:
        some = min(left, part.amount, carried) if part.source.carries else min(left, part.amount)
        carried -= some if part.source.carries else 0
        left -= some
        taken.append(some)
    for n, part in enumerate(parts):
        # Only parts that were not made at this rate leave something over.
        more = min(left, part.amount - taken[n])
        taken[n] += more
        left -= more
    return taken
