"""Objects as KServe and Knative write them: applied, compared, shown with their status, deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.control import rollouts
from nanopod.control.views import endpoint_view
from nanopod.model.chain import Applied, Key
from nanopod.model.endpoint import Profile
from nanopod.model.errors import Invalid, NanopodError, NotFound
from nanopod.server.api.answers import answer, whole_list
from nanopod.server.api.bodies import body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.tenants import operator_only
from nanopod.server.manifests import settings
from nanopod.server.manifests.applying import (
    Done,
    Outcome,
    Wish,
    apply_files,
    delete_files,
    delete_one,
    refused,
)
from nanopod.server.manifests.fields import Problem
from nanopod.server.manifests.planning import KINDS, SERVICES
from nanopod.server.manifests.status import Served, document_spec, shown
from nanopod.store.transaction import Transaction

FILES_MAX: Final = 200
SHORT: Final[Mapping[str, str]] = {
    "isvc": "InferenceService", "ksvc": "Service", "kservice": "Service", "llmisvc": "LLMInferenceService",
    "ig": "InferenceGraph", "tm": "TrainedModel", "cm": "ConfigMap", "pvc": "PersistentVolumeClaim",
    "sa": "ServiceAccount",
}  # fmt: skip
"""Short names of kinds."""


class File(msgspec.Struct, frozen=True):
    """One file of an input: its name, for messages, and its YAML or JSON text."""

    name: str
    text: str


class Files(msgspec.Struct, frozen=True):
    """An input. `strict` makes warnings errors; `job_order` has services wait for the Jobs that fill their volumes."""

    files: tuple[File, ...]
    dry_run: bool = False
    strict: bool = False
    job_order: bool = True


class ProblemShown(TypedDict):
    """An error or a warning. `line` and `column` count from 1; 0: unknown."""

    level: str
    source: str
    line: int
    column: int
    path: str
    message: str


class DocumentShown(TypedDict):
    """What became of one document of an input. `native` is what it stands for, in a dry run; `changes` are those of a
    diff: {path, old, new}."""

    source: str
    line: int
    api_version: str
    kind: str
    name: str
    action: str
    reasons: list[str]
    ids: list[str]
    native: dict[str, Any] | None
    changes: list[dict[str, Any]]


class OutcomeAnswer(TypedDict):
    """What became of an input. `applied` is false where it was only looked at."""

    object: str
    applied: bool
    documents: list[DocumentShown]
    problems: list[ProblemShown]


class ManifestShown(TypedDict):
    """An applied object; `manifest` is it, with its status."""

    id: str
    object: str
    api_version: str
    kind: str
    name: str
    generation: int
    native: list[str]
    ready: str
    reason: str
    url: str | None
    created_at: int
    updated_at: int
    manifest: dict[str, Any]


class ManifestSettings(TypedDict):
    """Whose rules of scaling objects have that name no profile, and the workers that any of them may have at most (0:
    no limit)."""

    profile: Profile
    max_scale_limit: int


class ManifestSettingsChange(msgspec.Struct, frozen=True):
    """What is to be changed. With `max_scale_limit` above 0 a maximum of 0 (no limit), or above it, is invalid; objects
    that state none get it."""

    profile: Profile | None = None
    max_scale_limit: int | None = None


class DeletedManifest(TypedDict):
    """What is left of an object."""

    object: str
    kind: str
    name: str
    deleted: bool


def _problem(one: Problem) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def _document(one: Done) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def _answer(outcome: Outcome, *, applied: bool) -> Response:
    body: dict[str, Any] = {
        "object": "manifest_result",
        "applied": applied and not outcome.rejected,
        "documents": [_document(one) for one in outcome.done],
        "problems": [_problem(one) for one in outcome.problems],
    }
    if outcome.rejected:
        error = Invalid(refused(outcome))
        details = [
            {"field": one.path or None, "code": error.code, "message": f"{one.source}:{one.line}: {one.message}"}
            for one in outcome.problems
            if one.level == "error"
        ]
        body["error"] = {"type": error.code, "code": "manifest_rejected", "message": error.message, "details": details}
        return answer(body, error.status)
    if outcome.failed is not None:
        failed: NanopodError = outcome.failed
        body["error"] = {
            "type": failed.code, "code": failed.code, "message": failed.message,
            "details": [{"field": failed.field, "code": failed.code, "message": failed.message}],
        }  # fmt: skip
        return answer(body, failed.status)
    return answer(body)


async def _files(request: Request) -> Files:
    body = await body_as(request, Files)
    if not body.files or len(body.files) > FILES_MAX:
        raise Invalid(f"files: {len(body.files)} of them; give 1 to {FILES_MAX}", field="files")
    return body


async def apply_manifests(context: Context, request: Request, key: Key) -> Response:
    """Bring the workspace to the objects of an input. One wrong document, and nothing is written (422)."""
    body = await _files(request)
    wish = Wish(body.strict, body.dry_run, body.job_order)
    outcome = await apply_files(context, key, [(one.name, one.text) for one in body.files], wish)
    return _answer(outcome, applied=not body.dry_run)


async def diff_manifests(context: Context, request: Request, key: Key) -> Response:
    """What applying an input would change, field by field."""
    body = await _files(request)
    wish = Wish(body.strict, diff=True)
    outcome = await apply_files(context, key, [(one.name, one.text) for one in body.files], wish)
    return _answer(outcome, applied=False)


async def delete_manifests(context: Context, request: Request, key: Key) -> Response:
    """Delete the objects that an input names, with what was made for them."""
    body = await _files(request)
    outcome = await delete_files(context, key, [(one.name, one.text) for one in body.files])
    return _answer(outcome, applied=True)


def kind_of(word: str) -> str:
    """A kind by its name, in any case, in the plural, or short. Raises `Invalid`."""
    names = {kind.lower(): kind for kind in KINDS.values()}
    low = word.lower().partition(".")[0]
    for one in (low, low.removesuffix("s"), low.removesuffix("es")):
        if one in SHORT:
            return SHORT[one]
        if one in names:
            return names[one]
    known = ", ".join(sorted(set(KINDS.values())))
    raise Invalid(f"kind: {word!r} is not known; there are {known}, and short {', '.join(SHORT)}", field="kind")


def _served(context: Context, read: Transaction, applied: Applied, host: str) -> Served | None:
    endpoint = read.endpoint(applied.native[0]) if applied.native else None
    if endpoint is None or endpoint.deleted_at is not None:
        return None
    deployment, revision = read.deployment_of(endpoint.endpoint_id), read.revision(endpoint.revision_id)
    if deployment is None or revision is None:
        return None
    known, instances = read.revisions_of(endpoint.endpoint_id), read.instances_of(endpoint.endpoint_id)
    ready: dict[str, int] = {}
    for one in instances:
        if one.intent == "run" and context.live.ready(one.instance_id, one.epoch):
            ready[one.revision_id] = ready.get(one.revision_id, 0) + 1
    shares = rollouts.shares_of(endpoint, known, ready, deployment.target_instance_count)
    rows = rollouts.traffic_of(endpoint, deployment.revision_id, shares)
    reasons = endpoint_view(endpoint, deployment, revision, instances, context.live).get("reasons") or ()
    url = f"http://{endpoint.name}.{host}"
    links = [context.live.link(one.instance_id, one.epoch) for one in instances if one.intent == "run"]
    return Served(
        endpoint, known, instances, ready, list(map(str, reasons)), rows, deployment.revision_id, url,
        [
            link.models if link.revision_id == endpoint.revision_id else {}
            for link in links
            if link is not None and link.ready and link.models
        ],
    )  # fmt: skip


def _shown(context: Context, read: Transaction, applied: Applied, host: str) -> dict[str, Any]:
    holder: Applied | None = applied if applied.kind in SERVICES else None
    if applied.kind == "TrainedModel":
        service = str(document_spec(applied).get("inferenceService"))
        holder = read.applied(applied.workspace_id, "InferenceService", service)
    served = _served(context, read, holder, host) if holder is not None else None
    manifest = shown(applied, served)
    conditions = (manifest.get("status") or {}).get("conditions") or []
    ready: Mapping[str, Any] = next((one for one in conditions if one.get("type") in ("Ready", "Complete")), {})
    return {
        "id": applied.manifest_id,
        "object": "manifest",
        "api_version": applied.api_version,
        "kind": applied.kind,
        "name": applied.name,
        "generation": applied.generation,
        "native": list(applied.native),
        "ready": ready.get("status", ""),
        "reason": ready.get("reason", ""),
        "url": served.url if served is not None else None,
        "created_at": int(applied.created_at),
        "updated_at": int(applied.updated_at),
        "manifest": manifest,
    }


def host_of(request: Request) -> str:
    """Where the hosts of services are: the host that was asked, `localhost` in place of an address of this machine."""
    host = request.headers.get("host", "")
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        name, port = host, ""
    if name.replace(".", "").isdigit() or name.startswith("[") or name in ("", "localhost", "server"):
        name = "localhost"
    return f"{name}:{port}" if port else name


async def list_manifests(context: Context, request: Request, key: Key) -> Response:
    """Every applied object, by kind and name."""
    word = request.query_params.get("kind")
    kind = kind_of(word) if word else ""
    host = host_of(request)
    rows = await context.store.read(
        lambda read: [_shown(context, read, one, host) for one in read.applied_all(key.workspace_id, kind)]
    )
    return whole_list(request, rows, lambda row: row)


async def get_manifest(context: Context, request: Request, key: Key) -> Response:
    """One applied object with its status."""
    kind, name, host = kind_of(request.path_params["kind"]), request.path_params["name"], host_of(request)

    def read(read: Transaction) -> dict[str, Any]:
        found = read.applied(key.workspace_id, kind, name)
        if found is None:
            there = ", ".join(one.name for one in read.applied_all(key.workspace_id, kind)[:20]) or "none yet"
            raise NotFound(f"there is no {kind} {name!r} in this workspace (there are: {there})")
        return _shown(context, read, found, host)

    return answer(await context.store.read(read))


async def delete_manifest(context: Context, request: Request, key: Key) -> Response:
    """Delete one applied object with what was made for it."""
    kind, name = kind_of(request.path_params["kind"]), request.path_params["name"]
    if not await delete_one(context, key, kind, name):
        raise NotFound(f"there is no {kind} {name!r} in this workspace")
    return answer({"object": "manifest", "kind": kind, "name": name, "deleted": True})


def _settings(read: Transaction) -> ManifestSettings:
    return {"profile": settings.profile_of(read), "max_scale_limit": settings.limit_of(read)}


async def get_settings(context: Context, _request: Request, _key: Key) -> Response:
    """The settings."""
    return answer(await context.store.read(_settings))


async def change_settings(context: Context, request: Request, key: Key) -> Response:
    """Change the settings; objects get them when they are applied the next time."""
    body = await body_as(request, ManifestSettingsChange)
    await context.store.read(lambda read: operator_only(read, key, "change how manifests are applied"))

    def write(write: Transaction) -> ManifestSettings:
        settings.change(write, body.profile, body.max_scale_limit)
        return _settings(write)

    return answer(await context.store.write(write))


OPERATIONS: Final = (
    Operation(
        "POST", "/v1/manifests", apply_manifests, "Apply Kubernetes objects", body=Files, answer=OutcomeAnswer,
        errors=(409,), text="Objects of KServe and Knative, and what they refer to.",
    ),
    Operation(
        "POST", "/v1/manifests/diff", diff_manifests, "What applying would change", body=Files, answer=OutcomeAnswer,
    ),
    Operation(
        "POST", "/v1/manifests/delete", delete_manifests, "Delete the objects of files", body=Files,
        answer=OutcomeAnswer, errors=(409,),
    ),
    Operation(
        "GET", "/v1/manifests", list_manifests, "List applied objects", scope="read", answer=ManifestShown, listed=True,
        query=(Query("kind", "Only those of a kind."), "limit", "starting_after"),
    ),
    Operation(
        "GET", "/v1/manifests/{kind}/{name}", get_manifest, "One applied object with its status", scope="read",
        answer=ManifestShown, errors=(404,),
    ),
    Operation(
        "DELETE", "/v1/manifests/{kind}/{name}", delete_manifest, "Delete an applied object", answer=DeletedManifest,
        errors=(404, 409),
    ),
    Operation(
        "GET", "/v1/manifest_settings", get_settings, "How manifests are applied", scope="read",
        answer=ManifestSettings,
    ),
    Operation(
        "PATCH", "/v1/manifest_settings", change_settings, "Change how manifests are applied",
        body=ManifestSettingsChange,
        answer=ManifestSettings,
    ),
)  # fmt: skip
