"""`Volume`: a directory that workers mount and programs fill. What is committed is a version; others see it when they
start or `.reload()`.

| where | |
| --- | --- |
| anywhere | `.listdir() .read_file() .get_file() .put_file() .put_directory() .remove()`: on the newest version |
| on a worker that mounts it | files below the path given to `image.volume(path, ...)`, `.commit()`, `.reload()` |
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanopod.client.twins import twin
from nanopod.model import parts, registry
from nanopod.model.errors import Conflict, Invalid, NanopodError, NotFound
from nanopod.model.ids import NAME_PATTERN
from nanopod.model.parts import PART_BYTES, Entry, Manifest

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from nanopod.client.wires import Wire

PARALLEL: Final = 4
LEASE_S: Final = 60.0
WRITER_S_MAX: Final = 60.0
"""How long a change waits for another writer to finish."""
Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all) after each part; from several threads, one at a time."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of a volume; `mode` as of `chmod`."""

    path: str
    size: int
    mode: int


class Volume:
    """A volume by its name. It is made by `nanopod volumes create`, by the first deployment that mounts it, or when
    something is first put into it; `size_gb` (0: no limit of its own) and `region` count then."""

    def __init__(self, name: str, *, size_gb: float = 0.0, region: str = "") -> None:
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            raise Invalid(
                f"Volume: {name!r} must be letters, digits and . _ -, beginning with a letter or digit", field="name"
            )
        if isinstance(size_gb, bool) or not isinstance(size_gb, int | float) or size_gb < 0:
            raise Invalid(f"size_gb is a number of GB, 0 for no limit, not {size_gb!r}", field="size_gb")
        self.name = name
        self.size_gb = float(size_gb)
        self.region = region
        self._server: tuple[str | None, str | None] = (None, None)

    @classmethod
    def from_name(cls, name: str, *, url: str | None = None, api_key: str | None = None) -> Volume:
        """The volume of this name, on the server of this process or another one."""
        found = cls(name)
        found._server = (url, api_key)
        return found

    def __repr__(self) -> str:
        return f"Volume({self.name!r})"

    def __reduce__(self) -> Any:
        return type(self), (self.name,)

    # --- on a worker ---

    @property
    def path(self) -> Path:
        """Where its files are on this worker. Raises `Invalid` where it is not mounted."""
        return Path(_mounts(self.name).path(self.name))

    @twin
    def commit(self) -> int:
        """Make what is below the mount's path the next version; its number (the same one when nothing changed).

        All of it becomes visible at once, or nothing. Raises `Conflict` when others changed the same files since this
        worker loaded them, or go on writing for longer than a minute; `Invalid` above the volume's size.
        """
        return _mounts(self.name).commit(self.name)

    @twin
    def reload(self, *, discard: bool = False) -> int:
        """Bring the newest version below the mount's path; its number. Files that did not change are left alone.

        What was written here and not committed stays; where others committed the same files this raises `Conflict`,
        unless `discard` throws everything away that was not committed.
        """
        return _mounts(self.name).reload(self.name, discard)

    # --- anywhere ---

    @twin
    def listdir(self, path: str = "", *, recursive: bool = False) -> list[FileInfo | str]:
        """What a directory of the newest version holds: files, and names of directories with a slash at the end.

        With `recursive`, all files below it. Raises `NotFound`.
        """
        place = _inside(path)
        manifest = self._manifest()[1]
        below = {name: entry for name, entry in manifest.items() if not place or name.startswith(place + "/")}
        if not below:
            if place in manifest:
                return [FileInfo(place, manifest[place][1], manifest[place][2])]
            if place:
                raise NotFound(f"volume {self.name!r} has no {path!r}; see .listdir()")
            return []
        found: dict[str, FileInfo | str] = {}
        for name, (_, size, mode) in below.items():
            head, slash, _ = name[len(place) + 1 if place else 0 :].partition("/")
            if slash and not recursive:
                found[head + "/"] = head + "/"
            else:
                found[name] = FileInfo(name, size, mode)
        return [found[name] for name in sorted(found)]

    @twin
    def read_file(self, path: str) -> bytes:
        """The content of a file of the newest version. Raises `NotFound`."""
        link = self._link()
        entry = self._entry(path)
        return b"".join(link.send("GET", f"{self._path}/parts/{digest}") for digest in entry[0].split())

    @twin
    def get_file(self, path: str, local: str | os.PathLike[str], *, progress: Progress | None = None) -> None:
        """Write a file of the newest version to this machine; it appears when it is whole. Raises `NotFound`."""
        link = self._link()
        digests, size, mode = self._entry(path)
        target = Path(local)
        if target.is_dir():
            target = target / Path(path).name
        count = _Count(size, progress)
        part = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
        try:
            with open(part, "xb") as file:
                file.truncate(size)

                def fetch(number: int, digest: str) -> None:
                    data = link.send("GET", f"{self._path}/parts/{digest}")
                    if parts.digest_of(data) != digest:
                        raise Conflict(f"{path}: a part arrived damaged; try again")
                    os.pwrite(file.fileno(), data, number * PART_BYTES)
                    count.add(len(data))

                _all(fetch, list(enumerate(digests.split())))
                file.flush()
            part.chmod(mode)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    @twin
    def put_file(
        self, local: str | os.PathLike[str] | bytes, path: str, *, progress: Progress | None = None
    ) -> int:  # fmt: skip
        """Put a file of this machine (or bytes) at `path` as a new version; its number.

        Parts that are there already are not sent again, so a transfer that broke off goes on where it was.
        """
        place = _inside(path)
        if not place or path.endswith("/"):
            name = "" if isinstance(local, bytes) else Path(local).name
            if not name:
                raise Invalid(f"path: {path!r} names no file; give one such as data/model.bin", field="path")
            place = f"{place}/{name}".lstrip("/")
        return self._put([(local, place)], progress)

    @twin
    def put_directory(
        self, local: str | os.PathLike[str], path: str = "", *, progress: Progress | None = None
    ) -> int:  # fmt: skip
        """Put the files below a directory of this machine at `path` as one new version; its number. Links and special
        files are followed or left out; what is there under other names stays."""
        root = Path(local)
        if not root.is_dir():
            raise Invalid(f"put_directory: {root} is no directory; use put_file for a file", field="local")
        place = _inside(path)
        found: list[tuple[str | os.PathLike[str] | bytes, str]] = []
        for top, _, names in os.walk(root):
            for name in names:
                file = Path(top, name)
                if file.is_file():
                    found.append((file, f"{place}/{file.relative_to(root).as_posix()}".lstrip("/")))
        return self._put(sorted(found, key=lambda pair: pair[1]), progress)

    @twin
    def remove(self, path: str, *, recursive: bool = False) -> int:
        """Remove a file, or with `recursive` everything below a directory, as a new version; its number."""
        place = _inside(path)

        def change(now: Manifest) -> Manifest:
            below = {name for name in now if not place or name.startswith(place + "/")}
            if place in now:
                below = {place}
            elif not below:
                raise NotFound(f"volume {self.name!r} has no {path!r}; see .listdir()")
            elif not recursive:
                raise Invalid(f"{path!r} is a directory with {len(below)} files; give recursive=True", field="path")
            return {name: entry for name, entry in now.items() if name not in below}

        return self._change(change)

    # --- the server ---

    @classmethod
    def create(cls, name: str, *, size_gb: float = 0.0, region: str = "") -> Volume:
        """Make a volume; the one that is there when the name is taken."""
        made = cls(name, size_gb=size_gb, region=region)
        made._link()
        return made

    @classmethod
    def delete(cls, name: str) -> None:
        """Delete a volume with all its versions. Raises `Conflict` naming the endpoints that mount it, `NotFound`."""
        gone = cls(name)
        gone._wire().send("DELETE", gone._path)

    def _wire(self) -> Wire:
        from nanopod.client import wires  # HTTP is imported when something is first asked

        return wires.wire(*self._server)

    @property
    def _path(self) -> str:
        return f"/v1/volumes/{self.name}"

    def _link(self) -> Wire:
        found = self._wire()
        body = {"name": self.name, "size_gb": self.size_gb, "region": self.region}
        found.send("POST", "/v1/volumes", json.dumps(body).encode(), json=True)
        return found

    def _manifest(self) -> tuple[int, Manifest]:
        found = json.loads(self._wire().send("GET", f"{self._path}/files"))
        return int(found["version"]), parts.manifest_of(found["files"])

    def _entry(self, path: str) -> Entry:
        found = self._manifest()[1].get(_inside(path))
        if found is None:
            raise NotFound(f"volume {self.name!r} has no file {path!r}; see .listdir()")
        return found

    def _put(self, files: Sequence[tuple[str | os.PathLike[str] | bytes, str]], progress: Progress | None) -> int:
        link = self._link()
        size = sum(len(file) if isinstance(file, bytes) else os.stat(file).st_size for file, _ in files)
        count = _Count(size, progress)
        made: Manifest = {}

        def send(digest: str, data: bytes) -> None:
            _send_part(link, self._path, digest, data)
            count.add(len(data))

        with _threads() as pool:
            for file, path in files:
                digests, total, running = [], 0, []
                for data in _read(file):
                    digest = parts.digest_of(data)
                    digests.append(digest)
                    total += len(data)
                    running.append(pool.submit(send, digest, data))
                    if len(running) >= PARALLEL:  # no more than that is held in memory
                        running.pop(0).result()
                for one in running:
                    one.result()
                mode = parts.MODE_PLAIN if isinstance(file, bytes) else parts.mode_of(os.stat(file).st_mode)
                made[path] = (" ".join(digests), total, mode)
        return self._change(lambda now: {**now, **made})

    def _change(self, change: Callable[[Manifest], Manifest]) -> int:
        """Commit a change of the newest version, as the one writer; whoever came first is waited for."""
        link = self._wire()
        writer = f"{os.uname().nodename}:{os.getpid()}:{os.urandom(4).hex()}"
        asked = json.dumps({"writer": writer, "lease_s": LEASE_S}).encode()
        _until_free(lambda: link.send("POST", f"{self._path}/lease", asked, json=True))
        try:
            version, before = self._manifest()
            files = parts.changes(before, change(before))
            if not files:
                return version
            body = json.dumps({"writer": writer, "files": files}).encode()
            return int(json.loads(link.send("POST", f"{self._path}/versions", body, json=True))["version"])
        finally:
            with contextlib.suppress(NanopodError):  # it ends by itself in a minute
                link.send("DELETE", f"{self._path}/lease", writer=writer)


def _until_free(take: Callable[[], Any]) -> None:
    """Try until it does not raise `Conflict`, for at most `WRITER_S_MAX` seconds."""
    limit = time.monotonic() + WRITER_S_MAX
    pause_s = 0.05
    while True:
        try:
            take()
            return
        except Conflict:
            if time.monotonic() > limit:
                raise
        time.sleep(pause_s * random.uniform(0.5, 1.5))
        pause_s = min(2.0, pause_s * 1.5)


def _threads() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(PARALLEL, thread_name_prefix="nanopod-volume")


def _mounts(name: str) -> registry.Mounts:
    found = registry.mounts
    if found is None or name not in found.names():
        raise Invalid(
            f'volume {name!r} is not mounted here; add image.volume("/path", Volume("{name}")) to the deployment, or '
            "use put_file and read_file, which work anywhere",
            field="volume",
        )
    return found


def _inside(path: str) -> str:
    try:
        return parts.plain_path(path)
    except ValueError as error:
        raise Invalid(f"path: {error}", field="path") from None


def _read(file: str | os.PathLike[str] | bytes) -> Iterator[bytes]:
    if isinstance(file, bytes):
        for start in range(0, len(file), PART_BYTES):
            yield file[start : start + PART_BYTES]
        return
    with open(file, "rb") as opened:
        while data := opened.read(PART_BYTES):
            yield data


def _send_part(link: Wire, path: str, digest: str, data: bytes) -> None:
    with contextlib.suppress(NotFound):
        link.send("HEAD", f"{path}/parts/{digest}")
        return
    link.send("PUT", f"{path}/parts/{digest}", data)


def _all(work: Callable[[int, str], None], items: Sequence[tuple[int, str]]) -> None:
    with _threads() as pool:
        for done in [pool.submit(work, number, digest) for number, digest in items]:
            done.result()


class _Count:
    """Bytes done, told to whoever wants to know."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._done, self._progress = total, 0, progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more."""
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)
