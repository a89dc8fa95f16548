"""Replay requests, or a recorded stream of what an autoscaler saw: the decisions are the product's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from nanopod.model.endpoint import ScaleSpec
from nanopod.model.errors import Invalid
from nanopod.scheduler.autoscale.engine import decide
from nanopod.scheduler.autoscale.settings import resolve
from nanopod.scheduler.autoscale.simulate import Arrival, Conditions, Outcome, simulate
from nanopod.scheduler.autoscale.values import Autoscale, Decision, Observed, ScaleState

FORM = "nanopod-observed-1"
"""What the first line of a recording says it is."""


class Head(msgspec.Struct, frozen=True):
    """First line of a recording: the settings under which it was made."""

    form: str
    autoscale: Autoscale


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One evaluation: when (seconds since the epoch), what was seen, and what was decided, where that was kept."""

    at: float
    seen: Observed
    decided: Decision | None = None


def replay(
    scale: ScaleSpec,
    arrivals: Iterable[Arrival],
    *,
    slots: int,
    wake_s: float,
    provision_s: float | None = None,
    mu: float | None = None,
    record: Path | None = None,
) -> Outcome:
    """What the settings make of the requests; a worker of `slots` is ready `wake_s` after it was asked for,
    a new one `provision_s` (None: the same).

    `record`: write there what was seen at each evaluation, for `again`. Raises `Invalid`.
    """
    spec = resolve(scale, slots, False)
    conditions = Conditions(
        slots=slots, provision_s=wake_s if provision_s is None else provision_s, wake_s=wake_s, mu=mu
    )
    if record is None:
        return simulate(spec, arrivals, conditions)
    with open(record, "wb") as target:
        target.write(msgspec.json.encode(Head(FORM, spec)) + b"\n")

        def keep(seen: Observed, at: float, decision: Decision) -> None:
            target.write(msgspec.json.encode(Line(at, seen, decision)) + b"\n")

        return simulate(spec, arrivals, conditions, seen=keep)


def again(path: Path) -> Iterator[tuple[Line, Decision]]:
    """Each recorded evaluation with the decision that the engine makes of it. Raises `Invalid` naming a bad line."""
    state = ScaleState()
    with open(path, "rb") as source:
        first = source.readline()
        try:
            head = msgspec.json.decode(first, type=Head)
        except msgspec.MsgspecError as error:
            raise Invalid(f"{path}, line 1: {error}; expected a recording of `nanopod sim --record`") from error
        if head.form != FORM:
            raise Invalid(f"{path}, line 1: form {head.form!r} is not {FORM!r}; record it with this version")
        decoder = msgspec.json.Decoder(Line)
        for number, text in enumerate(source, 2):
            if not text.strip():
                continue
            try:
                line = decoder.decode(text)
            except msgspec.MsgspecError as error:
                raise Invalid(f"{path}, line {number}: {error}") from error
            state, decision = decide(head.autoscale, state, line.seen, line.at)
            yield line, decision


def as_json(line: Line, decision: Decision) -> dict[str, Any]:
    """One line of output."""
    return {"at": line.at, **msgspec.to_builtins(decision)}
