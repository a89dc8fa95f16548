"""What a machine does when it starts, from its `cloud_init`: a `#!` script, or a subset of `#cloud-config`.

| key of `#cloud-config` | what is done |
| --- | --- |
| `write_files` | files below the home directory, or at absolute paths inside the image when there is one |
| `bootcmd`, `runcmd` | commands, in this order; each list is one shell script and goes on after a command that fails |
| `ssh_authorized_keys` | lines of `~/.ssh/authorized_keys` |
| `nanopod: {on_shutdown: [...]}` | commands that are run once when the end of the instance's time is announced |
| `nanopod: {run: {argv: [...]}}` | one command with what it needs (`model.job.RunSpec`); its end is the machine's |

Everything else is refused, by name: instances of this node share its system, and a start that silently leaves out half
of what was asked for would be worse than none.
"""

from __future__ import annotations

import base64
import binascii
import os
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from nanopod.model.job import RunSpec

BYTES_MAX: Final = 64 << 10
ITEMS_MAX: Final = 1000
PATH_CHARS_MAX: Final = 1024
_KNOWN: Final = ("write_files", "bootcmd", "runcmd", "ssh_authorized_keys", "nanopod")
_SHARED: Final = "instances of this node share its system"
_REFUSED: Final = {
    "packages": f"packages cannot be installed: {_SHARED}; use an image that has them, or install them on the node",
    "package_update": f"packages cannot be updated: {_SHARED}",
    "package_upgrade": f"packages cannot be upgraded: {_SHARED}",
    "users": f"users cannot be made: {_SHARED}",
    "groups": f"groups cannot be made: {_SHARED}",
    "mounts": f"nothing can be mounted: {_SHARED}",
}
_FILE_FIELDS: Final = ("path", "content", "encoding", "permissions", "append")


class BootError(Exception):
    """`cloud_init` cannot be used; the message names the field."""


@dataclass(frozen=True, slots=True)
class FileToWrite:
    """One file: `path` is relative to the home directory, or absolute inside the image."""

    path: str
    content: bytes
    mode: int
    append: bool


@dataclass(frozen=True, slots=True)
class Boot:
    """The start-up of a machine."""

    files: tuple[FileToWrite, ...] = ()
    scripts: tuple[tuple[str, bytes], ...] = ()
    """(what it is called, content) of programs to run one after the other."""
    hook: bytes = b""
    """The program to run when a shutdown is announced, or nothing."""
    run: RunSpec | None = None
    """The one command whose end is the machine's."""


def parse(cloud_init: str) -> Boot:
    """Read base64 text. Raises `BootError`."""
    try:
        data = base64.b64decode(cloud_init, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BootError(f"cloud_init_user_data: it is not base64: {error}") from error
    if len(data) > BYTES_MAX:
        raise BootError(f"cloud_init_user_data: it has {len(data)} bytes, {BYTES_MAX} are allowed")
    if not data.strip():
        return Boot()
    if data.startswith(b"#!"):
        return Boot(scripts=(("start-up script", data),))
    first = data.split(b"\n", 1)[0].strip()
    if first == b"#cloud-config":
        return _config(data)
    if data.startswith(b"\x1f\x8b"):
        raise BootError("cloud_init_user_data: it is compressed; give it as plain text")
    raise BootError(
        "cloud_init_user_data: its first line must be '#!' and an interpreter (a script), or '#cloud-config'; "
        f"it is {first[:40].decode(errors='replace')!r}"
    )


def _config(data: bytes) -> Boot:
    try:
        config: Any = msgspec.yaml.decode(data)
    except ImportError as error:
        raise BootError("cloud_init_user_data: this node has no YAML reader: pip install pyyaml on it") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BootError(f"cloud_init_user_data: it is not valid YAML: {str(error)[:300]}") from error
    if config is None:
        return Boot()
    if not isinstance(config, dict):
        raise BootError("cloud_init_user_data: a #cloud-config is a mapping of keys")
    for key in config:
        if key not in _KNOWN:
            reason = _REFUSED.get(str(key), f"this node does not know it; it knows {', '.join(_KNOWN)}")
            raise BootError(f"cloud_init_user_data.{str(key)[:80]}: {reason}")
    scripts = tuple(
        (key, _commands(config[key], key)) for key in ("bootcmd", "runcmd") if config.get(key) not in (None, [])
    )
    files = [_file(entry, f"write_files[{number}]") for number, entry in enumerate(_list(config, "write_files"))]
    keys = _list(config, "ssh_authorized_keys")
    if keys:
        lines = [_text(line, f"ssh_authorized_keys[{number}]").strip() for number, line in enumerate(keys)]
        content = "".join(f"{line}\n" for line in lines).encode()
        files.append(FileToWrite(".ssh/authorized_keys", content, 0o600, append=True))
    run = _run(config)
    if run is not None and (files or scripts):
        raise BootError("cloud_init_user_data.nanopod.run: it is the whole start-up; leave the other keys out")
    return Boot(tuple(files), scripts, _hook(config.get("nanopod")), run)


def _run(config: Mapping[str, Any]) -> RunSpec | None:
    own = config.get("nanopod")
    if not isinstance(own, dict) or own.get("run") is None:
        return None
    try:
        run = msgspec.convert(own["run"], RunSpec)
    except msgspec.ValidationError as error:
        raise BootError(f"cloud_init_user_data.nanopod.run: {error}") from None
    if not run.argv or any("\0" in word for word in (*run.argv, *run.env.values())):
        raise BootError("cloud_init_user_data.nanopod.run.argv: give a command, without zero bytes")
    for mount in run.mounts:
        if not mount.path.startswith("/") or ".." in (*mount.path.split("/"), *mount.sub_path.split("/")):
            raise BootError(f"cloud_init_user_data.nanopod.run.mounts: {mount.path!r} must be absolute, without ..")
    return run


def _hook(own: Any) -> bytes:
    if own is None:
        return b""
    if not isinstance(own, dict):
        raise BootError("cloud_init_user_data.nanopod: it must be a mapping, such as {on_shutdown: [...]}")
    for key in own:
        if key not in ("on_shutdown", "run"):
            raise BootError(f"cloud_init_user_data.nanopod.{str(key)[:80]}: only on_shutdown and run are known")
    commands = own.get("on_shutdown")
    return _commands(commands, "nanopod.on_shutdown") if commands else b""


def _list(config: Mapping[str, Any], key: str) -> list[Any]:
    found = config.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or len(found) > ITEMS_MAX:
        raise BootError(f"cloud_init_user_data.{key}: it must be a list of at most {ITEMS_MAX} entries")
    return found


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise BootError(f"cloud_init_user_data.{field}: it must be text")
    return value


def _commands(value: Any, field: str) -> bytes:
    """A shell script of a list of commands: text is for the shell, lists of words are taken as they are."""
    lines = ["#!/bin/sh"]
    for number, command in enumerate(_list({field: value}, field)):
        name = f"{field}[{number}]"
        if isinstance(command, list):
            words = [str(word) if isinstance(word, int | float) else _text(word, name) for word in command[:ITEMS_MAX]]
            lines.append(shlex.join(words))
        else:
            lines.append(_text(command, name))
        if sum(map(len, lines)) > 4 * BYTES_MAX:
            raise BootError(f"cloud_init_user_data.{field}: its commands are longer than {4 * BYTES_MAX} characters")
    return ("\n".join(lines) + "\n").encode()


def _file(entry: Any, field: str) -> FileToWrite:
    if not isinstance(entry, dict):
        raise BootError(f"cloud_init_user_data.{field}: it must be a mapping with path and content")
    for key in entry:
        if key not in _FILE_FIELDS:
            raise BootError(
                f"cloud_init_user_data.{field}.{str(key)[:80]}: this node does not know it; "
                f"it knows {', '.join(_FILE_FIELDS)}"
            )
    path = _text(entry.get("path"), f"{field}.path").removeprefix("~/")
    if not path or len(path) > PATH_CHARS_MAX or ".." in path.split("/") or path.endswith("/"):
        raise BootError(f"cloud_init_user_data.{field}.path: {path[:80]!r} cannot be used as a file's path")
    content = _text(entry.get("content", ""), f"{field}.content").encode()
    encoding = entry.get("encoding", "text/plain")
    if encoding in ("b64", "base64"):
        try:
            content = base64.b64decode(content, validate=False)
        except binascii.Error as error:
            raise BootError(f"cloud_init_user_data.{field}.content: it is not base64: {error}") from error
    elif encoding != "text/plain":
        raise BootError(f"cloud_init_user_data.{field}.encoding: it must be text/plain or b64")
    append = entry.get("append", False)
    if not isinstance(append, bool):
        raise BootError(f"cloud_init_user_data.{field}.append: it must be true or false")
    return FileToWrite(posixpath.normpath(path), content, _mode(entry.get("permissions", "0644"), field), append)


def _mode(value: Any, field: str) -> int:
    """Permissions as text ('0644'), or as YAML reads an unquoted 0644: the number that these octal digits mean."""
    try:
        mode = value if isinstance(value, int) else int(str(value), 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777 or isinstance(value, bool):
        raise BootError(f"cloud_init_user_data.{field}.permissions: it must be octal text up to '0777'")
    return mode


def write_files(entries: Sequence[FileToWrite], home: Path, image: Path | None) -> None:
    """Write them, following no link out of the directories. Raises `BootError` and `OSError`."""
    for number, entry in enumerate(entries):
        field = f"cloud_init_user_data.write_files[{number}].path"
        if entry.path.startswith("/"):
            if image is None:
                raise BootError(
                    f"{field}: {entry.path} is absolute, and {_SHARED}: use a path below the home directory, such as "
                    f"{posixpath.basename(entry.path)}, or an image"
                )
            root, path = image, image / entry.path.lstrip("/")
        else:
            root, path = home, home / entry.path
        found, top = os.path.realpath(path), os.path.realpath(root)
        if not found.startswith(top + "/"):
            raise BootError(f"{field}: {entry.path} leads out of the instance's directory")
        os.makedirs(os.path.dirname(found), mode=0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_APPEND if entry.append else os.O_TRUNC)
        with os.fdopen(os.open(found, flags, 0o600), "wb") as file:
            file.write(entry.content)
            os.fchmod(file.fileno(), entry.mode)
