"""`auto` against Knative's rule on four loads: what each costs and how long its callers wait.

One request at a time per worker, service times exponential with a mean of one second, bills by the minute, 90 minutes.
The rule: profile `coreweave` exactly, which counts requests; `auto` counts units of load against a known speed. Both
have a quota of 60 workers, may end at no worker after 1800 idle seconds and hibernate none: the figures differ by the
decisions alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import sqrt
from multiprocessing import get_context
from statistics import stdev
from typing import Final

from nanopod.model.endpoint import ScaleSpec, Tuning
from nanopod.scheduler.autoscale.settings import resolve
from nanopod.scheduler.autoscale.simulate import UNITS, Conditions, simulate
from nanopod.sim.traces import LOADS, MINUTES, load

PROFILES: Final = ("coreweave", "auto")
STARTS_S: Final = (5.0, 30.0, 120.0)
SEEDS: Final = 12
SERVICE_S: Final = 1.0
QUOTA: Final = 60
"""Workers there may be: without it the rule starts hundreds for a burst, because each that waits asks for one."""
BARRED_S: Final = 30.0
"""Longest start for which the bars hold: beyond, no rule that reacts is good."""
TOGETHER_MAX: Final = 0.55
EACH_MAX: Final = 0.85
WAIT_S_MIN: Final = 5.0
"""A p99 wait below this is never too long."""
ERRORS: Final = 2.0
"""Standard errors of the difference by which one mean wait must be above another to be longer: the p99 of a run is the
luck of some fifty requests."""
PROMISE: Final = (
    f"with starts up to {BARRED_S:g} s `auto` takes at most {TOGETHER_MAX} of the GPU-minutes together and {EACH_MAX} "
    f"of each, and its p99 wait is not longer (or at most {WAIT_S_MIN:g} s)"
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One load, one length of starts, one profile: means over the seeds."""

    load: str
    start_s: float
    profile: str
    minutes: float
    """Billed GPU-minutes."""
    wait_p99: float
    """Seconds."""
    timeouts: int
    waits: tuple[float, ...] = ()
    """The p99 wait of each seed, seconds."""


def settings(profile: str) -> ScaleSpec:
    """What both are run with; everything else is the profile's own."""
    if profile == "auto":
        return ScaleSpec(
            cold_workers=0, max_workers=QUOTA, min_load=0.0, target_util=0.85, target_queue_time=5.0,
            tuning=Tuning(retention_s=1800, container_concurrency=1),
        )  # fmt: skip
    return ScaleSpec(
        profile="coreweave", cold_workers=0, max_workers=QUOTA, min_load=0.0, tuning=Tuning(container_concurrency=1)
    )


def cell(name: str, start_s: float, profile: str, seeds: Sequence[int], minutes: float = MINUTES) -> Cell:
    """The mean of one run per seed."""
    spec = resolve(settings(profile), 1, False)
    conditions = Conditions(slots=1, provision_s=start_s, mu=UNITS / SERVICE_S, until_s=minutes * 60)
    runs = [simulate(spec, load(name, seed, minutes=minutes, service_s=SERVICE_S), conditions) for seed in seeds]
    return Cell(
        load=name,
        start_s=start_s,
        profile=profile,
        minutes=sum(run.billed_s for run in runs) / 60 / len(runs),
        wait_p99=sum(run.wait_p99 for run in runs) / len(runs),
        timeouts=sum(run.timeouts for run in runs),
        waits=tuple(run.wait_p99 for run in runs),
    )


def compare(
    starts_s: Sequence[float] = STARTS_S,
    seeds: Sequence[int] = (),
    minutes: float = MINUTES,
    *,
    step: Callable[[], None] = lambda: None,
    processes: int = 1,
) -> list[Cell]:
    """All cells; no `seeds`: fresh ones. `step` is called after each."""
    chosen = tuple(seeds) or tuple(fresh(SEEDS))
    asked = [
        (name, start_s, profile, chosen, minutes) for start_s in starts_s for profile in PROFILES for name in LOADS
    ]
    if processes <= 1:
        return [_counted(cell(*one), step) for one in asked]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return [_counted(found, step) for found in pool.map(cell, *zip(*asked, strict=True))]


def _counted(found: Cell, step: Callable[[], None]) -> Cell:
    step()
    return found


def fresh(count: int) -> list[int]:
    """So many seeds in a row that nobody has chosen."""
    first = random.SystemRandom().randrange(1 << 32)
    return list(range(first, first + count))


def broken(cells: Sequence[Cell]) -> list[str]:
    """The bars that do not hold, in words; of starts up to `BARRED_S`."""
    at = {(one.load, one.start_s, one.profile): one for one in cells}
    found: list[str] = []
    for start_s in sorted({one.start_s for one in cells if one.start_s <= BARRED_S}):
        rule = sum(at[name, start_s, "coreweave"].minutes for name in LOADS)
        ours = sum(at[name, start_s, "auto"].minutes for name in LOADS)
        if ours > TOGETHER_MAX * rule:
            found.append(f"{start_s:g} s starts: {ours / rule:.2f} of the GPU-minutes together, above {TOGETHER_MAX}")
        for name in LOADS:
            rules, own = at[name, start_s, "coreweave"], at[name, start_s, "auto"]
            if own.minutes > EACH_MAX * rules.minutes:
                share = own.minutes / rules.minutes
                found.append(f"{start_s:g} s starts, {name}: {share:.2f} of the GPU-minutes, above {EACH_MAX}")
            if own.wait_p99 > max(rules.wait_p99, WAIT_S_MIN) + ERRORS * _error(own.waits, rules.waits):
                waits = f"p99 wait {own.wait_p99:.1f} s, under the rule {rules.wait_p99:.1f} s"
                found.append(f"{start_s:g} s starts, {name}: {waits}")
    return found


def _error(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Standard error of the mean difference of pairs; 0 of fewer than two."""
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    return stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else 0.0


def table(cells: Sequence[Cell]) -> str:
    """GPU-minutes / p99 wait in seconds, a row per start and profile."""
    at = {(one.load, one.start_s, one.profile): one for one in cells}
    names = {"coreweave": "KPA", "auto": "auto"}
    lines = [f"{'start':<12}" + "".join(f"{name:>16}" for name in LOADS) + f"{'together':>12}"]
    for start_s in sorted({one.start_s for one in cells}):
        for profile in PROFILES:
            row = [at[name, start_s, profile] for name in LOADS]
            texts = "".join(f"{f'{one.minutes:.0f} / {one.wait_p99:.1f}':>16}" for one in row)
            lines.append(f"{f'{start_s:g} s {names[profile]}':<12}{texts}{sum(one.minutes for one in row):>12.0f}")
        shares = [at[name, start_s, "auto"].minutes / at[name, start_s, "coreweave"].minutes for name in LOADS]
        whole = sum(at[name, start_s, "auto"].minutes for name in LOADS) / sum(
            at[name, start_s, "coreweave"].minutes for name in LOADS
        )
        lines.append(f"{'  share':<12}" + "".join(f"{share:>16.2f}" for share in shares) + f"{whole:>12.2f}")
    return "\n".join(lines)
