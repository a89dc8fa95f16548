"""Requests to replay: four loads that autoscalers are judged by, a made-up day, recorded traces of language models."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from nanopod.model.errors import Invalid
from nanopod.scheduler.autoscale.simulate import Arrival

MINUTES: Final = 90.0
"""Length of the four loads."""

LOADS: Final[Mapping[str, tuple[float, Callable[[float], float]]]] = {
    "step": (8.0, lambda t: 8.0 if t >= 600 else 0.5),
    "spike": (12.8, lambda t: 12.0 if 1800 <= t < 1890 else 0.8),
    "diurnal": (9.5, lambda t: 5.0 + 4.5 * math.sin(2 * math.pi * t / 3600)),
    "on-off": (6.0, lambda t: 6.0 if t % 2400 < 300 else 0.0),
}
"""name: (highest, at second t) of the requests per second."""


def load(name: str, seed: int, *, minutes: float = MINUTES, service_s: float = 1.0) -> Iterator[Arrival]:
    """Poisson arrivals of one of `LOADS`, service times exponential with mean `service_s`. Equal seeds, equal loads."""
    highest, rate = LOADS[name]
    return _poisson(random.Random(f"{name} {seed}"), minutes * 60, highest, rate, service_s)


def synthetic_day(hours: float, rate: float, service_s: float, seed: int) -> Iterator[Arrival]:
    """Poisson arrivals that follow a day's curve: quiet at night, busy at noon, and one burst of five minutes.

    `rate` is the mean in requests per second; service times are exponential with mean `service_s`.
    """
    rng = random.Random(seed)
    length = hours * 3600.0
    burst = rng.uniform(0.3, 0.7) * length

    def intensity(now: float) -> float:
        wave = max(0.0, 1.0 - math.cos(2 * math.pi * now / length))
        return rate * wave * (3.0 if burst <= now < burst + 300 else 1.0)

    return _poisson(rng, length, rate * 6.0, intensity, service_s)


def _poisson(
    rng: random.Random, length_s: float, highest: float, rate: Callable[[float], float], service_s: float
) -> Iterator[Arrival]:
    """Thinning: candidates at the highest rate, each kept with the share that its moment has of it."""
    now = 0.0
    while True:
        now += rng.expovariate(highest)
        if now >= length_s:
            return
        if rng.random() * highest < rate(now):
            yield Arrival(now, rng.expovariate(1.0 / service_s))


def azure_trace(path: Path, limit: int | None = None) -> Iterator[Arrival]:
    """Arrivals of a CSV with TIMESTAMP, ContextTokens, GeneratedTokens (the public Azure LLM inference traces).

    Service time: 0.15 s, 0.3 ms per context token, 35 ms per further token. Raises `Invalid` naming a bad line.
    """
    first: datetime | None = None
    with open(path, newline="") as source:
        for number, row in enumerate(csv.DictReader(source)):
            if limit is not None and number >= limit:
                return
            try:
                at = datetime.fromisoformat(row["TIMESTAMP"][:26])
                context, generated = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (KeyError, ValueError) as error:
                raise Invalid(
                    f"{path}, line {number + 2}: {error}; expected TIMESTAMP,ContextTokens,GeneratedTokens"
                ) from error
            first = first or at
            yield Arrival((at - first).total_seconds(), 0.15 + 0.0003 * context + 0.035 * max(0, generated - 1))
