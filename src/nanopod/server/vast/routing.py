"""Where a call goes, in Vast's shape: endpoints, routes with their tickets, workers and what they report."""

from __future__ import annotations

import logging
import secrets
import time
import zlib
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nanopod.model.chain import Instance, Key
from nanopod.model.errors import Invalid, NotFound, Unauthenticated
from nanopod.server.api.context import Context
from nanopod.server.vast.answers import fields_of, key_text, keyholder, number_of
from nanopod.server.vast.deployments import base_of, find
from nanopod.server.vast.spec import SCALE, wish_of
from nanopod.server.vast.state import WORKERS_MAX, ForeignWorker, Vast
from nanopod.server.vast.tickets import LIFETIME_S, Ticket
from nanopod.store.vast import VastDeployment

COST_DEFAULT: Final = 100.0
ROUTED_MAX: Final = 10_000
ROUTED_S_MAX: Final = 3600.0
TELL_S_MAX: Final = 5.0

log = logging.getLogger(__name__)


def endpoint_shown(vast: Vast, row: VastDeployment) -> dict[str, Any]:
    """An endpoint as Vast's client reads it; it has its deployment's number."""
    config = wish_of(row.config)
    return {
        "id": row.number,
        "endpoint_name": row.name if row.tag == "default" else f"{row.name}:{row.tag}",
        "api_key": vast.endpoint_key(row.number),
        "user_id": zlib.crc32(row.workspace_id.encode()),
        "created_at": row.created_at,
        "auto_delete_in_seconds": config.ttl,
        "auto_delete_due_24h": config.ttl is not None and config.ttl < 86_400,
        "endpoint_state": row.state,
        **{name: getattr(config, name) for name in SCALE},
    }


async def list_endpoints(context: Context, vast: Vast, request: Request) -> Response:
    """GET /endptjobs/?client_id=me."""
    key = await keyholder(context, request)
    rows = await context.store.read(lambda read: read.vast_deployments(key.workspace_id))
    return JSONResponse({"success": True, "results": [endpoint_shown(vast, row) for row in rows]})


async def get_endpoint(context: Context, vast: Vast, request: Request) -> Response:
    """GET /endptjobs/{id}/."""
    key = await keyholder(context, request)
    found = await find(context, key, number_of(request.path_params["id"], "id"))
    # What a worker of Vast's own make needs to report here.
    shown = {**endpoint_shown(vast, found), "worker_key": vast.worker_key(found.number)}
    return JSONResponse({"success": True, "result": shown})


async def list_groups(context: Context, _vast: Vast, request: Request) -> Response:
    """GET /workergroups/: each deployment has one group of workers, under its own number."""
    key = await keyholder(context, request)
    rows = await context.store.read(lambda read: read.vast_deployments(key.workspace_id))
    groups = [
        {"id": row.number, "endpoint_id": row.number, "endpoint_name": row.name,
         "search_params": row.config.get("search_params", ""), "template_hash": None, "created_at": row.created_at}
        for row in rows
    ]  # fmt: skip
    return JSONResponse({"success": True, "results": groups})


async def update_workers(context: Context, vast: Vast, request: Request) -> Response:
    """POST /update_workers/: our own workers roll by themselves once the file is here; Vast's are told, in turn."""
    body = await fields_of(request)
    key = await keyholder(context, request, body)
    found = await find(context, key, number_of(body.get("workergroup_id"), "workergroup_id"))
    told = 0
    workers = [worker for worker in vast.workers.values() if worker.deployment == found.number]
    if workers:
        from aiohttp import ClientError, ClientSession, ClientTimeout

        headers = {"Authorization": f"Bearer {vast.worker_key(found.number)}"}
        async with ClientSession(timeout=ClientTimeout(total=TELL_S_MAX), headers=headers) as session:
            for worker in workers:
                try:
                    async with session.post(f"{worker.url}/pyworker/update") as answer:
                        told += answer.status < 300
                except (ClientError, TimeoutError) as error:
                    log.warning("vast worker=%d update=failed error=%s", worker.worker_id, error)
    body = {"success": True, "workergroup_id": found.number, "version_id": found.version_id, "workers_told": told}
    return JSONResponse(body)


async def route(context: Context, vast: Vast, request: Request) -> Response:
    """POST /route/: a worker for one call, with the ticket that it wants to see; without a worker only a number."""
    body = await fields_of(request)
    found = await _routed(context, vast, request, body)
    cost = body.get("cost", COST_DEFAULT)
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < 1e12:
        raise Invalid(f"cost: {cost!r} is no load of a call, a number from 0", field="cost")
    asked = body.get("request_idx") or 0
    request_idx = asked if isinstance(asked, int) and asked > 0 else vast.next_request()
    now = time.time()
    workers = vast.workers_of(found.number, now)
    if workers:
        worker = workers[0]
        _note_routed(worker, request_idx, float(cost), now)
        url, signature = worker.url, vast.signer.sign(worker.url)
    elif found.state != "active" or not found.blob:
        missing = "the deployment's file" if found.config.get("file_hash") else "a worker"
        status = "stopped" if found.state != "active" else f"waiting for {missing}"
        return JSONResponse({"request_idx": request_idx, "status": f"endpoint {found.name} is {status}"})
    else:
        # Our gateway holds a call until a worker is there, so there is always a place to send it.
        url, signature = f"{base_of(request)}/vast/{found.number}", ""
    ticket = Ticket(
        deployment=found.number, endpoint=found.name, version=str(found.version_id), url=url, cost=float(cost),
        request_idx=request_idx, principal=vast.endpoint_key(found.number)[:12], issued_at=now,
        expires_at=now + LIFETIME_S, nonce=secrets.token_hex(16),
    )  # fmt: skip
    fields = {name: getattr(ticket, name) for name in ticket.__struct_fields__}
    proof = vast.tickets.sign(ticket)
    return JSONResponse(
        {
            "status": "READY",
            "url": url,
            "signature": signature or proof,
            "reqnum": request_idx,
            "cost": cost,
            "endpoint": found.name,
            "request_idx": request_idx,
            "ticket": {"fields": fields, "signature": proof},
        }
    )


def _note_routed(worker: ForeignWorker, request_idx: int, cost: float, now: float) -> None:
    for old in [number for number, (_, at) in worker.routed.items() if now - at > ROUTED_S_MAX]:
        del worker.routed[old]
    if len(worker.routed) < ROUTED_MAX:
        worker.routed[request_idx] = (cost, now)


async def _routed(context: Context, vast: Vast, request: Request, body: dict[str, Any]) -> VastDeployment:
    """The deployment that a routing request is about: by its endpoint's key, or by name and a key of its owner."""
    text = key_text(request, body)
    number = vast.deployment_of(text, "endpoint")
    name = str(body.get("endpoint", ""))
    if number is None:
        key = await keyholder(context, request, body, scope="call")
        plain, _, tag = name.partition(":")
        found = await context.store.read(
            lambda read: read.vast_deployment_named(key.workspace_id, plain, tag or "default")
        )
    else:
        found = await context.store.read(lambda read: read.vast_deployment(number))
        if found is not None and name and name not in (found.name, f"{found.name}:{found.tag}"):
            raise Unauthenticated(f"endpoint: this key is for {found.name}, not for {name}", field="endpoint")
    if found is None:
        raise NotFound(f"endpoint: there is no endpoint {name!r}", field="endpoint")
    return found


async def workers(context: Context, vast: Vast, request: Request) -> Response:
    """POST /get_endpoint_workers/ with `{id, api_key}`: a plain list."""
    body = await fields_of(request)
    key = await keyholder(context, request, body, scope="read")
    found = await find(context, key, number_of(body.get("id"), "id"))
    instances = await context.store.read(lambda read: read.instances_of(found.endpoint_id)) if found.endpoint_id else []
    shown = [_instance_shown(context, instance) for instance in instances if instance.live]
    now = time.time()
    shown += [_foreign_shown(w, now) for w in vast.workers.values() if w.deployment == found.number]
    return JSONResponse(shown)


def _instance_shown(context: Context, instance: Instance) -> dict[str, Any]:
    ready = context.live.ready(instance.instance_id, instance.epoch)
    return {
        **_worker(zlib.crc32(instance.instance_id.encode())),
        "status": "idle" if ready else "loading" if instance.phase in ("starting", "loading") else instance.phase,
        "loaded_at": instance.ready_at or 0.0,
        "started_at": instance.created_at,
    }


def _foreign_shown(worker: ForeignWorker, now: float) -> dict[str, Any]:
    report = worker.report
    return {
        **_worker(worker.worker_id),
        "status": "error" if worker.error else "idle" if worker.usable(now) else "loading",
        "cur_load": float(report.get("cur_load") or 0.0),
        "new_load": float(report.get("new_load") or 0.0),
        "cur_perf": float(report.get("cur_perf") or 0.0),
        "perf": worker.perf,
        "measured_perf": worker.perf if worker.measured else 0.0,
        "reqs_working": int(report.get("num_requests_working") or 0),
        "disk_usage": float(report.get("disk_usage") or 0.0),
        "loaded_at": worker.ready_at,
        "started_at": worker.first_at,
    }


def _worker(number: int) -> dict[str, Any]:
    words = (
        "cur_load",
        "new_load",
        "cur_load_rolling_avg",
        "cur_perf",
        "perf",
        "measured_perf",
        "dlperf",
        "disk_usage",
    )
    return {"id": number, "reliability": 1.0, "reqs_working": 0, **dict.fromkeys(words, 0.0)}


async def logs(context: Context, _vast: Vast, request: Request) -> Response:
    """POST /get_endpoint_logs/ and /get_autogroup_logs/: the story of the endpoint behind."""
    body = await fields_of(request)
    key: Key = await keyholder(context, request, body, scope="read")
    found = await find(context, key, number_of(body.get("id"), "id"))
    tail = body.get("tail")
    limit = tail if isinstance(tail, int) and 0 < tail <= 200 else 200
    story = await context.store.read(lambda read: read.story(found.endpoint_id, limit)) if found.endpoint_id else []
    lines = [f"{at:.3f} {kind} {id_}: {message}" for at, kind, id_, message in reversed(story)]
    own = [line for line in lines if " endpoint " in line]
    return JSONResponse({"info0": "\n".join(own), "info1": "\n".join(lines), "trace": "", "debug": ""})


async def pubkey(_context: Context, vast: Vast, _request: Request) -> Response:
    """GET /pubkey/: what genuine workers check a call's url with."""
    return PlainTextResponse(vast.signer.public_pem.decode())


async def certificate(_context: Context, vast: Vast, _request: Request) -> Response:
    """GET /static/jvastai_root.cer: the authority that clients add to those they trust."""
    return Response(vast.signer.certificate(time.time()), media_type="application/x-x509-ca-cert")


async def worker_status(context: Context, vast: Vast, request: Request) -> Response:
    """POST /worker_status/: a genuine worker says how it is; with its deployment's worker key as `mtoken`."""
    body = await fields_of(request)
    number = vast.deployment_of(str(body.get("mtoken", "")), "worker")
    if number is None:
        raise Unauthenticated("mtoken: is no worker key of a deployment here", field="mtoken")
    if await context.store.read(lambda read: read.vast_deployment(number)) is None:
        raise NotFound("the deployment of this worker is gone")
    worker_id, url = number_of(body.get("id"), "id"), body.get("url")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise Invalid(f"url: {url!r} is no address of a worker", field="url")
    now = time.time()
    worker = vast.workers.get(worker_id)
    if worker is None or worker.deployment != number:
        if len(vast.workers) >= WORKERS_MAX:
            raise Invalid(f"more than {WORKERS_MAX} workers report here", field="id")
        worker = vast.workers[worker_id] = ForeignWorker(worker_id, number, url, now, now)
    perf = body.get("max_perf")
    worker.url, worker.seen_at, worker.report = url, now, body
    worker.error = str(body.get("error_msg") or "")
    worker.claimed_perf = float(perf) if isinstance(perf, int | float) and perf > 0 else 0.0
    if worker.claimed_perf and not worker.ready_at:
        worker.ready_at = now
    return JSONResponse({"success": True})


async def delete_requests(_context: Context, vast: Vast, request: Request) -> Response:
    """POST /delete_requests/: calls that a genuine worker is done with."""
    body = await fields_of(request)
    number = vast.deployment_of(str(body.get("mtoken", "")), "worker")
    if number is None:
        raise Unauthenticated("mtoken: is no worker key of a deployment here", field="mtoken")
    worker = vast.workers.get(number_of(body.get("worker_id"), "worker_id"))
    done = body.get("requests")
    if worker is None or worker.deployment != number or not isinstance(done, list):
        return JSONResponse({"success": True})
    for entry in done:
        if isinstance(entry, dict):
            _measure(worker, entry)
    return JSONResponse({"success": True})


def _measure(worker: ForeignWorker, entry: dict[str, Any]) -> None:
    load, _ = worker.routed.pop(entry.get("request_idx", 0), (0.0, 0.0))
    began, ended = entry.get("work_started_at"), entry.get("work_completed_at")
    if load and entry.get("success") and isinstance(began, int | float) and isinstance(ended, int | float):
        worker.measured.append(load / max(1e-4, ended - began))
