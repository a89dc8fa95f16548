"""Functions behind HTTP paths: arguments from the request, the result as JSON, generators as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import secrets
import time
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

from nanopod.model import registry
from nanopod.model.errors import NanopodError
from nanopod.model.registry import App, CallContext, RegisteredFunction
from nanopod.node.runtime.threads import Threads
from nanopod.node.runtime.webbatches import WebBatches
from nanopod.node.runtime.webexchange import Exchange, Gone, TooLarge
from nanopod.node.runtime.webvalues import (
    Answer,
    BadCall,
    Binder,
    answer_of,
    event_of,
    problem,
    problem_answer,
    to_json,
)

KEEP_ALIVE_S: Final = 15.0
"""A stream of events that has nothing to say for so long sends a comment."""
CLOSE_S_MAX: Final = 5.0
"""A generator that is given up has so long to clean up."""
EVENTS: Final = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
LAST_EVENT: Final = b"event: end\ndata: {}\n\n"
_END: Final = object()
Code = tuple[int, Any]
"""What a binder was made for: a running worker may be given new code for a function, parameters included."""
_log: Final = logging.getLogger(__name__)


class WebFunctions:
    """The functions of one app, as web requests call them. On the event loop."""

    def __init__(self, app: App, endpoint: str) -> None:
        self._app = app
        self._endpoint = endpoint
        self._threads = Threads()
        self._binders: dict[str, tuple[Code, Binder]] = {}
        self._batches: dict[str, tuple[Code, WebBatches]] = {}

    async def run(self, exchange: Exchange) -> None:
        """Answer a request. Cancelled when the caller leaves."""
        opened = exchange.opened
        began = time.perf_counter_ns()
        call_id = opened.call or secrets.token_hex(16)
        context = CallContext(call_id, 1, self._endpoint, opened.function, opened.timeout_s)
        limit = asyncio.timeout(opened.timeout_s or None)
        try:
            body = await exchange.body()  # as slow as the caller: it does not count
            async with limit:
                answer = await self._call(exchange, context, body)
        except Gone:
            return
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                text = f"{opened.function} ran longer than its timeout of {opened.timeout_s:g} s"
                answer = problem_answer(problem(504, "CallTimeout", text))
            else:
                answer = answer_of_error(error, opened.function)
        finally:
            context.cancelled = True  # for a thread that still works
        if answer is not None:
            self._send(exchange, answer)
        exchange.end((time.perf_counter_ns() - began) // 1000)

    def _send(self, exchange: Exchange, answer: Answer) -> None:
        if exchange.began:
            # The stream has begun: what went wrong is its last event.
            exchange.post(b"event: error\ndata: " + answer.body + b"\n\n")
            return
        try:
            exchange.head(answer.status, answer.headers)
        except ValueError as error:
            answer = problem_answer(problem(500, "ValueError", str(error)))
            exchange.head(answer.status, answer.headers)
        if answer.body:
            exchange.post(answer.body)

    async def _call(self, exchange: Exchange, context: CallContext, body: bytes) -> Answer | None:
        """The answer, or None when it was sent in pieces."""
        opened = exchange.opened
        function = self._app.functions.get(opened.function)
        if function is None:
            return problem_answer(problem(404, "NotFound", f"there is no function {opened.function} here"))
        content_type = next((value for name, value in opened.headers if name == "content-type"), "")
        args, kwargs = self._binder(function).bind(opened.params, opened.query, content_type, body)
        call = self._callable(function)
        if function.spec.batch_max:
            value = await self._batches_of(function, call).call(args, kwargs, context.call_id)
        elif function.spec.kind == "async":
            registry.current.set(context)
            value = await call(*args, **kwargs)
        elif function.spec.kind == "sync":
            value = await self._in_thread(context, call, args, kwargs)
        else:
            items = call(*args, **kwargs)
            await self._events(exchange, context, items, is_async=function.spec.kind == "async_generator")
            return None
        if callable(value) and hasattr(value, "raw_headers") and hasattr(value, "status_code"):
            await self._respond(exchange, value)
            return None
        return answer_of(value)

    def _binder(self, function: RegisteredFunction) -> Binder:
        known = self._binders.get(function.spec.name)
        code = _code_of(function)
        if known is None or known[0] != code:
            skip = 1 if function.owner is not None else 0
            binder = Binder(function.call, skip=skip, batched=bool(function.spec.batch_max))
            known = (code, binder)
            self._binders[function.spec.name] = known
        return known[1]

    def _batches_of(self, function: RegisteredFunction, call: Callable[..., Any]) -> WebBatches:
        spec = function.spec
        known = self._batches.get(spec.name)
        code = _code_of(function)
        if known is None or known[0] != code:

            async def run(call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                context = CallContext(call_id, 1, self._endpoint, spec.name, spec.timeout_s)
                if spec.kind != "async":
                    return await self._in_thread(context, call, args, kwargs)
                registry.current.set(context)
                return await call(*args, **kwargs)

            known = self._batches[spec.name] = (code, WebBatches(spec, inspect.signature(call), run))
        return known[1]

    def _callable(self, function: RegisteredFunction) -> Callable[..., Any]:
        """The function, or the method of its class's entered object."""
        if function.owner is None:
            return function.call
        bound: Callable[..., Any] = function.call.__get__(self._app.entered[function.owner], function.owner)
        return bound

    async def _respond(self, exchange: Exchange, response: Any) -> None:
        """A response object of Starlette or its like: an application by itself."""
        from nanopod.node.runtime.webapps import HttpCycle

        cycle = HttpCycle(exchange, {})
        await response(cycle.scope, cycle.receive, cycle.send)

    # --- threads ---

    async def _in_thread(self, context: CallContext, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an ordinary function; given up (it is not stopped) when this is cancelled."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def work(_: Any) -> None:
            registry.current.set(context)
            try:
                outcome: tuple[Any, BaseException | None] = (call(*args, **kwargs), None)
            except BaseException as error:
                outcome = (None, error)
            _tell(loop, done, outcome)

        self._threads.run(work, None)
        try:
            return await done
        except asyncio.CancelledError:
            context.cancelled = True
            raise

    # --- events ---

    async def _events(self, exchange: Exchange, context: CallContext, items: Any, *, is_async: bool) -> None:
        """Each item as an event, as fast as the caller takes them. What fails before the first one has a status."""
        registry.current.set(context)
        source = _Async(items) if is_async else _InThread(items, context, self._threads)
        try:
            following: asyncio.Task[Any] | None = None
            while True:
                following = following or asyncio.ensure_future(source.next())
                done, _ = await asyncio.wait([following], timeout=KEEP_ALIVE_S)
                if not exchange.began and (not done or following.exception() is None):
                    exchange.head(200, EVENTS)
                if not done:
                    await exchange.send(b": waiting\n\n")
                    continue
                item, following = following.result(), None
                if item is _END:
                    break
                await exchange.send(event_of(item))
        finally:
            if following is not None:
                following.cancel()
            await source.close()
        exchange.post(LAST_EVENT)


class _Async:
    """The items of an asynchronous generator. All its steps are one task's, as it may rely on that."""

    def __init__(self, items: Any) -> None:
        self._items = items
        self._wanted = asyncio.Event()
        self._made: asyncio.Queue[tuple[Any, Exception | None]] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._pump())

    async def _pump(self) -> None:
        try:
            item = None
            while item is not _END:
                await self._wanted.wait()
                self._wanted.clear()
                item = await anext(self._items, _END)
                self._made.put_nowait((item, None))
        except Exception as error:
            self._made.put_nowait((None, error))
        finally:
            await self._items.aclose()

    async def next(self) -> Any:
        """The next item, or `_END`. Raises what the generator raises."""
        self._wanted.set()
        item, error = await self._made.get()
        if error is not None:
            raise error
        return item

    async def close(self) -> None:
        """Let it clean up."""
        self._task.cancel()
        await asyncio.wait([self._task], timeout=CLOSE_S_MAX)


class _InThread:
    """The items of an ordinary generator. All its steps are one thread's."""

    def __init__(self, items: Any, context: CallContext, threads: Threads) -> None:
        self._items = items
        self._context = context
        self._asked: SimpleQueue[asyncio.Future[Any] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threads.run(self._work, None)

    def _work(self, _: Any) -> None:
        registry.current.set(self._context)
        while (done := self._asked.get()) is not None:
            try:
                outcome: tuple[Any, BaseException | None] = (next(self._items, _END), None)
            except BaseException as error:
                outcome = (None, error)
            _tell(self._loop, done, outcome)
        try:
            self._items.close()
        except Exception:
            _log.exception("a generator failed when it was closed")

    async def next(self) -> Any:
        """The next item, or `_END`. Raises what the generator raises."""
        done: asyncio.Future[Any] = self._loop.create_future()
        self._asked.put(done)
        return await done

    async def close(self) -> None:
        """Let it clean up, when its present step is done."""
        self._context.cancelled = True
        self._asked.put(None)


def _tell(
    loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any], outcome: tuple[Any, BaseException | None]
) -> None:
    """From a thread; a worker that has ended hears nothing any more."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, done, *outcome)


def _code_of(function: RegisteredFunction) -> Code:
    return id(function), getattr(function.call, "__code__", None)


def _settle(done: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(value)
    else:
        # A future takes no StopIteration, and nobody waits for KeyboardInterrupt here.
        done.set_exception(error if isinstance(error, Exception) and not isinstance(error, StopIteration)
                           else RuntimeError(f"{type(error).__name__}: {error}"))  # fmt: skip


def answer_of_error(error: BaseException, name: str) -> Answer:
    """What a function (or application) raised, as a problem: class and message; traceback with `NANOPOD_DEBUG`."""
    if isinstance(error, BadCall):
        title = "Unprocessable Content" if error.status == 422 else "Unsupported Media Type"
        return problem_answer(problem(error.status, title, error.message, error.errors))
    if isinstance(error, TooLarge):
        return problem_answer(problem(413, "Content Too Large", str(error)))
    status, detail, headers = 500, _text(error), None
    title = type(error).__qualname__
    if isinstance(error, NanopodError):
        status, detail = error.status, error.message
    elif isinstance(getattr(error, "status_code", None), int) and hasattr(error, "detail"):
        # An HTTPException of Starlette, FastAPI and their like.
        status, detail, headers = error.status_code, error.detail, getattr(error, "headers", None)  # type: ignore[attr-defined]
        title = "HTTPException"
    if status >= 500:
        _log.error("web request of %s failed", name, exc_info=error)
    debug = os.environ.get("NANOPOD_DEBUG", "").lower() not in ("", "0", "false", "no", "off")
    trace = "".join(traceback.format_exception(error)) if debug else ""
    if not isinstance(detail, str):
        detail = to_json(detail).decode()
    return problem_answer(problem(status if 400 <= status <= 599 else 500, title, detail, (), trace), headers)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # whatever a user's __str__ raises
        return ""
