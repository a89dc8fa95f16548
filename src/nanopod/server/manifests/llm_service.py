"""LLMInferenceService of KServe as an endpoint: a model by its URI, or a container of its template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from nanopod.model.endpoint import LoadedModel, ModelSpec, ScaleSpec, StorageSpec
from nanopod.server.manifests.around import Around
from nanopod.server.manifests.autoscaling import read_scale
from nanopod.server.manifests.containers import Container, Pod, first_container, hardware, read_pod
from nanopod.server.manifests.fields import Problems, Reader
from nanopod.server.manifests.images import stand_in
from nanopod.server.manifests.reading import Document
from nanopod.server.manifests.resources import both
from nanopod.server.manifests.services import (
    Service,
    assemble,
    commanded,
    read_meta,
    rollout_of,
    served,
    warn_of_annotations,
)
from nanopod.server.manifests.storing import TARGET, storage_uri

GPUS_MAX: Final = 64


def read_llm_service(document: Document, around: Around, problems: Problems) -> Service:
    """The endpoint that an LLMInferenceService is. What is wrong is noted in `problems`."""
    whole = Reader(document.data, "", problems)
    meta = read_meta(whole)
    spec = whole.object("spec", required=True, fix="give spec.model.uri")
    whole.done()
    spec = _based(spec or Reader({}, "spec", problems), around)
    warn_of_annotations(meta, problems)
    scale = _scale(spec, read_scale(meta.annotations, meta.at, problems, around.profile))
    model, adapters, name = _model(spec, meta.name)
    gpus = _parallelism(spec)
    fetched = _fetched(spec)
    for field in ("router", "prefill", "kvCacheOffloading", "kvTransfer", "tracing", "storageInitializer"):
        _warned(spec, field)
    template = spec.object("template")
    spec.quietly("labels", "annotations")
    if spec.has("worker"):
        spec.error("worker", "workers of several nodes are not possible here: a model runs on one node; leave it out")
    spec.done()
    container, pod = Container("spec.template"), Pod((), {})
    if template is not None:
        pod, volumes = read_pod(template, around)
        container = first_container(template, around, volumes) or container
        template.done()
    made = _served(name, container, model if fetched else [], adapters, scale, problems)
    if not fetched and model and made.engine == "command":
        problems.warn("spec.storageInitializer", f"the engine fetches {model[0].uri} by itself, as enabled is false")
    query = both(hardware((container.asked, pod.query)), {"num_gpus": {"gte": gpus}} if gpus else {})
    service = assemble(
        meta, "LLMInferenceService", made, container, scale, rollout_of(meta, problems), query, around, problems,
        account=pod.account,
    )  # fmt: skip
    return service


def _based(spec: Reader, around: Around) -> Reader:
    """The specification over those of `baseRefs` that are in the input; what it says itself counts."""
    made: Mapping[str, Any] = {}
    for one in spec.objects("baseRefs"):
        name = one.text("name", required=True, fix="name a LLMInferenceServiceConfig of the same file")
        one.done()
        found = around.configs.get(name)
        if found is None:
            spec.warn("baseRefs", f"there is no LLMInferenceServiceConfig {name!r} in the input; it is ignored")
        else:
            base = found.get("spec")
            made = _over(made, base if isinstance(base, Mapping) else {})
    own = {key: value for key, value in spec.value.items() if key != "baseRefs"}
    return Reader(_over(made, own), spec.path, spec.problems)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(below)
    for key, value in above.items():
        before = made.get(key)
        made[key] = _over(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return made


def _scale(spec: Reader, scale: ScaleSpec) -> ScaleSpec:
    """`replicas` (a fixed number) or `scaling` {minReplicas, maxReplicas}."""
    replicas, scaling = spec.whole("replicas", most=10_000), spec.object("scaling")
    if replicas is not None and scaling is not None:
        spec.error("scaling", "a service has replicas or scaling; leave one out")
    tuning = replace(scale.tuning, container_concurrency=scale.tuning.container_concurrency or 0)
    if scaling is None:
        count = 1 if replicas is None else replicas
        stated = scale.tuning.min_scale is not None or scale.tuning.max_scale is not None
        if replicas is None and stated:
            return replace(scale, tuning=tuning)
        most = count if replicas is not None else None
        return replace(scale, tuning=replace(tuning, min_scale=count, max_scale=most))
    least, most = scaling.whole("minReplicas", most=10_000), scaling.whole("maxReplicas", most=10_000)
    keda = scaling.object("keda")
    if keda is not None:
        idle = keda.whole("idleReplicaCount", most=10_000)
        keda.ignored(
            "the autoscaler here looks at load and KV use by itself",
            *(k for k in keda.value if k != "idleReplicaCount"),
        )
        keda.done()
        least = 0 if idle == 0 else least
    scaling.ignored("the autoscaler here looks at load and KV use by itself", "wva")
    scaling.done()
    if least is not None and most and least > most:
        scaling.error("minReplicas", f"{least} is above maxReplicas {most}; lower it, or raise maxReplicas")
        least = most
    return replace(scale, tuning=replace(tuning, min_scale=1 if least is None else least, max_scale=most))


def _model(spec: Reader, name: str) -> tuple[list[StorageSpec], list[LoadedModel], str]:
    """`model`: (where its files are, its adapters, the name that requests use)."""
    model = spec.object("model", required=True, fix="give model.uri")
    if model is None:
        return [], [], name
    uri = storage_uri(model, "uri")
    if not uri and not model.has("uri"):
        model.error("uri", "is missing; say where the model is, such as hf://owner/model")
    called = model.text("name", name)
    model.ignored("requests of all importance wait in one queue", "criticality")
    adapters: list[LoadedModel] = []
    lora = model.object("lora")
    if lora is not None:
        for one in lora.objects("adapters"):
            where, title = storage_uri(one, "uri"), one.text("name", required=True, fix="name the adapter")
            one.quietly("framework", "criticality")
            one.done()
            if where:
                adapters.append(LoadedModel(title, "lora", StorageSpec(where, f"{TARGET}-lora/{title}")))
        lora.done()
    model.done()
    return ([StorageSpec(uri, TARGET)] if uri else []), adapters, called


def _parallelism(spec: Reader) -> int:
    """GPUs of one replica."""
    inner = spec.object("parallelism")
    if inner is None:
        return 0
    tensor = inner.whole("tensor", least=1, most=GPUS_MAX)
    for field in ("pipeline", "data", "dataLocal"):
        value = inner.whole(field, least=1)
        if value is not None and value > 1:
            inner.error(field, f"{value} needs a group of nodes, which is not possible here; use tensor on one node")
    inner.ignored("tensor says how many GPUs a replica has", "expert", "dataRPCPort")
    inner.done()
    return tensor or 0


def _fetched(spec: Reader) -> bool:
    """Whether the files are fetched before the engine starts."""
    inner = spec.object("storageInitializer")
    if inner is None:
        return True
    found = inner.flag("enabled", default=True)
    inner.done()
    return found


_WORDS: Final[Mapping[str, str]] = {
    "router": "the gateway here routes, and prefers replicas that hold a prompt's beginning",
    "prefill": "prompts are read and answered by the same replica",
    "kvCacheOffloading": "the engine's own arguments say where its cache is",
    "kvTransfer": "prompts are read and answered by the same replica",
    "tracing": "the gateway's own metrics and logs say what happens",
}


def _warned(spec: Reader, field: str) -> None:
    if field in _WORDS:
        spec.ignored(_WORDS[field], field)


def _served(
    name: str, container: Container, storages: list[StorageSpec], adapters: list[LoadedModel], scale: ScaleSpec,
    problems: Problems,
) -> ModelSpec:  # fmt: skip
    """Our own server on the model's files, or the container's command with them in place of `/mnt/models`."""
    if not container.image and not container.command:
        if adapters:
            problems.error(
                "spec.model.lora",
                "adapters need an engine that loads them; give template.containers with image vllm/vllm-openai",
            )
        made = served(name, "huggingface", container, storages, "", scale)
        return replace(made, protocols=("openai",))
    if stand_in(container.image) is not None and not container.command:
        args = container.args
        if storages and not any(word.split("=")[0] == "--model" for word in args):
            args = ("--model", storages[0].path, *args)
        if adapters:
            args = (*args, "--enable-lora", "--lora-modules", *(f"{one.name}={one.storage.path}" for one in adapters))
        if not any(word.split("=")[0] == "--served-model-name" for word in args):
            args = (*args, "--served-model-name", name)
        container = replace(container, args=args)
    storages = [*storages, *(one.storage for one in adapters)]
    made = commanded(name, container, storages, scale, problems, ("openai", "http"))
    return replace(made, model_id=name)
