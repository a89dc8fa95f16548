"""`Deployment`: remote functions of one file, made ready on a server or a cloud of one's own, called from anywhere.

| mode | chosen by | `ensure_ready()` |
| --- | --- | --- |
| `local` | no server is known, or `NANOPOD_MODE=local` | starts a cloud beside the file, deploys to it |
| `deploy` | a server is known | creates or updates the deployment there |
| `client` | `NANOPOD_MODE=client`, `Deployment.from_name` | connects; a differing fingerprint only warns |
| `serve` | `NANOPOD_MODE=serve`, a true `IS_DEPLOYMENT` | nothing: this is a worker, functions run as they are |
"""

from __future__ import annotations

import difflib
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, ParamSpec, TypeVar, cast, overload

from nanopod.client import config
from nanopod.client.function import BoundFunction, RemoteFunction, RemoteGenerator, hang_forms, kind_of, remote_form
from nanopod.client.image import Image
from nanopod.client.options import Options, read_options
from nanopod.client.registering import Registering
from nanopod.client.source import Source, check_same, source_of
from nanopod.client.using import Using
from nanopod.model import registry
from nanopod.model.errors import Invalid, NotReady

if TYPE_CHECKING:
    from nanopod.client.deploying import Plan
    from nanopod.client.local import LocalCloud
    from nanopod.model.endpoint import AsgiSpec

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

Mode = Literal["local", "deploy", "client", "serve"]
MODES: Final[tuple[Mode, ...]] = ("local", "deploy", "client", "serve")
_OPTIONS: Final = (
    "api_key", "ttl", "autoscaler_instance", "autoscaler_url", "webserver_url", "name", "tag", "version_label",
    "by_value", "serializer",
)  # fmt: skip


class Route(NamedTuple):
    """Where calls of a deployment go."""

    url: str
    key: str
    endpoint: str
    """Endpoint id, or `name:tag` while no id is known."""
    patient_until: float = 0.0
    """On the monotonic clock: until then gateways may not have heard of this version of the deployment."""


def current_call() -> registry.CallContext | None:
    """The remote call that is running here, or None outside of one."""
    return registry.current.get()


class Deployment(Registering, Using):
    """A group of remote functions that are deployed, scaled and updated together."""

    _known: ClassVar[dict[str, Deployment]] = {}

    def __init__(
        self,
        api_key: str | None = None,
        ttl: float | None = None,
        autoscaler_instance: str = "prod",
        autoscaler_url: str | None = None,
        webserver_url: str | None = None,
        *,
        name: str | None = None,
        tag: str = "default",
        version_label: str | None = None,
        by_value: bool = False,
        serializer: Literal["native", "pickle"] = "native",
        **unknown: Any,
    ) -> None:
        """`ttl`: seconds without a client before everything is torn down. `name` None: the file's stem.

        `by_value`: functions travel as they are in memory, for notebooks and interactive sessions. `serializer`
        "pickle": arguments and results travel by cloudpickle, which both ends must trust each other for.
        """
        for option in unknown:
            near = difflib.get_close_matches(option, _OPTIONS, 1)
            advice = f"; did you mean {near[0]}?" if near else ""
            warnings.warn(f"Deployment has no option {option!r}, it is ignored{advice}", stacklevel=2)
        if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, int | float) or ttl <= 0):
            raise Invalid(f"ttl is a number of seconds above 0, not {ttl!r}", field="ttl")
        if serializer not in ("native", "pickle"):
            raise Invalid(f'serializer is "native" or "pickle", not {serializer!r}', field="serializer")
        _check_name("name", name)
        _check_name("tag", tag)
        self.by_value = by_value
        self.serializer = serializer
        self.tag = tag
        self.ttl = ttl
        self.version_label = version_label or ""
        self._api_key = api_key
        self._url = webserver_url or autoscaler_url
        self._mode = _mode_of_environment()
        self._app = registry.App(name or "")
        self._functions: dict[str, BoundFunction] = {}
        self._asgi: dict[str, AsgiSpec] = {}
        self._given: dict[str, dict[str, Any]] = {}
        """Options as they were written, of functions that travel by value."""
        self._source: Source | None = None
        self._image: Image | None = None
        self._settings: dict[str, Any] = {}
        self._scale_is_set = False
        self._route: Route | None = None
        self._cloud: LocalCloud | None = None
        self._endpoint: dict[str, Any] = {}
        self._last_plan: Plan | None = None
        self._meant = False
        """A command was told to deploy this file; it was not merely imported."""
        self._lock = threading.RLock()
        self._heart: threading.Event | None = None
        self._register()

    def __reduce__(self) -> Any:
        from nanopod.client import notebook

        return notebook.looked_up, (self.name, self.tag)

    # --- who it is ---

    @property
    def name(self) -> str:
        """The deployment's name; empty until the first function binds it to its file."""
        return self._app.name

    @property
    def mode(self) -> Mode:
        """How this process uses the deployment; settled when first asked for."""
        if self._mode is None:
            self._mode = "deploy" if config.find_url(self._url) else "local"
        return self._mode

    @classmethod
    def lookup(cls, name: str) -> Deployment | None:
        """The deployment of that name in this process; one that has no name yet is found under the empty text."""
        return cls._known.get(name)

    @classmethod
    def from_name(
        cls, name: str, tag: str = "default", *, api_key: str | None = None, url: str | None = None
    ) -> Deployment:
        """A deployment that exists on the server, to call without having its code."""
        found = cls(api_key, webserver_url=url, name=name, tag=tag)
        found._mode = "client"
        return found

    def function(self, name: str) -> RemoteFunction[..., Any]:
        """A remote function by its name, for callers without its code."""
        known = self._functions.get(name)
        return RemoteFunction(known or BoundFunction(self, name, None, Options()))

    def generator(self, name: str) -> RemoteGenerator[..., Any]:
        """A remote generator by its name, for callers without its code."""
        known = self._functions.get(name)
        return RemoteGenerator(known or BoundFunction(self, name, None, Options()))

    # --- what it is made of ---

    @overload
    def remote(self, f: Callable[P, AsyncIterator[R]]) -> RemoteGenerator[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self, f: Callable[P, Coroutine[Any, Any, R]]) -> RemoteFunction[P, R]: ...
    @overload
    def remote(self, f: Callable[P, Iterator[R]]) -> RemoteGenerator[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self, f: Callable[P, R]) -> RemoteFunction[P, R]: ...
    @overload
    def remote(self, f: None = None, **options: Any) -> _Decorator: ...

    def remote(self, f: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Mark a function as remote; bare or with options.

        `benchmark_dataset` (list of dicts of arguments) or `benchmark_generator`, `benchmark_runs`,
        `benchmark_weight`, `workload_calculator`, `concurrency` (or `allow_parallel_requests`), `max_queue_time`,
        `timeout`, `queue_timeout`, `deadline`, `idempotent`, `priority`, `retries`, `batch`, `cache_ttl`, `schedule`,
        `web`, `auth`, `on_preempt`, `kill_on_cancel`. Times are seconds.
        """
        if f is None:
            return lambda function: self._add(function, options)
        if not callable(f):
            raise TypeError(f"@app.remote marks functions, not {f!r}; its options are given by name")
        return self._add(f, options)

    @overload
    def cls(self, target: C) -> C: ...
    @overload
    def cls(self, target: None = None, **options: Any) -> Callable[[C], C]: ...

    def cls(self, target: Any = None, **options: Any) -> Any:
        """Mark a class whose object lives on workers; its methods marked with `@method()` are remote functions.

        Bare, or with options of `@app.remote` for all its methods. See `nanopod.enter`, `exit`, `method`.
        """
        from nanopod.client import classes

        if target is None:
            return lambda cls: classes.register(self, cls, options)
        return classes.register(self, target, options)

    def context(self, *args: Any, **kwargs: Any) -> Callable[[C], C]:
        """Mark a class as context: built as `cls(*args, **kwargs)` and entered when a worker starts.

        `needs=[Other]` enters others first; `snapshot=True` lets its memory be kept while no worker runs.
        """
        needs, snapshot = kwargs.pop("needs", None), kwargs.pop("snapshot", None)

        def register(cls: C) -> C:
            _check_context(cls, taken={"needs": needs is not None, "snapshot": snapshot is not None})
            before = tuple(needs if needs is not None else getattr(cls, "nanopod_needs", ()))
            for other in before:
                if other not in self._app.contexts:
                    raise Invalid(f"{cls.__name__} needs {other!r}, which is no context yet; decorate it first")
            keep = bool(snapshot if snapshot is not None else getattr(cls, "nanopod_snapshot", False))
            self._app.contexts[cls] = registry.RegisteredContext(cls, args, kwargs, before, keep)
            return cls

        if len(args) == 1 and not kwargs and isinstance(args[0], type) and hasattr(args[0], "__aenter__"):
            cls, args = args[0], ()
            return cast(Callable[[C], C], register(cast(Any, cls)))
        return register

    def get_context(self, cls: type) -> Any:
        """What the context's `__aenter__` returned; inside remote functions, and inside `.local()` calls."""
        cls = getattr(cls, "nanopod_class", cls)
        if cls in self._app.entered:
            return self._app.entered[cls]
        if self._mode == "serve" or cls not in self._app.contexts:
            raise KeyError(f"Context {cls} not registered or not yet entered")
        if not _inside(self._functions):
            raise NotImplementedError("get_context() works inside remote functions; call the function to reach it")
        from nanopod.client import contexts

        return contexts.entered(self._app, cls)

    def image(self, from_image: str = "", storage: int = 50, **options: Any) -> Image:
        """What workers are made of; returns a builder."""
        self._image = Image(from_image, storage, **options)
        return self._image

    def configure_autoscaling(self, **settings: Any) -> None:
        """Settings of the scaling; later calls add to earlier ones. An unknown name raises `Invalid`."""
        if self._mode == "serve":
            return
        from nanopod.client.autoscaling import checked

        self._settings.update(checked(settings))
        self._scale_is_set = True

    # --- making it ready ---

    def ensure_ready(self, *, wait: bool = False, timeout: float = 900.0) -> None:
        """Deploy or connect. Returns when the server knows the deployment; with `wait`, when a worker is ready.

        Raises `Invalid` for a deployment that cannot be, `DeploymentFailed` when it does not start in `timeout` s.
        """
        if self._mode == "serve":
            return
        from nanopod.client import deploying

        with self._lock:
            deploying.make_ready(self)
        if wait:
            deploying.wait_ready(self, timeout)

    async def async_ensure_ready(self, *, wait: bool = False, timeout: float = 900.0) -> None:
        """The same, without blocking the event loop."""
        if self._mode == "serve":
            return
        import asyncio

        await asyncio.to_thread(self.ensure_ready, wait=wait, timeout=timeout)

    def plan(self) -> Plan:
        """What `ensure_ready()` would change, and why; changes nothing."""
        from nanopod.client import deploying

        with self._lock:
            return deploying.plan(self)

    def status(self) -> dict[str, Any]:
        """The deployment as the server sees it: workers, functions, reasons of its scale."""
        from nanopod.client import deploying

        return deploying.fetch(self)

    # --- inner side, used by the functions and by `deploying` ---

    def _register(self) -> None:
        Deployment._known[self.name] = self
        registry.apps[self.name] = self._app

    def _add(self, function: Callable[..., Any], options: dict[str, Any]) -> Any:
        kind = kind_of(function)
        registered, made = read_options(function, options, kind)
        name = function.__name__
        if name in self._functions and self._functions[name].function is not None and not self.by_value:
            raise Invalid(f"there are two remote functions called {name}; rename one", field=name)
        self._note_source(function)
        bound = self._bind(name, function, registered, made)
        if self.by_value:
            self._given[name] = options
        if self._mode == "serve":
            hang_forms(bound)
            return function
        return remote_form(bound)

    def _bind(
        self,
        name: str,
        function: Callable[..., Any],
        registered: registry.RegisteredFunction,
        options: Options,
        owner: type | None = None,
    ) -> BoundFunction:
        """Register a function under its name, for its callers and for the worker that runs it."""
        bound = BoundFunction(self, name, function, options, owner)
        self._functions[name] = bound
        registered.spec = bound.spec(1)
        self._app.functions[name] = registered
        self._route = None
        return bound

    def _note_source(self, target: Any) -> None:
        """Bind the deployment to the file of `target`; only objects that have code say where they are from."""
        if not hasattr(target, "__code__"):
            return
        if self.by_value:
            self._bind_name(target)
            return
        if self._mode != "serve":
            source = source_of(target)
            if self._source is not None:
                check_same(self._source, source, target.__name__)
            self._source = self._source or source
        self._bind_name(target)

    def _bind_name(self, function: Callable[..., Any]) -> None:
        if self._app.name:
            return
        from pathlib import Path

        from nanopod.client.source import clean_name

        for known in (Deployment._known, registry.apps):
            known.pop("", None)
        file = function.__code__.co_filename
        in_cell = self.by_value and (file.startswith("<") or "ipykernel" in file)
        self._app.name = "notebook" if in_cell else clean_name(Path(file).stem)
        self._register()

    def _check_callable(self) -> None:
        """Raise `NotReady` where a call does not make the deployment ready by itself."""
        if self.mode == "deploy" and self._route is None:
            raise NotReady("Deployment is not ready. Call .ensure_ready() first!")

    def _route_now(self) -> Route:
        with self._lock:
            if self._route is None and self._mode == "serve":
                self._route = self._served_route()
            if self._route is None:
                self.ensure_ready()
        assert self._route is not None, "ensure_ready settles the route or raises"
        return self._route

    def _revive(self, route: Route) -> Route:
        with self._lock:
            if self._cloud is None or self._cloud.is_alive():
                return self._route or route
            self._route = None
            return self._route_now()


class _Decorator:
    """The type of `app.remote(option=...)`: a decorator that keeps the function's parameters and result."""

    @overload
    def __call__(self, f: Callable[P, AsyncIterator[R]]) -> RemoteGenerator[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, f: Callable[P, Coroutine[Any, Any, R]]) -> RemoteFunction[P, R]: ...
    @overload
    def __call__(self, f: Callable[P, Iterator[R]]) -> RemoteGenerator[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, f: Callable[P, R]) -> RemoteFunction[P, R]: ...

    def __call__(self, f: Callable[..., Any]) -> Any:
        """Never called: `Deployment.remote` returns a plain function that behaves so."""
        return f


def _mode_of_environment() -> Mode | None:
    text = os.environ.get("NANOPOD_MODE", "").strip().lower()
    if text:
        for mode in MODES:
            if text == mode:
                return mode
        raise Invalid(f"NANOPOD_MODE={text!r} is none of {', '.join(MODES)}", field="NANOPOD_MODE")
    return "serve" if config.is_true("IS_DEPLOYMENT") else None


def _check_name(field: str, text: str | None) -> None:
    from nanopod.model.ids import NAME_PATTERN

    if text is not None and not NAME_PATTERN.fullmatch(text):
        raise Invalid(f"{field}={text!r} is not a name; use letters, digits, dots, dashes and underscores", field=field)


def _check_context(cls: Any, taken: dict[str, bool]) -> None:
    import inspect

    if not isinstance(cls, type) or not hasattr(cls, "__aenter__") or not hasattr(cls, "__aexit__"):
        raise TypeError(f"{cls!r} is no context: a class with `async def __aenter__` and `__aexit__` is wanted")
    parameters = inspect.signature(cls).parameters
    for word, used in taken.items():
        if used and word in parameters:
            raise Invalid(
                f"{cls.__name__}.__init__ has a parameter {word!r}, which app.context() keeps for itself; "
                f"set the class attribute nanopod_{word} instead",
                field=word,
            )


def _inside(functions: dict[str, BoundFunction]) -> bool:
    """True when one of these functions runs somewhere below in this stack: a `.local()` call."""
    import sys

    codes = {bound.function.__code__ for bound in functions.values() if bound.function is not None}
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = cast(Any, frame.f_back)
    return False
