"""Both databases for one suite: a file, and a PostgreSQL server of the tests' own on a Unix socket."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nanopod.store.open import open_store
from nanopod.store.writer import GroupStore

START_S_MAX = 60
_numbers = count(1)


@dataclass(frozen=True)
class Server:
    """A running PostgreSQL server."""

    directory: Path
    binaries: Path
    prefix: tuple[str, ...]

    def run(self, program: str, *arguments: str, check: bool = True) -> str:
        """One of its programs, as the user that owns it."""
        command = [*self.prefix, str(self.binaries / program), *arguments]
        done = subprocess.run(
            command, cwd=self.directory, capture_output=True, text=True, timeout=START_S_MAX, check=False
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout[-2000:]} {done.stderr[-2000:]}")
        return done.stdout.strip()

    def psql(self, statement: str, database: str = "postgres") -> str:
        """The answer to a statement."""
        return self.run("psql", "-h", str(self.directory), "-U", "tester", "-d", database, "-Atqc", statement)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-k {self.directory} -c listen_addresses='' -c fsync=off -c max_connections=40"
        log = self.directory / "log"
        self.run("pg_ctl", "-D", str(self.directory / "data"), "-l", str(log), "-w", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is what a crash looks like."""
        self.run("pg_ctl", "-D", str(self.directory / "data"), "-m", mode, "-w", "stop", check=False)

    def url(self, database: str) -> str:
        """How to reach a database of it."""
        return f"postgresql://tester@/{database}?host={self.directory}"


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    which = shutil.which("initdb")
    initdb = found[-1] if found else Path(which).resolve() if which else None
    return initdb.parent if initdb else None


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server for this session, whose own language sorts otherwise than bytes do."""
    binaries = _binaries()
    if binaries is None:
        reason = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="nanopod-pg-", dir="/tmp"))
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        prefix = ("runuser", "-u", "postgres", "--")
        shutil.chown(directory, "postgres")
    one = Server(directory, binaries, prefix)
    try:
        plain = ("-D", str(directory / "data"), "-A", "trust", "-U", "tester", "-E", "UTF8", "-N")
        try:
            one.run("initdb", *plain, "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")
        except RuntimeError:
            shutil.rmtree(directory / "data", ignore_errors=True)
            one.run("initdb", *plain, "--locale=C.UTF-8")  # older, or built without ICU
        one.start()
        yield one
    finally:
        one.stop()
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True)
class Backend:
    """A database of one kind, fresh for a test."""

    kind: str
    file: Path
    url: str | None
    server: Server | None

    def open(self, **options: Any) -> GroupStore:
        """The store; as often as it was closed."""
        return open_store(self.file, self.url, **options)

    def run(self, test: Callable[[GroupStore], Awaitable[Any]], **options: Any) -> Any:
        """Run a coroutine function on the store."""

        async def inner() -> Any:
            store = self.open(**options)
            try:
                return await test(store)
            finally:
                await store.close()

        return asyncio.run(inner())


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """Either database."""
    if request.param == "sqlite":
        yield Backend("sqlite", tmp_path / "nanopod.db", None, None)
        return
    server: Server = request.getfixturevalue("server")
    name = f"test_{next(_numbers)}"
    server.psql(f"CREATE DATABASE {name}")
    yield Backend("postgresql", tmp_path / "unused.db", server.url(name), server)
    server.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


Write = Callable[[Any], Any]


@pytest.fixture
def in_write(backend: Backend) -> Callable[[Write], Any]:
    """Run a function of a transaction on a fresh store."""

    def run(fn: Write) -> Any:
        async def test(store: GroupStore) -> Any:
            return await store.write(fn)

        return backend.run(test)

    return run


@pytest.fixture
def with_store(backend: Backend) -> Callable[[Callable[[GroupStore], Awaitable[Any]]], Any]:
    """Run a coroutine function on a fresh store."""
    return backend.run
