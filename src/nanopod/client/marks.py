"""Small values that options of `@app.remote` are written with: `Batch`, `Retries`, `Cron`, `Period`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanopod.model.endpoint import RetrySpec, ScheduleSpec, WebSpec
from nanopod.model.errors import Invalid

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "ANY")


@dataclass(frozen=True, slots=True)
class Batch:
    """Calls that are in flight together become one run of the function, which takes and returns lists.

    A batch leaves when it has `max_size` calls, or `wait_ms` milliseconds after its first one; at once when the worker
    is idle.
    """

    max_size: int
    wait_ms: float = 5.0

    def __post_init__(self) -> None:
        if type(self.max_size) is not int or not 1 <= self.max_size <= 10_000:
            raise Invalid(f"Batch: max_size is from 1 to 10000, not {self.max_size!r}", field="max_size")
        _number("Batch", "wait_ms", self.wait_ms, 0, 60_000)


@dataclass(frozen=True, slots=True)
class Retries:
    """Try a failed call again, at most `max` times, with growing pauses of seconds.

    `on` names what is tried again: exception classes, or their names. Exceptions of the function itself are tried
    again only when they are named.
    """

    max: int
    backoff: float = 2.0
    initial: float = 1.0
    cap: float = 60.0
    jitter: bool = True
    on: Sequence[type[BaseException] | str] = ("WorkerLost", "QueueTimeout")

    def __post_init__(self) -> None:
        if type(self.max) is not int or not 0 <= self.max <= 100:
            raise Invalid(f"Retries: max is from 0 to 100, not {self.max!r}", field="max")
        _number("Retries", "backoff", self.backoff, 1, 100)
        _number("Retries", "initial", self.initial, 0, 3600)
        _number("Retries", "cap", self.cap, 0, 86_400)
        for name in self.on:
            if not isinstance(name, str) and not (isinstance(name, type) and issubclass(name, BaseException)):
                raise Invalid(f"Retries: on holds exception classes or their names, not {name!r}", field="on")

    def spec(self) -> RetrySpec:
        """The plain value that travels."""
        names = tuple(name if isinstance(name, str) else class_name(name) for name in self.on)
        return RetrySpec(self.max, float(self.initial), float(self.backoff), float(self.cap), bool(self.jitter), names)


@dataclass(frozen=True, slots=True)
class Cron:
    """A schedule as a cron line: minute, hour, day, month, weekday; `tz` is an IANA time zone.

    `@hourly`, `@daily`, `@weekly`, `@monthly` and `@yearly` are lines as well.
    """

    line: str
    tz: str = "UTC"
    catch_up: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.line, str) or (len(self.line.split()) != 5 and not self.line.strip().startswith("@")):
            raise Invalid(
                f"Cron: {self.line!r} is no cron line; five fields are wanted: minute hour day month weekday",
                field="cron",
            )

    def spec(self) -> ScheduleSpec:
        """The plain value that travels."""
        return ScheduleSpec(" ".join(self.line.split()), self.tz, 0.0, self.catch_up)


@dataclass(frozen=True, slots=True)
class Period:
    """A schedule that starts every so many seconds."""

    seconds: float
    catch_up: bool = True

    def __post_init__(self) -> None:
        _number("Period", "seconds", self.seconds, 1, 366 * 86_400)

    def spec(self) -> ScheduleSpec:
        """The plain value that travels."""
        return ScheduleSpec("", "UTC", float(self.seconds), self.catch_up)


def class_name(cls: type) -> str:
    """How a class is named in retry policies and errors: `module.qualname`, builtins without a module."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def web_spec(name: str, text: Any, auth: Any) -> WebSpec:
    """`"POST /square"` as a value. Raises `Invalid`."""
    words = text.split() if isinstance(text, str) else []
    if len(words) == 1:
        words = ["POST", *words]
    if len(words) != 2 or words[0].upper() not in METHODS or not words[1].startswith("/"):
        raise Invalid(f'{name}: web is a method and a path such as "POST /{name}", not {text!r}', field="web")
    if auth not in ("key", "public"):
        raise Invalid(f'{name}: auth is "key" or "public", not {auth!r}', field="auth")
    return WebSpec(words[0].upper(), words[1], auth)


def _number(what: str, field: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or not low <= value <= high:
        raise Invalid(f"{what}: {field} is from {low:g} to {high:g}, not {value!r}", field=field)
