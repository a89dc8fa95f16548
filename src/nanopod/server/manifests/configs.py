"""ConfigMaps: text that becomes variables of workers and small files of mounts. It is kept with what names it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nanopod.server.manifests.fields import Problems, Reader
from nanopod.server.manifests.reading import Document
from nanopod.server.manifests.services import read_meta

BYTES_MAX: Final = 1 << 20
_KEY: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")


@dataclass(frozen=True, slots=True)
class ConfigAsked:
    """A ConfigMap as it was read."""

    name: str
    data: Mapping[str, str] = field(default_factory=dict)


def read_config(document: Document, problems: Problems) -> ConfigAsked:
    """A ConfigMap."""
    whole = Reader(document.data, "", problems)
    meta = read_meta(whole, dns=False)
    data = whole.pairs("data")
    binary = whole.object("binaryData")
    for key, value in binary.value.items() if binary is not None else ():
        at = f"binaryData.{key}"
        if key in data:
            problems.error(at, "is in data as well; leave one out")
        try:
            data[str(key)] = base64.b64decode("".join(str(value).split()), validate=True).decode()
        except UnicodeDecodeError:
            problems.error(at, "is not UTF-8 text; keep binary files in a volume")
        except ValueError:
            problems.error(at, "is not base64; encode it, or write it as it is under data")
    whole.quietly("immutable")
    whole.done()
    for key in data:
        if not _KEY.fullmatch(key):
            problems.error(f"data.{key}", f"{key[:80]!r} must be letters, digits, - _ .")
    if sum(len(key) + len(value.encode()) for key, value in data.items()) > BYTES_MAX:
        problems.error("data", f"has more than {BYTES_MAX >> 20} MiB; keep large files in a volume")
    return ConfigAsked(meta.name, data)
