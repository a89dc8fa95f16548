"""`nanopod bench NAME`: how fast a deployed function answers, against a plain echo measured in the same run."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nanopod.client import background, deploying
from nanopod.client.cli import show, top
from nanopod.client.cli.parser import Parser
from nanopod.client.cli.run import parse_arguments
from nanopod.client.echo import EchoClient
from nanopod.client.sdk import Deployment
from nanopod.model.errors import DeploymentFailed, Invalid, NanopodError

ROUNDS: Final = 4
WARM_UP: Final = 5
START_S_MAX: Final = 10.0
READY_S_MAX: Final = 900.0
ERRORS_SHOWN: Final = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod bench`; the function's arguments follow its name."""
    show.add_server_options(parser)
    parser.add_argument("--concurrency", "-c", type=int, default=1, metavar="N", help="calls at once (default: 1)")
    parser.add_argument("--seconds", "-s", type=float, default=5.0, metavar="S", help="of calls (default: 5)")
    parser.add_argument("target", metavar="NAME[::FUNCTION]", help="a deployed function").completes = "/v1/endpoints"  # type: ignore[attr-defined]
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the function")
    if isinstance(parser, Parser):
        parser.show_examples(("nanopod bench square 5", "nanopod bench -c 32 --seconds 10 app:prod::square --x 5"))


@dataclass(slots=True)
class Measured:
    """Times of calls, seconds, and how long the rounds took."""

    times: list[float] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    span_s: float = 0.0

    def facts(self) -> dict[str, Any]:
        """For printing."""
        ordered = sorted(self.times)
        return {
            "calls": len(ordered), "errors": len(self.errors),
            "p50_s": top.percentile(ordered, 0.5), "p99_s": top.percentile(ordered, 0.99),
            "calls_per_s": round(len(ordered) / self.span_s, 2) if self.span_s else 0.0,
        }  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Measure and print; exit status 1 when calls failed, 3 when the deployment has no worker."""
    if args.concurrency < 1:
        raise Invalid(f"--concurrency {args.concurrency} must be 1 or more", field="concurrency")
    if not args.seconds > 0:
        raise Invalid(f"--seconds {args.seconds} must be above 0", field="seconds")
    name, _, wanted = args.target.partition("::")
    app = deployed(args, name)
    wanted = wanted or _only(app)
    function = app.function(wanted)
    places, names = parse_arguments(_free, args.arguments)
    try:
        deploying.wait_ready(app, READY_S_MAX)
    except DeploymentFailed as error:
        print(f"nanopod bench: {error.message}", file=sys.stderr)
        return 3
    ours, echo = background.run(_measure(function, places, names, args))
    _show(args, wanted, ours, echo)
    return 1 if ours.errors else 0


def _free(*args: Any, **kwargs: Any) -> None:
    """What is known of a function whose code is not at hand: anything may be given to it."""


def deployed(args: argparse.Namespace, name: str) -> Deployment:
    """A deployment on the server by `name` or `name:tag`. Raises `NotFound`."""
    stem, _, tag = name.partition(":")
    app = Deployment.from_name(stem, tag or "default", api_key=args.api_key, url=args.url)
    app.ensure_ready()
    return app


def _only(app: Deployment) -> str:
    functions = [str(row.get("name")) for row in app._endpoint.get("functions") or ()]
    if len(functions) != 1:
        there = ", ".join(functions) or "none"
        raise Invalid(f"{app.name} has the functions {there}: name one as {app.name}::NAME", field="function")
    return functions[0]


async def _measure(
    function: Any, places: Sequence[Any], names: dict[str, Any], args: argparse.Namespace
) -> tuple[Measured, Measured]:
    """Rounds of our calls and of echoes, in turns, so that both meet the same machine."""
    ours, plain = Measured(), Measured()
    async with _echoes(args.concurrency) as clients:
        for _ in range(WARM_UP):
            try:
                await function(*places, **names)
            except NanopodError as error:
                ours.errors.append(error)
        await asyncio.gather(*(client.ask([1]) for client in clients))
        if ours.errors:
            return ours, plain
        asks: list[Callable[[], Awaitable[Any]]] = [lambda client=client: client.ask([places, 1]) for client in clients]  # type: ignore[misc]
        calls: list[Callable[[], Awaitable[Any]]] = [lambda: function(*places, **names)] * args.concurrency
        for _ in range(ROUNDS):
            await _round(calls, args.seconds / ROUNDS, ours)
            await _round(asks, args.seconds / ROUNDS / 2, plain)
    return ours, plain


async def _round(asks: Sequence[Callable[[], Awaitable[Any]]], span_s: float, into: Measured) -> None:
    began = time.perf_counter()
    until = began + span_s

    async def one(ask: Callable[[], Awaitable[Any]]) -> None:
        while (start := time.perf_counter()) < until:
            try:
                await ask()
            except Exception as error:
                into.errors.append(error)
                if len(into.errors) > 100:
                    return
            else:
                into.times.append(time.perf_counter() - start)

    await asyncio.gather(*(one(ask) for ask in asks))
    into.span_s += time.perf_counter() - began


@contextlib.asynccontextmanager
async def _echoes(count: int) -> AsyncIterator[list[EchoClient]]:
    """An echo in a process of its own, and connections to it."""
    loop = asyncio.get_running_loop()
    child = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-m", "nanopod.client.echo"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    clients: list[EchoClient] = []
    try:
        assert child.stdout is not None
        async with asyncio.timeout(START_S_MAX):
            port = int(await asyncio.to_thread(child.stdout.readline))
        for _ in range(count):
            clients.append((await loop.create_connection(EchoClient, "127.0.0.1", port))[1])
        yield clients
    finally:
        for client in clients:
            client.close()
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _show(args: argparse.Namespace, name: str, ours: Measured, echo: Measured) -> None:
    facts, plain = ours.facts(), echo.facts()
    ratio = {
        "p50": round(facts["p50_s"] / plain["p50_s"], 2) if facts["p50_s"] and plain["p50_s"] else None,
        "calls_per_s": round(facts["calls_per_s"] / plain["calls_per_s"], 2) if plain["calls_per_s"] else None,
    }
    if args.json:
        show.print_json(
            {
                "object": "bench",
                "function": name,
                "concurrency": args.concurrency,
                **facts,
                "echo": plain,
                "ratio": ratio,
            }
        )
    else:
        rows = [{"what": name, **facts}, {"what": "plain echo", **plain}]
        columns: list[show.Column] = [
            ("", show.field("what")),
            ("P50", lambda row: top.milliseconds(row["p50_s"])),
            ("P99", lambda row: top.milliseconds(row["p99_s"])),
            ("CALLS/S", show.field("calls_per_s")),
            ("CALLS", show.field("calls")),
            ("ERRORS", show.field("errors")),
        ]
        show.print_rows(rows, columns, empty="")
        if ratio["p50"] is not None:
            print(f"p50 is {ratio['p50']}x, calls per second {ratio['calls_per_s']}x those of the echo")
    for error in ours.errors[:ERRORS_SHOWN]:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
