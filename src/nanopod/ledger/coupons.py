"""Coupons: a fixed one becomes a promotional grant, a percentage one lowers the customer's share of each charge.

Either way the operator's `discount_expense` pays the difference, so that revenue and suppliers see full prices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from nanopod.ledger import funding
from nanopod.ledger.funding import BPS, Source
from nanopod.model.errors import Conflict, Invalid


class Coupon(msgspec.Struct, frozen=True):
    """What a code is worth: `amount` micro-dollars per period (fixed) or `percent_bps` off (percentage).

    It lasts `periods` billing periods from when it is redeemed (None: for ever), and can be redeemed until
    `expires_at_us`. Empty `plans` or `meters`: all. Raises `Invalid` for a worth that is neither.
    """

    code: str
    kind: Literal["fixed_amount", "percentage"]
    amount: int = 0
    percent_bps: int = 0
    periods: int | None = 1
    expires_at_us: int | None = None
    plans: tuple[str, ...] = ()
    meters: tuple[str, ...] = ()
    reusable: bool = False
    """True: a workspace may redeem it again."""
    priority: int = 1

    def __post_init__(self) -> None:
        if self.kind == "fixed_amount" and (self.amount <= 0 or self.percent_bps):
            raise Invalid(f"amount: coupon {self.code} needs a positive amount and no percentage", field="amount")
        if self.kind == "percentage" and (not 0 < self.percent_bps <= BPS or self.amount):
            raise Invalid(f"percent_bps: coupon {self.code} needs 1 to {BPS} and no amount", field="percent_bps")
        if self.periods is not None and self.periods < 1:
            raise Invalid(f"periods: coupon {self.code} lasts at least one period", field="periods")
        if self.kind == "fixed_amount" and self.meters:
            raise Invalid(f"meters: coupon {self.code} is an amount; only percentages can be per meter", field="meters")


class Redeemed(msgspec.Struct, frozen=True):
    """A coupon that a workspace entered; periods count from `since_period`."""

    coupon: Coupon
    workspace_id: str
    since_period: int

    def grant_id(self, period: int) -> str:
        """The grant that holds a fixed coupon's amount for one period."""
        return f"{self.coupon.code}:{self.workspace_id}:{period}"

    def lasts(self, period: int) -> bool:
        """True when it counts in this billing period."""
        done = period - self.since_period
        return done >= 0 and (self.coupon.periods is None or done < self.coupon.periods)

    def applies(self, period: int, plan: str, meter: str) -> bool:
        """True when it lowers a charge for `meter` on `plan` in this period."""
        coupon = self.coupon
        fits = (not coupon.plans or plan in coupon.plans) and (not coupon.meters or meter in coupon.meters)
        return fits and self.lasts(period)

    def source(self, period: int, period_ends_us: int) -> Source:
        """What a fixed coupon gives this period; what is not used by its end is gone."""
        return funding.coupon(self.grant_id(period), self.coupon.priority, period_ends_us)


def redeem(coupon: Coupon, workspace_id: str, period: int, now_us: int, earlier: Iterable[Redeemed]) -> Redeemed:
    """Enter a coupon. Raises `Conflict` when it is over, or was used and cannot be used again."""
    if coupon.expires_at_us is not None and coupon.expires_at_us <= now_us:
        raise Conflict(f"coupon {coupon.code} is over", field="coupon")
    if not coupon.reusable and any(
        each.coupon.code == coupon.code and each.workspace_id == workspace_id for each in earlier
    ):
        raise Conflict(f"coupon {coupon.code} was used already", field="coupon")
    return Redeemed(coupon, workspace_id, period)


def share_bps(redeemed: Iterable[Redeemed], period: int, plan: str, meter: str, billing_rate_bps: int = BPS) -> int:
    """The customer's share of a charge after every percentage coupon that applies (for `funding.discount`).

    Percentages add up, at most to everything; they lower what a subsidy left, `billing_rate_bps`.
    """
    off = sum(
        each.coupon.percent_bps
        for each in redeemed
        if each.coupon.kind == "percentage" and each.applies(period, plan, meter)
    )
    return max(0, billing_rate_bps * (BPS - min(off, BPS)) // BPS)
