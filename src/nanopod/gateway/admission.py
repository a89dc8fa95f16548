"""Whether a call may come in, and what it becomes. Refusals name the field and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nanopod.gateway import tables
from nanopod.gateway.called import DONE
from nanopod.gateway.calls import CallJob
from nanopod.model import calls, frames
from nanopod.model.endpoint import GPUS_MAX, PLACE_CHARS_MAX, FunctionSpec
from nanopod.model.errors import Denied, Invalid, NanopodError, NoCapacity, NotFound
from nanopod.model.wire import KeyRow, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway

CALL_FRAME_BYTES_MAX: Final = frames.FRAME_BYTES_MAX - 64
ROUTE_KEY_CHARS_MAX: Final = 256
RETRIES_MAX: Final = 100


def route_of(gateway: Gateway, key: KeyRow, name: str) -> RouteRow:
    """The endpoint that a caller names. Raises `NoCapacity`, `Denied` or `NotFound`."""
    if gateway.stopping:
        raise NoCapacity("this gateway is stopping; send the call again", retry_after_s=0.5)
    if tables.key_expired(key):
        raise Denied("the API key has expired")
    route = gateway.tables.endpoint(key.workspace_id, name)
    if route is None:
        there = ", ".join(gateway.tables.names(key.workspace_id)[:10]) or "none yet"
        raise NotFound(f"there is no endpoint `{name}` in this workspace; there is {there}", field="endpoint")
    if not tables.may_use(key, route):
        raise Denied(f"this key may not call the endpoint `{route.name}`", field="endpoint")
    return route


def function_of(route: RouteRow, name: str, field: str = "function") -> FunctionSpec:
    """The function that a caller names. Raises `NotFound`."""
    spec = route.functions.get(name)
    if spec is None:
        there = ", ".join(sorted(route.functions)[:20]) or "none"
        text = f"the endpoint `{route.name}:{route.tag}` has no function `{name}`; it has {there}"
        raise NotFound(text, field=field)
    return spec


def admit(gateway: Gateway, key: KeyRow, call: calls.Call, frame_bytes: int) -> CallJob:
    """A new call's job. Raises what the caller is told instead."""
    if len(call.id) != 16:
        raise Invalid("a call's id is 16 bytes", field="id")
    _check(call, frame_bytes)
    route = route_of(gateway, key, call.endpoint)
    job = CallJob(gateway, call, gateway.pool(route), function_of(route, call.function), key)
    if call.parent:
        parent = gateway.calls.get(call.parent) or gateway.web_calls.get(call.parent)
        if parent is not None and parent.workspace_id == key.workspace_id and parent.state != DONE:
            if parent.depth >= calls.DEPTH_MAX:
                raise _too_deep()
            job.nest_in(parent)
    if call.session:
        try:
            gateway.sessions.join(job)
        except NanopodError:
            job.drop()
            raise
    return job


def _check(call: calls.Call, frame_bytes: int) -> None:
    if call.size > calls.INLINE_BYTES_MAX or frame_bytes > CALL_FRAME_BYTES_MAX:
        limit = calls.INLINE_BYTES_MAX >> 20
        raise Invalid(f"the arguments take {call.size} bytes; at most {limit} MiB travel in a call", field="size")
    if not call.timeout_s > 0 or not call.queue_timeout_s >= 0:
        raise Invalid("timeout_s must be above 0, queue_timeout_s not below it", field="timeout_s")
    if not call.deadline_at >= 0:
        raise Invalid("deadline_at is in Unix seconds, or 0 for none", field="deadline_at")
    if not call.workload >= 0:
        raise Invalid("workload must not be below 0", field="workload")
    if call.depth > calls.DEPTH_MAX:
        raise _too_deep()
    if len(call.route_key) > ROUTE_KEY_CHARS_MAX:
        raise Invalid(f"route_key (`model=`) has at most {ROUTE_KEY_CHARS_MAX} characters", field="route_key")
    if len(call.gpus) > GPUS_MAX or any(len(name) > PLACE_CHARS_MAX for name in (*call.gpus, call.region)):
        text = f"gpus: at most {GPUS_MAX} names of at most {PLACE_CHARS_MAX} characters, and so is region"
        raise Invalid(text, field="gpus")
    policy = call.retries
    if policy is not None and not (0 <= policy.max <= RETRIES_MAX and policy.initial_s >= 0 and policy.backoff > 0):
        text = f"retries: max is from 0 to {RETRIES_MAX}, initial_s not below 0, backoff above 0"
        raise Invalid(text, field="retries")


def _too_deep() -> Invalid:
    text = f"remote calls are nested more than {calls.DEPTH_MAX} deep; call the function in its own process instead"
    return Invalid(text, field="depth")
