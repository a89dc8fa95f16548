"""What a deployment's file registers beside its functions: web applications, hooks, cached loaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nanopod.client.marks import web_spec
from nanopod.model import registry
from nanopod.model.endpoint import AsgiSpec
from nanopod.model.errors import Invalid

if TYPE_CHECKING:
    from nanopod.client.source import Source

F = TypeVar("F", bound=Callable[..., Any])


class Registering:
    """The decorators of `Deployment` that need nothing but its registry."""

    _app: registry.App
    _asgi: dict[str, AsgiSpec]
    _source: Source | None

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

    def _note_source(self, target: Any) -> None:
        """Bind the deployment to the file of its first decorated object; `Deployment` says how."""
