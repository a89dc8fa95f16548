"""Files of volumes as they travel: in parts that are named by their content, and listed in a manifest.

A manifest is {path: (blob, bytes, mode)}; `blob` holds the SHA-256 (hex) of the parts in order, with blanks between
them, and is empty for an empty file. All parts but the last have `PART_BYTES`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

PART_BYTES: Final = 16 << 20
MODE_PLAIN: Final = 0o644
MODE_PROGRAM: Final = 0o755

Entry = tuple[str, int, int]
Manifest = dict[str, Entry]


def digest_of(part: bytes) -> str:
    """What a part is called."""
    return hashlib.sha256(part).hexdigest()


def mode_of(mode: int) -> int:
    """A file's mode as volumes keep it: whether it is a program."""
    return MODE_PROGRAM if mode & 0o100 else MODE_PLAIN


def manifest_of(files: Mapping[str, Any]) -> Manifest:
    """A manifest from JSON."""
    return {path: (str(entry[0]), int(entry[1]), int(entry[2])) for path, entry in files.items()}


def changes(base: Manifest, now: Manifest) -> dict[str, dict[str, Any]]:
    """What a commit sends so that who had `base` has `now`: for each path what is new and what was seen before."""
    found: dict[str, dict[str, Any]] = {}
    for path, (blob, size, mode) in now.items():
        before = base.get(path)
        if before != (blob, size, mode):
            was = before[0] if before is not None else None
            found[path] = {"blob": blob, "bytes": size, "mode": mode, "was": was}
    for path, (blob, _, _) in base.items():
        if path not in now:
            found[path] = {"gone": True, "was": blob}
    return found


def plain_path(path: str) -> str:
    """A path in a volume without slashes around it; "" for the whole. Raises `ValueError` for one that leads out."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise ValueError(f"{path!r} leads out of the volume; give a path inside it, without ..")
    return "/".join(parts)
