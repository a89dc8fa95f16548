"""What one does with a deployment as a whole: run it for a while, open a session, look at its figures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from nanopod.client import background, config
from nanopod.model import registry
from nanopod.model.errors import Invalid

if TYPE_CHECKING:
    from nanopod.client.ephemeral import Run
    from nanopod.client.sdk import Deployment, Route
    from nanopod.client.sessions import Session


class Using:
    """Methods of `Deployment` that act on what is deployed."""

    _app: registry.App
    _url: str | None
    _api_key: str | None
    tag: str

    def run(self, *, wait: bool = False, timeout: float = 900.0) -> Run:
        """Deploy under a tag of its own for the length of a `with` (or `async with`), and delete that at its end.

        Also when it ends by an exception or Ctrl-C. `wait`: enter when a worker is ready, within `timeout` s.
        """
        from nanopod.client.ephemeral import Run

        return Run(_deployment(self), wait=wait, timeout_s=timeout)

    def session(
        self,
        lifetime: float = 60.0,
        on_close: Any = None,
        *,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        wait: float = 900.0,
    ) -> Session:
        """Calls that all run on one worker: `async with app.session() as s: await f.with_options(session=s)(x)`.

        It ends when no call came for `lifetime` s, or when the block ends; then `on_close`, a remote function of this
        deployment (or its name), is called there with `args` and `kwargs`. A worker that goes takes the session with
        it: calls raise `SessionLost`. Opening it waits at most `wait` s for a worker.
        """
        from nanopod.client.sessions import Session

        return Session(_deployment(self), lifetime, on_close, args, kwargs or {}, wait)

    def stats(self, function: str | None = None) -> dict[str, Any]:
        """Workers, load and figures of the deployment now, as the server sees it; with `function`, of that one.

        Blocks; raises `BlockingCallInLoop` where an event loop runs: there, use `asyncio.to_thread(app.stats)`.
        """
        if background.in_loop():
            raise background.BlockingCallInLoop(
                "stats() would block the event loop that runs here; write: await asyncio.to_thread(app.stats)"
            )
        from nanopod.client import figures

        return figures.stats(_deployment(self), function)

    def _served_route(self) -> Route:
        """On a worker: the way to the other workers of this deployment. Raises `Invalid` where none is given."""
        from nanopod.client.sdk import Route

        url = self._url or os.environ.get("NANOPOD_URL")
        if not url:
            raise Invalid(
                "this worker was not told where its cloud is (NANOPOD_URL), so it cannot call other workers; "
                "call the function itself to run it in this process",
                field="url",
            )
        running = registry.current.get()
        endpoint = self._app.endpoint
        if not endpoint and running is not None and running.function in self._app.functions:
            endpoint = running.endpoint
        return Route(url.rstrip("/"), config.find_key(self._api_key, url), endpoint or f"{self._app.name}:{self.tag}")


def _deployment(using: Using) -> Deployment:
    from nanopod.client.sdk import Deployment

    assert isinstance(using, Deployment), "only deployments are used"
    return using
