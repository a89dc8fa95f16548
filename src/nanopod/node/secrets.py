"""How an agent gets the secrets of an instance: it asks its server just before the start, and keeps nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from nanopod.drivers.link.messages import LinkClosed
from nanopod.model.endpoint import ImageSpec
from nanopod.model.wire import Message, SecretQuery, SecretValues
from nanopod.node.environment import EnvironmentFailed

ASK_S_MAX: Final = 5.0
WAIT_S_MAX: Final = 60.0
"""How long a start waits for a server that is away."""
CARRIED_BYTES_MAX: Final = 768 << 10
"""Of all secrets of one instance: they travel in the environment of its processes."""


Ask = Callable[[str], Awaitable[SecretValues]]


async def values_of(
    image: ImageSpec, instance_id: str, ask: Ask | None, also: Collection[str] = ()
) -> SecretValues | None:
    """The secrets of an instance, None when neither its image nor its storages (`also`) have any.

    Raises `EnvironmentFailed`.
    """
    if not image.secrets and not also and not any(mount.secret for mount in image.volumes):
        return None
    assert ask is not None, "an agent asks its server"
    return await ask(instance_id)


class Asking:
    """Questions for secrets and their answers. `send` raises `LinkClosed` while the server is away."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._asked: dict[str, asyncio.Future[SecretValues]] = {}

    def take(self, values: SecretValues) -> None:
        """The server answered."""
        answer = self._asked.get(values.request_id)
        if answer is not None and not answer.done():
            answer.set_result(values)

    async def ask(self, instance_id: str) -> SecretValues:
        """The values for an instance. Raises `EnvironmentFailed`."""
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + WAIT_S_MAX, 0.1
        while loop.time() < until:
            request_id = os.urandom(8).hex()
            answer = self._asked[request_id] = loop.create_future()
            try:
                with contextlib.suppress(LinkClosed, TimeoutError):
                    self._send(SecretQuery(request_id, instance_id))
                    async with asyncio.timeout(ASK_S_MAX):
                        return _checked(await answer)
            finally:
                del self._asked[request_id]
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(5.0, pause_s * 2)
        raise EnvironmentFailed(
            f"image.secret: the server did not give the secrets within {WAIT_S_MAX:.0f} s", user_fault=False
        )


def _checked(values: SecretValues) -> SecretValues:
    if values.error:
        raise EnvironmentFailed(f"image.secret: {values.error}")
    size = sum(len(name) + len(value.encode("utf-8", "surrogatepass")) for name, value in values.env.items())
    if size > CARRIED_BYTES_MAX:
        raise EnvironmentFailed(
            f"image.secret: the secrets have {size} bytes together, at most {CARRIED_BYTES_MAX}; keep large ones in a "
            "volume"
        )
    return values
