"""`nanopod sim`: what the scaling would do with a day of requests, against Knative's rule, or with a recording; and
`nanopod sim market`: a week of the market."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from nanopod.client.autoscaling import scale_spec
from nanopod.client.cli import scaling
from nanopod.model.endpoint import ScaleSpec, Tuning
from nanopod.model.errors import Invalid
from nanopod.scheduler.autoscale.simulate import Arrival, Outcome
from nanopod.sim import comparing, market
from nanopod.sim.replay import again, as_json, replay
from nanopod.sim.traces import LOADS, MINUTES, azure_trace, synthetic_day


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod sim`."""
    parser.add_argument("--trace", type=Path, metavar="CSV", help="TIMESTAMP,ContextTokens,GeneratedTokens per request")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N requests of the trace")
    parser.add_argument("--hours", type=float, default=4.0, help="length of the made-up day (default 4)")
    parser.add_argument("--rate", type=float, default=0.5, help="its mean requests per second (default 0.5)")
    parser.add_argument("--service", type=float, default=8.0, metavar="S", help="mean seconds per request (default 8)")
    parser.add_argument("--seed", type=int, default=1, help="of the made-up day (default 1)")
    parser.add_argument("--slots", type=int, default=8, help="requests one worker takes at once (default 8)")
    parser.add_argument(
        "--wake", type=float, default=30.0, metavar="S", help="seconds a worker takes to wake (default 30)"
    )
    parser.add_argument("--provision", type=float, metavar="S", help="seconds a new worker takes (default: as a wake)")
    parser.add_argument(
        "--mu", type=float, metavar="UNITS", help="units of load a worker does a second (default: measured)"
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="write what the autoscaler saw, for `sim replay`")
    scaling.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parts = parser.add_subparsers(dest="part", metavar="PART", title="instead of a day of requests")
    _configure_compare(parts)
    text = "the decisions that a recording leads to, a JSON line each; fails where they differ from the recorded ones"
    again = parts.add_parser("replay", help=text, description=text[0].upper() + text[1:] + ".")
    again.add_argument("file", type=Path, metavar="FILE", help="a recording of `nanopod sim --record`")
    again.add_argument("--check", action="store_true", help="print nothing but the differences")
    text = "a week of the market: providers, spot buyers, reserved blocks, resellers, lost nodes"
    week = parts.add_parser("market", help=text, description=text[0].upper() + text[1:] + ".")
    week.add_argument("--days", type=float, default=7.0, help="simulated days (default 7)")
    week.add_argument("--traders", type=int, default=300, help="buyers of all kinds (default 300)")
    week.add_argument("--seed", type=int, default=1, help="equal seeds give equal weeks (default 1)")
    week.add_argument("--json", action="store_true", help="print JSON")


def _configure_compare(parts: Any) -> None:
    text = "`auto` against Knative's rule on four loads: GPU-minutes and waits; fails where a promise is broken"
    words = parts.add_parser("compare", help=text, description=text[0].upper() + text[1:] + ".")
    words.add_argument(
        "--starts", default="5,30,120", metavar="S,S", help="seconds that starts take (default 5,30,120)"
    )
    words.add_argument(
        "--seeds", type=int, default=comparing.SEEDS, metavar="N", help=f"runs per figure (default {comparing.SEEDS})"
    )
    words.add_argument("--first-seed", type=int, metavar="N", help="of so many in a row (default: fresh ones)")
    words.add_argument("--processes", type=int, metavar="N", help="to run in (default: one per processor)")
    words.add_argument("--minutes", type=float, default=MINUTES, help="length of each load (default 90)")
    words.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Replay with the given settings, and with a fixed fleet of the same peak; or the part that is named."""
    parts = {"market": run_market, "compare": run_compare, "replay": run_replay}
    if args.part in parts:
        return parts[args.part](args)
    spec = parse_scale(args)
    if args.slots < 1 or args.rate <= 0 or args.hours <= 0 or args.service <= 0:
        raise Invalid("--slots, --rate, --hours and --service are positive numbers")

    def arrivals() -> Iterable[Arrival]:
        if args.trace:
            return azure_trace(args.trace, args.limit)
        return synthetic_day(args.hours, args.rate, args.service, args.seed)

    conditions = {"slots": args.slots, "wake_s": args.wake, "provision_s": args.provision, "mu": args.mu}
    scaled = replay(spec, arrivals(), record=args.record, **conditions)
    fixed = replay(fixed_fleet(max(1, scaled.peak_workers)), arrivals(), **conditions)
    if args.json:
        print(json.dumps({"scaled": figures(scaled), "fixed": figures(fixed)}))
    else:
        print(describe(scaled, fixed))
    return 0


def run_compare(args: argparse.Namespace) -> int:
    """The table, and 1 where a bar does not hold."""
    try:
        starts = [float(text) for text in args.starts.split(",")]
    except ValueError:
        raise Invalid(f"--starts {args.starts}: write seconds with commas, such as 5,30", field="starts") from None
    if args.seeds < 1 or args.minutes <= 0 or not all(0 <= start <= 3600 for start in starts):
        raise Invalid("--seeds and --minutes are positive, --starts from 0 to 3600 seconds")
    first = args.first_seed
    seeds = list(range(first, first + args.seeds)) if first is not None else comparing.fresh(args.seeds)
    with _progress("figures", len(starts) * len(comparing.PROFILES) * len(LOADS)) as step:
        processes = args.processes or min(8, os.cpu_count() or 1)
        cells = comparing.compare(starts, seeds, args.minutes, step=step, processes=processes)
    broken = comparing.broken(cells)
    if args.json:
        print(json.dumps({"seeds": seeds, "cells": [asdict(one) for one in cells], "broken": broken}))
        return 1 if broken else 0
    print(comparing.table(cells))
    print(f"GPU-minutes, billed by the minute / p99 wait in s; means of {len(seeds)} seeds from {seeds[0]}")
    print("\n".join(f"does not hold: {one}" for one in broken) or comparing.PROMISE)
    return 1 if broken else 0


def run_replay(args: argparse.Namespace) -> int:
    """Decide again what was recorded; 1 where a decision differs from the recorded one."""
    different = 0
    for number, (line, decision) in enumerate(again(args.file), 1):
        same = line.decided is None or line.decided == decision
        different += not same
        if not args.check:
            print(json.dumps(as_json(line, decision)))
        if not same and line.decided is not None:
            words = f"evaluation {number} at {line.at:.3f}: {decision.want} hot, {decision.cold} cold"
            print(f"{words}; recorded: {line.decided.want} hot, {line.decided.cold} cold", file=sys.stderr)
    return 1 if different else 0


def run_market(args: argparse.Namespace) -> int:
    """Simulate the market and say what the week was like."""
    with _progress("simulated hours", round(args.days * 24)) as step:
        report = market.simulate(args.days, args.traders, args.seed, perf_counter, step)
    print(json.dumps(asdict(report)) if args.json else market.describe(report))
    return 0


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's standard error, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def parse_scale(args: argparse.Namespace) -> ScaleSpec:
    """The settings that were given; the default sleeps at zero. Raises `Invalid` naming the bad one."""
    usual = {"cold_workers": 0, "min_load": 0.0, "inactivity_timeout": 60.0}
    return scale_spec({**usual, **scaling.settings_of(args)})


def fixed_fleet(count: int) -> ScaleSpec:
    """Always so many workers."""
    return ScaleSpec(
        cold_workers=0, max_workers=count, min_load=0.0, tuning=Tuning(min_scale=count, initial_scale=count)
    )


def figures(outcome: Outcome) -> dict[str, Any]:
    """An outcome without its timeline."""
    found: dict[str, Any] = msgspec.to_builtins(outcome)
    del found["timeline"]
    return found


def describe(scaled: Outcome, fixed: Outcome) -> str:
    """A table for people."""
    lines = [f"{'':<22}{'scaled':>12}{'fixed fleet':>14}"]
    for name, value in figures(scaled).items():
        lines.append(f"{name.replace('_', ' '):<22}{value:>12}{figures(fixed)[name]:>14}")
    if fixed.worker_s:
        lines.append(f"worker time: {scaled.worker_s / fixed.worker_s:.0%} of a fleet fixed at the peak")
    return "\n".join(lines)
