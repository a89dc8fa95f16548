"""Web paths of a whole cloud: deployed from a file, woken by the first request, addressed by the SDK."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from bench.cloud import Cloud

pytestmark = pytest.mark.e2e

FILE = """
    import nanopod
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    app = nanopod.Deployment(name="webshop")
    app.image("")
    app.configure_autoscaling(cold_workers=0, min_load=0, max_workers=1, inactivity_timeout=600)

    @app.remote(web="POST /square")
    async def square(x: int) -> int:
        return x * x

    @app.remote(web="GET /count/{n}", auth="public")
    def count(n: int):
        yield from range(n)

    @app.remote
    async def hidden() -> None: ...

    async def hello(request):
        return PlainTextResponse(f"hello from {request.url.path}")

    @app.asgi(path="/site", auth="public")
    def site():
        return Starlette(routes=[Route("/{name}", hello)])

    if __name__ == "__main__":
        import asyncio, json
        app.ensure_ready()
        said = {}
        try:
            hidden.url
        except nanopod.Invalid as error:
            said["hidden"] = str(error)
        print(json.dumps({"square": square.url, "count": count.url, "site": app.url("site"), "root": app.url(), **said,
                          "by_name": nanopod.Deployment.from_name("webshop").function("square").url}))
"""

APP_ONLY = """
    import nanopod
    app = nanopod.Deployment(name="apponly")
    app.image("")
    app.configure_autoscaling(cold_workers=0, min_load=0, max_workers=1, inactivity_timeout=600)

    @app.asgi(auth="public")
    async def site():
        async def bare(scope, receive, send):
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": scope["path"].encode()})
        return bare

    if __name__ == "__main__":
        app.ensure_ready()
        print(app.url("site"))
"""


def deployed(cloud: Cloud, folder: Path, name: str, code: str) -> str:
    file = folder / name
    file.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=100, env=cloud.client_env()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def get(url: str, key: str = "", body: object = None) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    data = json.dumps(body).encode() if body is not None else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=100) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_first_request_wakes_it(cloud: Cloud, tmp_path: Path) -> None:
    urls = json.loads(deployed(cloud, tmp_path, "webshop.py", FILE))
    assert "has no web path" in urls["hidden"]
    assert urls["by_name"].endswith("/square")
    assert urls["square"] == f"{urls['root']}/square"
    # Nothing runs yet; the name is looked up in the default workspace.
    status, body = get(f"{cloud.url}/web/webshop/count/3")
    assert (status, body) == (200, b"data: 0\n\ndata: 1\n\ndata: 2\n\nevent: end\ndata: {}\n\n")
    assert get(urls["square"], cloud.key, {"x": 12}) == (200, b"144")
    assert get(urls["square"], body={"x": 12})[0] == 401
    assert get(f"{urls['site']}/you")[1].startswith(b"hello from /web/endp_")
    assert get(urls["count"].replace("{n}", "1"))[0] == 200
    shown = subprocess.run(
        [sys.executable, "-m", "nanopod", "endpoints", "get", "webshop"],
        capture_output=True, text=True, timeout=60, env=cloud.client_env(),
    )  # fmt: skip
    for line in (
        "POST /web/webshop/square",
        "GET /web/webshop/count/{n}  (public)",
        "ANY /web/webshop/site/*  (public)",
    ):
        assert line in shown.stdout, shown.stdout + shown.stderr
    kinds = cloud.wait_for(
        lambda: [r for r in cloud.usage_records() if r["kind"] == "web" and r["function"] == "square"], what="a record"
    )
    assert kinds[0]["status"] == 200
    assert kinds[0]["compute_us"] > 0


def test_the_page_of_the_documentation(cloud: Cloud, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "WEB.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    square, site = deployed(cloud, tmp_path, "shop.py", code).split()
    assert get(square, cloud.key, {"x": 7}) == (200, b"49")
    assert get(f"{cloud.url}/web/shop/items/3?color=blue") == (200, b'{"id":3,"color":"blue"}')
    assert get(f"{cloud.url}/web/shop/count?n=2")[1].startswith(b'data: {"i":0}\n\ndata: {"i":1}\n\n')
    assert get(f"{site}/") == (200, b"hello")


def test_an_application_alone(cloud: Cloud, tmp_path: Path) -> None:
    url = deployed(cloud, tmp_path, "apponly.py", APP_ONLY)
    status, body = get(f"{url}/a/b")
    assert status == 200
    assert body.endswith(b"/a/b")
