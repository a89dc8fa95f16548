"""What an order must satisfy before it is matched, and what it costs (R1, R2, R4, R15)."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Final, Literal

from nanopod.market.shape import Shape, rect, volume
from nanopod.model.errors import Invalid
from nanopod.model.money import MICRO, Money, Rate
from nanopod.model.schedule import BLOCK_S

NODES_MAX: Final = 1024
DURATION_S_MAX: Final = 3 * 365 * 86_400
BPS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Fees:
    """What a seller pays per contract: `flat` micro-dollars per node-block plus `bps` ten-thousandths of the amount."""

    flat: int = 0
    bps: int = 0

    def __post_init__(self) -> None:
        assert self.flat >= 0 and 0 <= self.bps <= BPS, "fees are not negative and not above the whole amount"

    def of(self, amount: int, node_blocks: int) -> int:
        """R15: the fee in micro-dollars for a contract over `amount` micro-dollars."""
        return self.flat * node_blocks + amount * self.bps // BPS


def next_block(now: float, block_s: int = BLOCK_S) -> int:
    """R1: the first block that has not begun; "now" means this one."""
    return int(now // block_s) + 1


def blocks_of(minutes: int, block_s: int = BLOCK_S) -> int:
    """Wall minutes in blocks."""
    return minutes * 60 // block_s


def admit_window(start_at: int, end_at: int, node_count: int, *, now: float, block_s: int = BLOCK_S) -> Shape:
    """R1: the rectangle that an order for this window asks for, clipped to the next block.

    Raises `Invalid` for a misaligned or empty window, a start more than one block in the past, too many nodes, too
    long.
    """
    for field, value in (("start_at", start_at), ("end_at", end_at)):
        if value % block_s:
            below = value - value % block_s
            raise Invalid(
                f"{field}: {value} is not a multiple of {block_s} s; use {below} or {below + block_s}",
                field=field,
            )
    if end_at <= start_at:
        raise Invalid(f"end_at: {end_at} must be after start_at {start_at}", field="end_at")
    if end_at - start_at > DURATION_S_MAX:
        raise Invalid(
            f"end_at: {end_at - start_at} s is longer than the longest order, {DURATION_S_MAX} s", field="end_at"
        )
    if not 1 <= node_count <= NODES_MAX:
        raise Invalid(f"node_count: {node_count} must be from 1 to {NODES_MAX}", field="node_count")
    first = next_block(now, block_s)
    start, end = start_at // block_s, end_at // block_s
    # The block that is running now began at most one block ago, and a preview may have been made in the one before.
    if start_at < now - block_s:
        raise Invalid(f"start_at: {start_at} is past; the next block starts at {first * block_s}", field="start_at")
    if end <= first:
        raise Invalid(
            f"end_at: {end_at} leaves no whole block after now; the next one starts at {first * block_s}",
            field="end_at",
        )
    return rect(max(start, first), end, node_count)


def parse_rate(
    text: str, side: Literal["buy", "sell"], *, block_s: int = BLOCK_S, field: str = "limit_price_dollars_per_node_hour"
) -> Rate:
    """R2: dollars per node-hour, rounded half up to a whole step. Raises `Invalid`; a buy at rate 0 is refused."""
    rate = Rate.parse(text, block_s, field)
    # `Rate.parse` checked the form but rounds halves to even; an order's price rounds them up.
    exact = Decimal(text) * MICRO / Rate.step(block_s)
    rate = Rate(int(exact.to_integral_value(ROUND_HALF_UP)))
    if side == "buy" and rate.micro_per_block == 0:
        least = Rate(1).dollars_per_node_hour(block_s)
        raise Invalid(f"{field}: {text!r} rounds to 0; a buy offers at least {least}", field=field)
    return rate


def rate_of_total(total: Money, node_blocks: int) -> Rate:
    """The highest rate whose total for `node_blocks` does not exceed `total` (rounded down)."""
    assert node_blocks > 0 and total.micro >= 0, "a total is spread over some time"
    return Rate(int((Decimal(total.micro) / node_blocks).to_integral_value(ROUND_FLOOR)))


def hold_of(rate: int, shape: Shape) -> int:
    """R4: what an open buy keeps reserved: limit rate times its open node-blocks, micro-dollars."""
    return rate * volume(shape)
