"""The server's ends of the message links: gateways on the control socket, node agents on the agent socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from nanopod.control.capacity import UNREACHABLE_S, register_machine
from nanopod.control.live import Live
from nanopod.control.observe import observe_machine
from nanopod.control.ports import Clock
from nanopod.control.pulse import Pulse
from nanopod.drivers.link.messages import LinkClosed, MessageLink
from nanopod.model.endpoint import ObservedInstance
from nanopod.model.errors import Conflict, NanopodError
from nanopod.model.wire import (
    AgentHello,
    AgentWelcome,
    AnyMessage,
    Demand,
    ExecExit,
    ExecOutput,
    GatewayHello,
    Heartbeat,
    LogPage,
    LogQuery,
    Message,
    MeterAck,
    MeterSegment,
    Observed,
    Samples,
    SamplesAck,
    SecretQuery,
    SecretValues,
    Tables,
    TablesSeen,
    Wanted,
    WorkerState,
)
from nanopod.server.execs import ExecSessions
from nanopod.store.transaction import Transaction
from nanopod.store.writer import GroupStore

if TYPE_CHECKING:
    from nanopod.control.market.desk import Desk

log = logging.getLogger(__name__)

HELLO_S_MAX: Final = 10.0
SEGMENTS_MAX: Final = 256
"""Segments of one gateway that may wait for the disk; beyond that its link is cut and it sends them again."""
RETRY_S_MIN: Final = 0.2
RETRY_S_MAX: Final = 5.0
LEASE_S: Final = 60.0
CLOSE_S_MAX: Final = 2.0
ASK_S_MAX: Final = 10.0
ASKED_MAX: Final = 1000


async def _first(messages: AsyncIterator[AnyMessage]) -> AnyMessage | None:
    """The first message of a link; None when there is none in time."""
    try:
        async with asyncio.timeout(HELLO_S_MAX):
            return await anext(messages, None)
    except TimeoutError:
        return None


class Connections:
    """The connections of one socket, so that they can be ended in order when the server stops."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Task[None], MessageLink] = {}

    async def handle(self, link: MessageLink, handler: Callable[[MessageLink], Coroutine[Any, Any, None]]) -> None:
        """Run the handler of one connection, counted among the open ones."""
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = link
        try:
            await handler(link)
        except ValueError as error:
            log.warning("link=cut reason=%s", error)  # not our protocol; a real peer begins anew with snapshots
        finally:
            del self._open[task]

    async def close(self) -> None:
        """Close every connection and wait for its handler."""
        for link in list(self._open.values()):
            link.close()
        if self._open:
            await asyncio.wait(list(self._open), timeout=CLOSE_S_MAX)


class GatewayLinks:
    """Gateways that are linked: tables go down; demand, samples, worker states and meter segments come up."""

    def __init__(
        self,
        store: GroupStore,
        live: Live,
        pulse: Pulse,
        current: Callable[[], Tables | None],
        on_addresses: Callable[[], None],
    ) -> None:
        self._store = store
        self._live = live
        self._pulse = pulse
        self._current = current
        self._on_addresses = on_addresses
        self._links: dict[str, MessageLink] = {}
        self._seen: dict[str, int] = {}
        self._news = asyncio.Condition()
        self._open = Connections()

    async def seen(self, version: int) -> None:
        """Wait until every linked gateway serves by these or newer tables."""
        async with self._news:
            await self._news.wait_for(lambda: all(self._seen.get(g, -1) >= version for g in self._links))

    async def _saw(self, gateway_id: str, version: int) -> None:
        self._seen[gateway_id] = version
        async with self._news:
            self._news.notify_all()

    def push(self, tables: Tables) -> None:
        """Send new tables to all of them."""
        self.tell(tables)

    def acked(self, gateway_id: str, at: float) -> None:
        """Tell a gateway that what it saw up to `at` (Unix seconds) need not be sent again."""
        link = self._links.get(gateway_id)
        if link is not None:
            with contextlib.suppress(LinkClosed):
                link.send(SamplesAck(at))

    def tell(self, message: Message) -> None:
        """Send all of them a message."""
        for gateway_id, link in list(self._links.items()):
            try:
                link.send(message)
            except LinkClosed:
                log.info("gateway=%s %s=not sent", gateway_id, type(message).__name__)

    async def handle(self, link: MessageLink) -> None:
        """One connection, from its hello to its end."""
        await self._open.handle(link, self._handle)

    async def close(self) -> None:
        """End every connection."""
        await self._open.close()

    async def _handle(self, link: MessageLink) -> None:
        messages = aiter(link)
        hello = await _first(messages)
        if not isinstance(hello, GatewayHello):
            log.warning("control=refused reason=the first message is no gateway_hello")
            return
        gateway_id = hello.gateway_id
        if (older := self._links.get(gateway_id)) is not None:
            older.close()
        self._links[gateway_id] = link
        before = {key for key, links in self._live.links.items() if gateway_id in links}
        self._live.gateway_up(gateway_id, hello.addresses)
        log.info("gateway=%s linked pid=%d addresses=%s", gateway_id, hello.pid, ",".join(hello.addresses))
        self._on_addresses()
        self._pulse.links_changed(before)
        segments: set[asyncio.Task[None]] = set()
        try:
            if (tables := self._current()) is not None:
                link.send(tables)
            async for message in messages:
                if isinstance(message, TablesSeen):
                    # It answers tables after it has sent whatever was not acknowledged.
                    self._pulse.caught_up(gateway_id)
                    await self._saw(gateway_id, message.version)
                else:
                    self._on_message(gateway_id, link, message, segments)
        except LinkClosed:
            pass
        finally:
            if self._links.get(gateway_id) is link:
                del self._links[gateway_id]
                self._seen.pop(gateway_id, None)
                async with self._news:
                    self._news.notify_all()  # nobody waits for one that is gone
                self._pulse.links_changed(self._live.gateway_down(gateway_id))
                self._on_addresses()
                log.info("gateway=%s unlinked", gateway_id)

    def _on_message(
        self, gateway_id: str, link: MessageLink, message: AnyMessage, segments: set[asyncio.Task[None]]
    ) -> None:
        if isinstance(message, Samples):
            self._pulse.samples(gateway_id, message)
        elif isinstance(message, Demand):
            self._pulse.demand(message)
        elif isinstance(message, WorkerState):
            self._pulse.worker(gateway_id, message)
        elif isinstance(message, MeterSegment):
            if len(segments) >= SEGMENTS_MAX:
                raise LinkClosed("too many segments wait for the disk")
            task = asyncio.create_task(self._keep(gateway_id, link, message))
            segments.add(task)
            task.add_done_callback(segments.discard)
        else:
            log.warning("gateway=%s sent=%s: not expected here", gateway_id, type(message).__name__)

    async def _keep(self, gateway_id: str, link: MessageLink, segment: MeterSegment) -> None:
        """Commit a segment, however long the disk takes, then say so. Records are kept once however often they come."""
        used: dict[str, float] = {}
        for record in segment.records:
            used[record.key_id] = max(used.get(record.key_id, 0.0), record.t_end)

        def put(write: Transaction) -> None:
            write.put_usage(segment.records)
            for key_id, at in used.items():
                write.key_used(key_id, at)

        wait_s = RETRY_S_MIN
        while not link.closed:
            try:
                await self._store.write(put)
                link.send(MeterAck(segment.segment_id))
                return
            except LinkClosed:
                return  # committed; the gateway sends it again, which changes nothing
            except NanopodError as error:
                log.warning("gateway=%s segment=%s waits reason=%s", gateway_id, segment.segment_id, error)
            await asyncio.sleep(random.uniform(wait_s / 2, wait_s))
            wait_s = min(RETRY_S_MAX, wait_s * 2)


class AgentLinks:
    """Node agents that are linked: what to run goes down, what runs comes up; questions and commands go both ways.

    `desk` is who keeps the market's books: machines that appear or change are told to it with the same commit.
    """

    def __init__(
        self,
        store: GroupStore,
        live: Live,
        pulse: Pulse,
        clock: Clock,
        renew: Callable[[str], None],
        desk: Desk,
        secrets: Callable[[str, SecretQuery], Awaitable[SecretValues]] | None = None,
    ) -> None:
        self._store = store
        self._live = live
        self._pulse = pulse
        self._clock = clock
        self._renew = renew
        self._desk = desk
        self._links: dict[str, MessageLink] = {}
        self._open = Connections()
        self._asked: dict[str, asyncio.Future[LogPage]] = {}
        self._secrets = secrets
        self._telling: set[asyncio.Task[None]] = set()
        self.execs = ExecSessions(self.send, clock)

    def machines(self) -> Sequence[str]:
        """Ids of the machines whose agent is linked."""
        return list(self._links)

    def push(self, machine_id: str, wanted: Wanted) -> None:
        """Send a machine what it shall run; nothing happens when its agent is not linked."""
        if machine_id in self._links and not self.send(machine_id, wanted):
            log.info("machine=%s wanted=not sent", machine_id)

    def send(self, machine_id: str, message: Message) -> bool:
        """Send a machine's agent a message; False when it is not linked."""
        link = self._links.get(machine_id)
        if link is None:
            return False
        try:
            link.send(message)
        except LinkClosed:
            return False
        return True

    async def ask(self, machine_id: str, message: LogQuery, wait_s_max: float = ASK_S_MAX) -> LogPage:
        """Ask a machine's agent something and wait for its answer.

        Raises `Conflict` when the agent is not linked, is too busy, or does not answer in time.
        """
        if len(self._asked) >= ASKED_MAX:
            raise Conflict("too many questions wait for agents at present: try again in some seconds")
        key = f"{machine_id} {message.request_id}"
        if key in self._asked:
            raise Conflict(f"request_id {message.request_id} is being asked already: use a new one")
        answer: asyncio.Future[LogPage] = asyncio.get_running_loop().create_future()
        self._asked[key] = answer
        try:
            if not self.send(machine_id, message):
                raise Conflict("the machine's agent is not connected at present: try again in some seconds")
            async with asyncio.timeout(wait_s_max):
                return await answer
        except TimeoutError:
            raise Conflict(f"the machine's agent did not answer within {wait_s_max:.0f} s: try again") from None
        finally:
            del self._asked[key]

    async def handle(self, link: MessageLink) -> None:
        """One connection, from its hello to its end."""
        await self._open.handle(link, self._handle)

    async def close(self) -> None:
        """End every connection."""
        await self._open.close()

    async def _handle(self, link: MessageLink) -> None:
        messages = aiter(link)
        hello = await _first(messages)
        if not isinstance(hello, AgentHello):
            log.warning("agents=refused reason=the first message is no agent_hello")
            return
        machine_id = hello.machine_id
        try:
            await self._join(hello)
        except NanopodError as error:
            log.warning("machine=%s refused reason=%s", machine_id, error)
            return
        if (older := self._links.get(machine_id)) is not None:
            older.close()
        self._links[machine_id] = link
        self.execs.on_linked(machine_id)
        self._live.machines[machine_id] = self._clock()
        log.info("machine=%s linked nodes=%d instances=%d", machine_id, len(hello.nodes), len(hello.instances))
        try:
            link.send(AgentWelcome(LEASE_S))
            self._renew(machine_id)
            await self._hear(machine_id, messages, hello.instances)
        except LinkClosed:
            pass
        except NanopodError as error:
            # It reports everything again when it reconnects, which it does with back-off.
            log.warning("machine=%s cut reason=%s", machine_id, error)
        finally:
            if self._links.get(machine_id) is link:
                del self._links[machine_id]
                self._live.machines.pop(machine_id, None)
                self._lost(machine_id)
                self._pulse.signal([("machine", machine_id)])
                log.info("machine=%s unlinked", machine_id)

    async def _hear(self, machine_id: str, messages: AsyncIterator[AnyMessage], seen: list[ObservedInstance]) -> None:
        """Everything a linked agent says."""
        async for message in messages:
            self._heard(machine_id)
            if isinstance(message, Observed):
                if message.instances != seen:
                    await self._observe(machine_id, message.instances)
                    seen = message.instances
            elif isinstance(message, Heartbeat):
                await self._alive(machine_id)
            elif isinstance(message, ExecOutput):
                self.execs.on_output(machine_id, message)
            elif isinstance(message, ExecExit):
                self.execs.on_exit(machine_id, message)
            elif isinstance(message, LogPage):
                answer = self._asked.get(f"{machine_id} {message.request_id}")
                if answer is not None and not answer.done():
                    answer.set_result(message)
            elif isinstance(message, SecretQuery):
                task = asyncio.create_task(self._tell(machine_id, message))
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)
            else:
                log.warning("machine=%s sent=%s: not expected here", machine_id, type(message).__name__)

    async def _tell(self, machine_id: str, query: SecretQuery) -> None:
        """Answer an agent that asks for secrets; it asks again when the answer does not come."""
        if self._secrets is not None:
            self.send(machine_id, await self._secrets(machine_id, query))

    def _lost(self, machine_id: str) -> None:
        """Whoever waits for this agent need not wait until his time is up."""
        self.execs.on_unlinked(machine_id)
        for key, answer in self._asked.items():
            if key.startswith(f"{machine_id} ") and not answer.done():
                answer.set_exception(Conflict("the connection to the machine's agent was lost: try again"))

    def _heard(self, machine_id: str) -> None:
        """The agent spoke; after a silence its machine is looked at again."""
        now = self._clock()
        if now - self._live.machines.get(machine_id, now) >= UNREACHABLE_S:
            self._pulse.signal([("machine", machine_id)])
        self._live.machines[machine_id] = now

    async def _join(self, hello: AgentHello) -> None:
        """Write the machine's nodes and instances down; wake whom that concerns."""
        now = self._clock()

        def join(write: Transaction) -> None:
            register_machine(write, self._desk, hello, now)

        await self._store.write(join)

    async def _observe(self, machine_id: str, instances: Sequence[ObservedInstance]) -> None:
        now = self._clock()
        await self._store.write(lambda write: observe_machine(write, machine_id, instances, now), durable=False)

    async def _alive(self, machine_id: str) -> None:
        now = self._clock()
        await self._store.write(lambda write: write.see_machine(machine_id, now), durable=False)
