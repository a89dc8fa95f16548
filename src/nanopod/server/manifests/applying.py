"""Manifests written: everything is checked first, then each document becomes what it stands for, in its order.

A document is kept as it was applied, with a digest of it, so that the same one again is `unchanged`. A service becomes
an endpoint by the same way as every other endpoint does.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec

from nanopod.control import rollouts
from nanopod.control.update import Update, check, compare, fingerprinted
from nanopod.model.chain import Applied, Key
from nanopod.model.endpoint import EndpointSpec
from nanopod.model.errors import Invalid, NanopodError, NotFound
from nanopod.server.api.context import Context
from nanopod.server.api.endpoint_changes import base_of
from nanopod.server.api.endpoints import put_spec, remove_endpoint
from nanopod.server.api.objects import furnish
from nanopod.server.manifests import jobs
from nanopod.server.manifests.fields import Problem
from nanopod.server.manifests.inference_service import FRAMEWORKS
from nanopod.server.manifests.planning import ORDER, SERVICES, Item, Known, Plan, plan
from nanopod.server.manifests.reading import paths_of
from nanopod.server.manifests.secrets import drop_secret, keep_secret, without_values
from nanopod.server.manifests.services import Service
from nanopod.server.manifests.settings import limit_of, profile_of
from nanopod.server.manifests.volumes import drop_volume, keep_volume
from nanopod.server.sealing import sealer_of
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)

NAMESPACE: Final = "default"
AFTER: Final = "after"
"""In the status of a service: the Jobs that fill its volumes; it runs nothing before they succeeded."""
_locks: Final[WeakValueDictionary[str, asyncio.Lock]] = WeakValueDictionary()
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one document. `native`: the endpoint's specification, for a dry run."""

    source: str
    line: int
    api_version: str
    kind: str
    name: str
    action: str
    """`created`, `configured`, `unchanged`, `deleted`, `absent`, `rejected` or `failed`."""
    reasons: tuple[str, ...] = ()
    native: Mapping[str, Any] | None = None
    ids: tuple[str, ...] = ()
    changes: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an input came to. `problems` are errors and warnings in the order of the input."""

    done: tuple[Done, ...]
    problems: tuple[Problem, ...]
    rejected: bool = False
    failed: NanopodError | None = None
    """Something that was good when it was checked could not be written; what is in `done` before it was."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How an input is to be applied."""

    strict: bool = False
    dry_run: bool = False
    job_order: bool = True
    diff: bool = False


@dataclass(slots=True)
class _Run:
    """One application."""

    context: Context
    key: Key
    plan: Plan
    wish: Wish
    before: Mapping[tuple[str, str], Applied]
    done: list[Done] = field(default_factory=list)


def known_of(read: Transaction, workspace_id: str) -> Known:
    """What is there in a workspace."""
    endpoints: dict[str, str] = {}
    models: dict[str, str] = {}
    revisions: dict[str, frozenset[str]] = {}
    for one in read.endpoints(workspace_id):
        revision = read.revision(one.revision_id)
        if revision is not None and revision.spec.model is not None:
            models[revision.spec.model.model_id] = one.name
        if one.tag == "default":
            endpoints[one.name] = revision.spec.manifest if revision is not None else ""
        if one.tag == "default" and revision is not None and revision.spec.manifest == "Service":
            known = read.revisions_of(one.endpoint_id)
            numbers = [made.number for made in known]
            names = {rollouts.name_of(one, number) for number in (*numbers, max(numbers) + 1)}
            revisions[one.name] = frozenset(
                names | {w for made in known for w in (made.version_label, made.revision_id)}
            )
    return Known(
        tuple(read.applied_all(workspace_id)),
        {one.name: one.keys for one in read.secrets(workspace_id)},
        frozenset(one.name for one in read.volumes(workspace_id)),
        endpoints,
        models,
        revisions,
        profile_of(read),
        limit_of(read),
        _largest(read),
    )


def _largest(read: Transaction) -> int:
    """Bytes of memory of the largest node that is up."""
    kinds = {one.sku_id for one in read.nodes() if one.state == "up"}
    return max((one.memory for one in read.skus() if one.sku_id in kinds), default=0)


async def apply_files(context: Context, key: Key, files: Sequence[tuple[str, str]], wish: Wish) -> Outcome:
    """Bring a workspace to the objects in `files` ((name, text) each). Nothing is written when one is rejected."""
    async with _lock(key.workspace_id):
        return await _apply(context, key, files, wish)


def _lock(workspace_id: str) -> asyncio.Lock:
    """Inputs of one workspace are written one after another: each is checked against what the one before left."""
    return _locks.setdefault(workspace_id, asyncio.Lock())


async def _apply(context: Context, key: Key, files: Sequence[tuple[str, str]], wish: Wish) -> Outcome:
    known = await context.store.read(lambda read: known_of(read, key.workspace_id))
    made = await asyncio.to_thread(plan, files, known, strict=wish.strict)
    for item in made.items:
        if item.spec is not None and not item.problems.rejected:
            _check_spec(item, item.spec)
    run = _Run(context, key, made, wish, {(one.kind, one.name): one for one in known.applied})
    problems = tuple(made.found)
    if made.rejected:
        return Outcome(tuple(_rejected(run, item) for item in made.items if not item.implied), problems, rejected=True)
    if wish.dry_run or wish.diff:
        for item in made.items:
            if not item.implied:
                run.done.append(await _foreseen(run, item))
        return Outcome(tuple(run.done), problems)
    for item in made.items:
        try:
            done = await _write(run, item)
        except NanopodError as error:
            run.done.append(replace(_told(item, "failed"), reasons=(error.message,)))
            return Outcome(tuple(run.done), problems, failed=error)
        if not item.implied:
            run.done.append(done)
    return Outcome(tuple(run.done), problems)


def _check_spec(item: Item, spec: EndpointSpec) -> None:
    """What no endpoint can be, whatever it was made from."""
    if isinstance(item.made, Service) and item.made.waits_for_models:
        return
    try:
        check(fingerprinted(spec))
    except Invalid as error:
        item.problems.error("spec", error.message)


def _told(item: Item, action: str) -> Done:
    line, _ = item.document.mark("")
    return Done(item.document.source, line, item.api_version, item.kind, item.name, action)


def _rejected(run: _Run, item: Item) -> Done:
    """A document of an input that is not applied, with its facts where it could be read."""
    action = "rejected" if item.problems.rejected else "skipped"
    return replace(_told(item, action), native=_native(item) if run.wish.dry_run else None)


def _native(item: Item) -> Mapping[str, Any] | None:
    spec = item.spec
    made: Mapping[str, Any] | None = msgspec.to_builtins(spec) if spec is not None else None
    return made


# --- digests ---


def digest_of(run_pepper: bytes, item: Item) -> str:
    """A digest of a document with all its values, keyed so that it tells nothing about those of a Secret."""
    return hmac.new(run_pepper, _encode([item.api_version, item.document.data]), hashlib.sha256).hexdigest()


def _kept(item: Item) -> dict[str, Any]:
    data = dict(item.document.data)
    return without_values(data) if item.kind == "Secret" else data


def _same(run: _Run, item: Item) -> bool:
    before = run.before.get((item.kind, item.name))
    return before is not None and before.digest == digest_of(run.context.secrets.pepper, item)


# --- what would be ---


async def _foreseen(run: _Run, item: Item) -> Done:
    """What applying a document would do; nothing is written."""
    before = run.before.get((item.kind, item.name))
    action = "created" if before is None else "unchanged" if _same(run, item) else "configured"
    reasons: tuple[str, ...] = ()
    spec = item.spec
    if spec is not None and not (isinstance(item.made, Service) and item.made.waits_for_models):
        try:
            asked = await furnish(run.context, run.key, fingerprinted(spec), write=False)
        except Invalid as error:
            asked = fingerprinted(spec)  # a Secret of the same input: it is there by then
            reasons = (error.message,) if not _brought(run, spec) else ()

        def look(read: Transaction) -> tuple[str, tuple[str, ...]]:
            found = read.endpoint_named(run.key.workspace_id, f"{asked.name}:{asked.tag}")
            update = compare(found, base_of(read, found), asked)
            return update.action, update.reasons

        did, why = await run.context.store.read(look)
        if action == "unchanged" and did != "exists":
            action = "configured"
        if action == "configured" and did != "created":
            reasons = (*reasons, *why)
    changes = tuple(changes_of(json.loads(before.document) if before else {}, _kept(item))) if run.wish.diff else ()
    return replace(_told(item, action), native=_native(item), reasons=reasons, changes=changes)


def _brought(run: _Run, spec: EndpointSpec) -> bool:
    """Whether the Secrets that a service names are in the input."""
    there = {item.name for item in run.plan.items if item.kind == "Secret"}
    return any(ref.name in there for ref in spec.image.secrets)


def changes_of(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """The fields that differ: {path, old, new}, null where there is none."""
    before, after = dict(paths_of(old)), dict(paths_of(new))
    for path in dict.fromkeys((*before, *after)):
        if before.get(path) != after.get(path) and path:
            yield {"path": path, "old": before.get(path), "new": after.get(path)}


# --- writing ---


async def _write(run: _Run, item: Item) -> Done:
    context, place = run.context, run.key.workspace_id
    now = context.clock()
    before = run.before.get((item.kind, item.name))
    same = _same(run, item)
    if item.kind in SERVICES:
        return await _write_service(run, item, before, same)
    ids: tuple[str, ...] = before.native if before is not None else ()
    applied = _row(run, item, before, ids, now)
    if item.kind == "Job":
        if not same:
            applied = await jobs.start_job(context, run.key, item.made, applied)
    else:
        sealer = sealer_of(context.secrets.pepper)

        def write(write: Transaction) -> tuple[str, ...]:
            if item.kind == "Secret":
                return (keep_secret(write, place, item.made, sealer, context.new_id, now),)
            if item.kind == "PersistentVolumeClaim":
                return (keep_volume(write, place, item.made, context.new_id, now),)
            return ()

        made: tuple[str, ...] = await context.store.write(write)
        applied = replace(applied, native=made)
    return await _keep(run, item, applied, before, same)


def _row(run: _Run, item: Item, before: Applied | None, native: tuple[str, ...], now: float) -> Applied:
    """The document as it is kept."""
    return Applied(
        manifest_id=before.manifest_id if before is not None else run.context.new_id("manifest"),
        workspace_id=run.key.workspace_id,
        namespace=NAMESPACE,
        api_version=item.api_version,
        kind=item.kind,
        name=item.name,
        generation=before.generation + 1 if before is not None else 1,
        document=json.dumps(_kept(item)),
        digest=digest_of(run.context.secrets.pepper, item),
        native=native,
        status=before.status if before is not None else {},
        created_at=before.created_at if before is not None else now,
        updated_at=now,
    )


async def _keep(run: _Run, item: Item, applied: Applied, before: Applied | None, same: bool) -> Done:
    if not same or before is None or before.native != applied.native or before.status != applied.status:
        if same and before is not None:
            applied = replace(applied, generation=before.generation)
        await run.context.store.write(lambda write: write.put_applied(applied))
    action = "created" if before is None else "unchanged" if same else "configured"
    log.info("manifest=%s/%s action=%s key=%s", item.kind, item.name, action, run.key.key_id)
    return replace(_told(item, action), ids=applied.native)


async def _write_service(run: _Run, item: Item, before: Applied | None, same: bool) -> Done:
    made: Service = item.made
    after = await _unfinished(run, made.claims) if run.wish.job_order else ()
    spec = made.spec
    now = run.context.clock()
    row = _row(run, item, before, before.native if before is not None else (), now)
    status: dict[str, Any] = {key: value for key, value in row.status.items() if key not in (AFTER, "conditions")}
    if made.conditions:
        status["conditions"] = dict(made.conditions)
    if made.waits_for_models:
        return await _keep(run, item, replace(row, status=status), before, same)
    if after:
        status[AFTER] = list(after)
        spec = replace(spec, stopped=True)
    whole, update = await put_spec(run.context, run.key, fingerprinted(spec))
    row = replace(row, native=(whole[0].endpoint_id,), status=status)
    done = await _keep(run, item, row, before, same)
    if done.action == "unchanged" and update.action != "exists":
        done = replace(done, action="configured")
    if after:
        # A Job that succeeded between the look at it and what was just written would not be heard of again.
        for job in set(after) - set(await _unfinished(run, made.claims)):
            await release(run.context, run.key, job)
        return replace(done, reasons=(*_why(update, done), f"it starts after Job {', '.join(after)} succeeded"))
    return replace(done, reasons=_why(update, done))


def _why(update: Update, done: Done) -> tuple[str, ...]:
    """What differs of a service that was there before."""
    return update.reasons if done.action == "configured" and update.action != "created" else ()


async def _unfinished(run: _Run, claims: Sequence[str]) -> tuple[str, ...]:
    """Jobs of the input that fill one of these volumes and have not succeeded."""
    names = [
        item.name for item in run.plan.items if item.kind == "Job" and set(jobs.claims_of(item.made)) & set(claims)
    ]
    if not names:
        return ()
    place = run.key.workspace_id

    def look(read: Transaction) -> tuple[str, ...]:
        rows = [(name, read.applied(place, "Job", name)) for name in names]
        return tuple(name for name, row in rows if row is None or not jobs.succeeded(row))

    return await run.context.store.read(look)


async def release(context: Context, key: Key, job: str) -> tuple[str, ...]:
    """Start the services that waited for a Job alone; their names. Called when it succeeded."""
    known = await context.store.read(lambda read: known_of(read, key.workspace_id))
    started = []
    for row in known.applied:
        waits = [name for name in row.status.get(AFTER, ()) if name != job]
        if job not in row.status.get(AFTER, ()):
            continue
        status = {name: value for name, value in row.status.items() if name != AFTER}
        left = replace(row, status={**status, AFTER: waits} if waits else status)
        if not waits:
            spec = stored_spec(row, known)
            if spec is not None:
                await put_spec(context, key, fingerprinted(spec))
                started.append(row.name)
        await context.store.write(lambda write, left=left: write.put_applied(left))  # type: ignore[misc]
    return tuple(started)


def stored_spec(row: Applied, known: Known) -> EndpointSpec | None:
    """The specification that a stored service stands for; None when it can no longer be read."""
    made = plan([(f"{row.kind}/{row.name}", row.document)], replace(known, again=True))
    item = next((one for one in made.items if one.kind == row.kind and one.name == row.name), None)
    return None if item is None or item.problems.rejected else item.spec


# --- deleting ---


async def delete_files(context: Context, key: Key, files: Sequence[tuple[str, str]]) -> Outcome:
    """Delete the objects in `files`, last ones of the order first. Objects that are not there are `absent`."""
    async with _lock(key.workspace_id):
        return await _delete(context, key, files)


async def _delete(context: Context, key: Key, files: Sequence[tuple[str, str]]) -> Outcome:
    known = await context.store.read(lambda read: known_of(read, key.workspace_id))
    made = await asyncio.to_thread(plan, files, known)
    unnamed = [
        one for item in made.items if not item.kind or not item.name for one in item.problems.found
    ]  # what a document holds does not matter for deleting what it names
    problems = (*made.unreadable, *unnamed)
    if problems:
        return Outcome((), tuple(problems), rejected=True)
    done: list[Done] = []
    for item in sorted((one for one in made.items if not one.implied), key=_last_first):
        try:
            gone = await delete_one(context, key, item.kind, item.name)
        except NotFound:
            gone = False
        except NanopodError as error:
            done.append(replace(_told(item, "failed"), reasons=(error.message,)))
            return Outcome(tuple(done), (), failed=error)
        done.append(_told(item, "deleted" if gone else "absent"))
    return Outcome(tuple(done), ())


def _last_first(item: Item) -> int:
    return -ORDER.index(item.kind)


async def delete_one(context: Context, key: Key, kind: str, name: str) -> bool:
    """Delete an applied object with what was made for it; False when there is none."""
    place = key.workspace_id
    row = await context.store.read(lambda read: read.applied(place, kind, name))
    if row is None:
        return False
    if kind in SERVICES and row.native:
        try:
            await remove_endpoint(context, key, row.native[0])
        except NotFound:
            log.info("manifest=%s/%s endpoint=gone", kind, name)
    if kind == "Job":
        await jobs.stop_job(context, key, row)

    def write(write: Transaction) -> None:
        if kind == "Secret":
            drop_secret(write, place, name)
        elif kind == "PersistentVolumeClaim":
            drop_volume(write, place, name)
        write.delete_applied(row.manifest_id)

    await context.store.write(write)
    if kind == "TrainedModel":
        await _unload(context, key, row)
    log.info("manifest=%s/%s action=deleted key=%s", kind, name, key.key_id)
    return True


def _empty(holder: Applied, known: Known) -> bool:
    """True for a service that is to serve TrainedModels alone, and has none."""
    predictor = (json.loads(holder.document).get("spec") or {}).get("predictor") or {}
    own = {"model", "containers", "custom", *FRAMEWORKS} & set(predictor)
    specs = [json.loads(one.document).get("spec") or {} for one in known.applied if one.kind == "TrainedModel"]
    return not own and all(one.get("inferenceService") != holder.name for one in specs)


async def _unload(context: Context, key: Key, row: Applied) -> None:
    """Have the server of a model that is gone run without it."""
    service = (json.loads(row.document).get("spec") or {}).get("inferenceService")
    known = await context.store.read(lambda read: known_of(read, key.workspace_id))
    holder = next((one for one in known.applied if one.kind == "InferenceService" and one.name == service), None)
    if holder is None:
        return
    spec = stored_spec(holder, known)
    if spec is not None and spec.model is not None and (spec.model.storage or spec.model.models):
        await put_spec(context, key, fingerprinted(spec))
    elif spec is None and not _empty(holder, known):
        # Something that it names is gone: it stays as it is until it is applied again.
        log.warning("manifest=%s/%s cannot be read; model=%s stays loaded", holder.kind, holder.name, row.name)
    elif holder.native:
        await remove_endpoint(context, key, holder.native[0])
        await context.store.write(lambda write: write.put_applied(replace(holder, native=())))


def refused(outcome: Outcome) -> str:
    """One line for an outcome in which something is wrong."""
    errors = [one for one in outcome.problems if one.level == "error"]
    first = errors[0]
    where = f"{first.source}:{first.line}" if first.line else first.source
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {first.path + ': ' if first.path else ''}{first.message}{more}"
