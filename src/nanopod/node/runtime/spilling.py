"""Large arguments and results on the worker's side: fetched from, and put to, its own cloud by their digest."""

from __future__ import annotations

import http.client
import os
import random
import time
from typing import Final
from urllib.parse import urlsplit

from nanopod.model import calls, spill
from nanopod.model.errors import Invalid, NoCapacity, NotFound

TRIES_MAX: Final = 5
REQUEST_S_MAX: Final = 60.0


def spilled(payload: bytes, what: str) -> bytes:
    """What to answer with: the payload, or a reference once the server has it. Blocks; raises `Invalid`."""
    if len(payload) <= calls.INLINE_BYTES_MAX:
        return payload
    if not os.environ.get("NANOPOD_URL"):
        raise Invalid(
            f"{what} is {len(payload)} bytes, at most {calls.INLINE_BYTES_MAX} travel in one piece where the worker "
            "does not know its cloud's address; store it and return where"
        )
    reference = spill.refer(payload, what)
    status, _ = _ask("HEAD", reference, None)
    if status >= 300:
        status, _ = _ask("PUT", reference, payload)
    if status >= 300:
        raise NoCapacity(f"{what} cannot be stored: the server answered {status}")
    return spill.encode(reference)


def fetched(payload: bytes) -> bytes:
    """The arguments behind what arrived. Blocks; raises `NotFound` when the server dropped them."""
    reference = spill.decode(payload)
    if reference is None:
        return payload
    status, found = _ask("GET", reference, None)
    if status == 404:
        raise NotFound(f"the arguments {reference.sha256} are not kept any more; make the call again")
    if status >= 300:
        raise NoCapacity(f"the arguments cannot be fetched: the server answered {status}")
    return spill.check(reference, found)


def _ask(method: str, reference: spill.Reference, body: bytes | None) -> tuple[int, bytes]:
    """(status, body) of a request to this worker's cloud. Raises `NoCapacity` when it does not answer."""
    url = urlsplit(os.environ.get("NANOPOD_URL", ""))
    make = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    headers = {"Authorization": f"Bearer {os.environ.get('NANOPOD_API_KEY', '')}"}
    if body is not None:
        headers["Content-Type"] = "application/octet-stream"
    path = url.path.rstrip("/") + spill.PATH + reference.sha256
    trouble: Exception | None = None
    for attempt in range(TRIES_MAX):
        if attempt:
            time.sleep(random.uniform(0.01, min(5.0, 0.1 * 2.0**attempt)))
        connection = make(url.hostname or "", url.port, timeout=REQUEST_S_MAX)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            found = answer.read()
        except (OSError, http.client.HTTPException) as error:
            trouble = error
            continue
        finally:
            connection.close()
        if answer.status not in (429, 502, 503, 504) or attempt == TRIES_MAX - 1:
            return answer.status, found
    raise NoCapacity(f"a large payload cannot be moved: the cloud does not answer: {trouble}")
