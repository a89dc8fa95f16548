"""How every object is written: the scoped fields, summaries, schedules, prices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from nanopod.model.capacity import Capacity, Sku
from nanopod.model.money import Rate
from nanopod.model.schedule import Entry, Schedule, Window
from nanopod.store.transaction import Transaction


class ScheduleEntry(TypedDict):
    """`node_count` nodes during `[start_at, end_at)`, Unix seconds; `end_at` null is open-ended."""

    start_at: int
    end_at: int | None
    node_count: int


class Summary(TypedDict):
    """Another object in short."""

    id: str
    name: str


class Scoped(TypedDict):
    """What every object of a workspace carries. `owner` is the account's name."""

    object: str
    id: str
    resource_path: str
    owner: str
    workspace: str
    workspace_id: str
    name: str | None
    created_at: int


class Changeable(Scoped):
    """A scoped object that can be changed."""

    updated_at: int


class Owners:
    """Names of workspaces and their accounts, looked up once per answer."""

    def __init__(self, read: Transaction) -> None:
        self._read = read
        self._known: dict[str, tuple[str, str]] = {}

    def of(self, workspace_id: str) -> tuple[str, str]:
        """(name of the account, name of the workspace); empty for one that is gone."""
        known = self._known.get(workspace_id)
        if known is None:
            found = self._read.workspace(workspace_id)
            account = self._read.account(found.account_id) if found is not None else None
            known = (account.name if account else "", found.name if found else "")
            self._known[workspace_id] = known
        return known


def scoped(
    owners: Owners, kind: str, id: str, workspace_id: str, name: str | None, created_at: float,
    *, shown_as: str | None = None,
) -> Scoped:  # fmt: skip
    """The scoped fields; `kind` is the type in the resource path, `shown_as` the `object` where it differs."""
    account, workspace = owners.of(workspace_id)
    return {
        "object": shown_as or kind,
        "id": id,
        "resource_path": f"np:{kind}:{account}:{workspace}:{name or id}",
        "owner": account,
        "workspace": workspace,
        "workspace_id": workspace_id,
        "name": name,
        "created_at": int(created_at),
    }


def changeable(
    owners: Owners, kind: str, id: str, workspace_id: str, name: str | None, created_at: float, updated_at: float,
    *, shown_as: str | None = None,
) -> Changeable:  # fmt: skip
    """The scoped fields of an object that can be changed."""
    fields = scoped(owners, kind, id, workspace_id, name, created_at, shown_as=shown_as)
    return {**fields, "updated_at": int(updated_at or created_at)}


def summary_of(capacity: Capacity | None, capacity_id: str) -> Summary:
    """A capacity in short; one that is gone keeps its id."""
    return {"id": capacity_id, "name": capacity.name if capacity is not None else ""}


def sku_summary(sku: Sku | None, sku_id: str) -> Summary:
    """A kind of node in short."""
    return {"id": sku_id, "name": sku.alias if sku is not None else ""}


def entries_of(schedule: Schedule) -> list[ScheduleEntry]:
    """A schedule as the API shows it."""
    return [
        {"start_at": e.window.start_at, "end_at": e.window.end_at, "node_count": e.node_count} for e in schedule.entries
    ]


def clipped(schedule: Schedule, start_at: int) -> Schedule:
    """The part of a schedule from `start_at` on."""
    kept = []
    for entry in schedule.entries:
        window = entry.window
        if window.end_at is not None and window.end_at <= start_at:
            continue
        kept.append(Entry(Window(max(window.start_at, start_at), window.end_at), entry.node_count))
    return Schedule(tuple(kept))


def total_of(schedules: Iterable[Schedule]) -> Schedule:
    """The sum of schedules."""
    whole = Schedule()
    for schedule in schedules:
        whole = whole.plus(schedule)
    return whole


def price(rate: Rate, block_s: int) -> str:
    """Dollars per node-hour with 6 decimals."""
    return rate.dollars_per_node_hour(block_s)
