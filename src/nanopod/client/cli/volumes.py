"""`nanopod volumes`: directories with versions that workers mount."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from nanopod.client.cli import show
from nanopod.client.cli.nouns import Noun, commands, field_of, moment_of
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session
from nanopod.client.volumes import FileInfo, Volume


def _used(_session: Session, row: Mapping[str, Any]) -> str:
    limit = f" of {row['size_gb']:g} GB" if row.get("size_gb") else ""
    return f"{show.size(row.get('used_bytes')).replace('-', '0 B')}{limit}"


NOUN: Final = Noun(
    "volume", "volumes", "/v1/volumes",
    columns=[
        ("NAME", field_of("name")), ("VERSION", field_of("version")), ("USED", _used), ("WRITER", field_of("writer")),
        ("UPDATED", moment_of("updated_at")),
    ],
    wide=[("ID", field_of("id")), ("REGION", field_of("region")), ("CREATED", moment_of("created_at"))],
    facts=[
        ("NAME", field_of("name")), ("ID", field_of("id")), ("VERSION", field_of("version")), ("USED", _used),
        ("REGION", field_of("region")), ("WRITER", field_of("writer")), ("USED BY", field_of("used_by")),
        ("CREATED", moment_of("created_at")), ("UPDATED", moment_of("updated_at")),
    ],
    empty="no volumes; make one with: nanopod volumes create NAME",
)  # fmt: skip
NAME: Final = option("name", metavar="VOLUME", completes=NOUN.path)


def _volume(session: Session) -> Volume:
    target = session.api.target
    return Volume.from_name(session.args.name, url=target.url, api_key=target.key)


def _bar(session: Session) -> Callable[[int, int], None] | None:
    """Progress for people who watch."""
    if session.json or not sys.stderr.isatty():
        return None

    def tell(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        print(f"\r{show.size(done)} of {show.size(total)} ", end=end, file=sys.stderr, flush=True)

    return tell


def _said(session: Session, version: int, what: str) -> int:
    if session.json:
        show.print_json({"object": "volume.commit", "name": session.args.name, "version": version})
    else:
        session.out(f"{what}; {session.args.name} is at version {version}")
    return 0


def create(session: Session) -> int:
    """Make a volume."""
    args = session.args
    body = {"name": args.name, "size_gb": args.size_gb or 0.0, "region": args.region or ""}
    made = session.api.post(NOUN.path, body, **session.scope)
    NOUN.card(session, made)
    return 0


def resize(session: Session) -> int:
    """Change how large it may become."""
    made = session.api.patch(session.path(NOUN.path, session.args.name), {"size_gb": session.args.size_gb})
    NOUN.card(session, made)
    return 0


def ls(session: Session) -> int:
    """What a directory of the newest version holds."""
    found = _volume(session).listdir(session.args.path or "", recursive=session.args.recursive)
    if session.json:
        rows: list[Any] = [
            {"path": one.path, "size": one.size, "mode": one.mode} if isinstance(one, FileInfo) else {"path": one}
            for one in found
        ]
        show.print_page(rows)
        return 0
    for one in found:
        size = str(one.size) if isinstance(one, FileInfo) else ""
        print(f"{size:>14}  {one.path if isinstance(one, FileInfo) else one}")
    return 0


def put(session: Session) -> int:
    """Put a file or a directory of this machine into the volume."""
    args, volume = session.args, _volume(session)
    local = Path(args.local)
    if local.is_dir():
        version = volume.put_directory(local, args.path or "", progress=_bar(session))
    else:
        version = volume.put_file(local, args.path or "", progress=_bar(session))
    return _said(session, version, f"{args.local} is stored")


def get_file(session: Session) -> int:
    """Write a file of the volume to this machine, or with `-` to standard output."""
    args, volume = session.args, _volume(session)
    if args.local == "-":
        sys.stdout.buffer.write(volume.read_file(args.path))
        sys.stdout.buffer.flush()
        return 0
    volume.get_file(args.path, args.local or ".", progress=_bar(session))
    return 0


def remove(session: Session) -> int:
    """Remove files."""
    version = _volume(session).remove(session.args.path, recursive=session.args.recursive)
    return _said(session, version, f"{session.args.path} is removed")


_RECURSIVE: Final = option("-r", "--recursive", action="store_true", help="everything below a directory")
configure, run = commands(
    Verb(
        "create", "make a volume", create,
        (
            NAME,
            option("--size-gb", type=float, metavar="GB", help="how large it may become (default: no limit)"),
            option("--region", metavar="R", help="where it should be near"),
        ),
        ("nanopod volumes create models --size-gb 50",),
    ),
    replace(NOUN.list_verb(), aliases=()),
    NOUN.get_verb(examples=("nanopod volumes get models",)),
    Verb(
        "ls", "list files of the newest version", ls, (NAME, option("path", metavar="PATH", nargs="?"), _RECURSIVE),
        ("nanopod volumes ls models llama/",),
    ),
    Verb(
        "put", "put a file or a directory into a volume", put,
        (NAME, option("local", metavar="LOCAL"), option("path", metavar="PATH", nargs="?")),
        ("nanopod volumes put models ./llama llama",),
    ),
    Verb(
        "get-file", "write a file of a volume to this machine", get_file,
        (
            NAME, option("path", metavar="PATH"),
            option("local", metavar="LOCAL", nargs="?", help="default: here; - prints it"),
        ),
        ("nanopod volumes get-file models llama/config.json -",),
    ),
    Verb("rm", "remove files from a volume", remove, (NAME, option("path", metavar="PATH"), _RECURSIVE),
         ("nanopod volumes rm models llama -r",)),
    Verb(
        "resize", "change how large a volume may become", resize,
        (NAME, option("size_gb", type=float, metavar="GB", help="0: no limit")), ("nanopod volumes resize models 100",),
    ),
    replace(NOUN.delete_verb(examples=("nanopod volumes delete models",)), aliases=()),
)  # fmt: skip
