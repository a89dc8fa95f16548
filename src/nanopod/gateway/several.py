"""Requests for one of several models of a model server: they go to workers that have loaded it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanopod.gateway.families import Plain, Predict, refused
from nanopod.gateway.heads import Head
from nanopod.gateway.links import WorkerLink
from nanopod.model.wire import KeyRow, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.server import HttpConnection


class OneOfSeveral(Predict):
    """A request of V1 or V2. It does not wait for a model that is being loaded, or that cannot be: 503 says so."""

    __slots__ = ("_model",)

    def __init__(
        self, model: str, gateway: Gateway, connection: HttpConnection, head: Head, body: bytes, key: KeyRow,
        route: RouteRow,
    ) -> None:  # fmt: skip
        super().__init__(gateway, connection, head, body, key, route)
        self._model = model
        if any(link.lacks(model) for link in self.pool.links):
            # Who waits for a worker that has it must not hold up the others.
            self.line = f"\1{model}"

    def start(self) -> None:
        """Send it off, or park it."""
        lacking = self._lacking()
        if lacking is not None:
            raise lacking
        super().start()

    def fits(self, link: WorkerLink) -> bool:
        """Only a worker that has the model may have it."""
        return not link.lacks(self._model) and super().fits(link)

    def _submit(self) -> None:
        super()._submit()
        self.on_models()  # its worker may have been the last one that had it

    def on_models(self) -> None:
        """Give up when no worker that is ready has it."""
        lacking = self._lacking()
        if lacking is not None and self.waiting:
            self.pool.withdraw(self)
            self._fail(lacking)

    def _lacking(self) -> Plain | None:
        """Why no worker that is ready can answer; None while one can, or none is ready."""
        why = ""
        for link in self.pool.links:
            if link.usable:
                why = link.lacks(self._model)
                if not why:
                    return None
        if not why:
            return None
        return refused(503, f"the model {self._model} is {'loading' if why == 'loading' else f'not ready ({why})'}")
