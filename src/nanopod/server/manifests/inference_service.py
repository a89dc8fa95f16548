"""InferenceService of KServe (v1beta1, and v1alpha2 which is converted) as an endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from nanopod.model.endpoint import ModelSpec, ScaleSpec, StorageSpec
from nanopod.server.manifests.around import Around
from nanopod.server.manifests.autoscaling import read_scale, with_fields
from nanopod.server.manifests.containers import (
    Container,
    Mounted,
    Pod,
    first_container,
    hardware,
    read_container,
    read_pod,
)
from nanopod.server.manifests.fields import Problems, Reader
from nanopod.server.manifests.images import is_host
from nanopod.server.manifests.reading import Document
from nanopod.server.manifests.resources import Query
from nanopod.server.manifests.services import (
    Meta,
    Service,
    assemble,
    commanded,
    read_meta,
    rollout_of,
    served,
    warn_of_annotations,
)
from nanopod.server.manifests.storing import check_uri, read_storages

FRAMEWORKS: Final = (
    "sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx", "huggingface", "pmml", "lightgbm", "paddle",
)  # fmt: skip
SERVED: Final = ("sklearn", "xgboost", "lightgbm", "onnx", "pytorch", "huggingface")
HOW: Final[Mapping[str, str]] = {
    "tensorflow": "convert the model to ONNX (modelFormat onnx), or run tensorflow_model_server of the node: "
    "containers with image tensorflow/serving",
    "triton": "run tritonserver of the node: containers with image nvcr.io/nvidia/tritonserver",
    "pmml": "run a PMML server of the node: containers with image host and its command",
    "paddle": "convert the model to ONNX (modelFormat onnx), or run a server of the node with image host",
    "mlflow": "name the format that the model was saved in (sklearn, xgboost, lightgbm, onnx)",
}
ALIASES: Final[Mapping[str, str]] = {"torchscript": "pytorch", "torch": "pytorch", "scikit-learn": "sklearn"}
BUILT_IN: Final = ("alibi", "art", "aix")


@dataclass(frozen=True, slots=True)
class _Part:
    """The predictor, read."""

    model: ModelSpec
    container: Container
    pod: Pod


def read_inference_service(document: Document, around: Around, problems: Problems) -> Service:
    """The endpoint that an InferenceService is. What is wrong is noted in `problems`."""
    whole = Reader(document.data, "", problems)
    meta = read_meta(whole)
    spec = whole.object("spec", required=True, fix="give spec.predictor")
    whole.done()
    if spec is None:
        spec = Reader({}, "spec", problems)
    if document.data.get("apiVersion", "").endswith("/v1alpha2"):
        spec = _converted(spec, problems)
    warn_of_annotations(meta, problems)
    scale = read_scale(meta.annotations, meta.at, problems, around.profile)
    if meta.annotations.get("serving.kserve.io/autoscalerClass") == "hpa" and not scale.tuning.metrics:
        scale = replace(scale, tuning=replace(scale.tuning, metrics=("cpu",)))
    if spec.has("canary"):
        spec.error("canary", "is not possible here; state predictor.canaryTrafficPercent instead")
    predictor = spec.object("predictor", required=True, fix="give predictor with a model")
    transformer, explainer = spec.object("transformer"), spec.object("explainer")
    spec.quietly("default")
    spec.done()
    if predictor is None:
        predictor = Reader({}, "spec.predictor", problems)
    scale = with_fields(scale, predictor)
    canary = predictor.whole("canaryTrafficPercent", most=100)
    part = _predictor(predictor, meta, scale, around, problems)
    model, placed = part.model, [(part.container.asked, part.pod.query)]
    more: list[Container] = []
    if transformer is not None:
        helper, argv, query = _helper(transformer, "transformer", around, problems)
        model, more, placed = replace(model, transformer=argv), [*more, helper], [*placed, (helper.asked, query)]
    conditions = {}
    if explainer is not None:
        found = _explainer(explainer, around, problems)
        if found is None:
            conditions["ExplainerReady"] = "built-in explainers are not available here; :explain answers 501"
        else:
            helper, argv, query = found
            model, more, placed = replace(model, explainer=argv), [*more, helper], [*placed, (helper.asked, query)]
    model = replace(model, models=around.trained.get(meta.name, ()))
    made = assemble(
        meta, "InferenceService", model, part.container, scale, rollout_of(meta, problems, canary),
        hardware(*placed), around, problems, account=part.pod.account, more=more,
    )  # fmt: skip
    waits = model.engine == "server" and not model.storage and not model.models
    return replace(made, conditions=conditions, waits_for_models=waits)


# --- the predictor ---


def _predictor(predictor: Reader, meta: Meta, scale: ScaleSpec, around: Around, problems: Problems) -> _Part:
    pod, volumes = read_pod(predictor, around)
    options = {**_batcher(predictor), **_logger(predictor)}
    predictor.ignored("workers are replaced one after another, and take over when they are ready", "deploymentStrategy")
    predictor.ignored("a model runs on one node", "workerSpec")
    predictor.quietly("labels", "annotations", "canaryTrafficPercent")
    given = [name for name in (*FRAMEWORKS, "model", "custom") if predictor.has(name)]
    several = [*given, *(["containers"] if predictor.has("containers") and not given else [])]
    if len(given) > 1:
        predictor.error(given[1], f"a predictor has one implementation; it has {' and '.join(given)}: keep one")
    empty = Container(predictor.path)
    if not several:
        if meta.name not in around.trained:
            known = ", ".join(FRAMEWORKS)
            problems.error(predictor.path, f"has no implementation; give model, containers or one of {known}")
        model, container = ModelSpec(meta.name, "server", slots=1, protocols=("v1", "v2")), empty
    elif several[0] in ("containers", "custom"):
        inner = predictor
        if several[0] == "custom":  # v1alpha2's word for a container
            inner = predictor.object("custom") or predictor
        model, container = _custom(inner, meta, scale, around, volumes, problems)
    else:
        inner = predictor.object(several[0]) or Reader({}, predictor.at(several[0]), problems)
        model, container = _framework(inner, several[0], meta, scale, around, volumes, problems)
        if predictor.has("containers"):
            predictor.ignored("the framework's server is the worker's one process", "containers")
    predictor.done()
    return _Part(replace(model, options={**model.options, **options}), container, pod)


def _custom(
    reader: Reader, meta: Meta, scale: ScaleSpec, around: Around, volumes: Mapping[str, Mounted], problems: Problems
) -> tuple[ModelSpec, Container]:
    if reader.path.endswith("custom"):
        inner = reader.object("container", required=True, fix="give custom.container")
        reader.done()
        container = read_container(inner, around, volumes) if inner is not None else None
    else:
        container = first_container(reader, around, volumes)
    if container is None:
        reader.error("containers", "is empty; give one container")
        return ModelSpec(meta.name, "command", argv=("true",), protocols=("http",)), Container(reader.path)
    if "STORAGE_URI" in container.env:
        check_uri(problems, f"{container.at}.env", container.env["STORAGE_URI"])
    return commanded(meta.name, container, (), scale, problems, ("v1", "v2", "http")), container


def _framework(
    reader: Reader, name: str, meta: Meta, scale: ScaleSpec, around: Around, volumes: Mapping[str, Mounted],
    problems: Problems,
) -> tuple[ModelSpec, Container]:  # fmt: skip
    form, where = name, ""
    if name == "model":
        form = _format(reader)
        where = ".modelFormat"
        runtime = reader.text("runtime")
        if runtime and not runtime.startswith("kserve-"):
            reader.warn("runtime", f"{runtime!r} is ignored: our own server loads {form or 'the model'}")
    version = reader.text("protocolVersion", one_of=("v1", "v2", "grpc-v1", "grpc-v2"))
    if version.startswith("grpc"):
        reader.error("protocolVersion", f"{version}: gRPC is not spoken here; use {version.removeprefix('grpc-')}")
        version = ""
    storages = read_storages(reader)
    reader.ignored("our own server is used", "runtimeVersion", "image")
    reader.quietly("modelClassName", "schemaPath", "name")
    own = {key: value for key, value in reader.value.items() if key in _CONTAINER}
    container = read_container(Reader(own, reader.path, problems), around, volumes)
    reader.quietly(*_CONTAINER)
    reader.done()
    form = ALIASES.get(form.lower(), form.lower())
    if form and form not in SERVED:
        how = HOW.get(form, "run a server of the node: containers with image host and its command")
        known = ", ".join(SERVED)
        problems.error(reader.path + where, f"there is no runtime for {form} here; {how}. Served are {known}")
        form = ""
    model = served(meta.name, form or "sklearn", container, storages, version, scale)
    uri = container.env.get("STORAGE_URI", "")
    if not model.storage and uri:
        check_uri(problems, f"{reader.path}.env", uri)
        model = replace(model, storage=(StorageSpec(uri),))
    if not model.storage and meta.name not in around.trained and form:
        problems.warn(reader.path, "has no storageUri: it starts when a TrainedModel that names it is applied")
    return model, container


_CONTAINER: Final = (
    "command", "args", "env", "envFrom", "resources", "ports", "readinessProbe", "livenessProbe", "startupProbe",
    "volumeMounts", "imagePullPolicy", "workingDir", "securityContext", "lifecycle",
)  # fmt: skip


def _format(reader: Reader) -> str:
    inner = reader.object("modelFormat", required=True, fix="name the format: modelFormat: {name: sklearn}")
    if inner is None:
        return ""
    inner.quietly("version")
    name = inner.text("name", required=True, fix=f"one of {', '.join(SERVED)}")
    inner.done()
    return name


def _batcher(predictor: Reader) -> dict[str, str]:
    inner = predictor.object("batcher")
    if inner is None:
        return {}
    found = {
        "max_batch_size": inner.whole("maxBatchSize", least=1),
        "max_latency_ms": inner.whole("maxLatency", least=1),
        "batch_timeout_s": inner.whole("timeout", least=1),
    }
    inner.done()
    defaults = {"max_batch_size": 32, "max_latency_ms": 5000}
    stated = {key: value for key, value in found.items() if value is not None}
    return {key: str(value) for key, value in {**defaults, **stated}.items()}


def _logger(predictor: Reader) -> dict[str, str]:
    inner = predictor.object("logger")
    if inner is None:
        return {}
    url = inner.text("url")
    mode = inner.text("mode", "all", one_of=("all", "request", "response"))
    inner.ignored("what is logged is sent to url alone", "storage", "metadataHeaders", "metadataAnnotations")
    inner.done()
    if not url.startswith(("http://", "https://")):
        inner.error("url", f"{url!r} is no address to post to; give one that begins with http:// or https://")
        return {}
    return {"log_url": url, "log_mode": mode}


# --- transformer and explainer ---


def _helper(
    component: Reader, what: str, around: Around, problems: Problems
) -> tuple[Container, tuple[str, ...], Query]:  # fmt: skip
    """A transformer or explainer: (its container, its command, where it may run)."""
    for name in ("minReplicas", "maxReplicas", "containerConcurrency", "scaleTarget", "scaleMetric", "timeout"):
        component.ignored(f"the {what} runs inside each worker of the predictor", name)
    component.ignored("only the predictor's revisions are divided", "canaryTrafficPercent")
    component.ignored(f"the {what} runs inside each worker of the predictor", "batcher", "logger", "deploymentStrategy")
    component.quietly("labels", "annotations")
    pod, volumes = read_pod(component, around)
    container = first_container(component, around, volumes)
    if container is None and component.has("custom"):
        custom = component.object("custom")
        inner = custom.object("container") if custom is not None else None
        container = read_container(inner, around, volumes) if inner is not None else None
    component.done()
    if container is None:
        problems.error(component.path, f"has no containers; a {what} is a custom container")
        return Container(component.path), (), {}
    if not is_host(container.image):
        problems.error(
            f"{container.at}.image",
            f"{what} image {container.image!r} cannot be run here: nodes have no container engine; use image: host "
            "with its command",
        )
    elif not container.argv:
        problems.error(f"{container.at}.command", f"is missing; image {container.image} runs command and args")
    return container, container.argv, pod.query


def _explainer(
    component: Reader, around: Around, problems: Problems
) -> tuple[Container, tuple[str, ...], Query] | None:  # fmt: skip
    built_in = [name for name in BUILT_IN if component.has(name)]
    if not built_in:
        return _helper(component, "explainer", around, problems)
    component.warn(built_in[0], f"the explainer {built_in[0]} is not available here; :explain answers 501")
    component.quietly(*component.value)
    return None


# --- v1alpha2 ---


def _converted(spec: Reader, problems: Problems) -> Reader:
    """`spec.default.predictor`, `spec.canary`, `canaryTrafficPercent` as a v1beta1 spec, with a warning.

    There the stable and the canary version are in one document. Here a document is one version: the canary's where it
    gets a share, so that the default is what was applied before.
    """
    problems.warn("apiVersion", "v1alpha2 is converted to v1beta1; write v1beta1 with spec.predictor")
    default, percent = spec.object("default"), spec.whole("canaryTrafficPercent", most=100)
    canary = spec.object("canary")
    if default is None:
        spec.error("default", "is missing; give default.predictor")
        return Reader({"predictor": {}}, "spec", problems)
    chosen = canary if canary is not None and percent else default
    if canary is not None and not percent:
        spec.warn("canary", "is ignored: canaryTrafficPercent is 0, so the default gets all requests")
    made: dict[str, Any] = {}
    for name in ("predictor", "transformer", "explainer"):
        inner = chosen.raw(name)
        if isinstance(inner, Mapping):
            made[name] = _flat(inner)
    if canary is not None and percent and isinstance(made.get("predictor"), dict):
        made["predictor"]["canaryTrafficPercent"] = percent
        spec.warn("canary", "is the new revision; the default keeps the other requests if it was applied before")
    spec.done()
    return _Relocated(made, "spec", problems, chosen.path)


def _flat(component: Mapping[str, Any]) -> dict[str, Any]:
    """A v1alpha2 component: `parallelism` is containerConcurrency, and resources of a framework are in place."""
    made = dict(component)
    if "parallelism" in made:
        made["containerConcurrency"] = made.pop("parallelism")
    return made


class _Relocated(Reader):
    """A reader whose members have the paths that they have in the document."""

    def __init__(self, value: Any, path: str, problems: Problems, origin: str) -> None:
        super().__init__(value, path, problems)
        self.path = origin
