"""The server's end of agents: questions and their answers, commands and their output, links that break."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from nanopod.control.live import Live
from nanopod.drivers.link.messages import MessageLink, serve
from nanopod.model.errors import Conflict
from nanopod.model.wire import (
    AgentHello,
    AgentWelcome,
    AnyMessage,
    ExecExit,
    ExecInput,
    ExecOutput,
    ExecStart,
    LogLine,
    LogPage,
    LogQuery,
)
from nanopod.server.links import AgentLinks


class Store:
    """Takes every write and keeps nothing: what is written is others' concern."""

    async def write(self, function: Any, durable: bool = True) -> None:
        return None


class Pulse:
    def signal(self, keys: Any) -> None:
        return None


class Stage:
    """The links, and agents that dial them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.live = Live()
        parts = cast(Any, (Store(), self.live, Pulse(), time.time))
        self.links = AgentLinks(*parts, renew=lambda machine_id: None, desk=cast(Any, None))

    async def agent(self, machine_id: str = "machine_1") -> tuple[MessageLink, Any]:
        """(link of a new agent, its incoming messages)."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        link = MessageLink(reader, writer)
        link.send(AgentHello(machine_id, "boot", "1", [], [], [], {}))
        messages = aiter(link)
        assert isinstance(await anext(messages), AgentWelcome)
        return link, messages


def story(told: Callable[[Stage], Awaitable[None]]) -> None:
    async def limited() -> None:
        with tempfile.TemporaryDirectory(prefix="npl-", dir="/tmp") as name:
            stage = Stage(Path(name) / "agent.sock")
            server = await serve(stage.path, stage.links.handle)
            try:
                async with asyncio.timeout(20):
                    await told(stage)
            finally:
                server.close()
                await stage.links.close()

    asyncio.run(limited())


def test_questions_get_their_own_answers() -> None:
    async def told(stage: Stage) -> None:
        with pytest.raises(Conflict, match="not connected"):
            await stage.links.ask("machine_1", LogQuery("r0", "inst_1"))
        link, messages = await stage.agent()
        asked = [asyncio.ensure_future(stage.links.ask("machine_1", LogQuery(f"r{n}", "inst_1"))) for n in (1, 2)]
        got = [cast(LogQuery, await anext(messages)) for _ in asked]
        link.send(LogPage("unknown"))
        for query in reversed(got):
            link.send(LogPage(query.request_id, [LogLine(1, 0.0, 0, 1, query.request_id.encode())]))
        answers = await asyncio.gather(*asked)
        assert [answer.lines[0].data for answer in answers] == [b"r1", b"r2"]
        with pytest.raises(Conflict, match="did not answer within"):
            await stage.links.ask("machine_1", LogQuery("r3", "inst_1"), 0.05)
        # One that asks while the link breaks does not wait until his time is up.
        asking = asyncio.ensure_future(stage.links.ask("machine_1", LogQuery("r4", "inst_1"), 15.0))
        for _ in range(2):
            await anext(messages)
        link.close()
        with pytest.raises(Conflict, match="was lost"):
            await asking

    story(told)


def test_commands_are_routed_and_end_with_their_link() -> None:
    async def told(stage: Stage) -> None:
        link, messages = await stage.agent()
        session = stage.links.execs.start("machine_1", "wksp_1", "inst_1", ["cat"])
        other = stage.links.execs.start("machine_1", "wksp_1", "inst_1", ["cat"])
        stage.links.execs.input(session.exec_id, b"hello", eof=True)
        got: list[AnyMessage] = [await anext(messages) for _ in range(3)]
        assert [type(message) for message in got] == [ExecStart, ExecStart, ExecInput]
        link.send(ExecOutput(session.exec_id, 1, b"hello"))
        link.send(ExecExit(session.exec_id, 0))
        page = await stage.links.execs.read(session.exec_id, 0, 5.0)
        assert [chunk.data for chunk in page.chunks] == [b"hello"]
        assert (await stage.links.execs.read(session.exec_id, 5, 5.0)).exit_code == 0
        # The agent comes anew before the old link was seen to be gone: nobody runs the other command any more.
        newer, _ = await stage.agent()
        page = await stage.links.execs.read(other.exec_id, 0, 5.0)
        assert (page.status, "lost" in page.error) == ("failed", True)
        assert list(stage.links.machines()) == ["machine_1"]
        await asyncio.sleep(0.1)
        assert list(stage.links.machines()) == ["machine_1"], "the end of the old link takes nothing from the new one"
        newer.close()
        link.close()

    story(told)
