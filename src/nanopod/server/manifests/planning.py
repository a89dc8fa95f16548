"""A whole input at once: every document read against all others and what was applied before, in the order of writing.

Pure: `known` is what is stored. Nothing is written unless every document of an input is good.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from nanopod.model.chain import Applied
from nanopod.model.endpoint import EndpointSpec, LoadedModel, Profile
from nanopod.server.manifests.around import Around, SecretSeen
from nanopod.server.manifests.configs import read_config
from nanopod.server.manifests.fields import Problem, Problems, Reader
from nanopod.server.manifests.graph import read_graph
from nanopod.server.manifests.inference_service import read_inference_service
from nanopod.server.manifests.jobs import read_job
from nanopod.server.manifests.knative_service import read_knative_service
from nanopod.server.manifests.limits import too_large, within
from nanopod.server.manifests.llm_service import read_llm_service
from nanopod.server.manifests.reading import Document, Unreadable, read_documents
from nanopod.server.manifests.resources import MEBI
from nanopod.server.manifests.secrets import AccountAsked, SecretAsked, read_account, read_secret, refs_of
from nanopod.server.manifests.services import Service, read_meta
from nanopod.server.manifests.trained_model import Trained, read_trained_model
from nanopod.server.manifests.volumes import read_claim

KINDS: Final[Mapping[tuple[str, str], str]] = {
    ("serving.kserve.io/v1beta1", "InferenceService"): "InferenceService",
    ("serving.kubeflow.org/v1beta1", "InferenceService"): "InferenceService",
    ("serving.kserve.io/v1alpha2", "InferenceService"): "InferenceService",
    ("serving.kubeflow.org/v1alpha2", "InferenceService"): "InferenceService",
    ("serving.kserve.io/v1alpha2", "LLMInferenceService"): "LLMInferenceService",
    ("serving.kserve.io/v1alpha1", "LLMInferenceService"): "LLMInferenceService",
    ("serving.kserve.io/v1alpha2", "LLMInferenceServiceConfig"): "LLMInferenceServiceConfig",
    ("serving.kserve.io/v1alpha1", "LLMInferenceServiceConfig"): "LLMInferenceServiceConfig",
    ("serving.knative.dev/v1", "Service"): "Service",
    ("serving.kserve.io/v1alpha1", "InferenceGraph"): "InferenceGraph",
    ("serving.kserve.io/v1alpha1", "TrainedModel"): "TrainedModel",
    ("v1", "Secret"): "Secret",
    ("v1", "ConfigMap"): "ConfigMap",
    ("v1", "PersistentVolumeClaim"): "PersistentVolumeClaim",
    ("v1", "ServiceAccount"): "ServiceAccount",
    ("batch/v1", "Job"): "Job",
}
"""{(apiVersion, kind): the kind it is kept as}."""
ORDER: Final = (
    "Secret", "ConfigMap", "ServiceAccount", "PersistentVolumeClaim", "LLMInferenceServiceConfig", "Job",
    "TrainedModel", "InferenceService", "LLMInferenceService", "Service", "InferenceGraph",
)  # fmt: skip
"""Whatever is named comes before what names it."""
SERVICES: Final = ("InferenceService", "LLMInferenceService", "Service", "InferenceGraph")
"""Kinds that become an endpoint."""
_READERS: Final[Mapping[str, Callable[[Document, Around, Problems], Any]]] = {
    "InferenceService": read_inference_service,
    "LLMInferenceService": read_llm_service,
    "Service": read_knative_service,
    "InferenceGraph": read_graph,
    "TrainedModel": read_trained_model,
    "Job": read_job,
    "PersistentVolumeClaim": lambda document, _around, problems: read_claim(document, problems),
}


@dataclass(slots=True)
class Item:
    """One document: what is wrong with it, and what it means. `kind` "": it is of no kind that is known."""

    document: Document
    problems: Problems
    api_version: str
    kind: str
    name: str
    made: Any = None
    """`Service`, `Trained`, or what the module of its kind makes; None where that could not be read."""
    implied: bool = False
    """It is not in the input: it is applied again since something that it holds is."""

    @property
    def marked(self) -> bool:
        """True for a document of the input; one that is stored has no lines."""
        return bool(self.document.marks)

    @property
    def spec(self) -> EndpointSpec | None:
        """The endpoint that it becomes."""
        return self.made.spec if isinstance(self.made, Service) else None


@dataclass(frozen=True, slots=True)
class Known:
    """What is there before an input: manifests, and objects of the workspace that were made without one."""

    applied: tuple[Applied, ...] = ()
    secrets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """{name: names of its pairs}."""
    volumes: frozenset[str] = frozenset()
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """{name: kind of manifest that it was made from, "" for none}, of endpoints with the default tag."""
    models: Mapping[str, str] = field(default_factory=dict)
    """{model id: name of its endpoint}."""
    revisions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """{endpoint: what its revisions are called by, the next one's name included}."""
    profile: Profile = "auto"
    max_scale_limit: int = 0
    """Workers that an object may be scaled to at most; 0: no limit."""
    memory_max: int = 0
    """Bytes of memory of the largest node; 0: there is none."""
    again: bool = False
    """The input is what is stored already: limits that came later do not reject it."""


@dataclass(slots=True)
class Plan:
    """The items in the order in which they are written, and what could not even be read."""

    items: list[Item]
    unreadable: list[Problem]
    around: Around
    sources: tuple[str, ...] = ()
    """Names of the files in the order of the input."""

    @property
    def rejected(self) -> bool:
        """True when anything is wrong: then nothing may be written."""
        return bool(self.unreadable) or any(item.problems.rejected for item in self.items)

    @property
    def found(self) -> list[Problem]:
        """All problems, in the order of the input."""
        order = {name: at for at, name in enumerate(self.sources)}
        found = [*self.unreadable, *(one for item in self.items for one in item.problems.found)]
        return sorted(found, key=lambda one: (order.get(one.source, len(order)), one.line, one.column))


def plan(files: Iterable[tuple[str, str]], known: Known, *, strict: bool = False) -> Plan:
    """Read (name, text) of every file against what is known."""
    unreadable: list[Problem] = []
    items: list[Item] = []
    sources: list[str] = []
    for source, text in files:
        sources.append(source)
        try:
            documents = read_documents(text, source)
        except Unreadable as error:
            unreadable.append(Problem("error", source, error.line, error.column, "", error.message))
            continue
        items += [_identified(one, strict) for one in documents]
    _distinct(items)
    around = _around(items, known)
    items += _implied(items, known, strict)
    for item in sorted(items, key=_rank):
        if item.kind in _READERS and item.made is None:
            item.made = _READERS[item.kind](item.document, around, item.problems)
            if isinstance(item.made, Service):
                spec = item.made.spec
                secrets = refs_of(item.made.keys, item.made.whole)
                scale = spec.scale
                if spec.kind != "graph":
                    # One that is stored is brought below a limit that came later; nobody is there to be told.
                    told = item.problems if item.marked and not known.again else Problems(item.document)
                    scale = within(scale, item.document.data, told, known.max_scale_limit)
                image = replace(spec.image, secrets=secrets)
                item.made = replace(item.made, spec=replace(spec, image=image, scale=scale))
            if isinstance(item.made, Trained):
                more = (*around.trained.get(item.made.service, ()), item.made.model)
                around = replace(around, trained={**around.trained, item.made.service: more})
    for item in items:
        _check_identity(item, items, known)
        _check_memory(item, items, known)
    return Plan(sorted(items, key=_rank), unreadable, around, tuple(sources))


def _rank(item: Item) -> int:
    return ORDER.index(item.kind) if item.kind in ORDER else len(ORDER)


def _identified(document: Document, strict: bool) -> Item:
    """The kind and name of a document; a problem where it is of no kind that is known."""
    problems = Problems(document, strict)
    version, kind = document.data.get("apiVersion"), document.data.get("kind")
    meta = document.data.get("metadata")
    name = meta.get("name") if isinstance(meta, Mapping) else None
    item = Item(document, problems, str(version or ""), "", str(name or ""))
    if not isinstance(version, str) or not isinstance(kind, str):
        lacking = "kind" if isinstance(version, str) else "apiVersion"
        problems.error(lacking, "is missing; every object has apiVersion and kind, as text")
    elif (version, kind) not in KINDS:
        groups: dict[str, list[str]] = {}
        for group, one in KINDS:
            groups.setdefault(one, []).append(group)
        supported = "; ".join(f"{one} ({', '.join(several)})" for one, several in groups.items())
        problems.error("kind", f"kind {kind} of apiVersion {version} is not supported; supported are {supported}")
    else:
        item.kind = KINDS[version, kind]
    return item


def _distinct(items: Sequence[Item]) -> None:
    seen: dict[tuple[str, str], Item] = {}
    for item in items:
        before = seen.setdefault((item.kind, item.name), item)
        if before is not item and item.kind and item.name:
            line, _ = before.document.mark("metadata.name")
            item.problems.error(
                "metadata.name", f"{item.kind} {item.name} is in {before.document.source}:{line} already; keep one"
            )


def _around(items: Sequence[Item], known: Known) -> Around:
    """Everything that documents may name: what is stored, then what the input says."""
    secrets = {name: SecretSeen(keys) for name, keys in known.secrets.items()}
    config_maps: dict[str, Mapping[str, str]] = {}
    accounts: dict[str, tuple[str, ...]] = {}
    claims: dict[str, Mapping[str, Any]] = {name: {} for name in known.volumes}
    configs: dict[str, Mapping[str, Any]] = {}
    trained: dict[str, tuple[LoadedModel, ...]] = {}
    services = set(known.endpoints)
    fresh = {(item.kind, item.name) for item in items}
    stored = [
        Item(document, Problems(document), one.api_version, one.kind, one.name)
        for one in known.applied
        if (one.kind, one.name) not in fresh
        for document in [stored_document(one)]
    ]
    services |= {item.name for item in (*stored, *items) if item.kind in SERVICES}
    named = Around(services=frozenset(services))
    for item in (*stored, *items):
        match item.kind:
            case "Secret" if item.marked:
                secret: SecretAsked = read_secret(item.document, item.problems)
                item.made, secrets[item.name] = secret, secret.seen
            case "Secret":
                secrets[item.name] = _hidden(item.document.data)
            case "ConfigMap":
                item.made = config = read_config(item.document, item.problems)
                config_maps[item.name] = config.data
            case "ServiceAccount":
                account: AccountAsked = read_account(item.document, item.problems)
                item.made, accounts[item.name] = account, account.secrets
            case "PersistentVolumeClaim":
                claims[item.name] = item.document.data
            case "LLMInferenceServiceConfig":
                item.made = configs[item.name] = _config(item)
    for item in stored:
        if item.kind == "TrainedModel":
            made = read_trained_model(item.document, named, item.problems)
            trained[made.service] = (*trained.get(made.service, ()), made.model)
    return Around(known.profile, secrets, config_maps, accounts, claims, trained, frozenset(services), configs)


def _hidden(data: Mapping[str, Any]) -> SecretSeen:
    """A stored Secret, whose values are not in its document."""
    keys = [key for part in ("data", "stringData") for key in data.get(part) or {}]
    annotations = (data.get("metadata") or {}).get("annotations") or {}
    return SecretSeen(tuple(keys), annotations, str(data.get("type") or "Opaque"))


def _config(item: Item) -> Mapping[str, Any]:
    whole = Reader(item.document.data, "", item.problems)
    read_meta(whole, dns=False)
    whole.object("spec", required=True, fix="give what services take over")
    whole.done()
    return item.document.data


def stored_document(applied: Applied) -> Document:
    """A stored object as a document; its lines are not known."""
    return Document("(applied before)", 0, json.loads(applied.document), {})


def _implied(items: Sequence[Item], known: Known, strict: bool) -> list[Item]:
    """Stored InferenceServices into which TrainedModels of the input are loaded."""
    asked = {
        str(spec.get("inferenceService"))
        for item in items
        if item.kind == "TrainedModel" and isinstance(spec := item.document.data.get("spec"), Mapping)
    }
    there = {item.name for item in items if item.kind == "InferenceService"}
    found = []
    for one in known.applied:
        if one.kind == "InferenceService" and one.name in asked - there:
            document = stored_document(one)
            found.append(Item(document, Problems(document), one.api_version, one.kind, one.name, implied=True))
    return found


def _check_identity(item: Item, items: Sequence[Item], known: Known) -> None:
    """A service's name is its endpoint's: one owner each."""
    if item.kind not in SERVICES or not item.name:
        return
    for other in items:
        if other is not item and other.kind in SERVICES and other.kind != item.kind and other.name == item.name:
            item.problems.error("metadata.name", f"{other.kind} {item.name} has this name too; rename one")
    owner = known.endpoints.get(item.name)
    if owner is not None and owner != item.kind:
        what = f"made from a manifest of kind {owner}" if owner else "not made from a manifest"
        item.problems.error(
            "metadata.name", f"endpoint {item.name} is there already and was {what}; rename this, or delete that one"
        )
    spec = item.spec
    if spec is not None:
        _check_revisions(item, spec, known)
    if spec is not None and spec.model is not None:
        others = [(one.name, one.spec.model) for one in items if one is not item and one.spec is not None]
        same = [name for name, model in others if model is not None and model.model_id == spec.model.model_id]
        if same and same[0] != item.name:
            item.problems.error(
                "metadata.name", f"model {spec.model.model_id!r} is that of {same[0]} as well; give each its own name"
            )
        holder = known.models.get(spec.model.model_id)
        if holder is not None and holder != item.name:
            served = f"model {spec.model.model_id!r} is served by endpoint {holder} already"
            item.problems.error("metadata.name", f"{served}; rename this, or delete that one")


def _check_memory(item: Item, items: Sequence[Item], known: Known) -> None:
    """What the models of a server reserve must fit into one worker."""
    spec = item.spec
    if spec is None or spec.model is None or not spec.model.models:
        return
    asked = int(spec.image.query.get("cpu_ram", {}).get("gte", 0)) * MEBI
    text = too_large(item.name, spec.model.models, asked, known.memory_max)
    mine = [one for one in items if isinstance(one.made, Trained) and one.made.service == item.name]
    if text and (mine or item.marked) and not known.again:
        for one in mine or [item]:
            one.problems.error("spec.model.memory" if mine else "spec.predictor", text)


def _check_revisions(item: Item, spec: EndpointSpec, known: Known) -> None:
    """Shares name revisions that there are, or the one that is about to be."""
    there = known.revisions.get(item.name, frozenset({f"{item.name}-00001"})) | {spec.version_label}
    for at, row in enumerate(spec.traffic):
        if row.revision and row.revision not in there:
            names = ", ".join(sorted(one for one in there if one.startswith(f"{item.name}-")))
            item.problems.error(
                f"spec.traffic[{at}].revisionName",
                f"there is no revision {row.revision!r}; there are {names or 'none'}",
            )
