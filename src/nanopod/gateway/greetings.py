"""What a worker says of itself on stream 0 of its link: HELLO when it comes, STATE when something changed."""

from __future__ import annotations

from typing import Final

import msgspec

from nanopod.model import frames


class Capability(msgspec.Struct, frozen=True):
    """What the worker's engine can promise."""

    continuation: str = "none"
    seed: bool = False
    token_ids: bool = False
    engine: str = ""


class HeldCall(msgspec.Struct, frozen=True):
    """A remote call that the worker still has from before this link."""

    id: str
    started: bool = False
    done: bool = False


class Hello(msgspec.Struct, frozen=True):
    """First frame of a worker."""

    instance_id: str
    epoch: int
    endpoint_id: str
    revision: str
    slots: int
    protocol: int = frames.PROTOCOL
    ready: bool = False
    draining: bool = False
    engine: str = ""
    capability: Capability = Capability()
    calls: list[HeldCall] = []
    gpu: str = ""
    """Model of its GPUs; "": it has none."""
    region: str = ""
    models: dict[str, str] | None = None
    """As in `State`."""


class State(msgspec.Struct, frozen=True):
    """The worker's state when it changed."""

    ready: bool = False
    slots: int | None = None
    in_flight: int = 0
    draining: bool = False
    doomed_at: float | None = None
    perf: float | None = None
    detail: str = ""
    kv_use: float = -1.0
    """Share of its engine's key-value cache that is in use, 0 to 1; -1: the engine does not say."""
    queued: int = 0
    """Requests that wait inside its engine."""
    revision: str = ""
    """Whose models these are."""
    models: dict[str, str] | None = None
    """Of a model server, {model: "" once it is ready, else why it is not}; None: it does not say."""


decode_hello: Final = msgspec.json.Decoder(Hello).decode
decode_state: Final = msgspec.json.Decoder(State).decode
