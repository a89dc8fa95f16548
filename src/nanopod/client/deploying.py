"""Making a deployment ready: the spec that travels, the upload, the server's answer, heartbeats."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanopod.client import comparing, config, fingerprint
from nanopod.client.api import Api, segment
from nanopod.client.autoscaling import scale_spec
from nanopod.client.bundle import Bundle, assemble, make_bundle
from nanopod.client.config import Target
from nanopod.client.image import Image
from nanopod.client.query import Query
from nanopod.model.endpoint import EndpointSpec, Fingerprints, ImageSpec
from nanopod.model.errors import Conflict, DeploymentFailed, Invalid, NanopodError, NotFound

if TYPE_CHECKING:
    from nanopod.client.sdk import Deployment

HEARTBEAT_S_MAX: Final = 60.0
NAMED_FILES_MAX: Final = 300
"""Of a larger bundle a plan does not say which files differ."""
SPREAD_S_MAX: Final = 3.0
"""A deployment that was just made is known to every gateway after this time."""
TIER_NAMES: Final = ("nothing to do", "settings only", "code, rolling", "image, rolling", "new endpoint")
_told: set[str] = set()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a deploy does. `tier` 0 changes nothing, 1 settings, 2 code, 3 the image, 4 creates."""

    action: str
    tier: int
    changed: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    endpoint: str = ""
    differences: tuple[str, ...] = ()
    """The first line that differs in each file, as `path:line: - old + new`."""
    workers: tuple[str, ...] = ()
    """Ids of the workers that would be updated or replaced."""

    def __str__(self) -> str:
        lines = [f"{self.endpoint}: {self.action} (tier {self.tier}: {TIER_NAMES[min(self.tier, 4)]})"]
        if self.changed:
            lines.append(f"  changed  {', '.join(self.changed)}")
        lines += [f"  why      {reason}" for reason in self.reasons]
        lines += [f"  differs  {difference}" for difference in self.differences]
        if self.workers:
            lines.append(f"  workers  {len(self.workers)} affected: {', '.join(self.workers)}")
        return "\n".join(lines)


def make_ready(app: Deployment) -> None:
    """Deploy (or, in client mode, connect) and settle where calls go."""
    from nanopod.client.sdk import Route

    if app.mode == "client":
        target = _target(app)
        app._endpoint = _get(Api(target), app)
        _compare(app)
    else:
        _check_complete(app)
        spec, bundle = build(app)
        target = _target(app)
        older = None
        if app.mode == "deploy" and comparing.was_merely_imported(app):
            older = comparing.is_older(Api(target), app, spec, body_of(spec))
        if older is not None:
            app._endpoint = older
        else:
            if app._image is not None:
                app._image.provide(Api(target), f"{app.name}.{app.tag}")
            answer = send(Api(target), spec, bundle)
            app._endpoint = answer.get("endpoint", {})
            app._last_plan = plan_of(answer, f"{app.name}:{app.tag}")
    endpoint = str(app._endpoint.get("id") or f"{app.name}:{app.tag}")
    app._route = Route(target.url, target.key, endpoint, time.monotonic() + SPREAD_S_MAX)
    if app.ttl is not None:
        _start_heart(app, Api(target))


def plan(app: Deployment) -> Plan:
    """The server's answer to `would this change anything`. Raises `Invalid` as deploying would."""
    _check_complete(app)
    spec, bundle = build(app)
    api = Api(_target(app))
    answer = api.post("/v1/endpoints", body_of(spec), dry_run=1)
    found = plan_of(answer, f"{app.name}:{app.tag}")
    files = [str(path) for path in answer.get("files") or ()]
    return replace(found, differences=tuple(comparing.first_differences(api, answer.get("endpoint"), files, bundle)))


def plan_of(answer: dict[str, Any], endpoint: str) -> Plan:
    """A `Plan` from an answer of POST /v1/endpoints."""
    return Plan(
        action=str(answer.get("action", "")),
        tier=int(answer.get("tier", 0)),
        changed=tuple(map(str, answer.get("changed") or ())),
        reasons=tuple(map(str, answer.get("reasons") or ())),
        endpoint=endpoint,
        workers=tuple(map(str, answer.get("workers") or ())),
    )


def fetch(app: Deployment) -> dict[str, Any]:
    """The endpoint object of a deployment."""
    return _get(Api(_target(app)), app)


def delete(app: Deployment, endpoint: str) -> None:
    """Delete an endpoint; calls that run finish first. Raises `NotFound`."""
    Api(_target(app)).delete(f"/v1/endpoints/{segment(endpoint)}")


def wait_ready(app: Deployment, timeout_s: float) -> None:
    """Wait until a worker is ready. Raises `DeploymentFailed` with its reason, also when the time is over."""
    wait_endpoint(Api(_target(app)), app._endpoint.get("id") or f"{app.name}:{app.tag}", timeout_s)


def wait_endpoint(api: Api, endpoint: str, timeout_s: float, *, progress: Any = None) -> dict[str, Any]:
    """Wait until an endpoint has a ready worker, or sleeps as its settings ask; `progress` gets each look's object."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.05
    while True:
        found = api.get(f"/v1/endpoints/{segment(endpoint)}")
        if progress is not None:
            progress(found)
        if found.get("ready_instance_count", 0) > 0:
            return found
        failure = found.get("failure")
        if failure:
            raise failure_of(failure, str(found.get("name", endpoint)))
        if found.get("status") == "asleep" and not found.get("target_instance_count"):
            return found
        if time.monotonic() > deadline:
            why = "; ".join(map(str, found.get("reasons") or ())) or f"status {found.get('status')}"
            raise DeploymentFailed(f"{endpoint} has no ready worker after {timeout_s:.0f} s ({why})", stage="start")
        time.sleep(pause_s * random.uniform(0.8, 1.2))
        pause_s = min(1.0, pause_s * 1.3)


def failure_of(failure: dict[str, Any], name: str) -> DeploymentFailed:
    """The exception for an endpoint's `failure`."""
    stage = str(failure.get("stage", "start"))
    tail = str(failure.get("log_tail") or "")
    kind = f"{failure['type_name']}: " if failure.get("type_name") else ""
    error = DeploymentFailed(
        f"{name} failed in stage {stage}: {kind}{failure.get('message', '')}", stage=stage, log_tail=tail
    )
    if failure.get("traceback"):
        error.add_note(f"Remote traceback:\n{failure['traceback'].rstrip()}")
    if tail:
        error.add_note(f"The last lines of its log:\n{tail}")
    return error


def build(app: Deployment) -> tuple[EndpointSpec, Bundle]:
    """The spec and the bundle of a deployment, with its fingerprints. Raises `Invalid` for files that are missing."""
    image = app._image or Image()
    whole = image.spec(f"{app.name}.{app.tag}")
    bundle, module = _bundle(app, image)
    sent = _local_image(whole) if app.mode == "local" else whole
    widths = [getattr(cls, "nanopod_concurrency", 1) for cls in app._app.contexts]
    spec = EndpointSpec(
        name=app.name,
        tag=app.tag,
        bundle=bundle.digest,
        bundle_bytes=len(bundle.data),
        module=module,
        functions=tuple(bound.spec(max([1, *widths])) for bound in app._functions.values()),
        image=sent,
        scale=scale_spec(app._settings),
        ttl_s=app.ttl,
        version_label=app.version_label,
        serializer=app.serializer,
        asgi=tuple(app._asgi.values()),
        rollout=app._rollout,
        files=fingerprint.of_each(bundle.files, python=bundle.python) if len(bundle.files) <= NAMED_FILES_MAX else {},
    )
    return replace(spec, fingerprints=fingerprints(spec, bundle)), bundle


def _bundle(app: Deployment, image: Image) -> tuple[Bundle, str]:
    """(bundle, name of the module that a worker imports)."""
    if not app.by_value:
        assert app._source is not None, "checked before"
        bundle = make_bundle(app._source, name=app.name, config=image.bundle_config(), copies=image.copies)
        return bundle, app._source.module
    from nanopod.client import notebook

    files, compared = notebook.files_of(app)
    head = {"name": app.name, "module": notebook.MODULE, "entry": f"{notebook.MODULE}.py", **image.bundle_config()}
    return assemble(files, head, image.copies, Path.cwd(), compared), notebook.MODULE


def fingerprints(spec: EndpointSpec, bundle: Bundle) -> Fingerprints:
    """Digests of the three parts whose change decides what an update does."""
    image = asdict(spec.image)
    installs = {part: image.pop(part) for part in ("pip_install", "apt_get", "runs", "copies")}
    code = {"module": spec.module, "functions": [asdict(function) for function in spec.functions], **installs}
    if spec.serializer != "native":
        code["serializer"] = spec.serializer
    if spec.asgi:
        code["asgi"] = [asdict(mounted) for mounted in spec.asgi]
    scale = {**asdict(spec.scale), "ttl": spec.ttl_s, "rollout": asdict(spec.rollout)}
    return Fingerprints(
        code=fingerprint.of_files(bundle.files, python=bundle.python, extra=code),
        image=fingerprint.digest_of([fingerprint.canonical_json(image)]),
        scale=fingerprint.digest_of([fingerprint.canonical_json(scale)]),
    )


def body_of(spec: EndpointSpec) -> dict[str, Any]:
    """A spec as JSON."""
    return asdict(spec)


def send(api: Api, spec: EndpointSpec, bundle: Bundle | None) -> dict[str, Any]:
    """Create or update, and upload the bundle if the server asks for it; the server's answer.

    What needs no new code (nothing, or settings alone) uploads nothing.
    """
    try:
        return api.post("/v1/endpoints", body_of(spec))
    except Conflict as error:
        if bundle is None or "blob" not in f"{error.message} {error.__dict__.get('details')}":
            raise
        api.upload(bundle.digest, bundle.data)
        return api.post("/v1/endpoints", body_of(spec))


def _target(app: Deployment) -> Target:
    """The server of a deployment; in local mode this starts one."""
    if app.mode == "local":
        from nanopod.client import local

        beside = app._source.file.parent if app._source is not None else Path.cwd()
        app._cloud = app._trial or local.cloud_for(beside)
        return app._cloud.target
    url = config.find_url(app._url)
    if url is None:
        raise Invalid("no nanopod server is known; set NANOPOD_URL, or start one with `nanopod up`", field="url")
    return Target(url, config.find_key(app._api_key, url))


def _check_complete(app: Deployment) -> None:
    if not app._functions and not app._asgi:
        raise Invalid(
            "Trying to deploy an unbound deployment. Have any remote functions been registered?"
            if app.name
            else "Trying to deploy a deployment not yet bound to a Python module. Mark a function with @app.remote."
        )
    missing = [
        text
        for absent, text in (
            (app._image is None, "Trying to deploy a deployment without an image configured."),
            (not app._scale_is_set, "Trying to deploy a deployment without autoscaling configured."),
        )
        if absent
    ]
    for text in missing:
        if app.mode != "local":
            raise Invalid(text)
        if text not in _told:
            _told.add(text)
            warnings.warn(text, stacklevel=5)


def _local_image(image: ImageSpec) -> ImageSpec:
    """What of an image holds on the user's own machine; the rest is named once."""
    isolated = config.is_true("NANOPOD_LOCAL_ISOLATE")
    needs = [column for column in image.query if column not in Query.search_defaults().query]
    parts = {
        f"image {image.from_image}": bool(image.from_image),
        f"pip {' '.join(image.pip_install)}": bool(image.pip_install) and not isolated,
        f"apt {' '.join(image.apt_get)}": bool(image.apt_get),
        f"{len(image.runs)} commands": bool(image.runs) and not isolated,
        f"hardware {', '.join(needs)}": bool(needs) and not image.strict,
    }
    # The image's name alone says nothing about what the code needs from it.
    ignored = "; ".join(text for text, present in parts.items() if present) if any(list(parts.values())[1:]) else ""
    if ignored and ignored not in _told and os.environ.get("NANOPOD_QUIET", "") in config.FALSEHOODS:
        _told.add(ignored)
        print(f"nanopod: ignored in local mode: {ignored}", file=sys.stderr)
    plain = replace(image, from_image="", apt_get=())
    if not image.strict:
        plain = replace(plain, query={}, prefer=())
    return plain if isolated else replace(plain, pip_install=(), runs=(), python=sys.executable)


def _get(api: Api, app: Deployment) -> dict[str, Any]:
    name = f"{app.name}:{app.tag}"
    try:
        return api.get(f"/v1/endpoints/{segment(name)}")
    except NotFound:
        raise NotFound(
            f"there is no deployment {name} at {api.target.url}; deploy it with: nanopod deploy FILE"
        ) from None


def _compare(app: Deployment) -> None:
    """Warn when the code here is not what is deployed."""
    deployed = (app._endpoint.get("fingerprints") or {}).get("code")
    if not deployed or app._source is None or not app._functions:
        return
    spec, _ = build(app)
    if spec.fingerprints.code != deployed:
        warnings.warn(
            f"the code of {app.name} here differs from what is deployed; calls run the deployed one", stacklevel=4
        )


def _start_heart(app: Deployment, api: Api) -> None:
    if app._heart is not None:
        app._heart.set()
    app._heart = stop = threading.Event()
    period_s = min((app.ttl or HEARTBEAT_S_MAX) / 2, HEARTBEAT_S_MAX)
    path = f"/v1/endpoints/{segment(str(app._endpoint.get('id') or f'{app.name}:{app.tag}'))}/heartbeat"

    def beat() -> None:
        misses = 0
        while not stop.wait(period_s * random.uniform(0.9, 1.0)):
            try:
                api.post(path)
                misses = 0
            except NanopodError as error:
                misses += 1
                if misses == 3:
                    print(f"nanopod: heartbeats of {app.name} do not arrive: {error.message}", file=sys.stderr)

    threading.Thread(target=beat, name=f"nanopod-heartbeat-{app.name}", daemon=True).start()
