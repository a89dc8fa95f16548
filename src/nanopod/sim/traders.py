"""Who trades in a simulated market: providers, spot buyers, buyers of reserved blocks, resellers.

All of them are drawn from one seed; each has its own stream of chance, so that one more trader changes no other.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from nanopod.market.quota import Claim
from nanopod.market.shape import EMPTY, Shape
from nanopod.model.money import Rate
from nanopod.model.procurement import OfferPolicy, Procurement

DAY_MINUTES = 1440
TICK_MINUTES = 10
"""The simulated world moves in steps of ten blocks; all that traders ask for lies on this grid."""


@dataclass(slots=True)
class Seller:
    """A provider of `nodes` nodes; of these `missing` are out until `back_at` (a block)."""

    name: str
    draw: random.Random
    policy: OfferPolicy
    nodes: int
    missing: int = 0
    back_at: int = 0
    minted: Shape = EMPTY

    @property
    def up(self) -> int:
        """Nodes that run now."""
        return self.nodes - self.missing


@dataclass(slots=True)
class Spot:
    """A buyer whose need follows the day; a procurement keeps it supplied for a short rolling window."""

    name: str
    draw: random.Random
    procurement: Procurement
    base: float
    peak_hour: int
    budget: int
    """Micro-dollars paid in each day."""
    need: int = 0
    changes_at: int = 0
    """The block at which its need is looked at again."""
    claims: list[Claim] = field(default_factory=list)
    seen: tuple[int, int] = (0, 0)
    """Need and allocation when the quota was applied last."""
    born: int = 0

    def wish(self, minute: int) -> int:
        """Nodes wanted at a minute of the week: a daily wave, less at the weekend, and some noise."""
        hour = minute % DAY_MINUTES / 60
        wave = 1 + 0.8 * math.cos(2 * math.pi * (hour - self.peak_hour) / 24)
        weekend = 0.6 if minute // DAY_MINUTES % 7 >= 5 else 1.0
        return max(0, round(self.base * wave * weekend * self.draw.uniform(0.8, 1.2)))


@dataclass(slots=True)
class Reserver:
    """A buyer of whole blocks ahead of time, all or none."""

    name: str
    draw: random.Random
    limit: int
    next_at: int


@dataclass(slots=True)
class Reseller:
    """Buys tomorrow's busy hours when they are cheap and offers them dearer."""

    name: str
    draw: random.Random
    limit: int
    markup: float
    next_at: int


@dataclass(slots=True)
class Population:
    """Everybody."""

    sellers: list[Seller]
    spots: list[Spot]
    reservers: list[Reserver]
    resellers: list[Reseller]


def rate_of(dollars: float) -> int:
    """Dollars per node-hour as micro-dollars per node-minute, on a grid of ten cents, as people type prices."""
    cents = max(10, round(dollars * 10) * 10)
    return cents * 10_000 // 60


def population(seed: int, traders: int, sku_id: str, block: int) -> Population:
    """`traders` buyers (70 % spot, 15 % reserved, the rest resell) and a provider for every 25 of them."""
    spots: list[Spot] = []
    reservers: list[Reserver] = []
    resellers: list[Reseller] = []
    for number in range(traders):
        draw = random.Random(f"{seed} trader {number}")
        name = f"trader-{number}"
        kind = number % 20
        if kind < 14:
            limit = rate_of(draw.lognormvariate(0.9, 0.25))
            procurement = Procurement(
                f"proc_{number}", f"cap_{name}", sku_id, "node_count", Rate(limit), Rate(max(1, limit // 3)),
                draw.choice((120, 180, 240)), extend_quantum_minutes=60,
            )  # fmt: skip
            base = draw.uniform(0.5, 4.0)
            # One in ten has too small a budget and runs out of it before the day does.
            share = 0.4 if draw.random() < 0.1 else 2.5
            budget = int(base * 24 * 60 * limit * share)
            spots.append(Spot(name, draw, procurement, base, draw.choice((10, 13, 15, 21)), budget))
        elif kind < 17:
            limit = rate_of(draw.uniform(1.6, 3.2))
            reservers.append(Reserver(name, draw, limit, block + draw.randrange(0, DAY_MINUTES, TICK_MINUTES)))
        else:
            limit = rate_of(draw.uniform(1.0, 1.6))
            markup = draw.uniform(1.2, 1.8)
            resellers.append(Reseller(name, draw, limit, markup, block + draw.randrange(0, DAY_MINUTES, TICK_MINUTES)))
    return Population(_sellers(seed, traders, sku_id), spots, reservers, resellers)


def _sellers(seed: int, traders: int, sku_id: str) -> list[Seller]:
    """Providers with about as many nodes as an ordinary hour needs: the busy ones are short."""
    count = max(2, traders // 25)
    out: list[Seller] = []
    for number in range(count):
        draw = random.Random(f"{seed} provider {number}")
        name = f"provider-{number}"
        night = draw.randrange(0, 24)
        policy = OfferPolicy(
            name, f"cap_{name}", sku_id, Rate(rate_of(draw.uniform(0.6, 1.8))), horizon_minutes=3 * DAY_MINUTES,
            quiet_hours=((night, (night + 6) % 24),) if number % 4 == 3 else (),
        )  # fmt: skip
        nodes = max(1, round(traders * 1.75 / count * draw.uniform(0.6, 1.4)))
        out.append(Seller(name, draw, policy, nodes))
    return out
