"""Which failed calls are tried again, when, and how often an endpoint may do so. Pure: draws, clocks are arguments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nanopod.model.endpoint import RetrySpec
from nanopod.model.errors import Cancelled, NanopodError, RemoteError, by_code

BUDGET_SHARE: Final = 0.1
"""Retries per call of the last minute."""
BUDGET_MIN: Final = 10
"""Retries per minute that every endpoint has."""
SLOTS: Final = 60
DELAY_S_MAX: Final = 3600.0

_CODES: Final = by_code()


def names_of(error: type[NanopodError]) -> list[str]:
    """The names under which a policy may list an error of the gateway: its class and those above it."""
    return [
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
        for cls in error.__mro__
        if cls is not object
    ]


def names_of_answer(code: str, types: Iterable[str]) -> list[str]:
    """The names of what a worker answered: the exception's own classes, and the error that its code names."""
    names = list(types)
    known = _CODES.get(code)
    if known is not None and known is not RemoteError:
        names += names_of(known)
    return names


def matches(on: Iterable[str], names: Iterable[str]) -> bool:
    """True when a policy lists one of these classes, with its module or without. A cancelled call is never repeated."""
    found: set[str] = set()
    for name in names:
        found.add(name)
        found.add(name.rpartition(".")[2])
    return Cancelled.__name__ not in found and any(name in found for name in on)


def delay_s(policy: RetrySpec, retried: int, draw: float) -> float:
    """Seconds to wait after `retried` earlier retries; `draw` is uniform in [0, 1)."""
    limit = min(policy.cap_s, policy.initial_s * policy.backoff ** min(retried, 64), DELAY_S_MAX)
    return max(0.0, limit * draw if policy.jitter else limit)


class Budget:
    """Calls and retries of the last minute at one endpoint: a tenth may be retries: trouble must not multiply."""

    __slots__ = ("_calls", "_calls_sum", "_retries", "_retries_sum", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._calls = [0] * SLOTS
        self._retries = [0] * SLOTS
        self._calls_sum = self._retries_sum = 0

    def called(self, now: float, count: int = 1) -> None:
        """So many calls arrived until `now` (seconds of any steady clock)."""
        self._advance(int(now))
        self._calls[self._second % SLOTS] += count
        self._calls_sum += count

    def take(self, now: float, uncounted: int = 0) -> bool:
        """Use one retry, if one is left; `uncounted` calls came since the last `called`."""
        self._advance(int(now))
        if self._retries_sum >= max(BUDGET_MIN, int(BUDGET_SHARE * (self._calls_sum + uncounted))):
            return False
        self._retries[self._second % SLOTS] += 1
        self._retries_sum += 1
        return True

    def _advance(self, second: int) -> None:
        """Forget what is more than a minute old."""
        gone = second - self._second
        if gone <= 0:
            return
        for step in range(1, min(gone, SLOTS) + 1):
            slot = (self._second + step) % SLOTS
            self._calls_sum -= self._calls[slot]
            self._retries_sum -= self._retries[slot]
            self._calls[slot] = self._retries[slot] = 0
        self._second = second
