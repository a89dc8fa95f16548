"""What the loop needs from others, as protocols. `server/assemble.py` joins them to adapters; nobody else does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from nanopod.model.capacity import Capacity, Node
from nanopod.model.chain import Deployment, Endpoint, Instance, Key, Revision
from nanopod.model.schedule import Schedule
from nanopod.model.wire import Tables, Wanted

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
S = TypeVar("S")

Clock = Callable[[], float]
"""Unix seconds."""
NewId = Callable[[str], str]
"""A new id of a kind of `model.ids.PREFIXES`."""


class Reads(Protocol):
    """One consistent state of the store."""

    def endpoint(self, endpoint_id: str) -> Endpoint | None: ...
    def endpoints(self, workspace_id: str | None = None, *, deleted: bool = False) -> list[Endpoint]: ...
    def endpoint_generations(self) -> list[tuple[str, int, int]]: ...
    def revision(self, revision_id: str) -> Revision | None: ...
    def revisions_of(self, endpoint_id: str) -> list[Revision]: ...
    def deployment(self, deployment_id: str) -> Deployment | None: ...
    def deployment_of(self, endpoint_id: str) -> Deployment | None: ...
    def deployments(self, workspace_id: str | None = None) -> list[Deployment]: ...
    def instance(self, instance_id: str) -> Instance | None: ...
    def instances_of(self, endpoint_id: str, *, ended: bool = False) -> list[Instance]: ...
    def instances_live(self) -> list[Instance]: ...
    def instances_on(self, machine_id: str) -> list[Instance]: ...
    def nodes(self) -> list[Node]: ...
    def capacity(self, capacity_id: str) -> Capacity | None: ...
    def capacities(self, workspace_id: str | None = None) -> list[Capacity]: ...
    def api_keys(self, workspace_id: str | None = None) -> list[Key]: ...


class Writes(Reads, Protocol):
    """One transaction of the store. `set_*` raise `Conflict` when the object is no longer as it was seen."""

    def set_endpoint(self, seen: Endpoint, **values: Any) -> None: ...
    def purge_endpoint(self, endpoint_id: str) -> None: ...
    def set_revision(self, revision_id: str, **values: Any) -> None: ...
    def set_deployment(self, seen: Deployment, **values: Any) -> None: ...
    def add_instance(
        self, instance_id: str, owner: Deployment, revision_id: str, slots: int, now: float, not_before: float = 0.0
    ) -> None: ...
    def set_instance(self, seen: Instance, **values: Any) -> None: ...
    def forget_ended(self, endpoint_id: str) -> None: ...
    def set_node_state(self, node_id: str, state: str) -> None: ...
    def set_capacity_schedules(self, seen: Capacity, by_sku: dict[str, Schedule], now: float) -> None: ...
    def tell(self, kind: str, key: str, endpoint_id: str, message: str, now: float) -> None: ...
    def hint(self, topic: str) -> None: ...
    def signal(self, kind: str, key: str, now: float) -> None: ...
    def claim(
        self, kind: str, token: str, owner: str, now: float, lease_s: float, limit: int = 20
    ) -> list[tuple[str, int, int]]: ...
    def finish(
        self, kind: str, key: str, token: str, seq: int, now: float, next_at: float, fails: int = 0
    ) -> float | None: ...
    def drop(self, kind: str, key: str, token: str, seq: int) -> None: ...
    def release_others(self, owner: str) -> None: ...


class Store(Protocol):
    """Where transactions run. Functions given to it are synchronous and touch nothing but their argument."""

    async def read(self, fn: Callable[[Reads], T]) -> T: ...
    async def write(self, fn: Callable[[Writes], T], *, durable: bool = True) -> T: ...


@dataclass(frozen=True)
class Plan:
    """What a reconciler decided. Subclasses hold the changes; a plan is made once and never altered."""

    reasons: tuple[str, ...] = ()
    """New decisions in words, for the log and the object's story."""
    changes: bool = False
    """False: nothing is to be written."""
    recheck_s: float | None = None
    """Look again after this many seconds; None: after the usual period."""
    durable: ClassVar[bool] = False
    """True when not even a power cut may undo it: nobody could find out again that it was decided. Everything that was
    decided before is on the disk then, too."""


P = TypeVar("P", bound=Plan)


class Reconciler(Protocol[S, P]):
    """Brings one kind of object closer to what is wanted. Gets a key only; idempotent; never retries by itself."""

    kind: str

    def observe(self, read: Reads, key: str) -> S | None:
        """Everything the plan needs, from one transaction; None when the object is gone."""
        ...

    def plan(self, snapshot: S, now: float) -> P:
        """What to do. Pure."""
        ...

    def commit(self, plan: P, write: Writes, now: float) -> None:
        """Write the plan down, if the generation it was made on still holds (else `Conflict`)."""
        ...

    def applied(self, plan: P) -> None:
        """The plan is committed."""
        ...


class Gateways(Protocol):
    """The gateways that are linked."""

    def push(self, tables: Tables) -> None:
        """Send new tables to all of them."""
        ...

    async def seen(self, version: int) -> None:
        """Wait until every one of them serves by these or newer tables. The caller sets the limit."""
        ...


class Agents(Protocol):
    """The node agents that are linked."""

    def machines(self) -> Sequence[str]:
        """Ids of the machines whose agent is linked."""
        ...

    def push(self, machine_id: str, wanted: Wanted) -> None:
        """Send a machine what it shall run; nothing happens when its agent is not linked."""
        ...


class Secrets(Protocol):
    """Where tokens come from. Implementations never log or show them."""

    @property
    def pepper(self) -> bytes:
        """What API keys are hashed with."""
        ...

    def join_token(self, instance_id: str, epoch: int) -> str:
        """The token with which this start of an instance may link to a gateway; the same each time it is asked."""
        ...


Reconcilers = Mapping[str, Reconciler[Any, Any]]
