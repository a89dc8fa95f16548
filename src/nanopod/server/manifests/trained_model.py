"""TrainedModel of KServe: a further model of an InferenceService's server."""

from __future__ import annotations

from dataclasses import dataclass

from nanopod.model.endpoint import LoadedModel, StorageSpec
from nanopod.server.manifests.around import Around
from nanopod.server.manifests.fields import Problems, Reader
from nanopod.server.manifests.inference_service import ALIASES, HOW, SERVED
from nanopod.server.manifests.reading import Document
from nanopod.server.manifests.resources import quantity
from nanopod.server.manifests.services import read_meta
from nanopod.server.manifests.storing import storage_uri


@dataclass(frozen=True, slots=True)
class Trained:
    """A model and the InferenceService that loads it."""

    service: str
    model: LoadedModel


def read_trained_model(document: Document, around: Around, problems: Problems) -> Trained:
    """The model that a TrainedModel is. What is wrong is noted in `problems`."""
    whole = Reader(document.data, "", problems)
    meta = read_meta(whole, dns=False)
    spec = whole.object("spec", required=True, fix="give inferenceService and model")
    whole.done()
    spec = spec or Reader({}, "spec", problems)
    service = spec.text("inferenceService", required=True, fix="name the InferenceService that loads it")
    model = spec.object("model", required=True, fix="give storageUri, framework and memory")
    spec.done()
    model = model or Reader({}, "spec.model", problems)
    uri = storage_uri(model, "storageUri")
    if not uri and not model.has("storageUri"):
        model.error("storageUri", "is missing; say where the model's files are")
    form = model.text("framework", required=True, fix=f"one of {', '.join(SERVED)}").lower()
    form = ALIASES.get(form, form)
    if form and form not in SERVED:
        how = HOW.get(form, "convert the model")
        model.error("framework", f"there is no runtime for {form} here; {how}. Served are {', '.join(SERVED)}")
    memory = 0
    text = model.text("memory", required=True, fix="say how much memory is reserved for it, such as 256Mi")
    if text:
        try:
            memory = int(quantity(text))
        except ValueError as error:
            model.error("memory", str(error))
    if memory < 0:
        model.error("memory", f"{text} is negative; give 0 or more")
    model.done()
    if service and service not in around.services:
        spec.error(
            "inferenceService", f"there is no InferenceService {service!r}; apply it first, or in the same input"
        )
    return Trained(service, LoadedModel(meta.name, form, StorageSpec(uri, f"/mnt/models/{meta.name}"), max(0, memory)))
