"""Archives and repositories turned into files of the cache: nothing of them may land or lead outside."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import posixpath
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from nanopod.node.storage import schemes
from nanopod.node.storage.cache import Cache, Kept, Tree, key_of
from nanopod.node.storage.errors import Broken, StorageFailed
from nanopod.node.storage.fetching import CHUNK_BYTES, Fetcher, amount
from nanopod.node.storage.schemes import Place

SUFFIXES: Final = (".tar", ".tgz", ".tar.gz", ".zip")
FILES_MAX: Final = 100_000
CLONE_S_MAX: Final = 3600.0
LIST_S_MAX: Final = 60.0
SILENT_S: Final = 30
LINK_BYTES_MAX: Final = 4096
LINKS_MAX: Final = 40
"""Links that lead to one another."""
NAME_BYTES_MAX: Final = 1 << 20
"""What describes a member of a tar archive."""
LEFT_S: Final = 2 * CLONE_S_MAX
"""A directory of an archive or a clone that nothing was done in for so long was left by an interruption."""
_NETWORK: Final = ("Could not resolve host", "timed out", "Failed to connect", "Connection", "early EOF", "HTTP 5")


def is_archive(path: str) -> bool:
    """True for the name of an archive that is unpacked."""
    return path.lower().endswith(SUFFIXES)


def unpack(fetcher: Fetcher, kept: Kept) -> Tree:
    """The files of an archive that is in the cache. Raises `StorageFailed` or `GivenUp`."""
    cache = fetcher.cache
    key = key_of("archive", kept.sha256)
    found = cache.tree(key)
    if found is not None:
        return found
    fetcher.progress.stage = "unpacking"
    with tempfile.TemporaryDirectory(dir=cache.parts, prefix="archive-") as place:
        whole = Path(place, "archive")
        cache.link([Kept("archive", kept.sha256, kept.size)], Path(place))
        try:
            members = _of_zip(whole) if kept.path.lower().endswith(".zip") else _of_tar(whole)
            tree = _members(fetcher, members, Path(place, "file"), kept.path)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
            raise StorageFailed(f"{kept.path} is no archive that can be unpacked: {error}") from None
        except RuntimeError as error:  # zipfile says so of an archive that needs a password
            raise StorageFailed(f"{kept.path} cannot be unpacked: {error}") from None
        except OSError as error:
            raise StorageFailed(f"{kept.path} cannot be unpacked: {error}", user_fault=False) from None
    if not tree:
        raise StorageFailed(f"{kept.path} holds no files")
    cache.remember(key, tree)
    return tree


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of an archive, or with `link` another name for one."""

    name: str
    size: int = 0
    program: bool = False
    source: IO[bytes] | None = None
    link: str = ""


def _members(fetcher: Fetcher, members: Iterable[_Member], part: Path, archive: str) -> Tree:
    """Every file of an archive into the cache; links become the files that they lead to."""
    rows: dict[str, Kept] = {}
    links: dict[str, str] = {}
    for member in members:
        fetcher.check()
        if len(rows) + len(links) >= FILES_MAX:
            raise StorageFailed(f"{archive} holds more than {FILES_MAX} files")
        path = _plain(member.name, archive)
        if member.source is None:
            links[path] = member.link
            continue
        with member.source as source:
            rows[path] = _take(fetcher, source, part, path, member.size, member.program)
    return _linked(rows, links, archive)


def _linked(rows: dict[str, Kept], links: Mapping[str, str], archive: str) -> Tree:
    for path in links:
        end, seen = path, 0
        while end in links and seen < LINKS_MAX:
            if links[end].startswith("/"):
                raise StorageFailed(f"{archive}: the link {path[:80]!r} leads out of its directory")
            end, seen = posixpath.normpath(posixpath.join(posixpath.dirname(end), links[end])), seen + 1
        if end == ".." or end.startswith("../"):
            raise StorageFailed(f"{archive}: the link {path[:80]!r} leads out of its directory")
        if end not in rows:
            raise StorageFailed(
                f"{archive}: the link {path[:80]!r} leads to nothing, or to a directory; pack the files"
            )
        rows[path] = replace(rows[end], path=path)
    return tuple(rows[path] for path in sorted(rows))


def _plain(name: str, archive: str) -> str:
    with contextlib.suppress(schemes.BadUri):
        if not name.startswith("/") and (path := schemes.inside(name)):
            return path
    raise StorageFailed(f"{archive} holds the path {name[:80]!r}, which leads out of its directory or cannot be a file")


def _of_tar(path: Path) -> Iterator[_Member]:
    with tarfile.open(path, "r:*", tarinfo=_Described) as tar:
        for member in tar:
            if member.issym():
                yield _Member(member.name, link=member.linkname)
            elif member.islnk():  # its target is named from the top
                yield _Member(
                    member.name, link=posixpath.relpath(member.linkname, posixpath.dirname(member.name) or ".")
                )
            elif member.isreg() and (source := tar.extractfile(member)) is not None:
                yield _Member(member.name, member.size, bool(member.mode & 0o100), source)
            elif not member.isdir():
                raise StorageFailed(f"the archive holds {member.name[:80]!r}, which is no file, directory or link")


class _Described(tarfile.TarInfo):
    """A member whose description (long names, attributes) is not longer than any that means well."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if not (self.isreg() or self.isdir() or self.issym() or self.islnk()) and self.size > NAME_BYTES_MAX:
            raise tarfile.ReadError("the description of a member is too long")
        return super()._proc_member(archive)  # type: ignore[misc]


def _text_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    with archive.open(member) as source:
        return source.read(LINK_BYTES_MAX).decode(errors="replace")


def _of_zip(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            mode = member.external_attr >> 16
            if member.is_dir():
                continue
            if stat.S_ISLNK(mode):
                yield _Member(member.filename, link=_text_of(archive, member))
            else:
                yield _Member(member.filename, member.file_size, bool(mode & 0o100), archive.open(member))


def _take(fetcher: Fetcher, source: IO[bytes], part: Path, path: str, size: int, program: bool) -> Kept:
    """One file out of an archive into the cache; no more than it said it has."""
    if size > (free := fetcher.cache.room(size)):
        raise StorageFailed(
            f"{path} has {amount(size)} and the node's disk has room for {amount(max(0, free))}", user_fault=False
        )
    found = hashlib.sha256()
    have = 0
    with open(part, "wb") as out:
        while chunk := source.read(CHUNK_BYTES):
            fetcher.check()
            have += len(chunk)
            if have > size:
                raise StorageFailed(f"{path} unpacks to more than the archive says; it is damaged")
            found.update(chunk)
            out.write(chunk)
    digest = found.hexdigest()
    fetcher.cache.keep(part, digest, program=program)
    return Kept(path, digest, have, program)


# --- Git ---


def clone(fetcher: Fetcher, place: Place, settings: dict[str, str]) -> Tree:
    """The files of a Git repository at the newest commit of its branch. Raises `StorageFailed` or `GivenUp`."""
    if shutil.which("git") is None:
        raise StorageFailed("Git repositories need git on the node: install it", user_fault=False)
    url = f"https://{place.host}/{place.path}"
    with tempfile.TemporaryDirectory(dir=fetcher.cache.parts, prefix="git-") as top:
        env = _git_environment(Path(top), settings)
        commit = str(fetcher.again(lambda: _newest(fetcher, url, place, env, Path(top))))
        key = key_of("git", url, commit)
        found = fetcher.cache.tree(key)
        if found is None:
            where = Path(top, "clone")
            fetcher.again(lambda: _cloned(fetcher, url, place, env, where))
            found = _files(fetcher, where, Path(top, "file"), place)
            fetcher.cache.remember(key, found)
    return found


def _git_environment(home: Path, settings: dict[str, str]) -> dict[str, str]:
    """Nothing of the node's own configuration; credentials are passed by the environment, not by the command line."""
    env = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(home), "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1", "GIT_LFS_SKIP_SMUDGE": "0", "LC_ALL": "C", "GIT_ALLOW_PROTOCOL": "https",
        "GIT_HTTP_LOW_SPEED_LIMIT": "1", "GIT_HTTP_LOW_SPEED_TIME": str(SILENT_S),
    }  # fmt: skip
    env |= {name: value for name, value in os.environ.items() if name.lower() in ("https_proxy", "no_proxy")}
    authorities = (settings.get("GIT_SSL_CAINFO"), os.environ.get("GIT_SSL_CAINFO"), os.environ.get("SSL_CERT_FILE"))
    if found := next(filter(None, authorities), None):
        env["GIT_SSL_CAINFO"] = found
    header = settings.get("AUTHORIZATION", "")
    if token := settings.get("GIT_TOKEN", ""):
        user = settings.get("GIT_USERNAME", "") or "x-access-token"
        header = "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()
    if header:
        env |= {
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "http.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: {header}",
        }  # fmt: skip
    return env


def _newest(fetcher: Fetcher, url: str, place: Place, env: dict[str, str], where: Path) -> str:
    said = _git(fetcher, ["ls-remote", "--exit-code", "--", url, place.ref or "HEAD"], env, where, place, LIST_S_MAX)
    commit = said.split(None, 1)[0] if said.strip() else ""
    if not commit:
        raise StorageFailed(f"{place.shown} has no branch or tag {place.ref or 'HEAD'!r}")
    return commit


def _cloned(fetcher: Fetcher, url: str, place: Place, env: dict[str, str], where: Path) -> None:
    shutil.rmtree(where, ignore_errors=True)
    branch = ["--branch", place.ref] if place.ref else []
    argv = ["clone", "--quiet", "--depth", "1", "--single-branch", *branch, "--", url, str(where)]
    _git(fetcher, argv, env, where.parent, place, CLONE_S_MAX)


def _git(fetcher: Fetcher, argv: list[str], env: dict[str, str], where: Path, place: Place, wait_s_max: float) -> str:
    """What a Git command prints. Raises `Broken` for trouble of the network, else `StorageFailed`."""
    until = time.monotonic() + wait_s_max
    process = subprocess.Popen(
        ["git", *argv], cwd=where, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        while True:
            try:
                said, wrong = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                fetcher.check()
                if time.monotonic() > until:
                    raise Broken(f"{place.shown}: git took longer than {wait_s_max:.0f} s") from None
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode == 0:
        return said
    last = wrong.strip().splitlines()[-1:] or [f"git {argv[0]} exited {process.returncode}"]
    if any(word in wrong for word in _NETWORK):
        raise Broken(f"{place.shown}: {last[0][:300]}")
    if argv[0] == "ls-remote" and process.returncode == 2:
        raise StorageFailed(f"{place.shown} has no branch or tag {place.ref or 'HEAD'!r}")
    raise StorageFailed(
        f"{place.shown} cannot be cloned: {last[0][:300]}; for a private one give GIT_TOKEN in a secret"
    )


def _files(fetcher: Fetcher, root: Path, part: Path, place: Place) -> Tree:
    """The files of a working tree, into the cache."""

    def members() -> Iterator[_Member]:
        for top, names, own in os.walk(root):
            if ".git" in names:
                names.remove(".git")
            for path in (Path(top, name) for name in own):
                seen, below = path.lstat(), path.relative_to(root).as_posix()
                if stat.S_ISREG(seen.st_mode):
                    source = open(path, "rb")  # noqa: SIM115 - whoever takes it closes it
                    yield _Member(below, seen.st_size, bool(seen.st_mode & 0o100), source)
                else:
                    yield _Member(below, link=os.readlink(path))

    return _members(fetcher, members(), part, place.shown)


def sweep(cache: Cache) -> None:
    """Remove what an interrupted unpacking or clone left, and what is kept beyond the limit."""
    for path in cache.parts.iterdir():
        if path.name.startswith(("archive-", "git-")):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFT_S:
                    shutil.rmtree(path, ignore_errors=True)
    cache.evict()
