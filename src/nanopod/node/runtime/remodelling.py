"""Other models for a model server that runs: its agent says what all of them are, and how far their files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from nanopod.node.engines.base import Engine
from nanopod.node.engines.serving.engine import ServerEngine
from nanopod.node.engines.serving.fronted import Fronted
from nanopod.node.runtime.swapping import Refused, Swaps
from nanopod.node.storage.told import Furnished

_rows: Final = tuple[Furnished, ...]


def server_of(engine: Engine) -> ServerEngine | None:
    """Our model server, also behind what stands before it; None for other engines."""
    found = engine.predictor if isinstance(engine, Fronted) else engine
    return found if isinstance(found, ServerEngine) else None


class Remodelling(Swaps):
    """Answers the agent's requests on the worker's event loop, from before the models are loaded."""

    def __init__(self, directory: Path, serving: Any, server: ServerEngine) -> None:
        super().__init__(directory, directory, serving)
        self._engine = server
        server.watch(self._changed)

    def _changed(self) -> None:
        self._serving.models = self._engine.models()
        self._serving.tell()

    def _now_of(self, revision_id: str) -> None:
        super()._now_of(revision_id)
        self._changed()

    def _take(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            rows = msgspec.convert(request["models"], _rows)
        except (KeyError, msgspec.ValidationError) as error:
            raise Refused(f"models: {error}") from error
        self._engine.further.want(rows)
        return {"models": len(rows)}
