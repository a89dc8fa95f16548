"""New function bodies for a running worker: contexts stay entered, calls that run finish with the code they began with.

The agent unpacks the new bundle beside the old one and asks on a socket in the instance's directory. The function
objects stay the same and get new code, so every reference to them means the new code at once. All or nothing: what
cannot be swapped is refused before anything is changed, and the agent starts the worker anew.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import dataclasses
import json
import linecache
import logging
import os
import socket
import sys
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

import msgspec

from nanopod.model import bodies
from nanopod.node import files

REQUEST_S_MAX: Final = 5.0
REQUEST_BYTES_MAX: Final = 16 << 20
_log: Final = logging.getLogger(__name__)


class Refused(Exception):
    """The new code cannot be swapped in; the text says why."""


def read_files(root: Path) -> dict[str, bytes]:
    """Files below a directory by path; without config.json, which says nothing about what runs."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "config.json" and "__pycache__" not in path.parts
    }


def swap(root: Path, new: dict[str, bytes]) -> list[str]:
    """Give the loaded modules of the bundle at `root` the function bodies of `new`; names of changed functions.

    Raises `Refused`; then nothing is changed. The files are replaced, so that tracebacks show the new lines.
    """
    old = {path: (root / path).read_bytes() for path in new if (root / path).is_file()}
    try:
        why = bodies.obstacle_in(old, new)
    except (SyntaxError, ValueError) as error:
        raise Refused(str(error)) from error
    if why:
        raise Refused(why)
    changed = [path for path in new if new[path] != old[path]]
    loaded = {getattr(module, "__file__", None): module for module in list(sys.modules.values())}
    planned: list[tuple[FunctionType, FunctionType]] = []
    names: list[str] = []
    for path in changed:
        module = loaded.get(str(root / path))
        if module is not None:
            names += _plan(module, str(root / path), old[path], new[path], planned)
    for function, fresh in planned:
        function.__code__ = fresh.__code__
        function.__defaults__, function.__kwdefaults__ = fresh.__defaults__, fresh.__kwdefaults__
        function.__annotations__, function.__doc__ = fresh.__annotations__, fresh.__doc__
    for path in changed:
        files.write_atomic(root / path, new[path])
        linecache.checkcache(str(root / path))
    return names


def _plan(
    module: ModuleType, filename: str, old: bytes, new: bytes, planned: list[tuple[FunctionType, FunctionType]]
) -> list[str]:
    """Add what is to be done for one module; names of functions that changed."""
    before, after = bodies.functions_of(ast.parse(old)), bodies.functions_of(ast.parse(new))
    for name, node in after.items():
        function = _function(module, name)
        node.decorator_list = []
        scratch: dict[str, Any] = {}
        # Defaults and annotations are evaluated as at an import; the body keeps its line numbers.
        code = compile(ast.Module([node], []), filename, "exec", dont_inherit=True, flags=_future(new))
        try:
            exec(code, vars(module), scratch)
        except Exception as error:
            raise Refused(f"{name}: {type(error).__name__}: {error}") from error
        fresh = scratch[name]
        if len(fresh.__code__.co_freevars) != len(function.__code__.co_freevars):
            raise Refused(f"{name} refers to other surrounding variables")
        planned.append((function, fresh))
    classes = {node.name for node in ast.parse(new).body if isinstance(node, ast.ClassDef)}
    _move_methods(module, compile(new, filename, "exec", dont_inherit=True), classes, planned)
    return [name for name in after if ast.dump(_bare(before[name])) != ast.dump(after[name])]


def _bare(node: bodies.Function) -> bodies.Function:
    node.decorator_list = []
    return node


def _future(source: bytes) -> int:
    """Compiler flags of the file's `from __future__` lines."""
    import __future__

    flags = 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for alias in node.names:
                flags |= getattr(__future__, alias.name).compiler_flag
    return flags


def _function(module: ModuleType, name: str) -> FunctionType:
    """The function that a `def` at the top level made, below its decorators. Raises `Refused`."""
    found: Any = vars(module).get(name)
    for _ in range(32):
        if isinstance(found, FunctionType) and found.__code__.co_name == name and found.__globals__ is vars(module):
            return found
        found = getattr(found, "__wrapped__", None)
    raise Refused(f"{name} is hidden by its decorator")


def _move_methods(
    module: ModuleType, code: CodeType, classes: set[str], planned: list[tuple[FunctionType, FunctionType]]
) -> None:
    """Methods did not change, but their lines may have moved: have tracebacks show the right ones."""
    for body in code.co_consts:
        if not isinstance(body, CodeType) or body.co_name not in classes:
            continue
        cls = vars(module).get(body.co_name)
        for part in body.co_consts:
            method = vars(cls).get(part.co_name) if isinstance(part, CodeType) and isinstance(cls, type) else None
            if not isinstance(method, FunctionType) or method.__code__.co_freevars != part.co_freevars:
                continue
            moved = FunctionType(
                part, method.__globals__, method.__name__, method.__defaults__, method.__closure__
            )  # fmt: skip
            moved.__kwdefaults__, moved.__annotations__ = method.__kwdefaults__, method.__annotations__
            moved.__doc__ = method.__doc__
            planned.append((method, moved))


class Swaps:
    """Answers the agent's requests on the worker's event loop."""

    def __init__(self, directory: Path, root: Path, serving: Any) -> None:
        self._directory = directory
        self._root = root
        self._serving = serving
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen; without a socket the worker is started anew for each change."""
        # Socket paths are short, data directories may not be: go by a descriptor of the directory.
        fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            (self._directory / files.SWAP).unlink(missing_ok=True)
            listener.bind(f"/proc/self/fd/{fd}/{files.SWAP}")
            os.chmod(self._directory / files.SWAP, 0o600)
            listener.listen(4)
            self._server = await asyncio.start_server(self._talk, sock=listener, limit=REQUEST_BYTES_MAX)
        except OSError as error:
            listener.close()
            _log.warning("new code will need a new worker: %s", error)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()

    def _now_of(self, revision_id: str) -> None:
        """The worker belongs to another revision from now on, and says so on its next link."""
        start = self._serving.start
        instance = dataclasses.replace(start.instance, revision_id=revision_id)
        self._serving.start = msgspec.structs.replace(start, instance=instance)

    def _take(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what was asked for; what is answered. Raises `Refused`."""
        names = swap(self._root, read_files(Path(request["files"])))
        _log.info("new code: %s", ", ".join(names) or "nothing that runs changed")
        return {"functions": names}

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer: dict[str, Any]
        try:
            async with asyncio.timeout(REQUEST_S_MAX):
                request = json.loads(await reader.readline())
            answer = self._take(request)
            self._now_of(str(request["revision"]))
        except Refused as refused:
            answer = {"error": str(refused)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(OSError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()
