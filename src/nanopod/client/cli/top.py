"""`nanopod top`: what deployments do now: workers, load, queue, times of recent calls, cost."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nanopod.client.api import Api
from nanopod.client.cli import ps, show
from nanopod.client.cli.ordering import PRICE
from nanopod.client.cli.parser import Parser
from nanopod.model.errors import Denied, NanopodError, NotFound

REFRESH_S: Final = 1.0
WINDOW_S: Final = 60.0
"""Times and rates are of the calls that ended in the last minute."""
RECORDS_MAX: Final = 200


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod top`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this deployment").completes = "/v1/endpoints"  # type: ignore[attr-defined]
    parser.add_argument("--once", action="store_true", help="print once and return")
    parser.add_argument("--interval", type=float, default=REFRESH_S, metavar="S", help="between two looks (default: 1)")
    show.add_server_options(parser)
    if isinstance(parser, Parser):
        parser.show_examples(("nanopod top", "nanopod top square", "nanopod top --once --json"))


def run(args: argparse.Namespace) -> int:
    """Look once, or until Ctrl-C."""
    api = show.api_of(args)
    if args.once or args.json or not show.for_people():
        while True:
            rows = look(api, args.name)
            if args.json:
                show.print_line({"object": "top", "at": time.time(), "deployments": rows})
            else:
                show.print_rows(rows, COLUMNS, empty=EMPTY)
            if args.once:
                return 0
            time.sleep(max(0.1, args.interval))
    return _live(api, args)


def _live(api: Api, args: argparse.Namespace) -> int:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, screen=True) as screen:
        while True:
            try:
                screen.update(_table(look(api, args.name)), refresh=True)
            except NotFound:
                raise
            except NanopodError as error:
                screen.update(Text(f"the server does not answer: {error.message}", style="red"), refresh=True)
            time.sleep(max(0.1, args.interval))


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"nanopod top  {time.strftime('%H:%M:%S')}", title_justify="left")
    for title, _ in COLUMNS:
        table.add_column(title)
    for row in rows:
        table.add_row(*(show.text(cell(row)) for _, cell in COLUMNS))
    return table if rows else EMPTY


def look(api: Api, name: str | None = None) -> list[dict[str, Any]]:
    """One row per deployment. Times are seconds, `perf` and `load` units of load per second; None: not known."""
    now = time.time()
    facts = ps.collect(api, name)
    records, prices = _records(api, now), _prices(api)
    rows = []
    for endpoint in facts["deployments"]:
        workers = [row for row in facts["workers"] if row.get("endpoint_id") == endpoint["id"]]
        ready = [row for row in workers if row.get("ready")]
        mine = [record for record in records if record.get("endpoint_id") == endpoint["id"]]
        times = sorted(float(record["t_end"]) - float(record["t_arrival"]) for record in mine)
        # A page holds the newest only: where it is full, they may cover less than the window.
        span_s = min(WINDOW_S, now - min((float(record["t_end"]) for record in mine), default=now)) or WINDOW_S
        span_s = span_s if len(records) >= RECORDS_MAX else WINDOW_S
        rows.append(
            {
                "deployment": ps.full_name(endpoint), "id": endpoint["id"], "status": endpoint.get("status"),
                "ready": len(ready), "target": endpoint.get("target_instance_count", 0), "workers": len(workers),
                "slots": sum(int(row.get("slots") or 0) for row in ready),
                "in_flight": sum(int(row.get("in_flight") or 0) for row in ready),
                "queue": endpoint.get("waiting_count"),
                "spawned_open": sum(1 for call in facts["calls"] if call.get("endpoint_id") == endpoint["id"]),
                "perf": sum(float(row.get("perf") or 0.0) for row in ready) or None,
                "calls_per_s": round(len(mine) / span_s, 3),
                "p50_s": percentile(times, 0.50), "p99_s": percentile(times, 0.99),
                "errors": sum(1 for record in mine if int(record.get("status") or 200) >= 400),
                "price_per_hour": _price(ready, prices),
            }
        )  # fmt: skip
    return rows


def _records(api: Api, now: float) -> list[dict[str, Any]]:
    try:
        found = list(api.get("/v1/usage/records", limit=RECORDS_MAX).get("data") or ())
    except (NotFound, Denied):
        return []
    return [record for record in found if float(record.get("t_end") or 0.0) >= now - WINDOW_S]


def _prices(api: Api) -> dict[str, float]:
    """{SKU: dollars that an hour of one of its nodes costs now}, by the contracts that run."""
    try:
        rows = list(api.get("/v1/contracts", status="active", side="buy", limit=RECORDS_MAX).get("data") or ())
    except NanopodError:
        return {}
    paid: dict[str, list[float]] = {}
    for row in rows:
        sku = row.get("instance_sku")
        price = row.get(f"price_{PRICE}")
        if isinstance(sku, Mapping) and price is not None:
            paid.setdefault(str(sku.get("id")), []).append(float(price))
    return {sku: sum(found) / len(found) for sku, found in paid.items()}


def _price(workers: Sequence[Mapping[str, Any]], prices: Mapping[str, float]) -> float | None:
    """Dollars per hour of these workers; None while the price of one is not known."""
    found = [prices.get(str(row.get("instance_sku_id"))) for row in workers]
    return None if None in found else round(sum(price for price in found if price is not None), 6)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which a share of the (sorted) values lies; None for none."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(seconds: Any) -> str | None:
    """A time for people."""
    return None if seconds is None else f"{float(seconds) * 1000:.1f} ms"


EMPTY: Final = "no deployments; make one with: nanopod deploy FILE"
COLUMNS: Final[list[show.Column]] = [
    ("DEPLOYMENT", show.field("deployment")),
    ("STATUS", show.field("status")),
    ("READY", lambda row: f"{row['ready']}/{row['target']}"),
    ("BUSY", lambda row: f"{row['in_flight']}/{row['slots']}"),
    ("QUEUE", show.field("queue")),
    ("PERF/S", show.field("perf")),
    ("CALLS/S", show.field("calls_per_s")),
    ("P50", lambda row: milliseconds(row["p50_s"])),
    ("P99", lambda row: milliseconds(row["p99_s"])),
    ("ERRORS", show.field("errors")),
    ("$/H", show.field("price_per_hour")),
]
