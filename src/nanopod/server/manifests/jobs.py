"""Job of Kubernetes: a command that runs once, such as one that fills a volume with a model."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from nanopod.model.chain import Applied, Key
from nanopod.model.endpoint import StorageSpec
from nanopod.model.job import RunMount, RunSpec
from nanopod.server.api.context import Context
from nanopod.server.api.instance_changes import stop
from nanopod.server.manifests.around import Around
from nanopod.server.manifests.containers import Container, first_container, read_pod
from nanopod.server.manifests.fields import Problems, Reader
from nanopod.server.manifests.images import NO_ENGINE, is_host
from nanopod.server.manifests.reading import Document
from nanopod.server.manifests.secrets import refs_of
from nanopod.server.manifests.services import read_meta
from nanopod.server.manifests.storing import mounted
from nanopod.store.transaction import Transaction

log = logging.getLogger(__name__)

STATE: Final = "job"
"""Where the state is in `Applied.status`."""


@dataclass(frozen=True, slots=True)
class JobAsked:
    """A Job. `claims` are the volumes that it may fill."""

    name: str
    container: Container
    claims: tuple[str, ...]
    query: dict[str, Any]
    backoff_limit: int = 6
    ttl_s: float | None = None
    deadline_s: float | None = None
    files: tuple[StorageSpec, ...] = ()
    """Small files of ConfigMaps and Secrets."""


def read_job(document: Document, around: Around, problems: Problems) -> JobAsked:
    """What a Job runs. What is wrong is noted in `problems`."""
    whole = Reader(document.data, "", problems)
    meta = read_meta(whole, dns=False)
    spec = whole.object("spec", required=True, fix="give spec.template") or Reader({}, "spec", problems)
    whole.done()
    backoff = spec.whole("backoffLimit", most=100)
    ttl, deadline = spec.whole("ttlSecondsAfterFinished"), spec.whole("activeDeadlineSeconds", least=1)
    for name in ("parallelism", "completions"):
        if (spec.whole(name) or 1) > 1:
            spec.error(name, "a job runs once here; leave it out")
    spec.quietly("completionMode", "manualSelector", "selector", "suspend")
    template = spec.object("template", required=True, fix="give template.spec") or Reader({}, "spec.template", problems)
    spec.done()
    template.quietly("metadata")
    inner = template.object("spec", required=True, fix="give containers") or Reader({}, "spec.template.spec", problems)
    template.done()
    inner.text("restartPolicy", "OnFailure", one_of=("OnFailure", "Never"))
    pod, volumes = read_pod(inner, around)
    container = first_container(inner, around, volumes)
    inner.done()
    if container is None:
        inner.error("containers", "is missing; give one container")
        container = Container(inner.path)
    elif not is_host(container.image):
        problems.error(f"{container.at}.image", f"image {container.image!r} cannot be run here: {NO_ENGINE}")
    claims = tuple(dict.fromkeys(one.claim for one in container.mounts if one.claim))
    for claim in claims:
        if claim not in around.claims:
            problems.error(container.at, f"there is no PersistentVolumeClaim {claim!r}; apply it first")
    if not container.argv and not problems.rejected:
        problems.error(f"{container.at}.command", "is missing; give the command that the job runs")
    _, files = mounted([one for one in container.mounts if not one.claim], (), around, problems, container.at)
    return JobAsked(
        meta.name, container, claims, pod.query, 6 if backoff is None else backoff,
        None if ttl is None else float(ttl), None if deadline is None else float(deadline), files,
    )  # fmt: skip


def claims_of(asked: JobAsked) -> tuple[str, ...]:
    """The volumes that a Job may fill."""
    return asked.claims


def run_of(asked: JobAsked) -> RunSpec:
    """The command of a Job with all it needs, as a machine runs it."""
    one = asked.container
    mounts = [
        RunMount(mount.path, mount.claim, mount.sub_path, mount.read_only)
        for mount in one.mounts
        if not mount.config_map and not mount.secret
    ]
    secrets = refs_of(one.keys, one.whole_secrets)
    return RunSpec(one.plain_argv, dict(one.env), secrets, tuple(mounts), asked.files)


# --- what is kept of one, in `Applied.status` ---


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a Job is: fields of a Kubernetes status, and beside them (`run` and the rest) what it goes by.

    Times are Unix seconds of the machine's clock.
    """

    run: RunSpec
    query: dict[str, Any] = {}
    backoff_limit: int = 6
    ttl_s: float | None = None
    deadline_s: float | None = None
    instance: str = ""
    """The instance that runs it now, or ran it last."""
    tries: int = 0
    instances: tuple[str, ...] = ()
    next_at: float = 0.0
    """The next try is not made before."""
    started_at: float = 0.0
    finished_at: float = 0.0
    active: int = 0
    failed: int = 0
    succeeded: int = 0
    conditions: tuple[dict[str, str], ...] = ()
    message: str = ""
    """What happened last."""


def state_of(row: Applied) -> State | None:
    """The state of an applied Job; None when it has none that can be read."""
    try:
        return msgspec.convert(row.status.get(STATE), State)
    except msgspec.ValidationError:
        return None


def with_state(row: Applied, state: State) -> Applied:
    """The row with this state, and the fields of a Kubernetes status that follow from it."""
    times = {"startTime": state.started_at, "completionTime": state.finished_at if state.succeeded else 0.0}
    shown = {name: _time(at) for name, at in times.items() if at}
    counts = {"active": state.active, "failed": state.failed, "succeeded": state.succeeded}
    status = {
        **{name: value for name, value in row.status.items() if name not in ("startTime", "completionTime")},
        **shown, **counts, "conditions": [dict(one) for one in state.conditions], STATE: msgspec.to_builtins(state),
    }  # fmt: skip
    return replace(row, status=status)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def succeeded(row: Applied) -> bool:
    """True once its command ended well."""
    state = state_of(row)
    return state is not None and state.succeeded > 0


def condition(kind: str, reason: str, message: str, at: float) -> dict[str, str]:
    """A condition that holds, as Kubernetes writes it."""
    return {
        "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": _time(at),
    }  # fmt: skip


async def start_job(context: Context, key: Key, asked: JobAsked, row: Applied) -> Applied:
    """The row with a Job that is to begin; whatever an earlier form of it runs is ended. `running` does the rest."""
    await stop_job(context, key, row)
    state = State(
        run_of(asked), dict(asked.query), asked.backoff_limit, asked.ttl_s, asked.deadline_s, started_at=time.time()
    )  # fmt: skip
    log.info("job=%s action=asked key=%s", asked.name, key.key_id)
    return replace(with_state(row, state), native=())


async def stop_job(context: Context, key: Key, row: Applied) -> None:
    """End what a Job runs, if it runs."""
    state = state_of(row)
    if state is None or not state.instance:
        return
    now = context.clock()

    def end(write: Transaction) -> None:
        found = write.instance(state.instance)
        if found is not None and found.ended_at is None and found.intent == "run":
            with context.desk.session(write, now) as market:
                stop(write, found, f"Job {row.name} is not wanted any more", now)
                market.changed(found.capacity_id)

    await context.store.write(end)
    log.info("job=%s action=stopped key=%s", row.name, key.key_id)
