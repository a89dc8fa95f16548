"""What travels of a deployment: a gzipped tar with config.json, the code and the copied files; same bytes, same digest.

Nothing in it depends on when or by whom it was made: entries are sorted, times and owners are zero, modes are 644 and
755. The digest of the whole is the bundle's name in the blob store.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanopod.client.source import Source
from nanopod.model.errors import Invalid

FORMAT = 1
BYTES_MAX = 256 << 20
FILES_MAX = 20_000
_SKIPPED = frozenset({"__pycache__", ".git", ".hg", ".nanopod", ".venv", "venv", "node_modules", ".mypy_cache"})


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle and what is in it."""

    data: bytes
    digest: str
    files: Mapping[str, bytes]
    """By path in the archive, config.json excepted. A pickle, which is never the same twice, is described instead."""
    python: tuple[str, ...]
    """Those of `files` that are the deployment's own Python code."""


def make_bundle(source: Source, *, name: str, config: Mapping[str, Any], copies: Sequence[tuple[str, str]]) -> Bundle:
    """Read and pack everything. Raises `Invalid` for missing files, paths that lead out, and bundles above 256 MiB."""
    entry = source.file.relative_to(source.directory) if source.root is not None else Path(f"{source.module}.py")
    head = {"name": name, "module": source.module, "entry": entry.as_posix(), **config}
    return assemble(dict(_code(source)), head, copies, source.file.parent)


def assemble(
    code: Mapping[str, bytes],
    head: Mapping[str, Any],
    copies: Sequence[tuple[str, str]],
    base: Path,
    compared: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Pack code with copied files, whose paths begin at `base`. `compared`: what stands for `code` in fingerprints."""
    copied = dict(_copied(copies, base))
    files = {**code, **copied}
    if len(files) > FILES_MAX:
        raise Invalid(f"the bundle would hold {len(files)} files; at most {FILES_MAX}: copy a smaller directory")
    data = pack({**files, "config.json": json.dumps({"format": FORMAT, **head}, sort_keys=True, indent=1).encode()})
    if len(data) > BYTES_MAX:
        raise Invalid(
            f"the bundle is {len(data) >> 20} MiB; at most {BYTES_MAX >> 20} MiB: load large files at run time"
        )
    python = tuple(sorted(path for path in code if path.endswith(".py")))
    shown = files if compared is None else {**compared, **copied}
    return Bundle(data, hashlib.sha256(data).hexdigest(), shown, python)


def pack(files: Mapping[str, bytes]) -> bytes:
    """A deterministic tar.gz of files by their path."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(files):
            entry = tarfile.TarInfo(f"./{path}")
            entry.size = len(files[path])
            entry.mode = 0o755 if files[path].startswith(b"#!") else 0o644
            entry.mtime = entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            archive.addfile(entry, io.BytesIO(files[path]))
    return gzip.compress(plain.getvalue(), compresslevel=6, mtime=0)


def destination(text: str, *, field: str = "copy.dst") -> str:
    """A destination inside the bundle: relative and normal. An absolute path is meant from the worker's root."""
    path = posixpath.normpath(text.replace("\\", "/")).lstrip("/")
    if not path or path == "." or path.startswith("..") or "\0" in path:
        raise Invalid(f"{text!r} leads out of the worker's directory; name a path below it", field=field)
    if path == "config.json":
        raise Invalid("config.json is the bundle's own; choose another destination", field=field)
    return path


def _code(source: Source) -> Iterator[tuple[str, bytes]]:
    if source.root is None:
        yield f"{source.module}.py", _read(source.file)
        return
    for path in _walk(source.root):
        yield path.relative_to(source.directory).as_posix(), _read(path)


def _copied(copies: Sequence[tuple[str, str]], base: Path) -> Iterator[tuple[str, bytes]]:
    for src, dst in copies:
        origin = Path(src).expanduser()
        origin = origin if origin.is_absolute() else base / origin
        target = destination(dst)
        if origin.is_dir():
            for path in _walk(origin):
                yield f"{target}/{path.relative_to(origin).as_posix()}", _read(path)
        elif origin.is_file():
            yield (f"{target}/{origin.name}" if dst.endswith("/") else target), _read(origin)
        else:
            raise Invalid(f"image.copy({src!r}): there is no such file or directory (looked at {origin})", field="copy")


def _walk(root: Path) -> Iterator[Path]:
    """Files below a directory in sorted order, without caches; of links only those to files are followed."""
    for path in sorted(root.iterdir()):
        if path.name in _SKIPPED or path.suffix in (".pyc", ".pyo"):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.is_file():
            yield path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}", field="bundle") from error
