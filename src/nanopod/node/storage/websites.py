"""Single files over HTTP, blobs of Azure, and repositories of a Hugging Face hub."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import posixpath
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode
from xml.etree import ElementTree

from nanopod.node.storage import schemes
from nanopod.node.storage.buckets import OBJECTS_MAX, Settings, listed, path_of, setting
from nanopod.node.storage.errors import Broken, StorageFailed
from nanopod.node.storage.schemes import Place
from nanopod.node.storage.streams import Remote, Stream, ask, document, of, stated_sha256, stream

HUB: Final = "https://huggingface.co"
PLAIN: Final = ("application/octet-stream", "binary/octet-stream")
ARCHIVES: Final = (
    "application/zip", "application/x-zip-compressed", "application/zip-compressed", "application/tar",
    "application/x-tar", "application/x-gtar", "application/x-gzip", "application/gzip", "application/x-compressed-tar",
)  # fmt: skip


# --- a file of a web server ---


def web(place: Place, settings: Settings) -> list[Remote]:
    """The one file of a URL. Raises `StorageFailed` or `Broken`."""
    scheme = "https" if place.secure else "http"
    url = f"{scheme}://{place.host}/{place.path}" + (f"?{place.query}" if place.query else "")
    headers = _web_headers(place, settings)
    name = unquote(posixpath.basename(place.path))
    # One byte, not HEAD: signed URLs are often good for GET alone. 416: it is empty.
    answer = ask(url, {**headers, "Range": "bytes=0-0"}, place.shown, also=(416,))
    with contextlib.closing(answer.body):
        kind = (answer.headers.get("Content-Type") or PLAIN[0]).partition(";")[0].strip().lower()
        if kind not in PLAIN + ARCHIVES:
            raise StorageFailed(
                f"{place.shown} has the content type {kind}; a model file must be served as {PLAIN[0]}, an archive as "
                f"{ARCHIVES[0]}, {ARCHIVES[5]} or {ARCHIVES[8]}"
            )
        whole = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
        found = of(answer, 0)
        size = (int(whole) if whole.isdigit() else None) if answer.status in (206, 416) else found.size

    def get(start: int, mark: str) -> Stream:
        return stream(url, headers, place.shown, start, mark)

    who = base64.b64encode(json.dumps(sorted(headers.items())).encode()).decode()
    return [Remote(name, f"web {url} {who}", get, size, found.mark)]


def _web_headers(place: Place, settings: Settings) -> dict[str, str]:
    """Headers for a host, as `HOST-headers` holds them: a JSON object."""
    bare = place.host.partition(":")[0]
    name = next((name for name in (f"{place.host}-headers", f"{bare}-headers") if settings.get(name)), "")
    found: dict[str, str] = {}
    if name:
        try:
            given = json.loads(settings[name])
            found = {str(key): str(value) for key, value in given.items()}
        except (ValueError, AttributeError):
            raise StorageFailed(f'{name}: it must be a JSON object of headers, such as {{"X-Token": "..."}}') from None
    if token := settings.get("AUTHORIZATION"):
        found.setdefault("Authorization", token)
    if any("\n" in text or "\r" in text for pair in found.items() for text in pair):
        raise StorageFailed(f"{name}: a header cannot hold a line break")
    return found


# --- Azure ---


def azure(place: Place, settings: Settings) -> list[Remote]:
    """The blobs below `container/prefix`. Raises `StorageFailed` or `Broken`."""
    container, _, prefix = place.path.partition("/")
    base = setting(settings, "AZURE_STORAGE_BLOB_ENDPOINT").rstrip("/") or f"https://{place.host}"
    sas = setting(settings, "AZURE_STORAGE_SAS_TOKEN").lstrip("?") or place.query
    signed = parse_qsl(sas, keep_blank_values=True)
    headers = {"X-ms-version": "2021-08-06"}
    below = Place("azure", place.shown, place.host, prefix)
    rows: list[Remote] = []
    marker = ""
    while True:
        asked = [("restype", "container"), ("comp", "list"), ("prefix", prefix), *signed]
        asked += [("marker", marker)] if marker else []
        raw = document(f"{base}/{quote(container)}?{urlencode(asked)}", headers, place.shown)
        if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
            raise StorageFailed(f"{place.shown}: the listing declares entities, which no blob service does")
        try:
            root = ElementTree.fromstring(raw)
        except ElementTree.ParseError as error:
            raise Broken(f"{place.shown}: the listing is not understood: {error}") from None
        for blob in root.iter("Blob"):
            name = blob.findtext("Name") or ""
            if path := path_of(name, below):
                rows.append(_azure_blob(base, container, name, path, blob, headers, urlencode(signed)))
        marker = root.findtext("NextMarker") or ""
        if not marker or len(rows) > OBJECTS_MAX:
            return listed(rows, place)


def _azure_blob(
    base: str, container: str, name: str, path: str, blob: ElementTree.Element, headers: Mapping[str, str], sas: str
) -> Remote:
    url = f"{base}/{quote(container)}/{quote(name)}" + (f"?{sas}" if sas else "")
    mark = (blob.findtext("Properties/Etag") or "").strip('"')
    digest: tuple[str, str] | None = None
    with contextlib.suppress(binascii.Error, ValueError):
        if text := blob.findtext("Properties/Content-MD5"):
            digest = ("md5", base64.b64decode(text).hex())

    def get(start: int, _mark: str) -> Stream:
        return stream(url, headers, f"{base}/{container}/{name}", start, f'"{mark}"' if mark else "", digest)

    size = blob.findtext("Properties/Content-Length")
    known = int(size) if size and size.isdigit() else None
    return Remote(path, f"azure {base} {container} {name}", get, known, mark, digest)


# --- Hugging Face ---


def hf(place: Place, settings: Settings) -> list[Remote]:
    """The files of a hub's repository at one commit. Raises `StorageFailed` or `Broken`."""
    base = (setting(settings, "HF_ENDPOINT") or os.environ.get("HF_ENDPOINT", "") or HUB).rstrip("/")
    token = setting(settings, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    revision = quote(place.ref or "main", safe="")
    raw = document(f"{base}/api/models/{place.host}/revision/{revision}?blobs=true", headers, place.shown)
    rows: list[Remote] = []
    try:
        found = json.loads(raw)
        commit = str(found.get("sha") or place.ref or "main")
        for row in found["siblings"]:
            name = schemes.inside(str(row["rfilename"]))
            if name:
                rows.append(_hf_file(base, place, headers, commit, name, row))
    except schemes.BadUri as error:
        raise StorageFailed(f"{place.shown}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Broken(f"{place.shown}: the hub's answer is not understood: {error!r}") from None
    return listed(rows, place)


def _hf_file(
    base: str, place: Place, headers: Mapping[str, str], commit: str, name: str, row: Mapping[str, Any]
) -> Remote:
    url = f"{base}/{place.host}/resolve/{quote(commit, safe='')}/{quote(name)}"
    lfs = row.get("lfs") or {}
    sha256 = str(lfs.get("sha256") or lfs.get("oid") or "").removeprefix("sha256:")
    digest = ("sha256", sha256) if len(sha256) == 64 else None
    size = lfs.get("size") or row.get("size")

    def get(start: int, _mark: str) -> Stream:
        given = {**headers, **({"Range": f"bytes={start}-"} if start else {})}
        answer = ask(url, given, f"hf://{place.host}/{name}", also=(416,))
        if answer.status == 416:
            answer.body.close()
            answer = ask(url, headers, f"hf://{place.host}/{name}")
        stated = next((one for one in map(stated_sha256, (*answer.passed, answer.headers)) if one), None)
        return of(answer, start, digest or (("sha256", stated) if stated else None))

    # At one commit a file never changes; by its own id it is known at every commit that has it.
    mark = sha256 or str(row.get("blobId") or "") or commit
    whole = int(size) if isinstance(size, int) else None
    return Remote(name, f"hf {base} {place.host} {name}", get, whole, mark, digest)
