"""Web addresses of functions with `web=` and of mounted applications: `{server}/web/{endpoint}/{path}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nanopod.client.marks import web_spec
from nanopod.model.errors import Invalid

if TYPE_CHECKING:
    from nanopod.client.function import BoundFunction
    from nanopod.client.sdk import Deployment


def function_url(bound: BoundFunction) -> str:
    """Where a function answers; path parameters stay in braces. Raises `Invalid` for one without `web=`, `NotReady`."""
    path = _path_of(bound)
    if path is None:
        raise Invalid(
            f'{bound.name} has no web path; decorate it with @app.remote(web="POST /{bound.name}")', field="web"
        )
    return _root(bound.app) + path


def app_url(app: Deployment, name: str = "") -> str:
    """Where a function or application of this name answers; without a name, what all paths begin with.

    Raises `Invalid` for an unknown name, `NotReady` before `ensure_ready()`.
    """
    if not name:
        return _root(app)
    bound = app._functions.get(name)
    if bound is not None and _path_of(bound) is not None:
        return function_url(bound)
    paths = {mounted.name: mounted.path for mounted in app._asgi.values()}
    if name not in paths and not app._functions and not paths:
        paths = {**_paths(_fetched(app), "asgi"), **_paths(_fetched(app), "functions")}
    if name not in paths:
        there = [*paths, *(known for known, other in app._functions.items() if other.options.web is not None)]
        raise Invalid(
            f"nothing called {name!r} answers over HTTP; there is {', '.join(sorted(there)) or 'nothing yet'}",
            field="name",
        )
    return _root(app) + paths[name].rstrip("/")


def _path_of(bound: BoundFunction) -> str | None:
    if bound.options.web is not None:
        return web_spec(bound.name, bound.options.web, bound.options.auth).path
    if bound.function is None:  # known by name only: what is deployed says it
        return _paths(_fetched(bound.app), "functions").get(bound.name)
    return None


def _fetched(app: Deployment) -> dict[str, Any]:
    return app._endpoint or app.status()


def _paths(endpoint: dict[str, Any], part: str) -> dict[str, str]:
    """{name: path} of an endpoint object's functions or applications."""
    found: dict[str, str] = {}
    for row in endpoint.get(part) or ():
        path = (row.get("web") or {}).get("path") if part == "functions" else row.get("path")
        if path:
            found[str(row.get("name"))] = str(path)
    return found


def _root(app: Deployment) -> str:
    app._check_callable()
    route = app._route_now()
    return f"{route.url.rstrip('/')}/web/{quote(route.endpoint, safe=':')}"
