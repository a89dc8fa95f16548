"""An end that the tables announce for a worker, and take back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nanopod.gateway.links import WorkerLink
from nanopod.gateway.pool import Pool
from nanopod.model.wire import RouteRow, WorkerRow


@dataclass
class Host:
    """What a link asks of its gateway before it is used."""

    now: float = 0.0


def row(doomed_at: float | None = None) -> WorkerRow:
    return WorkerRow("inst_1", "endp_1", "rev_1", 1, 4, "digest", doomed_at=doomed_at)


def link(first: WorkerRow) -> WorkerLink:
    host: Any = Host()
    pool: Any = Pool(host, RouteRow("endp_1", "wksp_1", "n", "default", "function", "rev_1"))
    return WorkerLink(host, first, pool)


def test_an_end_that_was_announced_is_taken_back() -> None:
    made = link(row())
    made.row_changed(row(500.0))
    assert made.doomed_at == 500.0
    made.row_changed(row())
    assert made.doomed_at is None


def test_what_the_worker_says_itself_stands_while_the_tables_say_the_same() -> None:
    made = link(row())
    made.doomed_at = 300.0
    made.row_changed(row())
    assert made.doomed_at == 300.0
