"""Arguments and results beyond what a call's frames hold: put to, and fetched from, the server by their digest."""

from __future__ import annotations

from nanopod.client.api import Api
from nanopod.client.config import Target
from nanopod.model import calls, spill


async def spilled(target: Target, payload: bytes, what: str) -> bytes:
    """What to send for a payload: itself, or a reference once the server has it. Raises `Invalid` beyond 256 MiB."""
    if len(payload) <= calls.INLINE_BYTES_MAX:
        return payload
    import asyncio

    def put() -> bytes:
        reference = spill.refer(payload, what)
        Api(target).upload(reference.sha256, payload, path=spill.PATH)
        return spill.encode(reference)

    return await asyncio.to_thread(put)


def fetched(target: Target, payload: bytes) -> bytes:
    """The payload behind what arrived; blocks while it is fetched. Raises `NotFound` when the server dropped it."""
    reference = spill.decode(payload)
    if reference is None:
        return payload
    return spill.check(reference, Api(target).raw("GET", spill.PATH + reference.sha256))
