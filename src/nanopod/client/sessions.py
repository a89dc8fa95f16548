"""Sticky sessions: calls that all run on one worker, which may keep something for them in its memory."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Final

from nanopod.client import background
from nanopod.model.errors import Invalid, NanopodError

if TYPE_CHECKING:
    from nanopod.client.link import Link
    from nanopod.client.sdk import Deployment

LIFETIME_S_MAX: Final = 86_400.0
CLOSE_S_MAX: Final = 10.0
"""How long the end of the block waits for the gateway; the session ends by itself when it does not hear."""


class Session:
    """A session of a deployment; use it as `with` or `async with`, and pass it as `with_options(session=...)`.

    `id` and `worker` are known while it is open; `lifetime` is in seconds.
    """

    def __init__(
        self, app: Deployment, lifetime: float, on_close: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
        wait: float,
    ) -> None:  # fmt: skip
        for field, value in (("lifetime", lifetime), ("wait", wait)):
            good = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
            if not good or not 0 < value <= LIFETIME_S_MAX:
                raise Invalid(f"{field} is a number of seconds above 0 (at most a day), not {value!r}", field=field)
        name = on_close if isinstance(on_close, str) else getattr(on_close, "__name__", None)
        if on_close is not None and (not isinstance(name, str) or (app._functions and name not in app._functions)):
            there = ", ".join(app._functions) or "none"
            raise Invalid(
                f"on_close is a remote function of this deployment (there are {there}), not {on_close!r}",
                field="on_close",
            )
        self.lifetime = float(lifetime)
        self.worker = ""
        self._app = app
        self._on_close = name or ""
        self._arguments = (args, kwargs)
        self._wait_s = float(wait)
        self._id = ""
        self._link: Link | None = None

    @property
    def id(self) -> str:
        """The session's id. Raises `Invalid` while it is not open."""
        if not self._id:
            raise Invalid("the session is not open; use it inside `async with app.session() as s:`", field="session")
        return self._id

    @property
    def is_open(self) -> bool:
        """True inside the block."""
        return bool(self._id)

    async def __aenter__(self) -> Session:
        await self._open()
        return self

    async def __aexit__(self, *about: object) -> None:
        await self._close()

    def __enter__(self) -> Session:
        background.run(self._open(), advice="write `async with` instead")
        return self

    def __exit__(self, *about: object) -> None:
        background.run(self._close(), advice="write `async with` instead")

    async def _open(self) -> None:
        from nanopod.client import calling
        from nanopod.model import calls, codec

        if self._id:
            raise Invalid("the session is open already; make another one with app.session()", field="session")
        bound = calling_form(self._app, self._on_close)
        bound.check_callable()
        route, link = await calling.way(bound)
        payload = calling.encoded(bound, *self._arguments) if self._on_close else codec.encode(None)
        header = calls.SessionOpen(
            os.urandom(16), endpoint=route.endpoint, lifetime_s=self.lifetime, on_close=self._on_close,
            wait_s=self._wait_s,
        )  # fmt: skip
        state = await link.session(header, self._wait_s, payload)
        self._id, self.worker, self.lifetime, self._link = state.session, state.worker, state.lifetime_s, link

    async def _close(self) -> None:
        """End it; one that is lost, or whose gateway does not answer, has ended or ends by itself."""
        import asyncio

        from nanopod.model import calls

        session, self._id = self._id, ""
        if not session or self._link is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                await self._link.session(calls.SessionClose(os.urandom(16), session=session), CLOSE_S_MAX)
        except (NanopodError, TimeoutError):
            pass

    def __repr__(self) -> str:
        return f"<session {self._id or 'not open'} of {self._app.name or 'an unbound deployment'}>"


def calling_form(app: Deployment, name: str) -> Any:
    """What is known of the function of that name; of none in particular when it is empty."""
    from nanopod.client.function import BoundFunction
    from nanopod.client.options import Options

    return app._functions.get(name) or BoundFunction(app, name, None, Options())
