"""Unpacks a bundle: a gzipped tar from somebody else, of which nothing may land outside its own directory.

Only regular files, directories and links that stay inside are taken; owners, times and special modes are ignored. The
archive is checked against its digest before a single file is written, and unpacked beside its place, then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import msgspec

FILES_MAX: Final = 50_000
BYTES_MAX: Final = 4 << 30
PATH_CHARS_MAX: Final = 1024
FORMAT: Final = 1
_CHUNK: Final = 1 << 20


class BundleError(Exception):
    """The bundle cannot be used. `user_fault` is False where the stored file is at fault, not what was uploaded."""

    def __init__(self, message: str, *, user_fault: bool = True) -> None:
        super().__init__(message)
        self.user_fault = user_fault


class Config(msgspec.Struct, frozen=True):
    """config.json of a bundle; further fields are the client's."""

    format: int = FORMAT
    name: str = ""
    module: str = ""


def check_digest(archive: Path, digest: str) -> None:
    """Raise `BundleError` unless the file's SHA-256 is `digest`."""
    found = hashlib.sha256()
    try:
        with archive.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except OSError as error:
        raise BundleError(f"the bundle {digest[:12]} is not here: {error.strerror}", user_fault=False) from error
    if found.hexdigest() != digest:
        raise BundleError(f"the stored bundle {digest[:12]} is damaged: its digest differs", user_fault=False)


def unpack(archive: Path, digest: str, destination: Path, copies: Sequence[tuple[str, str]] = ()) -> Config:
    """Check and unpack `archive` as the new directory `destination`; what config.json says.

    `copies` are (path inside, destination below the directory). Raises `BundleError`, and leaves nothing behind then.
    """
    check_digest(archive, digest)
    part = destination.with_name(destination.name + ".part")
    for old in (part, destination):
        shutil.rmtree(old, ignore_errors=True)
    try:
        part.mkdir(mode=0o700, parents=True)
        _Unpacking(part).run(archive)
        for source, target in copies:
            _place(part, source, target)
        config = _config(part)
        part.rename(destination)
    except BundleError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        shutil.rmtree(part, ignore_errors=True)
        fault = not isinstance(error, OSError) or isinstance(error, FileExistsError)
        raise BundleError(f"the bundle cannot be unpacked: {error}", user_fault=fault) from error
    return config


def _config(root: Path) -> Config:
    path = root / "config.json"
    if not path.is_file():
        return Config()
    try:
        config = msgspec.json.decode(path.read_bytes(), type=Config)
    except msgspec.MsgspecError as error:
        raise BundleError(f"config.json of the bundle is not valid: {error}") from error
    if config.format > FORMAT:
        raise BundleError(
            f"the bundle has format {config.format}, this node knows up to {FORMAT}: upgrade nanopod on the node"
        )
    return config


def inside(name: str) -> str:
    """`name` as a normal relative path; raises `BundleError` for one that is absolute or leads out."""
    if not name or len(name) > PATH_CHARS_MAX or "\0" in name or "\\" in name:
        raise BundleError(f"the bundle holds a path that cannot be used: {name[:80]!r}")
    if name.startswith("/") or ".." in name.split("/"):
        raise BundleError(f"the bundle holds the path {name[:80]!r}, which leads out of its directory")
    return posixpath.normpath(name)


class _Unpacking:
    """One archive on its way into `root`. Links are made last, so that nothing is ever written through one."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._links: list[tuple[str, str]] = []
        self._bytes = 0
        self._count = 0

    def run(self, archive: Path) -> None:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                self._count += 1
                if self._count > FILES_MAX:
                    raise BundleError(f"the bundle holds more than {FILES_MAX} files")
                self._member(tar, member)
        for name, target in self._links:
            self._link(name, target)
        root = os.path.realpath(self._root)
        for name, _ in self._links:
            found = os.path.realpath(self._root / name)
            if found != root and not found.startswith(root + "/"):
                raise BundleError(f"the link {name[:80]!r} in the bundle leads out of its directory")

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = inside(member.name)
        path = self._root / name
        if member.isdir():
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        elif member.isreg():
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None, "a regular file has content"
            self._file(source, path, 0o755 if member.mode & 0o111 else 0o644)
        elif member.issym():
            if member.linkname.startswith("/"):
                raise BundleError(f"the link {name[:80]!r} in the bundle points to an absolute path")
            self._links.append((name, member.linkname))
        else:
            raise BundleError(
                f"the bundle holds {name[:80]!r}, which is neither a file, a directory nor a symbolic link"
            )

    def _file(self, source: IO[bytes], path: Path, mode: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, mode), "wb") as file:
            while chunk := source.read(_CHUNK):
                self._bytes += len(chunk)
                if self._bytes > BYTES_MAX:
                    raise BundleError(f"the bundle unpacks to more than {BYTES_MAX >> 30} GiB")
                file.write(chunk)

    def _link(self, name: str, target: str) -> None:
        path = self._root / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.symlink(target, path)


def _place(root: Path, source: str, target: str) -> None:
    """Put what lies at `source` in the bundle at `target` below the root, unless it is there already."""
    origin = root / inside(source.lstrip("/"))
    where = inside(target.lstrip("/"))
    place = root / where
    if origin == place or place.exists():
        return
    if not origin.exists():
        raise BundleError(f"image.copy: the bundle does not hold {source!r}")
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if origin.is_dir():
        shutil.copytree(origin, place, symlinks=True)
    else:
        with contextlib.suppress(FileExistsError):
            shutil.copy2(origin, place, follow_symlinks=False)
