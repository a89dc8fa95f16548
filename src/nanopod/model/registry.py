"""What a user's file registers while it is imported: functions and contexts, by deployment name.

The SDK writes here, the worker reads here; so neither room needs the other. Holds live Python objects, never travels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from nanopod.model.endpoint import FunctionSpec


@dataclass(slots=True)
class RegisteredFunction:
    """A function decorated with `@app.remote`.

    `benchmark_dataset` holds keyword arguments per run (one is drawn at random), `benchmark_generator` makes them.
    `workload` maps the bound arguments to units of load.
    """

    spec: FunctionSpec
    call: Callable[..., Any]
    benchmark_dataset: list[dict[str, Any]] | None = None
    benchmark_generator: Callable[[], dict[str, Any]] | None = None
    benchmark_runs: int = 10
    workload: Callable[..., float] | None = None
    benchmark_weight: float = 1.0
    owner: type | None = None
    """The class that a method of `@app.cls` belongs to; its object is the class's entered context."""


@dataclass(slots=True)
class RegisteredContext:
    """A class decorated with `@app.context(...)`: built as `cls(*args, **kwargs)`, entered after those it `needs`."""

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[type, ...] = ()
    snapshot: bool = False


@dataclass(slots=True)
class App:
    """Everything one deployment registered. `entered` maps a context class to what its `__aenter__` returned."""

    name: str
    functions: dict[str, RegisteredFunction] = field(default_factory=dict)
    contexts: dict[type, RegisteredContext] = field(default_factory=dict)
    entered: dict[type, Any] = field(default_factory=dict)
    asgi: dict[str, Callable[[], Any]] = field(default_factory=dict)
    """Makers of ASGI applications, by name."""
    on_preempt: list[Callable[..., Any]] = field(default_factory=list)
    """Called (or awaited) with a `Notice` when the worker is going to be taken away."""
    healthcheck: Callable[..., Any] | None = None
    """Called (or awaited) every few seconds; raising, or returning False, ends the worker."""
    endpoint: str = ""
    """Id of the endpoint that this process serves; empty elsewhere. Its other workers are reached by it."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What `@app.on_preempt` is told: until when (Unix seconds), and why."""

    deadline: float
    reason: str


apps: dict[str, App] = {}
"""By deployment name; a deployment not yet bound to a file is found under the empty name."""


closers: list[Callable[[], Any]] = []
"""Called (and awaited) by a worker that ends, before its contexts are left: caches of loaded things let go of them."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class CallContext:
    """The call that is running here, for code inside a remote function. Set `cancelled` stops polite loops."""

    call_id: str
    attempt: int = 1
    endpoint: str = ""
    function: str = ""
    timeout_s: float = 0.0
    cancelled: bool = False
    route_key: str = ""
    """What the caller gave as `model=`."""
    session: str = ""
    depth: int = 0
    waits: set[object] = field(default_factory=set)
    """Nested remote calls that this one waits for, see `Waiting`."""


current: ContextVar[CallContext | None] = ContextVar("nanopod_current_call", default=None)
"""The running call; None outside a remote function."""


class Waiting:
    """`with Waiting():` around the wait for a remote call that code inside a remote function makes.

    As long as a call waits like this it does not count against the slots of its worker, so functions of concurrency 1
    may call each other through the fleet, themselves included. Enter it before the nested call is sent, leave it when
    its answer is there (for the items of a generator: around the wait for each). Outside of a remote function it does
    nothing. Any thread may use it.
    """

    __slots__ = ("_context",)

    def __init__(self) -> None:
        self._context: CallContext | None = None

    def __enter__(self) -> CallContext | None:
        """The running call, if there is one: its id is the nested call's `parent`, its depth one less."""
        self._context = context = current.get()
        if context is not None:
            context.waits.add(self)
        return context

    def __exit__(self, *about: object) -> None:
        if self._context is not None:
            self._context.waits.discard(self)


class Mounts(Protocol):
    """The volumes of a worker, as `node` keeps them and the SDK's `Volume` uses them. Blocking."""

    def names(self) -> Collection[str]:
        """Volumes that are mounted here."""
        ...

    def path(self, name: str) -> str:
        """Where the files of a volume are."""
        ...

    def commit(self, name: str) -> int:
        """Make the files the next version; its number."""
        ...

    def reload(self, name: str, discard: bool) -> int:
        """Bring the newest version; its number."""
        ...


mounts: Mounts | None = None
"""Set on workers whose image mounts volumes."""
