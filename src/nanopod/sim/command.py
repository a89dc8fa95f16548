"""`nanopod sim`: what the scaling rule would do with a day of requests; `nanopod sim market`: a week of the market."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from time import perf_counter
from typing import Any

from nanopod.model.endpoint import ScaleSpec
from nanopod.model.errors import Invalid
from nanopod.sim import market
from nanopod.sim.replay import Outcome, azure_trace, replay, synthetic_day


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
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a scale setting; repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parts = parser.add_subparsers(dest="part", metavar="PART", title="instead of the scaling rule")
    text = "a week of the market: providers, spot buyers, reserved blocks, resellers, lost nodes"
    week = parts.add_parser("market", help=text, description=text[0].upper() + text[1:] + ".")
    week.add_argument("--days", type=float, default=7.0, help="simulated days (default 7)")
    week.add_argument("--traders", type=int, default=300, help="buyers of all kinds (default 300)")
    week.add_argument("--seed", type=int, default=1, help="equal seeds give equal weeks (default 1)")
    week.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Replay with the given settings, and with a fixed fleet of the same peak for comparison."""
    if args.part == "market":
        return run_market(args)
    spec = parse_scale(args.set)
    if args.slots < 1 or args.rate <= 0 or args.hours <= 0 or args.service <= 0:
        raise Invalid("--slots, --rate, --hours and --service are positive numbers")

    def arrivals() -> Any:
        if args.trace:
            return azure_trace(args.trace, args.limit)
        return synthetic_day(args.hours, args.rate, args.service, args.seed)

    scaled = replay(spec, arrivals(), slots=args.slots, wake_s=args.wake)
    fixed_size = max(1, scaled.peak_workers)
    fixed_spec = ScaleSpec(cold_workers=fixed_size, max_workers=fixed_size)
    fixed = replay(fixed_spec, arrivals(), slots=args.slots, wake_s=args.wake)
    if args.json:
        print(json.dumps({"scaled": asdict(scaled), "fixed": asdict(fixed)}))
    else:
        print(describe(scaled, fixed))
    return 0


def run_market(args: argparse.Namespace) -> int:
    """Simulate the market and say what the week was like."""
    with _progress(round(args.days * 24)) as step:
        report = market.simulate(args.days, args.traders, args.seed, perf_counter, step)
    print(json.dumps(asdict(report)) if args.json else market.describe(report))
    return 0


@contextmanager
def _progress(hours: int) -> Iterator[Callable[[], None]]:
    """A bar over simulated hours on a terminal's standard error, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("simulated hours", total=hours)
        yield lambda: progress.advance(task)


def parse_scale(settings: list[str]) -> ScaleSpec:
    """`NAME=VALUE` settings as a `ScaleSpec`; the default sleeps at zero. Raises `Invalid` naming the bad one."""
    values: dict[str, Any] = {"cold_workers": 0, "min_load": 0.0, "inactivity_timeout": 60.0}
    known = {field.name for field in fields(ScaleSpec)}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            raise Invalid(f"--set {setting}: give NAME=VALUE with NAME one of {', '.join(sorted(known))}", field="set")
        try:
            number = None if text == "none" else float(text)
        except ValueError:
            raise Invalid(f"--set {setting}: {text!r} is not a number (or none)", field="set") from None
        values[name] = int(number) if name in ("cold_workers", "max_workers") and number is not None else number
    return ScaleSpec(**values)


def describe(scaled: Outcome, fixed: Outcome) -> str:
    """A table for people."""
    lines = [f"{'':<22}{'scaled':>12}{'fixed fleet':>14}"]
    for name, value in asdict(scaled).items():
        lines.append(f"{name.replace('_', ' '):<22}{value:>12}{asdict(fixed)[name]:>14}")
    if fixed.worker_s:
        lines.append(f"worker time: {scaled.worker_s / fixed.worker_s:.0%} of a fleet fixed at the peak")
    return "\n".join(lines)
