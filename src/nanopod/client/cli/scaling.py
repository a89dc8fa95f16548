"""Settings of the scaling on the command line, and what the autoscaler says of an endpoint, for people."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nanopod.client import autoscaling
from nanopod.client.cli import show
from nanopod.model import tuning
from nanopod.model.errors import Invalid

OPTIONS: Final[tuple[tuple[str, str, str, str], ...]] = (
    ("--min", "min_scale", "N", "workers kept running, whatever is asked of them"),
    ("--max", "max_workers", "N", "largest number of workers (0: no limit)"),
    ("--min-load", "min_load", "UNITS", "units of load a second that are to be met at any time"),
    ("--cold", "cold_workers", "N", "workers kept at hand, hibernated ones included"),
    ("--cold-mult", "cold_mult", "X", "workers at hand as a multiple of those that run"),
    ("--idle", "inactivity_timeout", "S", "no worker after so many idle seconds (below 0: never)"),
    ("--target-util", "target_util", "SHARE", "share of a worker's speed that is to be used, above 0 to 1"),
    ("--queue-time", "target_queue_time", "S", "more workers when requests would wait longer than this"),
)
"""(option, setting, metavar, help)"""


def add_options(parser: argparse.ArgumentParser, *, without: Sequence[str] = ()) -> None:
    """The options, but those that the verb has of its own."""
    parser.add_argument("--profile", choices=tuning.CHOICES["profile"], help="whose rules to scale by (default: auto)")
    for option, name, metavar, words in OPTIONS:
        if option not in without:
            parser.add_argument(option, type=float, dest=name, metavar=metavar, help=words)
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="NAME=VALUE",
        help="any other setting of configure_autoscaling, such as stable_window=60; may be repeated",
    )  # fmt: skip


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, checked. Raises `Invalid` naming the setting and the fix."""
    found: dict[str, Any] = {}
    for _, name, _, _ in OPTIONS:
        if getattr(args, name, None) is not None:
            found[name] = getattr(args, name)
    if args.profile:
        found["profile"] = args.profile
    for text in args.settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise Invalid(f"--set {text}: write NAME=VALUE", field="set")
        found[name.strip().replace("-", "_")] = _value(value.strip())
    return autoscaling.checked(found)


def scale_body(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the API takes them: those of `Tuning` below `tuning`."""
    body: dict[str, Any] = {name: value for name, value in settings.items() if name not in autoscaling.TUNED}
    tuned = {autoscaling.TUNING.get(name, name): v for name, v in settings.items() if name in autoscaling.TUNED}
    return {**body, "tuning": tuned} if tuned else body


def _value(text: str) -> Any:
    if text.lower() in ("true", "false", "on", "off"):
        return text.lower() in ("true", "on")
    try:
        return float(text)
    except ValueError:
        return text


def facts(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The lines of `nanopod endpoints get` about an endpoint's scaling; none while nothing was decided."""
    said: Mapping[str, Any] = found.get("autoscaling") or {}
    if not said:
        return []
    delay, active, bounds = said.get("delay") or {}, said.get("active") or {}, said.get("bounds") or {}
    lines = [("profile", said.get("profile")), ("metrics", "\n".join(map(_metric, said.get("metrics") or ())))]
    want = said.get("want")
    counted = f"{_count(said.get('desired'))} desired, {_count(want)} wanted, {said.get('ready', 0)} ready"
    counted += f", {said.get('starting', 0)} starting, {said.get('cold', 0)} hibernated"
    lines.append(("scaling", counted))
    if said.get("waiting"):
        several = "requests" if said["waiting"] != 1 else "request"
        lines.append(("waiting", f"{said['waiting']} {several}, the first for {said.get('oldest_wait_s', 0):.1f} s"))
    if said.get("panic_since"):
        lines.append(("panic", f"since {show.when(said['panic_since'])}: the count does not fall"))
    limits = [f"at least {bounds.get('min', 0)}"]
    limits += [f"at most {bounds['max']}"] if bounds.get("max") else []
    lines.append(("bounds", "\n".join([", ".join(limits), *map(str, bounds.get("reasons") or ())])))
    if delay.get("seconds"):
        holds = f", holds {delay['holds']}" if delay.get("holds") is not None else ""
        lines.append(("down delay", f"{show.span(delay['seconds'])}{holds}"))
    if said.get("zero_after_s") is not None:
        lines.append(("zero", f"after {show.span(said['zero_after_s'])} without a request"))
    since = f" since {show.when(active['since'])}" if active.get("since") else ""
    reason = f" ({active['reason']})" if active.get("reason") else ""
    lines.append(("active", f"{active.get('status', 'Unknown')}{since}{reason}"))
    starts = said.get("start_s") or {}
    known = [f"{kind} {value:.1f} s" for kind, value in starts.items() if value is not None]
    lines.append(("starts take", ", ".join(known)))
    if said.get("units_per_s"):
        lines.append(("worker speed", f"{said['units_per_s']:g} units of load a second"))
    told = set(map(str, found.get("reasons") or ()))
    lines.append(("decided", "\n".join(one for one in map(str, said.get("reasons") or ()) if one not in told)))
    lines.append(("advice", said.get("advice") or None))
    return lines


def _count(value: Any) -> str:
    return "none" if value is None or value < 0 else str(value)


def _metric(one: Mapping[str, Any]) -> str:
    """One line: what is seen over both windows, what a worker is to have, and how many that makes."""
    return (
        f"{one.get('name')}: {one.get('stable', 0):g} (panic window {one.get('panic', 0):g}), "
        f"{one.get('target', 0):g} per worker ({one.get('total', 0):g} at {100 * one.get('utilization', 0):g} %): "
        f"{one.get('desired_stable', 0)} (panic {one.get('desired_panic', 0)})"
    )
