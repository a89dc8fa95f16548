"""Addresses of functions and applications, as far as they need no server."""

from __future__ import annotations

from typing import Any

import pytest

from nanopod.client.sdk import Deployment, Route
from nanopod.model.errors import Invalid, NotReady


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """A deployment that is known as ready at a server."""
    monkeypatch.setenv("NANOPOD_URL", "http://cloud.test:8900/")
    made = Deployment(name="urls")

    @made.remote(web="GET /items/{id}", auth="public")
    def item(id: int) -> int:
        return id

    @made.remote
    async def hidden() -> None: ...

    @made.remote(web="/events")
    async def events() -> Any:
        yield 1

    made.asgi(lambda scope: None, path="/site/", name="site")
    return made


def test_urls_begin_with_the_endpoint(app: Deployment) -> None:
    app._route = Route("http://cloud.test:8900/", "sk", "endp_1")
    assert app.function("item").url == "http://cloud.test:8900/web/endp_1/items/{id}"
    assert app.generator("events").url == "http://cloud.test:8900/web/endp_1/events"
    assert app.url("item") == app.function("item").url
    assert app.url("site") == "http://cloud.test:8900/web/endp_1/site"
    assert app.url() == "http://cloud.test:8900/web/endp_1"
    app._route = Route("http://cloud.test", "sk", "urls:a b")
    assert app.url() == "http://cloud.test/web/urls:a%20b"


def test_what_has_no_url_says_so(app: Deployment) -> None:
    with pytest.raises(NotReady):
        _ = app.function("item").url
    app._route = Route("http://cloud.test", "sk", "endp_1")
    with pytest.raises(Invalid, match=r'web="POST /hidden"') as caught:
        _ = app.function("hidden").url
    assert caught.value.field == "web"
    with pytest.raises(Invalid, match="there is events, item, site"):
        app.url("nothing")


def test_urls_without_the_code_are_those_of_what_is_deployed() -> None:
    app = Deployment.from_name("urls-elsewhere", url="http://cloud.test")
    app._route = Route("http://cloud.test", "sk", "endp_2")
    app._endpoint = {
        "functions": [
            {"name": "square", "web": {"method": "POST", "path": "/square"}},
            {"name": "hidden", "web": None},
        ],
        "asgi": [{"name": "site", "path": "/"}],
    }
    assert app.function("square").url == "http://cloud.test/web/endp_2/square"
    assert app.url("site") == "http://cloud.test/web/endp_2"
    assert app.url("square") == "http://cloud.test/web/endp_2/square"
    for name in ("hidden", "unknown"):
        with pytest.raises(Invalid):
            _ = app.function(name).url
