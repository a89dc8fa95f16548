"""Takes the values of secrets out of what an instance prints and of its errors. Imports little: the shim uses it.

A value is looked for as it is, as JSON and Python show it, and by its lines when it has several. Values of less than
`CHARACTERS_MIN` characters are left: they would be found everywhere.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, MutableMapping
from typing import Final

CHARACTERS_MIN: Final = 6
LINE_CHARACTERS_MIN: Final = 12
"""Lines of a value that has several are short words at times."""
SHOWN: Final = "[secret]"
CARRIED: Final = "NANOPOD_SECRET_"
"""Variables by which a shim gets the pairs of secrets: their names follow this."""
NAMES: Final = "NANOPOD_SECRET_NAMES"
"""The variable that tells a worker which of its variables are secret."""


def taken(environ: MutableMapping[str, str]) -> dict[str, str]:
    """The pairs that were given to a shim; its environment holds them no more."""
    names = [name for name in environ if name.startswith(CARRIED) and name != NAMES]
    return {name.removeprefix(CARRIED): environ.pop(name) for name in names}


def _forms(values: Iterable[str]) -> list[bytes]:
    found: set[str] = set()
    for value in values:
        texts = {value, value.strip("\n"), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
        texts |= {repr(value)[1:-1]}
        found |= {text for text in texts if len(text) >= CHARACTERS_MIN}
        if "\n" in value:
            found |= {line.strip() for line in value.split("\n") if len(line.strip()) >= LINE_CHARACTERS_MIN}
    # The longest first: one value may be a part of another.
    return sorted((text.encode("utf-8", "surrogateescape") for text in found), key=lambda data: (-len(data), data))


class Redactor:
    """Knows some values. False when there are none that it looks for."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._forms = _forms(values)
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms))) if self._forms else None
        self._rest = {1: b"", 2: b""}

    def __bool__(self) -> bool:
        return self._pattern is not None

    def text(self, text: str) -> str:
        """Text without the values."""
        if self._pattern is None or not text:
            return text
        data = text.encode("utf-8", "surrogatepass")
        clean = self._pattern.sub(SHOWN.encode(), data)
        return text if clean == data else clean.decode("utf-8", "surrogatepass")

    def blotted(self, data: bytes) -> bytes:
        """Encoded bytes in which stars stand for the values; their length is the same, so they can be decoded."""
        if self._pattern is None:
            return data
        return self._pattern.sub(lambda found: b"*" * len(found[0]), data)

    def feed(self, stream: int, data: bytes) -> bytes:
        """What may be shown of a stream's output so far. An end that may begin a value waits for what follows it."""
        if self._pattern is None:
            return data
        whole = self._pattern.sub(SHOWN.encode(), self._rest[stream] + data)
        keep = max((_overlap(whole, form) for form in self._forms), default=0)
        self._rest[stream] = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def finish(self, stream: int) -> bytes:
        """What was kept back at a stream's end; a longer part of a value is not shown."""
        rest, self._rest[stream] = self._rest[stream], b""
        return rest if len(rest) < CHARACTERS_MIN else SHOWN.encode()


def _overlap(data: bytes, form: bytes) -> int:
    """The length of the longest end of `data` that is a beginning of `form`, and not all of it."""
    length = min(len(data), len(form) - 1)
    tail = data[len(data) - length :]
    first = form[:1]
    at = tail.find(first)
    while at >= 0:
        if form.startswith(tail[at:]):
            return length - at
        at = tail.find(first, at + 1)
    return 0


_here: Redactor | None = None


def here() -> Redactor:
    """The redactor of this worker's own secrets."""
    global _here
    if _here is None:
        names = os.environ.get(NAMES, "").split(",")
        _here = Redactor(os.environ[name] for name in names if name in os.environ)
    return _here
