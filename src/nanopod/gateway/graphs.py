"""Inference graphs: the gateway walks them itself, so that a hop to another endpoint costs no connection.

A step of an endpoint is a request like any other: it waits for a worker, is metered, and moves when its worker is lost.
What steps answer is held whole (at most `heads.BODY_BYTES_MAX` each). The rules are those of KServe's InferenceGraph:

Sequence: one step after another, on the request or on the answer before. A hard step's failure ends it with that
answer; a condition that finds nothing in the answer before ends it with that answer and status 200. Splitter: one
step, drawn by weight. Switch: the first step whose condition finds something in the request; none: 404. Ensemble: all
steps at once, their answers by name or number; a hard step's failure is the answer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

import msgspec

from nanopod.gateway import heads
from nanopod.gateway.asked import Wishes
from nanopod.gateway.heads import Failed, Head
from nanopod.gateway.relay import Request
from nanopod.gateway.steps import path_for, post_abroad
from nanopod.model import jsonpath, unreadable
from nanopod.model.endpoint import GraphNode, GraphSpec, GraphStep
from nanopod.model.graphs import ROOT
from nanopod.model.wire import KeyRow, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.process import Gateway
    from nanopod.gateway.server import Exchange, HttpConnection

RUNNING_MAX: Final = 4096
DEPTH_MAX: Final = 8
"""Graphs that are steps of one another."""
STEPS_MAX: Final = 1000
"""Steps of one request, those of inner nodes and graphs included."""
INLINE_BYTES_MAX: Final = 64 << 10
"""Bodies up to this size are looked into on the loop."""
Read = TypeVar("Read")
_json: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode
_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What a step answered."""

    status: int
    body: bytes
    content_type: str = "application/json"

    @property
    def good(self) -> bool:
        """True for 2xx."""
        return 200 <= self.status < 300


class Hop:
    """The caller of a step, towards the request that serves it: an `HttpConnection` that keeps what it is given."""

    paused = False

    def __init__(self) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.exchange: Exchange | None = None
        self.close_after = False
        self._status = 0
        self._pieces: list[bytes] = []
        self._size = 0

    def start_stream(self, head: bytes, *, chunked: bool) -> None:
        """A streamed answer begins."""
        self._status = int(head.split(b" ", 2)[1])

    def piece(self, data: bytes) -> None:
        """A part of it."""
        self._size += len(data)
        if self._size <= heads.BODY_BYTES_MAX:
            self._pieces.append(data)

    def finish(self) -> None:
        """It is complete."""
        if self._size > heads.BODY_BYTES_MAX:
            self._end(_failed(502, f"a step answered more than {heads.BODY_BYTES_MAX} bytes"))
        else:
            self._end(Answer(self._status, b"".join(self._pieces), "text/event-stream"))

    def respond(self, status: int, body: bytes, *, content_type: str = "application/json", extra: str = "") -> None:
        """A whole answer."""
        self._end(Answer(status, body, content_type))

    def fail(self, failed: Failed, *, close: bool = False, extra: str = "") -> None:
        """None came."""
        self._end(Answer(failed.status, failed.body(), failed.content_type))

    def abort(self) -> None:
        """It broke off in the middle."""
        self._end(_failed(502, "the answer of a step broke off"))

    def leave(self) -> None:
        """Nobody waits any more."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None and not self.answer.done():
            exchange.caller_gone()

    def _end(self, answer: Answer) -> None:
        self.exchange = None
        if not self.answer.done():
            self.answer.set_result(answer)


class GraphRun:
    """One request on its way through a graph; the exchange of its caller's connection."""

    def __init__(
        self, gateway: Gateway, connection: HttpConnection, head: Head, body: bytes, key: KeyRow, route: RouteRow
    ) -> None:
        self._gw = gateway
        self._connection: HttpConnection | None = connection
        self._head = head
        self._body = body
        self._key = key
        self._route = route
        self._hops: set[Hop] = set()
        self._task: asyncio.Task[None] | None = None
        self._steps = 0

    def start(self) -> None:
        """Set off. Raises `Failed` when too many are on their way."""
        graphs = self._gw.graphs
        if len(graphs.running) >= RUNNING_MAX:
            raise heads.overloaded("too many requests are inside graphs; try again in a few seconds")
        connection = self._connection
        assert connection is not None, "a request starts with its caller present"
        connection.exchange = self
        graphs.running.add(self)
        self._task = asyncio.ensure_future(self._run())

    # --- the caller's side ---

    def caller_gone(self) -> None:
        """The caller left: so do all steps."""
        self._connection = None
        if self._task is not None:
            self._task.cancel()

    def caller_resumed(self) -> None:
        """Answers are sent whole: nothing waits for the caller."""

    def body_piece(self, data: bytes, end: bool) -> None:
        """Not used: bodies are read whole."""

    async def _run(self) -> None:
        gw = self._gw
        graph = self._route.graph
        assert graph is not None, "only graphs are walked"
        try:
            async with asyncio.timeout(graph.timeout_s):
                answer = await self._graph(graph, self._body, 0)
            if self._steps > STEPS_MAX:
                answer = _failed(508, f"the request takes more than {STEPS_MAX} steps: nodes or graphs multiply")
        except TimeoutError:
            answer = _failed(504, f"the graph took longer than its limit of {graph.timeout_s:g} s")
        except asyncio.CancelledError:
            return
        except Exception:
            _log.exception("graph %s failed", self._route.name)
            answer = _failed(500, "the graph could not be walked; the gateway's log says why")
        finally:
            gw.now = gw.loop.time()
            gw.graphs.running.discard(self)
            for hop in list(self._hops):
                hop.leave()
            gw.flush()
        connection = self._connection
        if connection is not None:
            given = heads.request_id_of(self._head) or gw.request_id()
            extra = f"x-request-id: {given}\r\n"
            connection.respond(answer.status, answer.body, content_type=answer.content_type, extra=extra)
            gw.flush()

    # --- the walk ---

    async def _graph(self, graph: GraphSpec, body: bytes, depth: int) -> Answer:
        return await self._node(graph, graph.nodes[ROOT], body, depth)

    async def _node(self, graph: GraphSpec, node: GraphNode, body: bytes, depth: int) -> Answer:
        self._steps += len(node.steps) if node.router in ("Sequence", "Ensemble") else 1
        if self._steps > STEPS_MAX:
            return _failed(508, "too many steps")
        match node.router:
            case "Sequence":
                return await self._sequence(graph, node.steps, body, depth)
            case "Splitter":
                drawn = random.choices(node.steps, [step.weight for step in node.steps])[0]
                return await self._step(graph, drawn, body, depth)
            case "Ensemble":
                return await self._ensemble(graph, node.steps, body, depth)
            case "Switch":
                place = await _read(_first_of, body, node.steps)
                if place >= 0:
                    return await self._step(graph, node.steps[place], body, depth)
                return _failed(404, "no step of the switch has a condition that matches the request")

    async def _sequence(self, graph: GraphSpec, steps: Sequence[GraphStep], body: bytes, depth: int) -> Answer:
        answer: Answer | None = None
        for step in steps:
            given = body
            if answer is not None:
                if step.condition:
                    found = await _read(_holds, answer.body, step.condition)
                    if found is None:
                        return _failed(500, f"{_name(step)}: the answer before it is not JSON, so it has no condition")
                    if not found:
                        return Answer(200, answer.body, answer.content_type)
                if step.data == "$response":
                    given = answer.body
                if step.map_predictions:
                    given = await _read(_instances, answer.body)
            answer = await self._step(graph, step, given, depth)
            if step.dependency == "Hard" and not answer.good:
                return answer
        assert answer is not None, "a node has steps"
        return answer

    async def _ensemble(self, graph: GraphSpec, steps: Sequence[GraphStep], body: bytes, depth: int) -> Answer:
        tasks = [asyncio.ensure_future(self._step(graph, step, body, depth)) for step in steps]
        hard = {task: step for task, step in zip(tasks, steps, strict=True) if step.dependency == "Hard"}
        try:
            waiting = set(tasks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task in hard and not task.result().good:
                        return task.result()
        finally:
            for task in tasks:
                task.cancel()
        found: dict[str, Any] = {}
        for index, (task, step) in enumerate(zip(tasks, steps, strict=True)):
            value = await _read(_decoded, task.result().body)
            if value is jsonpath.MISSING:
                return _failed(502, f"{_name(step)} did not answer JSON, which an ensemble is made of")
            found[step.name or str(index)] = value
        return Answer(200, _json(found))

    async def _step(self, graph: GraphSpec, step: GraphStep, body: bytes, depth: int) -> Answer:
        if step.node:
            return await self._node(graph, graph.nodes[step.node], body, depth)
        if step.url:
            return Answer(*await post_abroad(step.url, body, self._head))
        return await self._service(step, body, depth)

    async def _service(self, step: GraphStep, body: bytes, depth: int) -> Answer:
        gw = self._gw
        route = gw.tables.endpoint(self._route.workspace_id, step.service)
        if route is None:
            return _failed(503, f"{_name(step)}: there is no endpoint {step.service!r} in this workspace")
        if route.graph is not None:
            if depth >= DEPTH_MAX:
                return _failed(508, f"{_name(step)}: graphs are nested more than {DEPTH_MAX} deep")
            return await self._graph(route.graph, body, depth + 1)
        found = path_for(route, body)
        if found is None:
            return _failed(502, f"{_name(step)}: the endpoint {step.service!r} serves no model, so it cannot be a step")
        path, body = found
        hop = Hop()
        self._hops.add(hop)
        head = Head()
        head.method, head.path, head.target = "POST", path, path
        head.headers = {"content-type": "application/json", "x-request-id": gw.request_id()}
        gw.now = gw.loop.time()
        try:
            connection = cast("HttpConnection", hop)
            Request(gw, connection, head, body, self._key, gw.pool(route), "graph", Wishes(), False).start()
            gw.flush()
            return await hop.answer
        except Failed as failed:
            return Answer(failed.status, failed.body(), failed.content_type)
        finally:
            gw.now = gw.loop.time()
            hop.leave()
            self._hops.discard(hop)
            gw.flush()


class Graphs:
    """What the graphs of one gateway process share."""

    def __init__(self) -> None:
        self.running: set[GraphRun] = set()


def _failed(status: int, text: str) -> Answer:
    return Answer(status, _json({"error": text}))


def _name(step: GraphStep) -> str:
    return f"step {step.name or step.service or step.url or step.node!r}"


def _decoded(body: bytes) -> Any:
    """The JSON value, or `MISSING`."""
    try:
        return _decode(body)
    except unreadable.JSON:
        return jsonpath.MISSING


async def _read(call: Callable[..., Read], body: bytes, *more: Any) -> Read:
    """`call(body, *more)`: on a thread where the body is large, for all other requests go through this loop."""
    if len(body) <= INLINE_BYTES_MAX:
        return call(body, *more)
    return await asyncio.to_thread(call, body, *more)


def _holds(body: bytes, condition: str) -> bool | None:
    """Whether a condition finds something; None where the body is not JSON."""
    found = _decoded(body)
    return None if found is jsonpath.MISSING else jsonpath.exists(found, condition)


def _first_of(body: bytes, steps: Sequence[GraphStep]) -> int:
    """The number of the first step whose condition finds something; -1: none."""
    found = _decoded(body)
    if found is jsonpath.MISSING:
        return -1
    return next((at for at, step in enumerate(steps) if jsonpath.exists(found, step.condition)), -1)


def _instances(body: bytes) -> bytes:
    """An answer of V1 as the request of the next step: its predictions become instances."""
    found = _decoded(body)
    if isinstance(found, dict) and "predictions" in found:
        return _json({"instances": found["predictions"]})
    return body
