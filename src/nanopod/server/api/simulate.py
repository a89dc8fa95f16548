"""What an endpoint's settings, or others, would make of a load: the same decisions on a simulated clock."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control.endpoint import slots_of
from nanopod.control.scaling import is_llm, restored
from nanopod.control.update import check_scale
from nanopod.model.chain import Key
from nanopod.model.endpoint import ScaleSpec
from nanopod.model.errors import Invalid
from nanopod.scheduler.autoscale.settings import resolve
from nanopod.scheduler.autoscale.simulate import UNITS, Arrival, Conditions, Outcome, World
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import parse, read_body
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.endpoints import find_endpoint
from nanopod.server.api.scaling import merged
from nanopod.store.transaction import Transaction

REQUESTS_MAX: Final = 100_000
LENGTH_S_MAX: Final = 172_800.0
"""Two days."""
RUNNING_MAX: Final = 1
"""Simulations at a time; the others wait."""
SLICE_S: Final = 10
"""Simulated seconds between two looks at the time it takes."""
WALL_S_MAX: Final = 20.0
"""Longest time that one simulation may compute."""
START_S: Final = 10.0
"""A start, before one was measured."""
_turn: Final = asyncio.Semaphore(RUNNING_MAX)


class SimulateBody(msgspec.Struct, frozen=True):
    """A load, and what is to be different. Either `requests`, rows of [at, service_s] or [at, service_s, units]; or
    `concurrency`, rows of [at, requests at once] of which each holds until the next. Times are seconds."""

    requests: tuple[tuple[float, ...], ...] = ()
    concurrency: tuple[tuple[float, float], ...] = ()
    scale: ScaleSpec | None = None
    """Settings in place of the endpoint's; what is left out stays as it is."""
    provision_s: float | None = None
    """null: as measured."""
    wake_s: float | None = None
    slots: int | None = None
    mu: float | None = None
    """Units of load per second of a worker; null: as measured."""
    bill_s: float = 60.0


class SimulatedConditions(TypedDict):
    """What was assumed. Times are seconds."""

    profile: str
    slots: int
    provision_s: float
    wake_s: float
    bill_s: float
    mu: float | None


class SimulateAnswer(TypedDict):
    """The figures; `outcome.timeline` is the endpoint over time."""

    object: str
    endpoint: str
    conditions: SimulatedConditions
    outcome: Outcome


async def simulate_endpoint(context: Context, request: Request, key: Key) -> Response:
    """Replay a load through the scaling of an endpoint. Nothing of the endpoint changes."""
    raw = await read_body(request)
    body = parse(raw, SimulateBody)
    sent: dict[str, Any] = msgspec.json.decode(raw)
    reference = request.path_params["id"]

    def read(read: Transaction) -> tuple[str, ScaleSpec, Conditions, bool]:
        found = find_endpoint(read, key, reference)
        revision = read.revision(found.revision_id)
        deployment = read.deployment_of(found.endpoint_id)
        assert revision is not None and deployment is not None, "written together with the endpoint"
        state = restored(found).state
        known = state.mu.get(deployment.sku_id) or next(iter(state.mu.values()), None)
        provision_s = _given(body.provision_s, state.provision_s, START_S)
        conditions = Conditions(
            slots=slots_of(revision.spec) if body.slots is None else body.slots,
            provision_s=provision_s,
            wake_s=_given(body.wake_s, state.wake_s if body.provision_s is None else None, provision_s),
            bill_s=body.bill_s,
            mu=body.mu if body.mu is not None else known,
        )
        return found.full_name, found.scale, conditions, is_llm(revision.spec)

    name, scale, conditions, llm = await context.store.read(read)
    if body.scale is not None:
        scale = merged(scale, sent["scale"])
        check_scale(scale)
    conditions.check()
    arrivals = list(arrivals_of(body))
    spec = resolve(scale, max(1, conditions.slots), llm)
    async with _turn:
        outcome = await asyncio.to_thread(_run, World(spec, conditions), arrivals)
    assumed = SimulatedConditions(
        profile=scale.profile,
        slots=conditions.slots,
        provision_s=conditions.provision_s,
        wake_s=conditions.provision_s if conditions.wake_s is None else conditions.wake_s,
        bill_s=conditions.bill_s,
        mu=conditions.mu,
    )
    return answer(SimulateAnswer(object="simulation", endpoint=name, conditions=assumed, outcome=outcome))


def _run(world: World, arrivals: Sequence[Arrival]) -> Outcome:
    """The simulation, in a thread of its own. Raises `Invalid` when it takes too long."""
    ends_at = time.monotonic() + WALL_S_MAX
    at = 0
    for until in range(SLICE_S, int(LENGTH_S_MAX * 2), SLICE_S):
        first = at
        while at < len(arrivals) and arrivals[at].at < until:
            at += 1
        world.play(arrivals[first:at], until)
        if at == len(arrivals) and not world.present():
            break
        if time.monotonic() > ends_at:
            raise Invalid(
                f"requests: second {until} is reached after {WALL_S_MAX:g} s of computing; take a part of the load, or "
                "state max_workers",
                field="requests",
            )
    return world.outcome(world.now)


def arrivals_of(body: SimulateBody) -> Iterator[Arrival]:
    """The requests of a body. Raises `Invalid` naming the row."""
    if bool(body.requests) == bool(body.concurrency):
        raise Invalid("the body: give either requests or concurrency, with at least one row", field="requests")
    if len(body.requests) > REQUESTS_MAX:
        found = len(body.requests)
        raise Invalid(f"requests: {found} are more than {REQUESTS_MAX}; take a part of them", field="requests")
    yield from _from_requests(body.requests) if body.requests else _from_concurrency(body.concurrency)


def _from_requests(rows: Sequence[Sequence[float]]) -> Iterator[Arrival]:
    last = 0.0
    for number, row in enumerate(rows):
        field = f"requests[{number}]"
        if not 2 <= len(row) <= 3 or not all(math.isfinite(value) and value >= 0 for value in row):
            raise Invalid(
                f"{field}: {list(row)} is not [at, service_s] or [at, service_s, units]; numbers from 0",
                field=field,
            )
        if not last <= row[0] <= LENGTH_S_MAX:
            raise Invalid(
                f"{field}: at={row[0]:g} is before {last:g} or after {LENGTH_S_MAX:g} s; sort by time and "
                "count from the first",
                field=field,
            )
        if row[1] > LENGTH_S_MAX:
            raise Invalid(f"{field}: service_s={row[1]:g} is above {LENGTH_S_MAX:g}", field=field)
        last = row[0]
        yield Arrival(row[0], row[1], row[2] if len(row) == 3 else UNITS)


def _from_concurrency(rows: Sequence[tuple[float, float]]) -> Iterator[Arrival]:
    """As many requests of one second, spread over each second, as keep that many at once."""
    made, owed = 0, 0.0
    for number, (at, level) in enumerate(rows):
        ends = rows[number + 1][0] if number + 1 < len(rows) else at + 1
        if not 0 <= at < ends <= LENGTH_S_MAX + 1 or not 0 <= level <= REQUESTS_MAX:
            raise Invalid(
                f"concurrency[{number}]: [{at:g}, {level:g}] is not [at, requests at once]; times rise and are at most "
                f"{LENGTH_S_MAX:g} s",
                field=f"concurrency[{number}]",
            )
        second = at
        while second < ends:
            length = min(1.0, ends - second)
            owed += level * length
            count = int(owed + 1e-9)
            owed -= count
            made += count
            if made > REQUESTS_MAX:
                raise Invalid(
                    f"concurrency[{number}]: these are more than {REQUESTS_MAX} request-seconds; take a part of them",
                    field=f"concurrency[{number}]",
                )
            for index in range(count):
                yield Arrival(second + length * index / count, 1.0)
            second += length


def _given(stated: float | None, measured: float | None, usual: float) -> float:
    if stated is not None:
        return stated
    return measured if measured is not None else usual


OPERATIONS: Final = (
    Operation(
        "POST", "/v1/endpoints/{id}/simulate", simulate_endpoint, "What the scaling would do with a load", scope="read",
        body=SimulateBody, answer=SimulateAnswer,
        text="The endpoint's own decisions on a simulated clock; nothing of it changes.",
    ),
)  # fmt: skip
