"""Names of the files in an instance's directory, and two ways to touch them. Imports little: the shim uses it.

```
spec.json      what to run and how (0600: it holds the join token)     log            what it printed
instance.json  who runs it: boot id, pid, start time, session          journal/       the same with times and numbers
app/           the unpacked bundle, the worker's directory             control.sock   ping, status, stop, exec
failure.json   why it cannot serve, in the worker's words              lock           held while anything of it lives
exit.json      how it ended                                            shutdown.json  when its time will be over
metadata.sock  what it may know of itself, over HTTP                   on_shutdown    run when that is announced
hooked.json    the announcement for which that was run         swap.sock      takes new function bodies, or models
next/          a newer bundle, while it is swapped in
volumes/       a link to each of its volumes                           mounts.json    where those are
storage/       the files that were fetched for it                      links          paths outside that lead to them
```
A machine has besides:
```
home/          its home directory                                      image/         its unpacked image
boot.json      what its start-up consists of                           state.json     how far its start-up got
```
"""

from __future__ import annotations

import os
from typing import Final

SPEC: Final = "spec.json"
INSTANCE: Final = "instance.json"
FAILURE: Final = "failure.json"
EXIT: Final = "exit.json"
LOG: Final = "log"
LOCK: Final = "lock"
CONTROL: Final = "control.sock"
APP: Final = "app"
JOURNAL: Final = "journal"
SHUTDOWN: Final = "shutdown.json"
METADATA: Final = "metadata.sock"
HOOK: Final = "on_shutdown"
HOOKED: Final = "hooked.json"
SWAP: Final = "swap.sock"
MOUNTS: Final = "mounts.json"
VOLUMES: Final = "volumes"
STORAGE: Final = "storage"
LINKS: Final = "links"
NEXT: Final = "next"
HOME: Final = "home"
IMAGE: Final = "image"
BOOT: Final = "boot.json"
STATE: Final = "state.json"

TAIL_LINES: Final = 50
TAIL_BYTES: Final = 32_768


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file as a whole, mode 0600: readers see the old content or the new, never a part."""
    part = f"{os.fspath(path)}.part"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
    os.replace(part, path)


def tail_of(path: str | os.PathLike[str], lines: int = TAIL_LINES) -> str:
    """The last lines of a text file; empty when there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
