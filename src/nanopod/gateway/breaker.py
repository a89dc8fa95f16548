"""What an HTTP request hears instead of waiting: 503, 429 or 504, and when to come back.

The order for a request that arrives (the request itself is not counted): as many as may wait do so already: 503; no
worker is ready: it is held; the work that is here already takes longer than `max_queue_time`: 429, under the profiles
`auto` and `vast` and where the workers' speed is known. `knative` and `coreweave` answer with 503 only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from nanopod.gateway.heads import Failed

if TYPE_CHECKING:
    from nanopod.gateway.pool import Pool

QUEUE_DEPTH: Final = 10_000
"""Requests that may wait for one revision."""


def check(pool: Pool, wanted: str) -> Failed | None:
    """Why a request for the revision `wanted` ("": the endpoint's own) may not come in; None: it may."""
    if pool.waiting and pool.waiting_for(wanted)[0] >= QUEUE_DEPTH:
        return full(pool)
    if pool.slowest and not pool.is_light():
        wait_s = pool.predicted_wait_s(wanted)
        limit_s = pool.route.max_queue_time_s
        if wait_s is not None and wait_s > limit_s:
            text = f"the requests that are here take about {wait_s:.0f} s, more than max_queue_time ({limit_s:g} s)"
            return Failed(
                429, "rate_limit_error", "queue_too_long", f"{text}; come back later, or raise max_queue_time",
                extra=retry_after(wait_s - limit_s),
            )  # fmt: skip
    return None


def full(pool: Pool) -> Failed:
    """503: too many wait already."""
    text = f"pending request queue full: {pool.waiting} requests wait for `{pool.route.name}`"
    return Failed(503, "server_error", "queue_full", text, extra=retry_after(pool.eta_s()))


def waited_out(pool: Pool, waited_s: float) -> Failed:
    """A request was held for as long as it may be."""
    ready = any(link.usable for link in pool.links)
    phase = "" if ready else " ".join(pool.route.phase_text.split())
    doing = f" ({phase})" if phase else ""
    if pool.strict:
        what = "had room" if ready else "became ready"
        text = f"no worker {what} within {waited_s:.0f} s{doing}"
        return Failed(503, "server_error", "queue_timeout", text, extra=retry_after(pool.eta_s()))
    if ready:
        wait_s = pool.predicted_wait_s("") or 0.0
        text = f"no worker had room within {waited_s:.0f} s; more workers (max_workers) or slots would help"
        extra = retry_after(wait_s) + "x-should-retry: false\r\n"
        return Failed(504, "server_error", "queue_timeout", text, extra=extra)
    return Failed(
        504, "server_error", "wake_timeout",
        f"no worker became ready within {waited_s:.0f} s{doing}; it keeps waking while requests come",
        extra=retry_after(pool.eta_s()) + "x-should-retry: false\r\n",
    )  # fmt: skip


def retry_after(seconds: float) -> str:
    """The header line; whole seconds, at least 1."""
    return f"retry-after: {max(1, math.ceil(seconds))}\r\n"


def awaited(pool: Pool) -> str:
    """What a held stream is told: `waking replica, about 40 s (loading 1 worker)`."""
    if any(link.usable for link in pool.links):
        return "waiting for a free slot"
    eta_s = pool.eta_s()
    phase = " ".join(pool.route.phase_text.split())
    if eta_s > 0:
        return f"waking replica, about {math.ceil(eta_s)} s" + (f" ({phase})" if phase else "")
    return f"waking replica, {phase or 'waiting for a worker'}"
