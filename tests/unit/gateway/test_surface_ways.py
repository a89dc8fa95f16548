"""Requests with the same head go the way that the first one found, until something says otherwise."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Any

import pytest

from nanopod.gateway import heads
from nanopod.gateway.heads import Head, HeadCache
from nanopod.gateway.surface import Surface
from nanopod.gateway.tables import Known
from nanopod.model.wire import KeyRow, RouteRow, Tables

SECRET = "sk_np_one"
MODEL = RouteRow("e1", "w1", "talk", "default", "model", "r1", ("talk",))
IRIS = RouteRow("e2", "w1", "iris", "default", "model", "r1", ("iris",), protocols=("v1", "v2"), serves=("iris",))


def known(key: KeyRow | None, *routes: RouteRow) -> Known:
    digest = hmac.digest(b"p", SECRET.encode(), hashlib.sha256).hex()
    return Known(Tables(1, b"p", {digest: key} if key else {}, {one.endpoint_id: one for one in routes}, {}))


class Meter:
    full = False


class Gateway:
    """What the surface asks of one before it knows the way."""

    def __init__(self, tables: Known) -> None:
        self.tables = tables
        self.meter = Meter()
        self.stopping = False


def parsed(cache: HeadCache, path: str, host: str = "cloud", method: str = "POST") -> Head:
    text = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: 2\r\n\r\n"
    return cache.parse(text.encode())


def status_of(routed: Any) -> int:
    return routed[2].failed.status if routed[2] is not None else 0


PLACES = [
    ("/v1/chat/completions", "cloud"),
    ("/openai/v1/completions", "cloud"),
    ("/v1/chat/completions", "talk.localhost"),
    ("/v1/models/iris:predict", "cloud"),
    ("/v2/models/iris/infer", "iris.localhost"),
    ("/services/iris/v2/models/iris/infer", "cloud"),
]


@pytest.mark.parametrize(("path", "host"), PLACES)
def test_a_way_is_found_once_and_anew_with_other_tables(path: str, host: str) -> None:
    gateway = Gateway(known(KeyRow("k1", "w1", ("call",)), MODEL, IRIS))
    surface, cache = Surface(gateway), HeadCache()  # type: ignore[arg-type]
    first = surface.route(None, parsed(cache, path, host))  # type: ignore[arg-type]
    assert first is not None and status_of(first) == 0
    assert surface.route(None, parsed(cache, path, host)) is first  # type: ignore[arg-type]
    gateway.tables = known(KeyRow("k1", "w1", ("call",)), MODEL, IRIS)
    again = surface.route(None, parsed(cache, path, host))  # type: ignore[arg-type]
    assert again is not None and again is not first and status_of(again) == 0
    gateway.meter.full = True
    assert status_of(surface.route(None, parsed(cache, path, host))) == 503  # type: ignore[arg-type]
    gateway.meter.full = False
    assert surface.route(None, parsed(cache, path, host)) is again  # type: ignore[arg-type]
    gateway.tables = known(KeyRow("k1", "w1", ("read",)), MODEL, IRIS)
    assert status_of(surface.route(None, parsed(cache, path, host))) == 403  # type: ignore[arg-type]
    gateway.tables = known(None, MODEL, IRIS)
    assert status_of(surface.route(None, parsed(cache, path, host))) == 401  # type: ignore[arg-type]


def test_a_key_that_runs_out_is_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(known(KeyRow("k1", "w1", ("call",), None, time.time() + 60), MODEL))
    surface, cache = Surface(gateway), HeadCache()  # type: ignore[arg-type]
    assert status_of(surface.route(None, parsed(cache, "/v1/chat/completions"))) == 0  # type: ignore[arg-type]
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    assert status_of(surface.route(None, parsed(cache, "/v1/chat/completions"))) == 401  # type: ignore[arg-type]


def test_another_method_has_another_head() -> None:
    gateway = Gateway(known(KeyRow("k1", "w1", ("call",)), MODEL))
    surface, cache = Surface(gateway), HeadCache()  # type: ignore[arg-type]
    assert status_of(surface.route(None, parsed(cache, "/v1/completions"))) == 0  # type: ignore[arg-type]
    assert status_of(surface.route(None, parsed(cache, "/v1/completions", method="GET"))) == 405  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (("text/plain", "a b~"), 2),
        (("caf\xe9", "a\tb"), 2),
        (("a\r\nx: 1", "b"), 1),
        (("a\nb", "\x00"), 0),
    ],
)
def test_a_workers_header_is_one_line(values: tuple[str, str], kept: int) -> None:
    assert len(heads.fit(dict(zip("xy", values, strict=True)))) == kept
