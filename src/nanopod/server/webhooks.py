"""Sends notices to webhooks: signed, in order per webhook, at least once, and not to addresses that are off limits.

How far a webhook has come is a row of the store, moved after the receiver has answered: a server that is killed in
between delivers that event again, and loses none. A webhook that fails is retried, and keeps its place meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult

from nanopod.model.chain import Event
from nanopod.server.api.tenants import OPERATOR_WORKSPACE
from nanopod.server.feed import NewsFeed
from nanopod.store.hooks import Webhook
from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore

log = logging.getLogger(__name__)

ATTEMPT_S_MAX: Final = 10.0
RESOLVE_S_MAX: Final = 5.0
RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 600.0
GIVE_UP_S: Final = 24 * 3600.0
"""A webhook that failed for so long is failing: each further failure gives up one event."""
AT_ONCE_MAX: Final = 16
"""Deliveries under way, of all webhooks."""
BATCH: Final = 100
PERIOD_S: Final = 1.0
GATHER_S: Final = 0.05
"""Events within so short a time are looked at together."""
SWEEP_EACH: Final = 600
"""One round in so many forgets the webhooks of workspaces that are gone."""
_encode: Final = msgspec.json.Encoder().encode
Clock = Callable[[], float]
Addresses = list[tuple[socket.AddressFamily, str]]


# --- pure parts ---


def matches(types: Sequence[str], kind: str) -> bool:
    """Does a webhook with these `types` want an event of this type? `instance.*` and `instance` mean all of a noun."""
    if not types:
        return True
    noun = kind.partition(".")[0]
    return any(one in (kind, noun, "*") or one == f"{noun}.*" for one in types)


def signature(secret: str, body: bytes, at: int) -> str:
    """The header `Nanopod-Signature`: hex HMAC-SHA-256 of `<t>.<body>` under the webhook's secret."""
    digest = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def back_off_s(failures: int, chance: float) -> float:
    """Seconds until the next attempt after that many failures in a row: 1, 2, 4 ... 600, a fifth more or less.

    `chance` is from [0, 1).
    """
    plain = min(RETRY_S_MAX, RETRY_S_MIN * 2.0 ** min(failures - 1, 20))
    return min(RETRY_S_MAX, max(RETRY_S_MIN, plain * (0.8 + 0.4 * chance)))


def body_of(event: Event) -> bytes:
    """What is sent for an event."""
    return _encode(
        {
            "id": f"evnt_{event.seq}", "type": event.type, "created_at": int(event.at), "object_id": event.object_id,
            "workspace_id": event.workspace_id, "data": event.data,
        }
    )  # fmt: skip


def is_public(address: str) -> bool:
    """False for loopback, link-local, private and otherwise special addresses, also where IPv6 wraps an IPv4 one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None:
            found = inner
    return found.is_global and not found.is_multicast


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


async def resolve(url: str) -> Addresses:
    """The addresses of a URL's host. Raises `OSError` when there are none, `TimeoutError` when nobody says."""
    parts = urlsplit(url)
    async with asyncio.timeout(RESOLVE_S_MAX):
        found = await asyncio.get_running_loop().getaddrinfo(
            parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM
        )
    return [(family, str(address[0])) for family, _, _, _, address in found]


# --- one attempt ---


class _Resolved(AbstractResolver):
    """Answers with the addresses that were checked, so that a name cannot change its mind in between."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in self._addresses
        ]

    async def close(self) -> None:
        return None


async def attempt(hook: Webhook, event: Event, now: float, *, anywhere: bool) -> str:
    """Deliver one event once: "" when it was taken, else what went wrong. `anywhere` allows private addresses."""
    return await deliver(hook.url, hook.secret, f"evnt_{event.seq}", body_of(event), now, anywhere=anywhere)


async def deliver(url: str, secret: str, event_id: str, body: bytes, now: float, *, anywhere: bool) -> str:
    """Post a signed body once: "" when it was taken, else what went wrong. `anywhere` allows private addresses."""
    try:
        async with asyncio.timeout(ATTEMPT_S_MAX):
            addresses = await resolve(url)
            if not anywhere and not all(is_public(address) for _, address in addresses):
                return "its host has a private address now, where nothing is sent; set a url with a public address"
            return await _post(url, secret, event_id, body, now, addresses)
    except TimeoutError:
        return f"no answer within {ATTEMPT_S_MAX:.0f} s"
    except socket.gaierror:
        return "its host cannot be resolved"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # The error's own text may hold the URL, and that may hold a secret of the receiver.
        return f"no connection ({type(error).__name__})"


async def _post(url: str, secret: str, event_id: str, body: bytes, now: float, addresses: Addresses) -> str:
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "nanopod-webhooks",
        "Nanopod-Event-Id": event_id,
        "Nanopod-Signature": signature(secret, body, int(now)),
    }
    connector = aiohttp.TCPConnector(resolver=_Resolved(addresses), force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
    ):
        if 200 <= answer.status < 300:
            return ""
        more = "; redirects are not followed" if 300 <= answer.status < 400 else ""
        return f"it answered {answer.status}{more}"


# --- all of them ---


class WebhookSender:
    """Delivers what is due; one task per webhook that has something to do."""

    def __init__(
        self, store: GroupStore, news: NewsFeed, wall: Clock, chance: Callable[[], float] = random.random
    ) -> None:
        self._store = store
        self._news = news
        self._wall = wall
        self._chance = chance
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)

    async def run(self) -> None:
        """Deliver until cancelled, or until the feed is closed."""
        failures = rounds = 0
        try:
            with self._news.listen(None) as listener:
                while not listener.closed:
                    try:
                        await self._start_due(sweep=rounds % SWEEP_EACH == 0)
                        failures, pause_s = 0, GATHER_S
                    except Exception:
                        failures += 1
                        pause_s = min(30.0, back_off_s(failures, self._chance()))
                        log.exception("webhooks=round_failed again_s=%.1f", pause_s)
                    rounds += 1
                    await asyncio.sleep(pause_s)
                    await listener.wait(PERIOD_S)
                    listener.take()
        finally:
            for task in self._busy.values():
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def _start_due(self, *, sweep: bool) -> None:
        if sweep and await self._store.read(lambda read: bool(read.webhooks())):
            await self._store.write(lambda write: write.sweep_webhooks(), durable=False)
        now, busy = self._wall(), tuple(self._busy)
        free = 4 * AT_ONCE_MAX - len(busy)
        if free <= 0:
            return
        for hook in await self._store.read(lambda read: read.webhooks_due(now, free, busy)):
            task = asyncio.create_task(self._serve(hook.webhook_id), name="webhook")
            self._busy[hook.webhook_id] = task
            task.add_done_callback(lambda _, hook_id=hook.webhook_id: self._busy.pop(hook_id, None))  # type: ignore[misc]

    async def _serve(self, hook_id: str) -> None:
        try:
            while await self._batch(hook_id):
                pass
        except Exception:
            log.exception("webhook=%s failed", hook_id)
            # It counts as busy while it rests, so it is not begun again at once.
            await asyncio.sleep(back_off_s(3, self._chance()))

    async def _batch(self, hook_id: str) -> bool:
        """Deliver what a webhook has not seen, at most `BATCH` notices; True when there may be more."""

        def look(read: Transaction) -> tuple[Webhook, bool, list[Event]] | None:
            hook = read.webhook(hook_id)
            place = read.workspace(hook.workspace_id) if hook is not None else None
            if hook is None or place is None or not hook.enabled or hook.next_at > self._wall():
                return None
            events = read.notices_after(hook.workspace_id, hook.cursor, BATCH)
            return hook, place.name == OPERATOR_WORKSPACE, events

        found = await self._store.read(look)
        if found is None or not found[2]:
            return False
        hook, anywhere, events = found
        passed = hook.cursor
        for event in events:
            if matches(hook.types, event.type):
                async with self._slots:
                    # What was changed while it waited for its turn counts.
                    current = await self._store.read(lambda read: read.webhook(hook_id))
                    if current is None or current.generation != hook.generation:
                        return current is not None
                    problem = await attempt(hook, event, self._wall(), anywhere=anywhere)
                if problem:
                    await self._failed(hook, event, passed, problem)
                    return False
                await self._passed(hook_id, event.seq, self._wall())
                # The row says so now; a failure after it counts from the beginning.
                hook = replace(hook, failures=0, failed_since=None)
            passed = event.seq
        await self._passed(hook_id, passed, None)
        return len(events) == BATCH

    async def _passed(self, hook_id: str, seq: int, delivered_at: float | None) -> None:
        await self._store.write(
            lambda write: write.webhook_passed(hook_id, seq, delivered_at), durable=delivered_at is not None
        )

    async def _failed(self, hook: Webhook, event: Event, passed: int, problem: str) -> None:
        now = self._wall()
        since = hook.failed_since if hook.failed_since is not None else now
        given_up = now - since >= GIVE_UP_S
        next_at = now + back_off_s(hook.failures + 1, self._chance())
        seq = event.seq if given_up else passed
        log.info("webhook=%s failures=%d given_up=%s", hook.webhook_id, hook.failures + 1, given_up)
        await self._store.write(lambda write: write.webhook_failed(hook, seq, problem, since, next_at))
