"""The worker of one instance, `python -m nanopod.node.worker DIR`: loads what it serves, serves it, drains, ends.

Exit status: 0 drained, 1 could not start or broke (failure.json says why), 75 fenced by a newer epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from nanopod.model.endpoint import Failure
from nanopod.node import files, records, redact
from nanopod.node.records import Start
from nanopod.node.runtime import output
from nanopod.node.runtime.ending import Ending, exit_limit_s
from nanopod.node.runtime.link import Identity, Link
from nanopod.node.runtime.loading import StartFailed, failure_of, load_app

EXIT_FAILED: Final = 1
LEFT_S_MAX: Final = 1.0
"""How long tasks that user code left behind may take to end."""
SWITCH_S: Final = 0.001
"""The link's thread gets its turn this soon when user code computes."""

_log: Final = logging.getLogger("nanopod.node.worker")


def _identity(start: Start) -> Identity:
    instance = start.instance
    return Identity(instance.instance_id, instance.epoch, instance.join_token, tuple(start.gateways))


def _status_fd() -> int | None:
    text = os.environ.pop("NANOPOD_STATUS_FD", "")
    if not text.isdigit():
        return None
    os.set_inheritable(int(text), False)
    return int(text)


async def _until_asked(ending: Ending, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work`; cancel it when the worker is asked to end meanwhile. True when it was done."""
    task = asyncio.ensure_future(work)
    asked = asyncio.ensure_future(ending.asked.wait())
    await asyncio.wait((task, asked), return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if task.done():
        await task
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False


async def serve_functions(start: Start, link: Link, serving: Any, ending: Ending) -> None:
    """Contexts, benchmark, calls, drain. The module is imported already."""
    from nanopod.node.runtime.attending import Attending, snapshots_of
    from nanopod.node.runtime.contexts import ContextFailed, Contexts
    from nanopod.node.runtime.swapping import Swaps

    executor, app = serving.executor, serving.app
    directory = Path(os.environ["NANOPOD_INSTANCE_DIR"])
    executor.attach(asyncio.get_running_loop(), app)
    link.handoff.batch_done = executor.batch_done
    link.handoff.attach(asyncio.get_running_loop())
    serving.on_end = lambda: ending.ask(serving.fenced)
    contexts = Contexts(app, snapshots_of(start, app))
    attending = Attending(start, directory, serving, contexts, ending)
    swaps = Swaps(directory, Path(start.launch.cwd).resolve(), serving)

    async def load() -> None:
        try:
            await contexts.enter()
        except ContextFailed as failed:
            raise StartFailed(failure_of("context", failed.error, f"{failed.name}: ")) from failed
        try:
            await serving.web.start(app, start.instance.endpoint_id, start.instance.app.asgi)
        except Exception as failed:
            raise StartFailed(failure_of("start", failed)) from failed
        await attending.measure()

    error: BaseException | None = None
    try:
        attending.begin()
        if await _until_asked(ending, load()):
            executor.draining = serving.web.draining = False
            await swaps.open()
            serving.ready()
            attending.ready()
            await ending.asked.wait()
    except StartFailed as failed:
        error = failed.__cause__ or failed
        raise
    finally:
        swaps.close()
        executor.draining = serving.web.draining = serving.is_draining = True
        serving.tell()
        await attending.end(error)
    if ending.failure is not None:
        raise StartFailed(ending.failure)


async def _remodelling(serving: Any) -> Any:
    """What has a model server load other models while it runs; None for other engines."""
    app = serving.start.instance.app
    if app.model is None or app.model.engine != "server":
        return None
    from nanopod.node.runtime.remodelling import Remodelling, server_of

    server = server_of(serving.engine)
    if server is None:
        return None
    swaps = Remodelling(Path(os.environ["NANOPOD_INSTANCE_DIR"]), serving, server)
    await swaps.open()
    return swaps


async def serve_model(start: Start, link: Link, serving: Any, ending: Ending) -> None:
    """Engine, requests, drain. The link is dialled only once the engine's capabilities are known."""
    from nanopod.node.runtime.hosting import start_engine

    loop = asyncio.get_running_loop()
    link.handoff.attach(loop)
    serving.on_end = lambda: ending.ask(serving.fenced)
    instance = start.instance
    engine = serving.engine

    async def load() -> None:
        try:
            await start_engine(engine)
        except Exception as error:
            raise StartFailed(failure_of("engine", error)) from error

    limit_s = exit_limit_s(instance.grace_s)
    watching: asyncio.Task[None] | None = None
    swaps = await _remodelling(serving)
    try:
        if await _until_asked(ending, load()):
            serving.caps = engine.caps
            exited = getattr(engine, "exited", None)
            if exited is not None:
                exited.add_done_callback(
                    lambda done: ending.ask("the engine ended", Failure("run", done.result(), log_tail=output.tail()))
                )
            serving.is_ready = True
            link.start()
            serving.tell()
            watching = asyncio.create_task(serving.watch_load())
            await ending.asked.wait()
    finally:
        if watching is not None:
            watching.cancel()
        if swaps is not None:
            swaps.close()
        serving.is_draining = True
        serving.tell()
        await serving.drain(0.0 if ending.failure or serving.fenced else instance.stop_s - limit_s)
        await engine.stop(limit_s)
    if ending.failure is not None:
        raise StartFailed(ending.failure)


async def _main(start: Start, link: Link, serving: Any) -> None:
    ending = Ending()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.signalled, number.name)
    serve = serve_model if start.instance.app.kind == "model" else serve_functions
    await serve(start, link, serving, ending)


def _loop_factory() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run `main`, then cancel what the user's code left running; threads that still work are not waited for."""
    loop = _loop_factory()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=LEFT_S_MAX))


def _logging() -> None:
    """Our own lines go to the log; the user's logging is theirs to set up."""
    logger = logging.getLogger("nanopod")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _prepare(start: Start, status_fd: int | None) -> tuple[Link, Any]:
    """The link and what serves behind it. For functions this dials first and imports the module meanwhile."""
    app = start.instance.app
    if app.kind == "model":
        from nanopod.node.runtime.hosting import make_engine
        from nanopod.node.runtime.serving import Models

        try:
            models = Models(start, make_engine(start))
        except Exception as error:
            raise StartFailed(failure_of("engine", error)) from error
        models.engine_name = app.model.engine if app.model is not None else ""
        models.link = Link(_identity(start), models, status_fd)
        return models.link, models
    from nanopod.node.runtime.serving import Functions

    functions = Functions(start)
    functions.link = Link(_identity(start), functions, status_fd)
    functions.link.start()
    functions.app = load_app(app, Path.cwd())
    functions.app.endpoint = start.instance.endpoint_id
    return functions.link, functions


def run(start: Start) -> int:
    """Serve until told to end; the exit status."""
    status_fd = _status_fd()
    link: Link | None = None
    serving: Any = None
    try:
        link, serving = _prepare(start, status_fd)
        serving.tell()
        _run_loop(_main(start, link, serving))
    except StartFailed as failed:
        return _give_up(failed.failure)
    except BaseException as error:  # sys.exit() in a context, or a mistake of ours
        return _give_up(failure_of("start", error))
    finally:
        if link is not None:
            link.close(2.0)
    if serving.fenced:
        _log.warning("ending: %s", serving.fenced)
        return records.EXIT_FENCED
    return 0


def _give_up(failure: Failure) -> int:
    clean = redact.here().text
    failure = replace(
        failure, message=clean(failure.message), traceback=clean(failure.traceback), log_tail=clean(failure.log_tail)
    )
    with contextlib.suppress(OSError):
        records.write_failure(Path(os.environ["NANOPOD_INSTANCE_DIR"]), failure)
    _log.error("cannot serve (%s): %s\n%s", failure.stage, failure.message, failure.traceback)
    return EXIT_FAILED


def main(argv: list[str]) -> int:
    """Run the worker of the instance directory `argv[1]`; the working directory is the user's."""
    if len(argv) != 2:
        print("usage: python -m nanopod.node.worker DIR", file=sys.stderr)
        return 2
    directory = Path(argv[1]).absolute()
    os.environ["NANOPOD_INSTANCE_DIR"] = str(directory)
    output.capture()
    _logging()
    sys.setswitchinterval(SWITCH_S)
    start = records.read_start(directory)
    if start is None:
        return _give_up(Failure("start", f"{directory / files.SPEC} is missing or damaged", user_fault=False))
    if (directory / files.MOUNTS).exists():
        from nanopod.node import mounting

        mounting.attach(start.instance, directory)
    return run(start)


if __name__ == "__main__":
    status = main(sys.argv)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    # Threads of abandoned calls must not keep the process; contexts were left already.
    os._exit(status)
