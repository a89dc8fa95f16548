"""What the power manager is told and what it says. Watts, seconds since the epoch, shares from 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Work = Literal["prefill", "decode"]
WORKS: Final[tuple[Work, ...]] = ("prefill", "decode")
Phase = Literal["equal", "shared", "shed"]
"""`equal`: at the start and whenever something is not known; `shared`: by queue and curve; `shed`: the floors of all
devices do not fit, so some of them are taken out of work."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a circuit may carry, and what on it is no accelerator.

    A 15 A circuit of 120 V carries 1800 W, and 80 % of that continuously: 1440 W at the wall.
    """

    watts: float
    """At the wall, continuously."""
    cpu_cap_w: float
    """Enforced cap of the processors, behind the power supply."""
    fixed_w: float = 0.0
    """Board, fans, memory, disks, network; behind the power supply."""
    psu_efficiency: float = 0.92
    reserve_w: float = 30.0
    """At the wall, for transients and the error of the meter."""

    def wall_w(self, devices_w: float) -> float:
        """Power at the wall when the devices take `devices_w`, the reserve included."""
        return (devices_w + self.cpu_cap_w + self.fixed_w) / self.psu_efficiency + self.reserve_w

    @property
    def devices_w(self) -> float:
        """What is left for the devices together; below 0 when nothing is."""
        return (self.watts - self.reserve_w) * self.psu_efficiency - self.cpu_cap_w - self.fixed_w


@dataclass(frozen=True, slots=True)
class Curve:
    """Measured throughput by power cap: points (watts, units a second), watts rising. Read as its concave hull."""

    points: tuple[tuple[float, float], ...]

    def rate(self, watts: float) -> float:
        """Units a second at a cap: between points by line, beyond them as at the last one; 0 at 0 W."""
        hull = hull_of(self.points)
        before = (0.0, 0.0)
        for point in hull:
            if watts <= point[0]:
                width = point[0] - before[0]
                share = (watts - before[0]) / width if width > 0 else 1.0
                return before[1] + max(0.0, share) * (point[1] - before[1])
            before = point
        return before[1]

    @property
    def most(self) -> float:
        """Units a second without a cap."""
        return max((rate for _, rate in self.points), default=0.0)


def hull_of(points: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
    """The smallest concave, rising curve above the points and the origin: gains per watt then only fall."""
    hull: list[tuple[float, float]] = [(0.0, 0.0)]
    best = 0.0
    for watts, rate in sorted(points):
        best = max(best, rate)
        new = (watts, best)
        while len(hull) > 1:
            (w1, r1), (w2, r2) = hull[-2], hull[-1]
            if (r2 - r1) * (new[0] - w1) <= (new[1] - r1) * (w2 - w1):
                hull.pop()
            else:
                break
        if new[0] > hull[-1][0]:
            hull.append(new)
    return hull[1:]


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator as it was read last. None: not known."""

    device_id: str
    floor_w: float
    """Lowest cap that it takes."""
    max_w: float
    """Highest one; what it may take without any."""
    enforced_w: float | None = None
    """The cap that was read back."""
    drawn_w: float | None = None
    read_at: float | None = None
    curves: Mapping[Work, Curve] = field(default_factory=dict)
    locked_w: float | None = None
    """What it takes at most with its clocks locked low; None: it cannot be locked."""
    is_locked: bool = False
    """Its clocks were read back as locked."""
    asked_w: float | None = None
    """A cap that was asked for and has not been read back: it may come into force at any time."""

    @property
    def committed_w(self) -> float:
        """What it may take now or in a moment: a cap that is not known is none."""
        if self.enforced_w is None:
            return self.max_w
        if self.is_locked and self.locked_w is not None:
            return self.locked_w
        return min(self.max_w, max(self.enforced_w, self.asked_w or 0.0))


@dataclass(frozen=True, slots=True)
class Demand:
    """What waits and runs on a device."""

    prefill_tokens: float = 0.0
    """Tokens of prompts that wait."""
    decode_sequences: float = 0.0
    """Sequences that are being written."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do to a device: `lower` or `raise` its cap to `watts`, `lock` or `unlock` its clocks."""

    kind: Literal["lower", "raise", "lock", "unlock"]
    device_id: str
    watts: float = 0.0


@dataclass(frozen=True, slots=True)
class PowerState:
    """What is remembered between plans."""

    caps: Mapping[str, float] = field(default_factory=dict)
    """The caps that the last plan was for."""
    changed_at: float | None = None
    phase: Phase = "equal"


@dataclass(frozen=True, slots=True)
class PowerPlan:
    """What to do now, in this order, and why. A `lower` that does not take cancels every `raise` after it."""

    phase: Phase
    caps: Mapping[str, float]
    """Where it leads to."""
    steps: tuple[Step, ...]
    shed: tuple[str, ...]
    """Devices that get no new work and are drained or hibernated."""
    admits: bool
    """False while what is enforced does not keep within the envelope: no new work at all."""
    reasons: tuple[str, ...]
