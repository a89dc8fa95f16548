"""The cluster's clock. On a cluster that was started with a test clock it stands still until it is moved."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.market.terms import DURATION_S_MAX
from nanopod.model.chain import Key
from nanopod.model.errors import Denied, Invalid
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.tenants import operator_only


class Step(msgspec.Struct, frozen=True):
    """How far: to a time (Unix seconds), or by some blocks."""

    to_at: int | None = None
    blocks: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None


class Advance(Step, frozen=True):
    """Move the clock on. The same may be said as `{"advance": {...}}`, or as the time it should be: `now_at`."""

    advance: Step | None = None
    now_at: int | None = None

    def step(self) -> Step:
        """The one way that was said. Raises `Invalid` for none or several."""
        inner = self.advance or Step()
        wishes = {
            "to_at": self.to_at, "blocks": self.blocks, "now_at": self.now_at,
            "advance.to_at": inner.to_at, "advance.blocks": inner.blocks,
        }  # fmt: skip
        said = [name for name, value in wishes.items() if value is not None]
        if len(said) != 1:
            there = f"both {' and '.join(said)}" if said else "neither"
            raise Invalid(f"to_at: send to_at (Unix seconds) or blocks, one of them; there is {there}", field="to_at")
        value = wishes[said[0]]
        return Step(blocks=value) if said[0].endswith("blocks") else Step(to_at=value)


class ClockAnswer(TypedDict):
    """What time it is for the market; `frozen` clocks move by POST only."""

    object: Literal["test_clock"]
    now_at: int
    block_s: int
    frozen: bool


def _show(context: Context) -> ClockAnswer:
    return {
        "object": "test_clock",
        "now_at": int(context.clock()),
        "block_s": context.block_s,
        "frozen": context.clock.frozen,
    }


async def get_clock(context: Context, _request: Request, _key: Key) -> Response:
    """The cluster's time, whether it stands still, and the length of a block."""
    return answer(_show(context))


async def advance_clock(context: Context, request: Request, key: Key) -> Response:
    """Move a test clock on; everything that is due until then has happened when this is answered."""
    wish = await body_as(request, Advance)
    await context.store.read(lambda read: operator_only(read, key, "move the clock"))
    if not context.clock.frozen:
        raise Denied("this cluster goes by wall time; start one with `nanopod up --test-clock` to move its clock")
    step = wish.step()
    now, block_s = context.clock(), context.block_s
    to_at = step.to_at if step.to_at is not None else (int(now // block_s) + (step.blocks or 0)) * block_s
    if to_at < now:
        raise Invalid(f"to_at: {to_at} is before {int(now)}; a clock does not go back", field="to_at")
    if to_at > now + DURATION_S_MAX:
        raise Invalid(f"to_at: {to_at} is more than {DURATION_S_MAX} s ahead; go there in steps", field="to_at")
    await context.ticker.advance(to_at)
    return answer(_show(context))


OPERATIONS: Final = (
    Operation("GET", "/v1/test_clock", get_clock, "The cluster's time", scope="read", answer=ClockAnswer),
    Operation(
        "POST", "/v1/test_clock", advance_clock, "Move a test clock", body=Advance, answer=ClockAnswer,
        text="Refused with 403 on a cluster that goes by wall time.",
    ),
    Operation(
        "POST", "/v1/test_clock/advance", advance_clock, "Move a test clock", body=Advance, answer=ClockAnswer,
        text="The same as POST /v1/test_clock.",
    ),
)  # fmt: skip
