"""One writer thread that commits groups of transactions together, and a pool of readers, on whatever database.

A transaction is a plain function of a `Transaction`. Grouping makes a synchronous disk write per commit nearly free
under load: functions that queue up while one group is being written form the next. Each has a savepoint of its own, so
one that raises takes nothing else along. Futures are resolved after the commit: what was acknowledged is on the disk.
What functions announced is handed on in the order of the commits, before anybody hears that his write is done.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine

from nanopod.model.errors import Conflict, NoCapacity
from nanopod.model.schedule import BLOCK_S
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)
T = TypeVar("T")
Hints = Callable[[frozenset[str]], None]
News = Callable[[list[object]], None]

GROUP_MAX: Final = 64
GROUP_S_MAX: Final = 0.002
PENDING_MAX: Final = 10_000
READERS: Final = 4
RETRY_AFTER_S: Final = 5.0
BLOCK_SETTING: Final = "block_s"
"""The setting that holds the length of a block; it is fixed when the cluster is created."""


class StoreUnavailable(NoCapacity):
    """Nothing can be written (or read) now: the disk is full or failing, the database is away. Nothing was changed."""


class Write:
    """One function that waits for the writer."""

    __slots__ = ("durable", "error", "fn", "future", "hints", "loop", "news", "result")

    def __init__(self, fn: Callable[[Transaction], Any], durable: bool) -> None:
        self.fn = fn
        self.durable = durable
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None
        self.hints: set[str] = set()
        self.news: list[object] = []

    def fail(self, error: BaseException) -> None:
        """It came to nothing."""
        self.error, self.hints, self.news = error, set(), []


class GroupStore(ABC):
    """What every database has in common. `read` and `write` may be called from one event loop.

    Subclasses open `_connection` (the writer's, in autocommit mode) and `_read_engine`, then call `_start`.
    """

    _connection: Connection
    _read_engine: Engine
    block_s: int

    def __init__(self, on_hints: Hints | None = None) -> None:
        self.on_hints = on_hints
        """Called in the event loop with the topics that a committed group touched."""
        self.on_news: News | None = None
        """Called in the event loop with what a committed group announced, in order, before its futures resolve."""
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._pending = 0
        self._closed = False
        self._ailing = ""
        self._local = threading.local()
        self._readers: list[Connection] = []
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._thread = threading.Thread(target=self._run, name="store-write", daemon=True)

    def _start(self, block_s: int | None) -> None:
        """The database is there and up to date: settle the length of its blocks and begin."""
        self.block_s = settle_block_s(self._connection, block_s)
        self._thread.start()

    # --- what databases differ in; all but `_explain` run in the writer's thread ---

    @abstractmethod
    def _begin(self, durable: bool) -> None:
        """Open a transaction on the writer's connection, which may have to be made again first."""

    @abstractmethod
    def _end(self) -> None:
        """Commit it. When this returns, it is on the disk (if it was to be durable)."""

    @abstractmethod
    def _abandon(self) -> None:
        """Roll it back if it still is there. Never raises."""

    @abstractmethod
    def _savepoint(self, statement: str) -> None:
        """Run `SAVEPOINT f`, `RELEASE SAVEPOINT f` or `ROLLBACK TO SAVEPOINT f`."""

    @abstractmethod
    def _lost(self, error: BaseException) -> bool:
        """True when the whole transaction is lost by this error, not one function."""

    @abstractmethod
    def _explain(self, error: BaseException) -> StoreUnavailable | None:
        """What a failing database means for people; None for any other error."""

    @abstractmethod
    def _farewell(self) -> None:
        """Tidy up and close the writer's connection."""

    @abstractmethod
    def _look(self, connection: Connection) -> None:
        """Begin a consistent, read-only transaction."""

    @abstractmethod
    def _dispose(self) -> None:
        """Let go of what is left, once every connection is closed."""

    # --- for the event loop ---

    async def write(self, fn: Callable[[Transaction], T], *, durable: bool = True) -> T:
        """Run `fn` in a transaction; its result once that is committed.

        What `fn` raises is raised here and undoes `fn` alone. With `durable=False` a crash of the machine (not of the
        process) may lose it: for locks and observations, which come again. Raises `StoreUnavailable` when the database
        cannot take it.
        """
        if self._closed:
            raise StoreUnavailable("the server is stopping", retry_after_s=1.0)
        if self._pending >= PENDING_MAX:
            raise StoreUnavailable(f"{PENDING_MAX} changes wait to be written", retry_after_s=RETRY_AFTER_S)
        wanted = Write(fn, durable)
        self._pending += 1
        self._queue.put(wanted)
        result: T = await wanted.future
        return result

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        """Run `fn` on one consistent, read-only state."""
        if self._closed:
            raise StoreUnavailable("the server is stopping", retry_after_s=1.0)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, fn)

    async def close(self) -> None:
        """Commit what is queued, then close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        # The writer goes last: only a connection that may write can tidy a file up when no other is left.
        await asyncio.to_thread(self._pool.shutdown)
        for connection in self._readers:
            connection.close()
        self._read_engine.dispose()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._dispose()

    # --- in a reader's thread ---

    def _read(self, fn: Callable[[Transaction], T]) -> T:
        try:
            return self._read_once(fn)
        except Exception as error:
            known = self._explain(error)
            if known is None:
                raise
            raise known from error

    def _read_once(self, fn: Callable[[Transaction], T]) -> T:
        connection = self._reader()
        self._look(connection)
        try:
            return fn(Transaction(connection, self.block_s))
        finally:
            self._look_away(connection)

    def _look_away(self, connection: Connection) -> None:
        connection.exec_driver_sql("ROLLBACK")

    def _reader(self) -> Connection:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._read_engine.connect()
            self._readers.append(connection)
        return connection

    # --- in the writer's thread ---

    def _run(self) -> None:
        while True:
            group, last = self._take()
            if group:
                self._commit(group)
            if last:
                self._farewell()
                return

    def _take(self) -> tuple[list[Write], bool]:
        """Wait for work; then whatever else is there, at most `GROUP_MAX` functions or `GROUP_S_MAX` seconds."""
        first = self._queue.get()
        if first is None:
            return [], True
        group = [first]
        limit = time.monotonic() + GROUP_S_MAX
        while len(group) < GROUP_MAX and time.monotonic() < limit:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                return group, True
            group.append(item)
        return group, False

    def _commit(self, group: list[Write]) -> None:
        try:
            self._begin(any(write.durable for write in group))
            for write in group:
                self._apply(write)
            self._end()
            self._recovered()
        except BaseException as error:
            self._abandon()
            known = self._unavailable(error)
            for write in group:
                write.fail(known)
        self._deliver(group)

    def _apply(self, write: Write) -> None:
        """Run one function in its savepoint. Raises only when the whole transaction is lost."""
        self._savepoint("SAVEPOINT f")
        transaction = Transaction(self._connection, self.block_s)
        try:
            write.result = write.fn(transaction)
            transaction.flush()
            self._savepoint("RELEASE SAVEPOINT f")
            write.hints, write.news = transaction.hints, transaction.news
        except BaseException as error:
            if self._lost(error):
                raise  # the disk or the server, not the function: everything may be rolled back already
            write.fail(error)
            self._savepoint("ROLLBACK TO SAVEPOINT f")
            self._savepoint("RELEASE SAVEPOINT f")

    def _unavailable(self, error: BaseException) -> BaseException:
        known = error if isinstance(error, StoreUnavailable) else self._explain(error)
        if known is None:
            log.error("store=error", exc_info=error)
            return error
        if str(known) != self._ailing:
            self._ailing = str(known)
            log.error("store=unavailable reason=%s", known)
        return known

    def _recovered(self) -> None:
        if self._ailing:
            self._ailing = ""
            log.info("store=available again")

    def _deliver(self, group: list[Write]) -> None:
        """Hand the results to the event loop, all in one step."""
        try:
            group[0].loop.call_soon_threadsafe(self._resolve, group)
        except RuntimeError:
            log.debug("store=loop closed before %d results were delivered", len(group))

    def _resolve(self, group: list[Write]) -> None:
        self._pending -= len(group)
        news = [item for write in group for item in write.news]
        if news and self.on_news is not None:
            try:
                self.on_news(news)
            except Exception:
                # The writes are done whoever stumbles over the news of them.
                log.exception("store=news were not taken")
        hints: set[str] = set()
        for write in group:
            hints |= write.hints
            if write.future.done():
                continue
            if write.error is not None:
                write.future.set_exception(write.error)
            else:
                write.future.set_result(write.result)
        if hints and self.on_hints is not None:
            self.on_hints(frozenset(hints))


def settle_block_s(connection: Connection, wanted: int | None) -> int:
    """The length of this cluster's blocks in seconds: as it was created, else as `wanted`, else one minute.

    Raises `Conflict` when it was created with another one than is wanted.
    """
    rows = Transaction(connection)
    known = rows.setting(BLOCK_SETTING)
    if known is None:
        if wanted is not None:
            rows.put_setting(BLOCK_SETTING, str(wanted))
        return BLOCK_S if wanted is None else wanted
    if wanted is not None and int(known) != wanted:
        raise Conflict(
            f"block_s: this cluster was created with blocks of {known} seconds, not {wanted}; leave it out",
            field=BLOCK_SETTING,
        )
    return int(known)
