"""The table of the Vast-shaped routes."""

from __future__ import annotations

from typing import Final

from starlette.routing import Route

from nanopod.server.api.context import Context
from nanopod.server.vast import deployments, endpoints, offers, routing
from nanopod.server.vast.answers import Handler, route
from nanopod.server.vast.calling import Callers, Calling
from nanopod.server.vast.state import Vast

_WEB: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("PUT", "/deployments/", deployments.put),
    ("GET", "/deployments/", deployments.list_all),
    ("DELETE", "/deployments/", deployments.delete_named),
    ("GET", "/deployment/{id}/", deployments.get),
    ("DELETE", "/deployment/{id}/", deployments.delete),
    ("POST", "/deployment/{id}/heartbeat/", deployments.heartbeat),
    ("GET", "/deployment/{id}/versions/", deployments.versions),
    ("POST", "/deployment/{id}/stop/", deployments.stop),
    ("POST", "/deployment/{id}/start/", deployments.start),
    ("GET", "/deployment/{id}/download_url/", deployments.download_url),
    ("GET", "/endptjobs/", routing.list_endpoints),
    ("GET", "/endptjobs/{id}/", routing.get_endpoint),
    ("POST", "/endptjobs/", endpoints.create),
    ("PUT", "/endptjobs/{id}/", endpoints.change),
    ("DELETE", "/endptjobs/{id}/", endpoints.delete),
    *(
        entry
        for path in ("/workergroups", "/autojobs")
        for entry in (
            ("GET", f"{path}/", routing.list_groups),
            ("POST", f"{path}/", endpoints.create_group),
            ("PUT", f"{path}/{{id}}/", endpoints.change_group),
            ("DELETE", f"{path}/{{id}}/", endpoints.delete_group),
        )
    ),
    ("POST", "/bundles/", offers.search),
)
_ROOT: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("POST", "/route/", routing.route),
    ("POST", "/update_workers/", routing.update_workers),
    ("POST", "/get_endpoint_workers/", routing.workers),
    ("POST", "/get_endpoint_logs/", routing.logs),
    ("POST", "/get_autogroup_logs/", routing.logs),
    ("GET", "/pubkey/", routing.pubkey),
    ("GET", "/static/jvastai_root.cer", routing.certificate),
    ("POST", "/worker_status/", routing.worker_status),
    ("POST", "/delete_requests/", routing.delete_requests),
    ("POST", "/vast/{id}/upload", deployments.upload),
    ("GET", "/vast/{id}/code/{proof}", deployments.download),
)


def make_routes(context: Context, callers: Callers, vast: Vast) -> list[Route]:
    """All of them, on a context."""
    calling = Calling(callers)
    worker: tuple[tuple[str, str, Handler], ...] = (
        ("POST", "/vast/{id}/remote/{function}", calling.remote),
        ("POST", "/vast/{id}/session/create", calling.create),
        ("POST", "/vast/{id}/session/end", calling.end),
        ("POST", "/vast/{id}/session/get", calling.get),
        ("POST", "/vast/{id}/session/health", calling.get),
    )
    table = [(method, f"/api/v0{path}", handler) for method, path, handler in _WEB]
    return [
        one
        for method, path, handler in (*table, *_ROOT, *worker)
        for one in route(context, vast, method, path, handler)
    ]
