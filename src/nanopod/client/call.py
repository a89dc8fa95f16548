"""Spawned calls: made in one program, finished by the server, fetched in any program that knows their id.

| | blocking | to await |
| --- | --- | --- |
| make | `f.spawn(x)`, `f.spawn_map(xs)` | `await f.spawn.aio(x)` |
| result | `call.get(timeout)` | `await call`, `await call.aget(timeout)` |
| the rest | `status()`, `cancel()`, `cost()`, `share()`, `logs()` | `astatus()`, `acancel()`, `acost()`, `ashare()` |

`gather(*calls)` takes the results of several: blocking, or awaited where an event loop runs.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterable, Generator, Iterable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from nanopod.client import background
from nanopod.client.api import Api, error_of
from nanopod.client.config import Target
from nanopod.model.errors import CallTimeout, Invalid, NoCapacity, RemoteError

if TYPE_CHECKING:
    from nanopod.client.function import BoundFunction
    from nanopod.model import calls

R = TypeVar("R")

WAIT_S: Final = 20.0
"""One request for a result waits so long at the server."""
CROWDED_WAIT_S: Final = 1.0
"""The same where many requests of this program take turns."""
SILENT_S_MAX: Final = 120.0
"""How long a server may be away while a result is waited for."""
SPAWN_BYTES_MAX: Final = 4 << 20
"""Calls are sent together up to this size."""
SPAWN_CALLS_MAX: Final = 1000
_LENGTH: Final = Struct(">I")


class Call(Generic[R]):
    """One spawned call. `id` finds it again, from any program with the key (or a share token) of its workspace."""

    def __init__(self, call_id: str, target: Target, module: str = "", *, pickle: bool = False) -> None:
        """`call_id` as the server writes it, `call_` and 32 hex digits; see `from_id`."""
        self.id = call_id
        self._target = target
        self._module = module
        self._pickle = pickle

    @classmethod
    def from_id(
        cls, call_id: str, token: str | None = None, *, url: str | None = None, api_key: str | None = None
    ) -> Call[Any]:
        """The call with this id. `token`: what `share()` gave, for programs without a key of the workspace.

        Raises `Invalid` for a text that is no id, `Unauthenticated` without a key. Nothing is asked yet.
        """
        from nanopod.client.wires import where

        text = call_id if call_id.startswith("call_") else f"call_{call_id}"
        if len(text) != 37 or any(digit not in "0123456789abcdef" for digit in text[5:]):
            raise Invalid(f"{call_id!r} is no id of a call; it is call_ and 32 hex digits", field="call_id")
        if token is not None:
            return cls(text, Target(where(url, token).url, token))
        return cls(text, where(url, api_key))

    # --- its result ---

    def get(self, timeout: float | None = None) -> R:
        """Wait for the result, at most `timeout` s; raises what the function raised.

        Raises `CallTimeout` when it is not there in time (the call goes on), `NotFound` once the server forgot it.
        """
        return background.run(self.aget(timeout), advice="await call.aget()")

    async def aget(self, timeout: float | None = None) -> R:
        """The same, awaited. Other tasks of the event loop go on meanwhile."""
        from nanopod.model import registry

        with registry.Waiting():
            return await self._result(timeout)

    def __await__(self) -> Generator[Any, None, R]:
        return self.aget().__await__()

    async def _result(self, timeout: float | None) -> R:
        from nanopod.client import asking

        limit = time.monotonic() + timeout if timeout is not None else None
        silent_since: float | None = None
        misses = 0
        while True:
            wait_s = CROWDED_WAIT_S if asking.is_crowded() else WAIT_S
            if limit is not None:
                wait_s = max(0.0, min(wait_s, limit - time.monotonic()))
            try:
                status, fields, raw = await asking.ask(
                    self._target, "GET", f"/v1/calls/{self.id}/result", accept="application/octet-stream",
                    wait_s_max=wait_s + 30.0, wait_s=round(wait_s, 3),
                )  # fmt: skip
            except NoCapacity:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > SILENT_S_MAX:
                    raise
                status, fields, raw = 503, {}, b""
            else:
                silent_since = None if status != 503 else silent_since
            if status == 200:
                value: R = await self._answered(raw)
                return value
            if status not in (202, 204, 429, 502, 503, 504):
                raise error_of(status, raw, fields)
            if limit is not None and time.monotonic() >= limit:
                raise CallTimeout(
                    f"call {self.id} has no result after {timeout:g} s; it goes on: get() it again, or cancel() it"
                )
            if status not in (202, 204):
                misses += 1
                await _pause(misses, fields)

    async def _answered(self, raw: bytes) -> Any:
        from nanopod.model import spill

        if spill.SPILLED not in raw[:512]:
            return answered(raw, self._module, pickle=self._pickle)
        import asyncio

        return await asyncio.to_thread(answered, raw, self._module, pickle=self._pickle, target=self._target)

    # --- the rest ---

    def status(self) -> dict[str, Any]:
        """The call as the server sees it: `status` (queued, running, succeeded, failed, cancelled, expired), times,
        `attempt`, `worker`, `cost`, `error`."""
        return self._ask("status", "GET", "")

    def cancel(self) -> dict[str, Any]:
        """Withdraw the call; its status then. One that has ended stays as it is."""
        return self._ask("cancel", "POST", "/cancel")

    def cost(self) -> str | None:
        """What the call has cost, in dollars as a decimal text; None while that is not known."""
        found = self.status().get("cost")
        return str(found) if found is not None else None

    def share(self) -> str:
        """A token with which programs without a key may read this call's result: `Call.from_id(id, token)`."""
        return str(self._ask("share", "POST", "/share")["token"])

    def logs(self, follow: bool = False) -> Iterator[str]:
        """Lines that the call printed; with `follow` also those to come, until it ends."""
        if background.in_loop():
            raise background.BlockingCallInLoop(
                "logs() would block the event loop that runs here; write: await asyncio.to_thread(list, call.logs())"
            )
        return self._logs(follow)

    async def astatus(self) -> dict[str, Any]:
        """`status`, awaited."""
        return await self._aask("GET", "")

    async def acancel(self) -> dict[str, Any]:
        """`cancel`, awaited."""
        return await self._aask("POST", "/cancel")

    async def acost(self) -> str | None:
        """`cost`, awaited."""
        found = (await self.astatus()).get("cost")
        return str(found) if found is not None else None

    async def ashare(self) -> str:
        """`share`, awaited."""
        return str((await self._aask("POST", "/share"))["token"])

    def _ask(self, form: str, method: str, rest: str) -> dict[str, Any]:
        if background.in_loop():
            raise background.BlockingCallInLoop(
                f"{form}() would block the event loop that runs here; write: await call.a{form}()"
            )
        return Api(self._target).request(method, f"/v1/calls/{self.id}{rest}")

    async def _aask(self, method: str, rest: str) -> dict[str, Any]:
        import asyncio

        return await asyncio.to_thread(Api(self._target).request, method, f"/v1/calls/{self.id}{rest}")

    def _logs(self, follow: bool) -> Iterator[str]:
        api = Api(self._target)
        path = f"/v1/calls/{self.id}/logs"
        if not follow:
            yield from (str(row.get("line", "")) for row in api.items(path))
            return
        last = ""
        misses = 0
        while True:
            try:
                for event_id, row in api.subscribe(path, last_event_id=last, follow=1):
                    last, misses = event_id or last, 0
                    if row is not None:
                        yield str(row.get("line", ""))
                # A server that goes away in order ends the stream as well: only the call's own end counts.
                if api.get(f"/v1/calls/{self.id}").get("ended_at") is not None:
                    return
                time.sleep(random.uniform(0.05, 0.2))
            except NoCapacity:
                misses += 1
                if misses > 5:
                    raise
                time.sleep(random.uniform(0.05, min(5.0, 0.1 * 2.0**misses)))

    def __repr__(self) -> str:
        return f"<call {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


def gather(*calls: Call[Any], return_exceptions: bool = False) -> Any:
    """The results of several calls in their order: a list, or where an event loop runs, an awaitable of it.

    The first failure raises, and the other calls go on; with `return_exceptions` failures are objects in the list.
    """
    waiting = _gather(calls, return_exceptions)
    return waiting if background.in_loop() else background.run(waiting)


async def _gather(calls: tuple[Call[Any], ...], return_exceptions: bool) -> list[Any]:
    import asyncio

    return list(await asyncio.gather(*(call.aget() for call in calls), return_exceptions=return_exceptions))


def answered(raw: bytes, module: str, *, pickle: bool = False, target: Target | None = None) -> Any:
    """The value in the frames of an answer; the list of a generator's items. Raises what the function raised.

    `target`: where a value that was too large for the frames is fetched from, which blocks.
    """
    from nanopod.client.pending import Pending
    from nanopod.client.pending import error_of as error_in
    from nanopod.model import calls, codec, pickled, spill

    def value(payload: bytes) -> Any:
        if target is not None and payload[:2] == spill.SPILLED:
            from nanopod.client.spilling import fetched

            payload = fetched(target, payload)
        if payload[:1] == codec.PICKLED:
            return pickled.decode(payload, allowed=pickle)
        return codec.decode(payload, module=module)

    items: list[Any] = []
    pending = Pending(calls.Call(b""), [], 0.0, module)
    for frame in cut(raw):
        header, payload = calls.decode(frame)
        if isinstance(header, calls.Part):
            done = pending.add(payload)
            if done is None:
                continue
            header, payload = done
        elif isinstance(header, calls.Result | calls.Error | calls.Item) and not pending.whole(header, payload):
            continue
        if isinstance(header, calls.Error):
            raise error_in(header, payload, module)
        if isinstance(header, calls.Result):
            return value(payload)
        if isinstance(header, calls.Item):
            items.append(value(payload))
        elif isinstance(header, calls.End):
            return items
    raise RemoteError("the server's answer holds no result; is its version that of this SDK?")


def cut(raw: bytes) -> Iterator[bytes]:
    """The parts of `u32 length | bytes | u32 length | ...`. Raises `ValueError` when the last one is cut off."""
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise ValueError("a length is cut off")
        end = at + 4 + _LENGTH.unpack_from(raw, at)[0]
        if end > len(raw):
            raise ValueError("a frame is cut off")
        yield raw[at + 4 : end]
        at = end


async def spawn_all(
    function: BoundFunction,
    items: Iterable[tuple[tuple[Any, ...], dict[str, Any]]] | AsyncIterable[tuple[tuple[Any, ...], dict[str, Any]]],
) -> list[Call[Any]]:
    """Spawn a call for each (args, kwargs); all are kept by the server when this returns. Raises as calling does."""
    import asyncio

    from nanopod.client import calling, spilling
    from nanopod.model import calls as frames

    function.check_callable()
    route = function.route() or await function.make_ready()
    if function.is_local():
        route = await asyncio.to_thread(function.revive, route)
    target = Target(route.url, route.key)
    made: list[Call[Any]] = []
    batch: list[bytes] = []
    size = count = 0

    async def send() -> None:
        nonlocal size, count
        if batch:
            body = b"".join(batch)
            batch.clear()
            size = count = 0
            await _post(target, body, function.per_call.webhook)

    async for args, kwargs in _each(items):
        places, names = function.bind(args, kwargs)
        payload = calling.encoded(function, places, names)
        header: calls.Call = calling.header_of(function, route, os.urandom(16), places, names)
        if len(payload) > frames.INLINE_BYTES_MAX:
            payload = await spilling.spilled(target, payload, f"the arguments of {function.name}")
        frame = frames.encode(header, payload)
        batch += (_LENGTH.pack(len(frame)), frame)
        size, count = size + len(frame), count + 1
        pickle = function.app.serializer == "pickle"
        made.append(Call(f"call_{header.id.hex()}", target, function.module, pickle=pickle))
        if size >= SPAWN_BYTES_MAX or count >= SPAWN_CALLS_MAX:
            await send()
    await send()
    return made


async def _post(target: Target, body: bytes, webhook: str) -> None:
    # The ids are in the body: sending it twice makes no second call.
    import asyncio

    query = {"webhook": webhook} if webhook else {}
    await asyncio.to_thread(Api(target).raw, "POST", "/v1/calls", body, accept="application/json", **query)


async def _each(items: Any) -> Any:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    for item in items:
        yield item


async def _pause(misses: int, fields: dict[str, str]) -> None:
    import asyncio

    asked = fields.get("retry-after", "")
    least_s = min(30.0, float(asked)) if asked.replace(".", "", 1).isdigit() else 0.0
    await asyncio.sleep(least_s + random.uniform(0.01, min(5.0, 0.1 * 2.0 ** min(misses, 10))))
