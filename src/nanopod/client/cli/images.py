"""`nanopod images`: root file systems as archives, uploaded in parts."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

from nanopod.client.cli import show
from nanopod.client.cli.nouns import Noun, commands, field_of, moment_of
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid

PART_BYTES: Final = 16 << 20
IMAGE_BYTES_MAX: Final = 128 << 30
CONCURRENCY_MAX: Final = 16

NOUN: Final = Noun(
    "image", "images", "/v1/images",
    columns=[
        ("NAME", field_of("name")), ("STATUS", field_of("upload_status")),
        ("SIZE", lambda _s, row: show.size(row.get("size"))), ("PUBLIC", field_of("is_public")),
        ("CREATED", moment_of("created_at")), ("ID", field_of("id")),
    ],
    wide=[("SHA256", field_of("sha256")), ("WORKSPACE", field_of("workspace"))],
    empty="no images; `host` is the machine's own system; upload one with: nanopod images upload -f FILE -n NAME",
)  # fmt: skip


def upload(session: Session) -> int:
    """Start an image, send its parts, complete it; a failure names the image, so that it can be deleted."""
    args = session.args
    path = Path(args.file).expanduser()
    if not path.is_file():
        raise Invalid(f"--file {args.file}: there is no such file; give a tar archive", field="file")
    size = path.stat().st_size
    if not 0 < size <= IMAGE_BYTES_MAX:
        raise Invalid(f"--file {args.file} has {size} bytes; an image has 1 to {IMAGE_BYTES_MAX}", field="file")
    if not 1 <= args.concurrency <= CONCURRENCY_MAX:
        raise Invalid(f"--concurrency {args.concurrency} must be from 1 to {CONCURRENCY_MAX}", field="concurrency")
    image = NOUN.create(session, {"name": args.name})
    base = session.path(NOUN.path, str(image["id"]))
    with _progress(session, args.name, size) as sent:
        digest = _send_parts(session, base, path, size, sent)
    done = session.api.post(f"{base}/complete", {"sha256": digest, "size": size}, **session.scope)
    done = session.wait_until(
        lambda: session.api.get(base, **session.scope), lambda row: row.get("upload_status") != "uploading", done
    )
    NOUN.card(session, done)
    if done.get("upload_status") == "uploading":
        session.note(f"its parts are still being joined; see: nanopod images get {args.name}")
    return 0 if done.get("upload_status") != "failed" else 1


def _send_parts(session: Session, base: str, path: Path, size: int, sent: Callable[[int], None]) -> str:
    """Send all parts, a few at a time; the SHA-256 of the whole file."""
    whole = hashlib.sha256()
    numbers = range(1, -(-size // PART_BYTES) + 1)

    def send(number: int, data: bytes) -> int:
        digest = hashlib.sha256(data).hexdigest()
        path = f"{base}/parts/{number}"
        session.api.raw("PUT", path, data, accept="application/json", **session.scope, sha256=digest)
        return len(data)

    running: set[Future[int]] = set()
    with open(path, "rb") as file, ThreadPoolExecutor(session.args.concurrency, "part") as pool:
        try:
            for number in numbers:
                data = file.read(PART_BYTES)
                whole.update(data)
                running.add(pool.submit(send, number, data))
                if len(running) >= session.args.concurrency:
                    running = _settle(running, sent)
            while running:
                running = _settle(running, sent)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            session.note(f"the upload did not finish; delete it with: nanopod images delete {session.args.name}")
            raise
    return whole.hexdigest()


def _settle(running: set[Future[int]], sent: Callable[[int], None]) -> set[Future[int]]:
    done, rest = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        sent(future.result())
    return rest


@contextlib.contextmanager
def _progress(session: Session, name: str, size: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error where a person watches."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if session.json or not console.is_terminal or os.environ.get("TERM") == "dumb":
        yield lambda _count: None
        return
    speed = (TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), *speed, console=console) as progress:
        task = progress.add_task(name, total=size)
        yield lambda count: progress.advance(task, count)


def download(session: Session) -> int:
    """Fetch an image's archive into a file."""
    data = session.api.raw("GET", session.path(NOUN.path, session.args.id, "download"), **session.scope)
    target = Path(session.args.file).expanduser()
    target.write_bytes(data)
    session.out(f"{len(data)} bytes in {target}")
    return 0


def _step(name: str, told: str) -> Any:
    def run(session: Session) -> int:
        image = session.api.post(session.path(NOUN.path, session.args.id, name), **session.scope)
        NOUN.card(session, image)
        session.note(told)
        return 0

    return run


configure, run = commands(
    Verb(
        "upload", "upload a tar archive of a root file system", upload,
        (
            option("--file", "-f", metavar="FILE", required=True),
            option("--name", "-n", metavar="NAME", required=True),
            option("--concurrency", type=int, default=4, metavar="N", help="parts sent at once (default: 4)"),
        ),
        ("nanopod images upload -f rootfs.tar -n ubuntu-22.04.5-cuda-12.7",), waits=True,
    ),
    NOUN.list_verb(),
    NOUN.get_verb(examples=("nanopod images get ubuntu-22.04.5-cuda-12.7",)),
    Verb("download", "fetch an image's archive", download,
         (NOUN.reference(), option("--file", "-f", metavar="FILE", required=True)),
         ("nanopod images download ubuntu-22.04.5-cuda-12.7 -f rootfs.tar",)),
    Verb("revoke", "let no new instances use an image",
         _step("revoke", "running instances keep it; `nanopod images reinstate` undoes this"), (NOUN.reference(),),
         ("nanopod images revoke ubuntu-22.04.5-cuda-12.7",)),
    Verb("reinstate", "let a revoked image be used again", _step("reinstate", "it can be used again"),
         (NOUN.reference(),), ("nanopod images reinstate ubuntu-22.04.5-cuda-12.7",)),
    NOUN.delete_verb(examples=("nanopod images delete ubuntu-22.04.5-cuda-12.7",)),
)  # fmt: skip
