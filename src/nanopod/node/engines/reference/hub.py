"""Downloading a model's files from a Hugging Face style hub, with the standard library alone.

Files land as `NAME.part` and are resumed by byte range after an interruption. A SHA-256 the hub states (for large files
it does, as `X-Linked-ETag`) is checked before the file gets its name. Credentials go to the hub's own host only.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from nanopod.node.storage.errors import StorageFailed
from nanopod.node.storage.streams import Redirects, stated_sha256

CONNECT_S_MAX = 4.0
"""Time to find out that there is no network, name look-up included."""

READ_S_MAX = 20.0
"""A transfer that gives no byte for so long is broken off and resumed."""

TRIES_MAX = 5
BACKOFF_S = 0.5
_CHUNK_BYTES = 1 << 20
_LIST_BYTES_MAX = 8 << 20

Progress = Callable[[str, int, int], None]
"""Called with (file, bytes so far, bytes in all; 0 when unknown)."""

_WANTED = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|chat_template\.jinja|modules\.json|"
    r"sentence_bert_config\.json|[0-9]+_[A-Za-z]+/config\.json|model\.safetensors|model\.safetensors\.index\.json|"
    r"model-[0-9]{5}-of-[0-9]{5}\.safetensors"
)


class HubError(RuntimeError):
    """The hub did not give the model; the message says why. `permanent` errors are not worth another try."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        """Keep whether trying again could help."""
        super().__init__(message)
        self.permanent = permanent


def reachable(url: str, limit_s: float = CONNECT_S_MAX) -> bool:
    """Whether the host of `url` (or the configured proxy) accepts a connection within `limit_s`."""
    parts = urllib.parse.urlsplit(url)
    if not urllib.request.proxy_bypass(parts.hostname or ""):
        proxy = urllib.request.getproxies().get(parts.scheme)
        if proxy:
            parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    answer: list[bool] = []

    def connect() -> None:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname or "", port), timeout=limit_s):
            answer.append(True)

    # A name look-up has no timeout of its own, so it is left behind in a thread when it takes too long.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(limit_s)
    return bool(answer)


class Hub:
    """One hub endpoint."""

    def __init__(self, endpoint: str | None = None, token: str | None = None, backoff_s: float = BACKOFF_S) -> None:
        """Endpoint and token default to HF_ENDPOINT and HF_TOKEN."""
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self._token = token if token is not None else os.environ.get("HF_TOKEN")
        self._backoff_s = backoff_s

    def _open(self, url: str, start: int = 0) -> tuple[http.client.HTTPResponse, str | None]:
        redirects = Redirects(frozenset({"Authorization"}))
        request = urllib.request.Request(url, headers={"User-Agent": "nanopod"})
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        if start:
            request.add_header("Range", f"bytes={start}-")
        response = urllib.request.build_opener(redirects).open(request, timeout=READ_S_MAX)
        stated = map(stated_sha256, (*reversed(redirects.passed), response.headers))
        return response, next(filter(None, stated), None)

    def _retry(self, what: str, action: Callable[[], bool]) -> None:
        """Call `action` until it returns True, at most `TRIES_MAX` times, with jittered back-off."""
        last = "no answer"
        for number in range(TRIES_MAX):
            if number:
                time.sleep(self._backoff_s * 2 ** (number - 1) * random.uniform(0.5, 1.0))
            try:
                if action():
                    return
                last = "the transfer broke off"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in (401, 403, 404):
                    hint = "is the name right, and has HF_TOKEN access?"
                    raise HubError(f"{what}: the hub answered {error.code}; {hint}", permanent=True) from None
                last = f"the hub answered {error.code}"
            except StorageFailed as error:
                raise HubError(f"{what}: {error}", permanent=True) from None
            except HubError as error:
                if error.permanent:
                    raise
                last = str(error)
            except (OSError, http.client.HTTPException) as error:
                last = f"{type(error).__name__}: {error}"
        raise HubError(f"{what}: {last} ({TRIES_MAX} tries)")

    def files(self, name: str) -> tuple[str, list[str]]:
        """Commit and needed files of a model's main branch; raises `HubError`."""
        if not reachable(self.endpoint):
            raise HubError(f"{self.endpoint} cannot be reached", permanent=True)
        body: list[bytes] = []

        def ask() -> bool:
            response, _ = self._open(f"{self.endpoint}/api/models/{urllib.parse.quote(name)}/revision/main")
            with response:
                body[:] = [response.read(_LIST_BYTES_MAX)]
            return True

        self._retry(f"listing {name}", ask)
        try:
            document = json.loads(body[0])
            commit = str(document.get("sha") or "main")
            names = [str(entry["rfilename"]) for entry in document["siblings"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HubError(f"listing {name}: the hub's answer is not understood: {error!r}", permanent=True) from error
        if not re.fullmatch(r"[0-9A-Za-z._-]+", commit):
            raise HubError(f"listing {name}: the hub names a strange commit", permanent=True)
        wanted = [n for n in names if _WANTED.fullmatch(n)]
        if "model.safetensors" in wanted:
            wanted = [n for n in wanted if not re.match(r"model-|model\.safetensors\.index", n)]
        if not any(n.endswith(".safetensors") for n in wanted):
            raise HubError(f"{name} has no safetensors weights", permanent=True)
        if "tokenizer.json" not in wanted:
            raise HubError(f"{name} has no tokenizer.json", permanent=True)
        return commit, wanted

    def download(self, name: str, commit: str, file: str, target: Path, progress: Progress | None = None) -> None:
        """Fetch one file to `target`, going on from `target.part` where there is one; raises `HubError`."""
        if target.is_file():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        url = f"{self.endpoint}/{urllib.parse.quote(name)}/resolve/{commit}/{urllib.parse.quote(file)}"
        self._retry(f"downloading {name}/{file}", lambda: self._transfer(url, file, part, progress))
        os.replace(part, target)

    def _transfer(self, url: str, file: str, part: Path, progress: Progress | None) -> bool:
        """One try; True when `part` is whole and its digest, if the hub gave one, is right."""
        have = part.stat().st_size if part.exists() else 0
        try:
            response, sha256 = self._open(url, have)
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:
                # Nothing left to send, or the file changed: only a fresh copy is certain.
                part.unlink()
                error.close()
                return False
            raise
        with response:
            resumed = response.status == 206
            start = have if resumed else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length is not None else 0
            with part.open("ab" if resumed else "wb") as out:
                done = start
                while chunk := response.read(_CHUNK_BYTES):
                    out.write(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(file, done, total)
                out.flush()
                os.fsync(out.fileno())
        if total and done != total:
            return False
        if sha256 is not None and file_sha256(part) != sha256:
            part.unlink()
            raise HubError(f"{file}: the SHA-256 of what arrived is not the one the hub states")
        return True


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
