"""`with app.run():` a deployment under a tag of its own that goes when the block ends."""

from __future__ import annotations

import atexit
import secrets
import sys
from typing import TYPE_CHECKING, Any

from nanopod.client import background
from nanopod.model.errors import Invalid, NanopodError, NotFound

if TYPE_CHECKING:
    from nanopod.client.sdk import Deployment


class Run:
    """One such block, for `with` and `async with`; `tag` is its tag. Not to be entered twice."""

    def __init__(self, app: Deployment, *, wait: bool, timeout_s: float) -> None:
        self._app = app
        self._wait = wait
        self._timeout_s = timeout_s
        self._before: tuple[str, Any, dict[str, Any]] | None = None
        self.tag = f"run-{secrets.token_hex(5)}"

    def __enter__(self) -> Deployment:
        if background.in_loop():
            raise background.BlockingCallInLoop(
                "app.run() would block the event loop that runs here; write: async with app.run():"
            )
        self._begin()
        return self._app

    def __exit__(self, *about: object) -> None:
        self._end()

    async def __aenter__(self) -> Deployment:
        import asyncio

        begun = asyncio.ensure_future(asyncio.to_thread(self._begin))
        try:
            await asyncio.shield(begun)
        except asyncio.CancelledError:
            # Ctrl-C while it deploys: the thread cannot be stopped, what it makes is deleted.
            await asyncio.wait([begun])
            if begun.exception() is None:
                await asyncio.to_thread(self._end)
            raise
        return self._app

    async def __aexit__(self, *about: object) -> None:
        import asyncio

        await asyncio.shield(asyncio.to_thread(self._end))

    def _begin(self) -> None:
        app = self._app
        if app._mode == "serve":
            return
        if app.mode == "client":
            raise Invalid("app.run() deploys, which NANOPOD_MODE=client forbids; call the functions as they are")
        if self._before is not None:
            raise Invalid("this run was entered already; call app.run() again")
        self._before = (app.tag, app._route, app._endpoint)
        app.tag, app._route, app._endpoint = self.tag, None, {}
        try:
            app.ensure_ready(wait=self._wait, timeout=self._timeout_s)
        except BaseException:
            self._end()
            raise
        # After a local cloud's own: what is registered last runs first, and that cloud must still be there.
        atexit.register(self._end)

    def _end(self) -> None:
        """Delete what was deployed, and let the deployment be what it was."""
        if self._before is None:
            return
        atexit.unregister(self._end)
        from nanopod.client import deploying

        app, (tag, route, endpoint) = self._app, self._before
        self._before = None
        if app._heart is not None:
            app._heart.set()
        try:
            deploying.delete(app, f"{app.name}:{self.tag}")
        except NotFound:
            pass
        except NanopodError as error:
            print(
                f"nanopod: {app.name}:{self.tag} may be left: {error.message}; delete it with: "
                f"nanopod endpoints delete {app.name}:{self.tag}",
                file=sys.stderr,
            )
        finally:
            app.tag, app._route, app._endpoint = tag, route, endpoint
