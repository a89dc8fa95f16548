"""What a deployment's file registers beside its functions: web applications, hooks, cached loaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from nanopod.client.marks import web_spec
from nanopod.model import registry
from nanopod.model.endpoint import AsgiSpec, RolloutSpec
from nanopod.model.errors import Invalid

if TYPE_CHECKING:
    from nanopod.client.local import LocalCloud
    from nanopod.client.sdk import Deployment
    from nanopod.client.source import Source
    from nanopod.client.testing import Trial

F = TypeVar("F", bound=Callable[..., Any])


class Registering:
    """The decorators of `Deployment` that need nothing but its registry."""

    _app: registry.App
    _asgi: dict[str, AsgiSpec]
    _source: Source | None
    _rollout: RolloutSpec = RolloutSpec()
    _trial: LocalCloud | None = None
    """The cloud of a running `test()`."""

    def asgi(
        self,
        maker: Any = None,
        *,
        path: str = "/",
        auth: Literal["key", "public"] = "key",
        concurrency: int = 100,
        name: str = "",
    ) -> Any:
        """Mount an ASGI application at `path`: decorate a function (plain or async, no arguments) that returns it.

        An application object is taken as well: `app.asgi(fastapi_app, path="/")`. Websockets pass through.
        """

        def register(target: Any) -> Any:
            word = name or getattr(target, "__name__", "") or type(target).__name__
            spec = web_spec(word, f"ANY {path}", auth)
            if word in self._asgi:
                raise Invalid(f"there are two web applications called {word}; give one another name=", field="name")
            if any(other.path.rstrip("/") == path.rstrip("/") for other in self._asgi.values()):
                raise Invalid(f"there are two web applications at {path}; give one another path=", field="path")
            if type(concurrency) is not int or not 1 <= concurrency <= 10_000:
                raise Invalid(f"{word}: concurrency is from 1 to 10000, not {concurrency!r}", field="concurrency")
            self._note_source(target)
            self._asgi[word] = AsgiSpec(word, spec.path, spec.auth, concurrency)
            is_maker = getattr(target, "__code__", None) is not None and target.__code__.co_argcount == 0
            self._app.asgi[word] = target if is_maker else lambda: target
            return target

        return register if maker is None else register(maker)

    def on_preempt(self, hook: F) -> F:
        """Call this function with a `Notice` (deadline, reason) when its worker is about to be taken away."""
        if not callable(hook):
            raise TypeError("@app.on_preempt marks a function that takes the notice")
        self._note_source(hook)
        self._app.on_preempt.append(hook)
        return hook

    def healthcheck(self, check: F) -> F:
        """Ask this function every few seconds; when it raises or returns False, the worker is replaced."""
        if not callable(check):
            raise TypeError("@app.healthcheck marks a function without arguments")
        self._note_source(check)
        self._app.healthcheck = check
        return check

    def multiplexed(self, loader: Any = None, *, max: int = 8) -> Any:
        """Mark a loader (a function or method of one argument) of whose results a worker keeps the `max` latest used.

        Called without its argument it loads what the call names with `with_options(model=...)`. Raises `Invalid`.
        """
        from nanopod.client.multiplex import multiplexed

        if loader is None:
            return lambda function: self.multiplexed(function, max=max)
        self._note_source(loader)
        return multiplexed(loader, max=max)

    def url(self, name: str = "") -> str:
        """Where a function with `web=` or a mounted application answers over HTTP; without a name, their common root.

        Raises `Invalid` for an unknown name, `NotReady` before `ensure_ready()`.
        """
        from nanopod.client import web

        return web.app_url(cast("Deployment", self), name)

    def configure_rollout(self, **settings: Any) -> None:
        """How an update takes over: `canary` (percent of the calls; 0: all at once), `bake` (seconds until a good
        canary gets the rest by itself; 0: by hand), `auto_promote`, `auto_rollback`, `max_error_percent`,
        `max_slowdown_percent` (of the median latency; 0: not judged), `min_calls` before either is judged, `duration`
        (seconds over which calls move to a version that takes over; 0: at once).

        Later calls add to earlier ones. An unknown name or an impossible value raises `Invalid`.
        """
        from nanopod.client.autoscaling import rollout_spec

        self._rollout = rollout_spec(self._rollout, settings)

    def test(self, *, start: bool = True) -> Trial:
        """A private cloud with this deployment in it, to test it and to break things: `with app.test() as t:`, or as a
        pytest fixture, `t = app.test().fixture()`. With `start=False` nothing is deployed before the first call."""
        from nanopod.client.testing import Trial

        return Trial(cast("Deployment", self), start=start)

    def _note_source(self, target: Any) -> None:
        """Bind the deployment to the file of its first decorated object; `Deployment` says how."""
