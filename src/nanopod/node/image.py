"""Unpacks a machine's image: a root file system as a tar archive (plain, gzip, bzip2 or xz), from somebody else.

Nothing lands outside its directory, and no link in it leads out. Links are kept in the meaning they have inside: an
absolute one is read as starting at the image's own root. Devices and pipes are left out; owners, times and special
modes are ignored. The archive is checked against its digest first, and unpacked beside its place, then renamed.
"""

from __future__ import annotations

import lzma
import os
import posixpath
import shutil
import tarfile
import threading
import zlib
from pathlib import Path
from typing import IO, Final

from nanopod.node import bundle
from nanopod.node.bundle import BundleError

FILES_MAX: Final = 5_000_000
BYTES_MAX: Final = 128 << 30
PATH_CHARS_MAX: Final = 4096
LINK_STEPS_MAX: Final = 40
_CHUNK: Final = 1 << 20


class ImageError(BundleError):
    """The image cannot be used."""


def unpack(archive: Path, digest: str, destination: Path, stop: threading.Event | None = None) -> None:
    """Check and unpack `archive` as the new directory `destination`.

    Raises `ImageError` (also when `stop` is set), and leaves nothing behind then.
    """
    try:
        bundle.check_digest(archive, digest)
    except BundleError as error:
        raise ImageError(str(error).replace("bundle", "image"), user_fault=error.user_fault) from error
    part = destination.with_name(destination.name + ".part")
    for old in (part, destination):
        shutil.rmtree(old, ignore_errors=True)
    try:
        part.mkdir(mode=0o755, parents=True)
        _Unpacking(part, stop or threading.Event()).run(archive)
        part.rename(destination)
    except BundleError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        shutil.rmtree(part, ignore_errors=True)
        # A full or broken disk is not what was uploaded; anything the archive asks for in vain is.
        fault = not isinstance(error, OSError) or isinstance(error, FileExistsError | NotADirectoryError)
        raise ImageError(f"the image cannot be unpacked: {error}", user_fault=fault) from error


def inside(name: str) -> str:
    """`name` as a normal path relative to the image's root; raises `ImageError` for one that leads out."""
    if not name or len(name) > PATH_CHARS_MAX or "\0" in name:
        raise ImageError(f"the image holds a path that cannot be used: {name[:80]!r}")
    if ".." in name.split("/"):
        raise ImageError(f"the image holds the path {name[:80]!r}, which leads out of its directory")
    return posixpath.normpath(name.lstrip("/") or ".")


class _Unpacking:
    """One archive on its way into `root`. Links are made last, so that nothing is ever written through one."""

    def __init__(self, root: Path, stop: threading.Event) -> None:
        self._root = root
        self._stop = stop
        self._symbolic: dict[str, str] = {}
        self._hard: list[tuple[str, str]] = []
        self._bytes = 0

    def run(self, archive: Path) -> None:
        with tarfile.open(archive, "r:*") as tar:
            for count, member in enumerate(tar):
                if count >= FILES_MAX:
                    raise ImageError(f"the image holds more than {FILES_MAX} files")
                self._check_stop()
                self._member(tar, member)
                tar.members = []  # type: ignore[attr-defined]  # it would keep every one of millions
        for name, target in self._hard:
            self._link_hard(name, target)
        for name, target in self._symbolic.items():
            self._link(name, target)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise ImageError("given up: it is no longer wanted", user_fault=False)

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = inside(member.name)
        path = self._root / name
        if member.isdir():
            self._symbolic.pop(name, None)
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        elif member.isreg():
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None, "a regular file has content"
            self._symbolic.pop(name, None)
            self._file(source, path, member.mode & 0o755 | 0o600)
        elif member.issym():
            self._symbolic[name] = member.linkname
        elif member.islnk():
            self._hard.append((name, inside(member.linkname)))

    def _file(self, source: IO[bytes], path: Path, mode: int) -> None:
        path.unlink(missing_ok=True)  # a later entry of the same name wins
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, mode), "wb") as file:
            while chunk := source.read(_CHUNK):
                self._bytes += len(chunk)
                if self._bytes > BYTES_MAX:
                    raise ImageError(f"the image unpacks to more than {BYTES_MAX >> 30} GiB")
                self._check_stop()
                file.write(chunk)

    def _link_hard(self, name: str, target: str) -> None:
        """No symbolic link exists yet, so neither end can be reached through one."""
        if target in self._symbolic:
            self._symbolic[name] = self._symbolic[target]
            return
        source, path = self._root / target, self._root / name
        if not source.is_file():
            raise ImageError(f"the link {name[:80]!r} in the image points to {target[:80]!r}, which is not in it")
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(source, path, follow_symlinks=False)

    def _link(self, name: str, target: str) -> None:
        if not target or len(target) > PATH_CHARS_MAX or "\0" in target:
            raise ImageError(f"the link {name[:80]!r} in the image has no usable target")
        if any(above in self._symbolic for above in _parents(name)):
            raise ImageError(f"the image holds {name[:80]!r} below a link")
        self._resolve(name, target)
        if target.startswith("/"):
            target = "../" * name.count("/") + (target.lstrip("/") or ".")
        path = self._root / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.is_dir():
            raise ImageError(f"the image holds {name[:80]!r} as a directory and as a link")
        path.unlink(missing_ok=True)
        os.symlink(target, path)

    def _resolve(self, name: str, target: str) -> None:
        """Follow a link as inside of the image. Raises `ImageError` when it climbs above the root."""
        at = [] if target.startswith("/") else name.split("/")[:-1]
        todo = [step for step in reversed(target.split("/")) if step not in ("", ".")]
        steps = 0
        while todo:
            step = todo.pop()
            if step == "..":
                if not at:
                    raise ImageError(f"the link {name[:80]!r} in the image leads out of its directory")
                at.pop()
                continue
            at.append(step)
            further = self._symbolic.get("/".join(at))
            if further is None:
                continue
            steps += 1
            if steps > LINK_STEPS_MAX:
                raise ImageError(f"the link {name[:80]!r} in the image goes on for ever")
            at = [] if further.startswith("/") else at[:-1]
            todo += [step for step in reversed(further.split("/")) if step not in ("", ".")]


def _parents(name: str) -> list[str]:
    """Every directory above a path, but not the root."""
    steps = name.split("/")[:-1]
    return ["/".join(steps[: count + 1]) for count in range(len(steps))]
