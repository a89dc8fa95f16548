"""The table of an instance's life: whatever the order of events, an epoch starts once at most and always ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopod.model.endpoint import Failure
from nanopod.node.machine import (
    FINAL,
    KILL_AFTER_S,
    STATES,
    Admitted,
    Adopted,
    Event,
    Exited,
    Instruction,
    Life,
    Prepared,
    Started,
    Tick,
    Trouble,
    UnknownTransition,
    Unwanted,
)  # fmt: skip

FAILURE = Failure("bundle", "it is broken")
EVENTS: list[Event] = [
    Admitted(), Prepared(), Trouble(FAILURE), Trouble(None), Started(42), Adopted(42), Exited(0, None, True),
    Exited(1, None, False, "crash", FAILURE), Exited(None, 9), Unwanted(), Tick(),
]  # fmt: skip


def life() -> Life:
    return Life("inst_x", 1, 10.0)


def test_the_ordinary_story() -> None:
    one = life()
    assert one.handle(Admitted(), 0) == (Instruction.PREPARE,)
    assert one.handle(Prepared(), 1) == (Instruction.START,)
    assert one.handle(Started(42), 2) == (Instruction.WATCH,)
    assert (one.phase, one.pid) == ("loading", 42)
    assert one.handle(Tick(), 3) == ()
    assert one.handle(Unwanted("scaled down"), 100) == (Instruction.TERMINATE,)
    assert one.phase == "stopping"
    assert one.handle(Tick(), 100 + 10 + KILL_AFTER_S - 0.1) == ()
    assert one.handle(Tick(), 100 + 10 + KILL_AFTER_S) == (Instruction.KILL,)
    assert one.handle(Tick(), 100 + 10 + KILL_AFTER_S + 0.1) == (), "not killed again at once"
    assert one.handle(Exited(None, 9, True), 120) == ()
    assert (one.phase, one.signal, one.reason) == ("ended", 9, "scaled down")
    assert one.handle(Unwanted(), 121) == (Instruction.CLEAN,)


def test_unwanted_before_it_runs() -> None:
    queued = life()
    assert queued.handle(Unwanted(), 0) == (Instruction.CLEAN,)
    assert queued.phase == "ended"
    preparing = life()
    preparing.handle(Admitted(), 0)
    assert preparing.handle(Unwanted(), 1) == (Instruction.ABORT,)
    assert preparing.handle(Prepared(), 2) == (), "it is not started any more"
    assert preparing.phase == "ended"
    starting = life()
    starting.handle(Admitted(), 0)
    starting.handle(Prepared(), 1)
    assert starting.handle(Unwanted(), 2) == ()
    assert starting.handle(Started(7), 3) == (Instruction.WATCH, Instruction.TERMINATE)
    assert starting.kill_at == 3 + 10 + KILL_AFTER_S


def test_failures_are_kept_in_their_own_words() -> None:
    one = life()
    one.handle(Admitted(), 0)
    one.handle(Trouble(FAILURE), 1)
    assert (one.phase, one.failure, one.reason) == ("failed", FAILURE, "it is broken")
    adopted = life()
    adopted.handle(Adopted(7), 0)
    adopted.handle(Exited(1, None, False, "crash", FAILURE), 1)
    assert (adopted.phase, adopted.exit_code, adopted.failure) == ("failed", 1, FAILURE)
    asked = life()
    asked.handle(Adopted(7), 0)
    asked.handle(Exited(0, None, True, "SIGTERM was sent to it"), 1)
    assert asked.phase == "ended"


def test_what_does_not_belong_raises_with_the_story() -> None:
    one = life()
    one.handle(Adopted(7), 0)
    with pytest.raises(
        UnknownTransition, match=r"Prepared does not belong in state running; .*queued -Adopted-> running"
    ):
        one.handle(Prepared(), 1)
    assert one.state == "running"


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 30)), max_size=40))
def test_any_order_of_events_keeps_the_promises(steps: list[tuple[Event, float]]) -> None:
    one = life()
    now, starts, order = 0.0, 0, [one.state]
    for event, step in steps:
        now += step
        was_over = one.is_over
        try:
            instructions = one.handle(event, now)
        except UnknownTransition:
            assert one.state == order[-1], "a refused event changes nothing"
            continue
        starts += instructions.count(Instruction.START)
        if was_over:
            assert one.is_over, "what is over stays over"
            assert set(instructions) <= {Instruction.CLEAN}
        if Instruction.START in instructions:
            assert one.state == "starting"
        if one.state != order[-1]:
            assert STATES.index(one.state) > STATES.index(order[-1]), "a life goes one way"
        order.append(one.state)
    assert starts <= 1


@given(st.sampled_from(["queued", "preparing", "starting", "running", "stopping"]))
def test_every_state_can_come_to_an_end(state: str) -> None:
    one = life()
    for event in {"queued": [], "preparing": [Admitted()], "starting": [Admitted(), Prepared()],
                  "running": [Adopted(1)], "stopping": [Adopted(1), Unwanted()]}[state]:  # fmt: skip
        one.handle(event, 0)
    assert one.state == state
    one.handle(Unwanted(), 1)
    for event in (Prepared(), Started(1), Exited(0, None, True)):
        if not one.is_over:
            with_story = one.state
            try:
                one.handle(event, 2)
            except UnknownTransition:
                assert with_story == one.state
    assert one.state in FINAL
