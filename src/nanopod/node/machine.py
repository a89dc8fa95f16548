"""The life of one instance as its agent sees it: a table of states and events that answers with instructions. No IO.

```
queued -Admitted-> preparing -Prepared-> starting -Started-> running -Exited-> failed | ended
   \\-Adopted-> running       \\-Trouble-> failed <-Trouble-/       \\-Unwanted-> stopping -Exited-> ended
```
A state has no way back, so one epoch of an instance runs once at most. What is reported to the server for `running` is
`loading`: whether a worker is ready is known by the gateway it is linked to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

from nanopod.model.endpoint import Failure, Phase

State = Literal["queued", "preparing", "starting", "running", "stopping", "ended", "failed"]
STATES: Final[tuple[State, ...]] = ("queued", "preparing", "starting", "running", "stopping", "ended", "failed")
PHASES: Final[dict[State, Phase]] = {
    "queued": "queued", "preparing": "preparing", "starting": "starting", "running": "loading",
    "stopping": "stopping", "ended": "ended", "failed": "failed",
}  # fmt: skip
FINAL: Final[tuple[State, ...]] = ("ended", "failed")
KILL_AFTER_S: Final = 5.0
"""Beyond its grace a worker has so long, in which its shim kills it; then the agent does."""
KILL_AGAIN_S: Final = 2.0


class Instruction(Enum):
    """What the agent shall do next for this instance."""

    PREPARE = "unpack the bundle, build the environment"
    ABORT = "give the preparation up"
    START = "start the shim"
    WATCH = "notice when the shim ends"
    TERMINATE = "ask the shim to end its worker within the grace period"
    KILL = "kill the whole session"
    CLEAN = "remove what is left except log and verdict"


@dataclass(frozen=True, slots=True)
class Admitted:
    """There is room to start one more."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Bundle and environment are in place."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Preparing or starting did not work; None: it was given up on request."""

    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Started:
    """The shim runs."""

    pid: int


@dataclass(frozen=True, slots=True)
class Adopted:
    """A shim that an earlier agent started was found alive."""

    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The shim is gone, and with it the worker. `asked`: it was told to end."""

    exit_code: int | None = None
    signal: int | None = None
    asked: bool = False
    reason: str = ""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Unwanted:
    """The server does not want this instance, or this epoch of it, any more."""

    reason: str = "no longer wanted"


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes."""


Event = Admitted | Prepared | Trouble | Started | Adopted | Exited | Unwanted | Tick


class UnknownTransition(RuntimeError):
    """An event that its state does not know: a mistake in the agent. The message tells the instance's story."""


@dataclass(slots=True)
class Life:
    """One epoch of one instance. Times are seconds of any steady clock."""

    instance_id: str
    epoch: int
    grace_s: float
    state: State = "queued"
    pid: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    failure: Failure | None = None
    kill_at: float | None = None
    story: list[str] = field(default_factory=list)

    @property
    def phase(self) -> Phase:
        """The state in the words of the server."""
        return PHASES[self.state]

    @property
    def is_over(self) -> bool:
        """True once nothing of it runs and nothing will."""
        return self.state in FINAL

    def handle(self, event: Event, now: float) -> tuple[Instruction, ...]:
        """Move on by one event; what is to be done. Raises `UnknownTransition`."""
        before = self.state
        row = _TABLE.get((before, type(event)))
        if row is None:
            told = "; ".join(self.story) or "it was just made"
            raise UnknownTransition(
                f"instance {self.instance_id} epoch {self.epoch}: {type(event).__name__} does not belong in state "
                f"{before}; its story: {told}"
            )
        done = row(self, event, now)
        if self.state != before or not isinstance(event, Tick):
            self.story.append(f"{before} -{type(event).__name__}-> {self.state}")
            del self.story[:-32]
        return done


def _admitted(life: Life, _event: Event, _now: float) -> tuple[Instruction, ...]:
    life.state = "preparing"
    return (Instruction.PREPARE,)


def _prepared(life: Life, _event: Event, _now: float) -> tuple[Instruction, ...]:
    life.state = "starting"
    return (Instruction.START,)


def _started(life: Life, event: Event, _now: float) -> tuple[Instruction, ...]:
    assert isinstance(event, Started | Adopted)
    life.state, life.pid = "running", event.pid
    return (Instruction.WATCH,)


def _started_late(life: Life, event: Event, now: float) -> tuple[Instruction, ...]:
    """It was unwanted while it started."""
    assert isinstance(event, Started)
    life.pid = event.pid
    life.kill_at = now + life.grace_s + KILL_AFTER_S
    return (Instruction.WATCH, Instruction.TERMINATE)


def _trouble(life: Life, event: Event, _now: float) -> tuple[Instruction, ...]:
    assert isinstance(event, Trouble)
    life.state, life.failure = "failed", event.failure
    life.reason = event.failure.message if event.failure else "given up"
    return ()


def _never_ran(life: Life, _event: Event, _now: float) -> tuple[Instruction, ...]:
    life.state = "ended"
    return ()


def _unwanted_queued(life: Life, event: Event, _now: float) -> tuple[Instruction, ...]:
    assert isinstance(event, Unwanted)
    life.state, life.reason = "ended", event.reason
    return (Instruction.CLEAN,)


def _unwanted_preparing(life: Life, event: Event, _now: float) -> tuple[Instruction, ...]:
    assert isinstance(event, Unwanted)
    life.state, life.reason = "stopping", event.reason
    return (Instruction.ABORT,)


def _unwanted_starting(life: Life, event: Event, _now: float) -> tuple[Instruction, ...]:
    assert isinstance(event, Unwanted)
    life.state, life.reason = "stopping", event.reason
    return ()


def _unwanted_running(life: Life, event: Event, now: float) -> tuple[Instruction, ...]:
    assert isinstance(event, Unwanted)
    life.state, life.reason = "stopping", event.reason
    life.kill_at = now + life.grace_s + KILL_AFTER_S
    return (Instruction.TERMINATE,)


def _exited(life: Life, event: Event, _now: float) -> tuple[Instruction, ...]:
    assert isinstance(event, Exited)
    life.exit_code, life.signal, life.failure = event.exit_code, event.signal, event.failure
    life.reason = event.reason or life.reason
    life.state = "ended" if event.asked and event.failure is None else "failed"
    return ()


def _exited_stopping(life: Life, event: Event, _now: float) -> tuple[Instruction, ...]:
    assert isinstance(event, Exited)
    life.exit_code, life.signal = event.exit_code, event.signal
    life.state = "ended"
    return ()


def _tick_stopping(life: Life, _event: Event, now: float) -> tuple[Instruction, ...]:
    if life.kill_at is None or now < life.kill_at:
        return ()
    life.kill_at = now + KILL_AGAIN_S
    return (Instruction.KILL,)


def _clean(_life: Life, _event: Event, _now: float) -> tuple[Instruction, ...]:
    return (Instruction.CLEAN,)


def _nothing(_life: Life, _event: Event, _now: float) -> tuple[Instruction, ...]:
    return ()


Row = Callable[[Life, Event, float], tuple[Instruction, ...]]
_TABLE: Final[dict[tuple[State, type[Event]], Row]] = {
    ("queued", Admitted): _admitted,
    ("queued", Adopted): _started,
    ("queued", Exited): _exited,
    ("queued", Unwanted): _unwanted_queued,
    ("preparing", Prepared): _prepared,
    ("preparing", Trouble): _trouble,
    ("preparing", Unwanted): _unwanted_preparing,
    ("starting", Started): _started,
    ("starting", Trouble): _trouble,
    ("starting", Unwanted): _unwanted_starting,
    ("running", Exited): _exited,
    ("running", Unwanted): _unwanted_running,
    ("stopping", Prepared): _never_ran,
    ("stopping", Trouble): _never_ran,
    ("stopping", Started): _started_late,
    ("stopping", Exited): _exited_stopping,
    ("stopping", Unwanted): _nothing,
    ("stopping", Tick): _tick_stopping,
    ("ended", Unwanted): _clean,
    ("failed", Unwanted): _clean,
    **{(state, Tick): _nothing for state in STATES if state != "stopping"},
}
