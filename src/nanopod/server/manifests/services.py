"""What all kinds of services share: names, annotations, rollouts, and the specification that is made of their parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from nanopod.model.endpoint import (
    EndpointSpec,
    ImageSpec,
    ModelSpec,
    Protocol,
    RolloutSpec,
    ScaleSpec,
    StorageSpec,
)
from nanopod.server.manifests.around import Around, SecretKey
from nanopod.server.manifests.autoscaling import duration
from nanopod.server.manifests.containers import Container, Mounted
from nanopod.server.manifests.fields import Problems, Reader, shown
from nanopod.server.manifests.images import NO_ENGINE, Stand, command_of, is_host, stand_in
from nanopod.server.manifests.resources import Query
from nanopod.server.manifests.storing import mounted, opened

NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
OBJECT_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
STOP: Final = "serving.kserve.io/stop"
TAGS: Final = "serving.kserve.io/enable-tag-routing"
ROLLOUT_DURATION: Final = "serving.knative.dev/rollout-duration"
STRICT: Final = "nanopod/strict-hardware"
ROLLBACK: Final = "rollout.nanopod/auto-rollback"
ERRORS: Final = "rollout.nanopod/max-error-percent"
SLOWDOWN: Final = "rollout.nanopod/max-slowdown-percent"
OVERLOOKED: Final = ("qos.coreweave.cloud/", "os.coreweave.cloud/", "sidecar.istio.io/")
READY_PATH: Final = ModelSpec("").ready_path
SLOTS_FREE: Final = 100
"""Requests that a worker takes at a time where containerConcurrency is 0: what Knative takes one to bear."""
PREFER: Final[Mapping[str, tuple[Protocol, ...]]] = {"v1": ("v1", "v2"), "v2": ("v2", "v1")}
"""Paths of a model server, those that its protocolVersion names first."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service that was read. Its image has no secrets yet: `keys` are variables that are pairs of Secrets, and
    `whole` Secrets all of whose pairs are."""

    spec: EndpointSpec
    keys: tuple[SecretKey, ...] = ()
    whole: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    """PersistentVolumeClaims whose files it needs."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """What its status says besides: {condition: message}."""
    waits_for_models: bool = False
    """A server of several models that has none yet."""


@dataclass(frozen=True, slots=True)
class Meta:
    """The metadata of an object."""

    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    at: str = "metadata.annotations"


def read_meta(document: Reader, *, dns: bool = True) -> Meta:
    """`metadata`; its name must be one that can be the first label of a host (`dns`), or any object's."""
    document.quietly("apiVersion", "kind", "status")
    meta = document.object("metadata", required=True, fix="give at least metadata.name")
    if meta is None:
        return Meta("", {}, {})
    name = meta.text("name", required=not meta.has("generateName"), fix="name the object")
    pattern = NAME if dns else OBJECT_NAME
    given = meta.value.get("name")
    if isinstance(given, bool | int | float):
        meta.error("name", f"must be text, not {shown(given)}; put it in quotes")
    elif isinstance(given, str) and not pattern.fullmatch(name):
        what = "63 lower-case letters, digits and -, beginning with a letter"
        meta.error("name", f"{name!r} must be at most {what if dns else '253 lower-case letters, digits, - and .'}")
    if meta.has("generateName"):
        meta.error("generateName", "is not possible: applying twice would make two; give name")
    labels, annotations = meta.pairs("labels"), meta.pairs("annotations")
    namespace = meta.text("namespace", "default")
    if namespace not in ("", "default"):
        meta.warn("namespace", f"{namespace!r} is ignored: objects are made in the workspace of the key")
    for key in labels:
        if key.startswith(OVERLOOKED) or key == "networking.knative.dev/visibility":
            meta.problems.warn(f'metadata.labels["{key}"]', "is ignored: it has no meaning here")
    meta.quietly(
        "creationTimestamp", "uid", "resourceVersion", "generation", "managedFields", "selfLink", "finalizers",
        "ownerReferences",
    )  # fmt: skip
    meta.done()
    return Meta(name, labels, annotations)


def annotated(meta: Meta, key: str, problems: Problems, default: bool = False) -> bool:
    """A truth value in an annotation."""
    text = meta.annotations.get(key)
    if text is None:
        return default
    if text.lower() not in ("true", "false"):
        problems.error(f'{meta.at}["{key}"]', f"{text!r} must be 'true' or 'false', in quotes")
    return text.lower() == "true"


def warn_of_annotations(meta: Meta, problems: Problems) -> None:
    """Annotations that mean something elsewhere and nothing here."""
    for key, value in meta.annotations.items():
        at = f'{meta.at}["{key}"]'
        if key.endswith("/ingress-class") or key.endswith("/ingress.class") or key.startswith(OVERLOOKED):
            problems.warn(at, "is ignored: requests come through the gateway alone")
        elif key == "serving.kserve.io/deploymentMode" and value == "ModelMesh":
            problems.warn(at, "is ignored: each service has workers of its own; TrainedModel shares one")
        elif key == "serving.kserve.io/autoscalerClass" and value not in ("hpa", "kpa", "keda"):
            problems.warn(at, f"{value!r} is ignored: workers are counted by the one autoscaler here")


def rollout_of(meta: Meta, problems: Problems, canary: int | None = None) -> RolloutSpec:
    """How a new revision takes over. `canary` is canaryTrafficPercent, None where it is not stated."""
    made = RolloutSpec(
        bake_s=0.0,
        auto_promote=False,
        auto_rollback=annotated(meta, ROLLBACK, problems),
        tag_routing=annotated(meta, TAGS, problems),
        duration_s=_seconds(meta, problems),
        max_error_percent=_percent(meta, ERRORS, problems, RolloutSpec().max_error_percent, 100),
        max_slowdown_percent=_percent(meta, SLOWDOWN, problems, 0.0, 10_000),
    )
    if canary is None or canary == 100:
        return made
    return replace(made, canary_percent=canary, pinned=canary == 0)


def _seconds(meta: Meta, problems: Problems) -> float:
    text = meta.annotations.get(ROLLOUT_DURATION)
    if text is None:
        return 0.0
    try:
        found = duration(text)
    except ValueError as error:
        problems.error(f'{meta.at}["{ROLLOUT_DURATION}"]', str(error))
        return 0.0
    if not 0 <= found <= 7 * 86_400:
        problems.error(f'{meta.at}["{ROLLOUT_DURATION}"]', f"{text!r} is not possible; give at most 168h")
        return 0.0
    return found


def _percent(meta: Meta, key: str, problems: Problems, default: float, most: float) -> float:
    text = meta.annotations.get(key)
    if text is None:
        return default
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= most:
        problems.error(f'{meta.at}["{key}"]', f"{text!r} is not possible; give a percentage from 0 to {most:g}")
        return default
    return found


def slots_of(scale: ScaleSpec) -> int:
    """Requests that one worker takes at a time."""
    return scale.tuning.container_concurrency or SLOTS_FREE


# --- models ---


def options_of(args: Sequence[str]) -> dict[str, str]:
    """`--name value`, `--name=value` and `-name` arguments as options without their dashes; a bare one is `true`."""
    found: dict[str, str] = {}
    words = list(args)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals:
            value = words.pop(0) if words and not _is_flag(words[0]) else "true"
        found[name] = value
    return found


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\d.*", word)


def served(
    name: str, form: str, container: Container, storages: Sequence[StorageSpec], version: str, scale: ScaleSpec
) -> ModelSpec:
    """A model that our own server loads."""
    options = options_of((*container.command[1:], *container.args))
    called = options.get("model_name", "") or options.get("model-name", "") or name
    protocols = PREFER[version or ("v2" if form in ("onnx", "huggingface") else "v1")]
    task = options.get("task", "")
    source = ""
    if form == "huggingface":
        if task in ("", "text_generation", "text2text_generation", "text_embedding", "text-generation"):
            protocols = ("openai", *protocols)
        model_id = options.get("model_id", "") or options.get("model-id", "")
        if model_id and not storages:
            storages = (StorageSpec(f"hf://{model_id}"),)
    return ModelSpec(
        called, "server", source=source, slots=slots_of(scale), format=form, protocols=protocols,
        storage=tuple(storages), options=options, start_s_max=container.start_s_max,
    )  # fmt: skip


def commanded(
    name: str, container: Container, storages: Sequence[StorageSpec], scale: ScaleSpec, problems: Problems,
    protocols: tuple[Protocol, ...] = ("http",),
) -> ModelSpec:  # fmt: skip
    """A container as a model: its command on the node, or what stands in for its image. Notes why it cannot be run."""
    stand = stand_in(container.image) or Stand()
    at = f"{container.at}.image"
    called = options_of(container.args).get("served-model-name", "") or name
    if stand.form and not container.command:
        made = served(name, stand.form, container, storages, "", scale)
        if not made.storage:
            problems.error(f"{container.at}.args", "name the model: --model_id=OWNER/MODEL, or env STORAGE_URI")
        return made
    if is_host(container.image):
        stand = Stand(protocols=protocols)
        argv = container.argv
        if not argv:
            problems.error(f"{container.at}.command", f"is missing; image {container.image} runs command and args")
    elif stand.command:
        args = container.argv[len(container.command) :]
        argv = command_of(stand, args) if not container.command else container.argv
        if not container.command and stand.model_flag and not args:
            problems.error(f"{container.at}.args", f"are missing; give {stand.model_flag} and the model")
    else:
        argv = ()
        what = f"image {container.image!r} cannot be run here" if container.image else "is missing"
        problems.error(at if container.image else container.at, f"{what}: {NO_ENGINE}")
    own_port = stand.port_flag and not container.command
    return ModelSpec(
        called, "command", argv=argv, slots=slots_of(scale), ready_path=container.ready_path or READY_PATH,
        start_s_max=container.start_s_max, protocols=stand.protocols, storage=tuple(storages),
        port=0 if own_port or (stand.command and not container.command) else container.port,
    )  # fmt: skip


def assemble(
    meta: Meta, kind: str, model: ModelSpec, container: Container, scale: ScaleSpec, rollout: RolloutSpec,
    query: Query, around: Around, problems: Problems, *, account: str = "", more: Sequence[Container] = (),
) -> Service:  # fmt: skip
    """The specification of a service that runs one container, with helpers (`more`) in the same worker."""
    env: dict[str, str] = {}
    keys: list[SecretKey] = []
    whole: list[str] = []
    mounts: list[Mounted] = []
    for one in (*more, container):  # what the predictor says counts
        env |= one.env
        keys += one.keys
        whole += one.whole_secrets
        mounts += one.mounts
    at = container.at or "spec"
    storages = opened(model.storage, env, account, around, problems, at)
    if "STORAGE_URI" in env and not storages and model.engine != "server":
        storages = opened([StorageSpec(env["STORAGE_URI"])], env, account, around, problems, at)
    volumes, files = mounted(mounts, storages, around, problems, at)
    model = replace(model, storage=(*storages, *files))
    strict = bool(query.get("num_gpus")) or "gpu_name" in query or "any" in query
    image = ImageSpec(
        env=env, query=query, volumes=volumes,
        strict=strict and annotated(meta, STRICT, problems, default=True),
    )  # fmt: skip
    spec = EndpointSpec(
        meta.name, kind="model", image=image, model=model, scale=scale, rollout=rollout, manifest=kind,
        stopped=annotated(meta, STOP, problems),
    )  # fmt: skip
    claims = [one.volume for one in volumes]
    claims += [
        one.uri.removeprefix("pvc://").partition("/")[0] for one in model.storage if one.uri.startswith("pvc://")
    ]
    return Service(spec, tuple(keys), tuple(whole), tuple(dict.fromkeys(claims)))
