"""Functions with addresses, and a whole web application, on the one port of the cloud."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from nanopod import Deployment

app = Deployment(name="web-endpoint")
app.image("python").pip_install("starlette")
app.configure_autoscaling(cold_workers=1, max_workers=1)


@app.remote(web="POST /square", auth="public")
async def square(x: int) -> dict[str, int]:
    """JSON in, JSON out."""
    return {"result": x * x}


@app.remote(web="GET /words/{text}", auth="public")
async def words(text: str) -> AsyncIterator[str]:
    """Server-sent events, one for each word."""
    for word in text.split("-"):
        yield word


@app.asgi(path="/site", auth="public")
def site() -> Starlette:
    """Anything that speaks ASGI; this runs once on each worker."""

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"hello {request.path_params['name']}")

    return Starlette(routes=[Route("/{name}", hello)])


def fetch(url: str, body: object = None) -> str:
    """What a browser or another program would do."""
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(url, data)) as answer:
        return str(answer.read().decode().strip())


if __name__ == "__main__":
    app.ensure_ready(wait=True)
    print("square:", fetch(square.url, {"x": 12}))
    print("words:", fetch(words.url.replace("{text}", "one-two")).replace("\n", " "))
    print("site:", fetch(app.url("site") + "/you"))
