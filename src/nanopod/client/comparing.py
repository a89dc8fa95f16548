"""What is deployed against what is here: the first line that differs in each file, and code that is older than that."""

from __future__ import annotations

import io
import sys
import tarfile
import warnings
from collections.abc import Mapping
from difflib import SequenceMatcher
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanopod.client import fingerprint
from nanopod.client.api import Api, segment
from nanopod.client.bundle import Bundle
from nanopod.model.endpoint import EndpointSpec
from nanopod.model.errors import NanopodError

if TYPE_CHECKING:
    from nanopod.client.sdk import Deployment

LINES_MAX: Final = 20
"""Files whose first difference a plan shows."""
CHANGES_MAX: Final = 50
"""Changes in one file that are looked at for the first that counts."""
LINE_CHARS_MAX: Final = 100
UNPACKED_BYTES_MAX: Final = 512 << 20


def was_merely_imported(app: Deployment) -> bool:
    """True when neither the file itself was run, nor a command was told to deploy it."""
    if app._meant or app._source is None:
        return False
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return main is None or Path(main).resolve() != app._source.file


def is_older(api: Api, app: Deployment, spec: EndpointSpec, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The deployed endpoint when the code here is one of its earlier revisions; warns then. None otherwise."""
    answer = api.post("/v1/endpoints", body, dry_run=1)
    earlier, endpoint = answer.get("earlier_revision"), answer.get("endpoint")
    if earlier is None or not endpoint:
        return None
    name = f"{spec.name}:{spec.tag}"
    warnings.warn(
        f"the code of {name} here is revision {earlier}, older than what is deployed (revision "
        f"{endpoint.get('revision_number')}); it was only imported, so calls run what is deployed. To go back, use: "
        f"nanopod rollback {name} {earlier}",
        stacklevel=4,
    )
    return dict(endpoint)


def first_differences(api: Api, endpoint: Mapping[str, Any] | None, files: list[str], bundle: Bundle) -> list[str]:
    """`path:line: - old + new` for Python files that differ; for other files, and where the deployed bundle is not to
    be had, the path alone."""
    if not endpoint or not files:
        return []
    try:
        deployed = _deployed(api, str(endpoint.get("id")))
    except (NanopodError, OSError, tarfile.TarError, EOFError):
        return [f"{path} differs" for path in files[:LINES_MAX]]
    said: list[str] = []
    for path in files[:LINES_MAX]:
        old, new = deployed.get(path), bundle.files.get(path)
        if new is None or old is None:
            said.append(f"{path} is {'gone' if new is None else 'new'}")
        elif path in bundle.python:
            said.append(_first(path, old, new))
        else:
            said.append(f"{path} differs")
    if len(files) > LINES_MAX:
        said.append(f"and {len(files) - LINES_MAX} more files")
    return said


def _deployed(api: Api, endpoint_id: str) -> dict[str, bytes]:
    """The files of the newest revision's bundle."""
    page = api.get(f"/v1/endpoints/{segment(endpoint_id)}/revisions", limit=1)
    digest = next((str(row["bundle"]) for row in page.get("data") or () if row.get("bundle")), "")
    if not digest:
        return {}
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(api.raw("GET", f"/v1/blobs/{digest}"))) as archive:
        size = 0
        for member in archive:
            size += member.size
            if size > UNPACKED_BYTES_MAX:
                break
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                found[member.name.removeprefix("./")] = content.read()
    return found


def _first(path: str, old: bytes, new: bytes) -> str:
    """The first line at which two versions of a Python file differ in what counts: not in comments, settings of the
    scaling, and what else a fingerprint leaves out."""
    before, after = _lines(old), _lines(new)
    same = _meaning(before)
    changes = (change for change in SequenceMatcher(None, before, after).get_opcodes() if change[0] != "equal")
    for _, a, b, c, d in islice(changes, CHANGES_MAX):
        if _meaning([*before[:a], *after[c:d], *before[b:]]) == same:
            continue
        for number, (was, now) in enumerate(zip_longest(before[a:b], after[c:d]), c + 1):
            if not (_says_nothing(was) and _says_nothing(now)):
                return f"{path}:{number}: - {_shown(was)} + {_shown(now)}"
    return f"{path} differs"


def _meaning(lines: list[str]) -> str:
    return fingerprint.of_python("\n".join(lines).encode())


def _lines(source: bytes) -> list[str]:
    return fingerprint.without_marked_lines(source).decode("utf-8", "replace").splitlines()


def _says_nothing(line: str | None) -> bool:
    return not line or not line.strip() or line.lstrip().startswith("#")


def _shown(line: str | None) -> str:
    text = "(nothing)" if line is None else line.strip()
    return text if len(text) <= LINE_CHARS_MAX else text[: LINE_CHARS_MAX - 3] + "..."
