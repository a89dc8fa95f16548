"""What a new specification of an endpoint means: nothing, new settings, new code, a new image, or a new endpoint."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec

from nanopod.control.checking import SLOTS_MAX, check_graph, check_model, check_numbers, check_traffic
from nanopod.model.chain import Endpoint, Instance, Revision
from nanopod.model.endpoint import EndpointSpec, Fingerprints, ModelSpec, RolloutSpec, ScaleSpec
from nanopod.model.errors import Invalid
from nanopod.model.ids import NAME_PATTERN
from nanopod.model.tuning import check_tuning

Action = Literal["exists", "autoscale_update", "soft_update", "hard_update", "created"]
INSTALLS: Final = ("pip_install", "apt_get", "runs", "copies")
"""Fields of an image that belong to the code: a worker is updated in place, and what did not change is not rebuilt."""
CODE: Final = ("model", "graph", "functions", "module", "asgi")
HARDWARE: Final = ("query", "prefer", "strict")
_UNSEEN: Final = ("prefer", "secrets", "volumes")
AMOUNT_MAX: Final = 1e12
"""Of loads and times: beyond it sums lose what is added to them."""
WORKERS_MAX: Final = 10_000
DURATION_S_MAX: Final = 7 * 86_400.0
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True)
class Update:
    """What applying a specification does. `tier`: 0 nothing, 1 settings, 2 code, 3 image, 4 a new endpoint."""

    action: Action
    tier: int
    changed: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """Bundled files that differ, where both sides said what they hold."""
    hardware_only: bool = False
    """Nothing but the hardware requirements changed: workers whose node still meets them go on."""
    models_only: bool = False
    """Nothing but the further models of a model server changed: its workers load and unload them."""


def fingerprinted(spec: EndpointSpec) -> EndpointSpec:
    """`spec` with every fingerprint that its sender left out computed from the fields themselves."""
    image = spec.image
    code: list[object] = [
        spec.bundle, spec.module, spec.functions, spec.model, image.apt_get, image.pip_install, image.runs, spec.asgi,
    ]  # fmt: skip
    rest = [
        image.from_image, image.env, image.python, image.storage_gb, image.ports, image.query, image.prefer,
        image.secrets, image.volumes, image.strict,
    ]  # fmt: skip
    if spec.graph is not None:
        code.append(spec.graph)
    sent = spec.fingerprints
    return replace(
        spec,
        fingerprints=Fingerprints(
            code=sent.code or _digest([*code, image.copies]),
            image=sent.image or _digest(rest),
            scale=sent.scale or _digest([spec.scale, spec.ttl_s, spec.rollout]),
        ),
    )


def _digest(parts: object) -> str:
    return hashlib.sha256(_encode(parts)).hexdigest()


def compare(endpoint: Endpoint | None, revision: Revision | None, spec: EndpointSpec) -> Update:
    """What changes from an endpoint's revision to `spec` (with fingerprints). The highest tier wins."""
    if endpoint is None or revision is None:
        return Update("created", 4, ("identity",), (f"there is no endpoint {spec.name}:{spec.tag} yet",))
    old, new = revision.spec, spec
    changed: list[str] = []
    reasons: list[str] = []
    settings = _settings(endpoint, new)
    if settings or endpoint.scale_fingerprint != new.fingerprints.scale:
        changed.append("scale")
        reasons.append("; ".join(settings) or "settings: ttl or rollout")
    if new.stopped != endpoint.stopped:
        changed.append("stopped")
        reasons.append("stopped: it runs nothing from now on" if new.stopped else "stopped: it is started again")
    if states_traffic(new) and new.traffic != endpoint.traffic:
        changed.append("traffic")
        reasons.append("traffic: calls are divided among its revisions in another way")
    files = _files(old, new)
    if old.fingerprints.code != new.fingerprints.code or old.model != new.model or old.graph != new.graph:
        changed.append("code")
        parts = [part for name in CODE for part in _parts(name, getattr(old, name), getattr(new, name))]
        parts += [name for name in _differing(old.image, new.image) if name in INSTALLS]
        reasons.append(_named("code", [*parts, *files]) or "code: the files differ")
    image = [name for name in _differing(old.image, new.image) if name not in INSTALLS]
    runtime = [name for name in ("serializer", "isolation") if getattr(old, name) != getattr(new, name)]
    # A field that the sender's fingerprint does not know of (of an earlier SDK) changes the workers all the same.
    if old.fingerprints.image != new.fingerprints.image or runtime or set(image) & set(_UNSEEN):
        changed.append("image")
        reasons.append(_named("image", [*image, *runtime]) or "image: its parts differ")
    hardware = "code" not in changed and not runtime and bool(image) and set(image) <= set(HARDWARE)
    if "image" in changed:
        return Update("hard_update", 3, tuple(changed), tuple(reasons), files, hardware)
    if "code" in changed:
        return Update("soft_update", 2, tuple(changed), tuple(reasons), files, models_only=_models_only(old, new))
    if changed:
        return Update("autoscale_update", 1, tuple(changed), tuple(reasons))
    return Update("exists", 0, (), ("nothing differs",))


def _models_only(old: EndpointSpec, new: EndpointSpec) -> bool:
    """Whether two specifications differ in what a model server has besides its main model, and in nothing else that
    runs."""
    before, after = old.model, new.model
    if before is None or after is None or after.engine != "server" or before.models == after.models:
        return False
    whole = replace(before, models=()) == replace(after, models=())
    parts = ("bundle", "module", "functions", "image", "serializer", "isolation", "asgi", "graph", "kind")
    return whole and all(getattr(old, name) == getattr(new, name) for name in parts)


def states_traffic(spec: EndpointSpec) -> bool:
    """True when a specification says how calls are divided: what it leaves out is meant, too, in a Knative Service."""
    return bool(spec.traffic) or spec.manifest == "Service"


def _settings(endpoint: Endpoint, new: EndpointSpec) -> list[str]:
    """The settings that differ, with old and new value where that is short."""
    found = [
        f"settings: {name} {getattr(old, name)} -> {getattr(now, name)}"
        for old, now in ((endpoint.scale, new.scale), (endpoint.scale.tuning, new.scale.tuning))
        for name in _differing(old, now)
        if name != "tuning"
    ]
    if endpoint.ttl_s != new.ttl_s:
        found.append(f"settings: ttl_s {endpoint.ttl_s} -> {new.ttl_s}")
    if endpoint.rollout != new.rollout:
        found += [
            f"rollout: {name} {getattr(endpoint.rollout, name)} -> {getattr(new.rollout, name)}"
            for name in _differing(endpoint.rollout, new.rollout)
        ]
    return found


def _parts(name: str, old: object, new: object) -> list[str]:
    """What of a part differs: of a model the fields by name, of all others the part as such."""
    if isinstance(old, ModelSpec) and isinstance(new, ModelSpec):
        return [f"{name}.{field}" for field in _differing(old, new)]
    return [name] if old != new else []


def _files(old: EndpointSpec, new: EndpointSpec) -> tuple[str, ...]:
    if not old.files or not new.files:
        return ()
    names = sorted({*old.files, *new.files})
    return tuple(name for name in names if old.files.get(name) != new.files.get(name))


def workers_affected(update: Update, instances: Sequence[Instance], fits: Collection[str]) -> list[str]:
    """Ids of the instances that applying an update replaces: all, or those on a kind of node that no longer fits.

    `fits` are the kinds of nodes (SKU ids) that meet the new requirements.
    """
    running = [one for one in instances if one.intent == "run"]
    if update.tier not in (2, 3):
        return []
    return [one.instance_id for one in running if not (update.hardware_only and one.sku_id in fits)]


def _differing(old: object, new: object) -> list[str]:
    return [name for name in old.__dataclass_fields__ if getattr(old, name) != getattr(new, name)]  # type: ignore[attr-defined]


def _named(part: str, names: list[str]) -> str:
    return f"{part}: {', '.join(names)}" if names else ""


def check(spec: EndpointSpec) -> None:
    """Raises `Invalid` naming the field, what was seen and what is possible."""
    check_numbers(msgspec.to_builtins(spec))
    for name, value in (("name", spec.name), ("tag", spec.tag)):
        if not NAME_PATTERN.fullmatch(value):
            raise Invalid(
                f"{name}: {value!r} must be letters, digits and . _ -, beginning with a letter or digit", field=name
            )
    if spec.kind == "machine":
        raise Invalid(
            "kind: an endpoint is of kind 'function' or 'model'; for instances that run a script make a deployment "
            "with an instance template",
            field="kind",
        )
    if spec.kind == "model":
        check_model(spec)
    elif spec.kind == "graph":
        check_graph(spec)
    else:
        _check_functions(spec)
    if spec.kind != "graph" and spec.graph is not None:
        raise Invalid("graph: only an endpoint of kind 'graph' has one; set kind to 'graph'", field="graph")
    check_traffic(spec.traffic)
    check_scale(spec.scale)
    check_rollout(spec.rollout)
    if spec.ttl_s is not None and not (math.isfinite(spec.ttl_s) and spec.ttl_s > 0):
        raise Invalid(f"ttl_s: {spec.ttl_s} must be a number of seconds above 0, or null", field="ttl_s")


def _check_functions(spec: EndpointSpec) -> None:
    if spec.model is not None:
        raise Invalid("model: only an endpoint of kind 'model' has one; set kind to 'model'", field="model")
    if not spec.functions and not spec.asgi:
        raise Invalid("functions: give at least one; mark a function with @app.remote", field="functions")
    if len(spec.bundle) != 64 or not set(spec.bundle) <= set("0123456789abcdef"):
        raise Invalid("bundle: give the SHA-256 (64 hexadecimal digits) of the uploaded bundle", field="bundle")
    seen: set[str] = set()
    for index, function in enumerate(spec.functions):
        at = f"functions[{index}]"
        if function.name in seen or not function.name:
            raise Invalid(f"{at}.name: {function.name!r} is empty or there twice", field=f"{at}.name")
        seen.add(function.name)
        if not 1 <= function.concurrency <= SLOTS_MAX:
            raise Invalid(
                f"{at}.concurrency: {function.concurrency} must be from 1 to {SLOTS_MAX}", field=f"{at}.concurrency"
            )
        for name in ("timeout_s", "queue_timeout_s", "max_queue_time_s"):
            if not getattr(function, name) > 0:
                raise Invalid(f"{at}.{name}: must be above 0 seconds", field=f"{at}.{name}")


def check_scale(scale: ScaleSpec) -> None:
    """Raises `Invalid` for settings that cannot work."""
    rules = (
        ("cold_workers", 0 <= scale.cold_workers <= WORKERS_MAX, f"from 0 to {WORKERS_MAX}"),
        ("max_workers", 0 <= scale.max_workers <= WORKERS_MAX, f"from 0 (no limit) to {WORKERS_MAX}"),
        ("min_load", 0 <= scale.min_load <= AMOUNT_MAX, f"from 0 to {AMOUNT_MAX:g}"),
        ("min_cold_load", 0 <= scale.min_cold_load <= AMOUNT_MAX, f"from 0 to {AMOUNT_MAX:g}"),
        ("target_util", 0.001 <= scale.target_util <= 1, "from 0.001 to 1"),
        ("cold_mult", 0 <= scale.cold_mult <= 1000, "from 0 to 1000"),
        ("max_queue_time", 0 < scale.max_queue_time <= AMOUNT_MAX, f"above 0 and at most {AMOUNT_MAX:g} seconds"),
        ("target_queue_time", 0 < scale.target_queue_time <= AMOUNT_MAX, f"above 0 and at most {AMOUNT_MAX:g} seconds"),
        ("inactivity_timeout", _finite(scale.inactivity_timeout), "a number of seconds, or null"),
        (
            "target_concurrency",
            scale.target_concurrency is None or 0.001 <= scale.target_concurrency <= AMOUNT_MAX,
            f"from 0.001 to {AMOUNT_MAX:g}, or null",
        ),
    )
    for name, good, possible in rules:
        if not good:
            raise Invalid(f"scale.{name}: {getattr(scale, name)} must be {possible}", field=f"scale.{name}")
    if not 0 <= scale.on_demand_fallback <= 1:
        raise Invalid(
            f"scale.on_demand_fallback: {scale.on_demand_fallback} must be a share from 0 to 1",
            field="scale.on_demand_fallback",
        )
    if scale.max_price is not None and not 0 < scale.max_price <= 1_000_000:
        raise Invalid(
            f"scale.max_price: {scale.max_price} must be above 0 and at most 1000000 US dollars an hour, or null",
            field="scale.max_price",
        )
    check_tuning(scale)
    if scale.max_workers and scale.cold_workers > scale.max_workers:
        raise Invalid(
            f"scale.cold_workers: {scale.cold_workers} is above max_workers={scale.max_workers}; raise max_workers",
            field="scale.cold_workers",
        )


def check_rollout(rollout: RolloutSpec) -> None:
    """Raises `Invalid` for a rollout that cannot work."""
    rules = (
        ("canary_percent", 0 <= rollout.canary_percent <= 100, "from 0 (no canary) to 100 (all calls)"),
        ("bake_s", 0 <= rollout.bake_s < math.inf, "0 or more seconds"),
        ("max_error_percent", 0 <= rollout.max_error_percent <= 100, "from 0 to 100"),
        ("min_calls", 1 <= rollout.min_calls <= 1_000_000, "from 1 to 1000000"),
        ("max_slowdown_percent", 0 <= rollout.max_slowdown_percent <= 10_000, "from 0 (not judged) to 10000"),
        ("duration_s", 0 <= rollout.duration_s <= DURATION_S_MAX, f"from 0 (at once) to {DURATION_S_MAX:g} seconds"),
    )
    for name, good, possible in rules:
        if not good:
            raise Invalid(f"rollout.{name}: {getattr(rollout, name)} must be {possible}", field=f"rollout.{name}")
    if rollout.pinned and rollout.canary_percent:
        raise Invalid(
            f"rollout.pinned: it keeps all calls at the previous revision, so canary_percent={rollout.canary_percent} "
            "must be 0",
            field="rollout.pinned",
        )


def _finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)
