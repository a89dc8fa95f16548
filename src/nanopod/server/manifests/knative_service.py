"""Service of Knative Serving as an endpoint: one container that listens on `PORT`, and shares of the requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nanopod.model.endpoint import Traffic
from nanopod.server.manifests.around import Around
from nanopod.server.manifests.autoscaling import read_scale, with_pod
from nanopod.server.manifests.containers import Container, first_container, hardware, read_pod
from nanopod.server.manifests.fields import Problems, Reader
from nanopod.server.manifests.reading import Document
from nanopod.server.manifests.services import (
    NAME,
    Meta,
    Service,
    assemble,
    commanded,
    read_meta,
    rollout_of,
    warn_of_annotations,
)

LATEST: Final = ""


def read_knative_service(document: Document, around: Around, problems: Problems) -> Service:
    """The endpoint that a Knative Service is. What is wrong is noted in `problems`."""
    whole = Reader(document.data, "", problems)
    meta = read_meta(whole)
    spec = whole.object("spec", required=True, fix="give spec.template")
    whole.done()
    spec = spec or Reader({}, "spec", problems)
    warn_of_annotations(meta, problems)
    template = spec.object("template", required=True, fix="give template.spec with containers")
    traffic = _traffic(spec, meta.name)
    spec.done()
    template = template or Reader({}, "spec.template", problems)
    revision = _revision_meta(template, meta)
    pod_spec = template.object("spec", required=True, fix="give containers")
    template.done()
    pod_spec = pod_spec or Reader({}, "spec.template.spec", problems)
    # Annotations of the service itself say nothing of scaling: Knative reads those of the template.
    for key in meta.annotations:
        if key.startswith("autoscaling.knative.dev/"):
            problems.warn(f'{meta.at}["{key}"]', "is ignored: it belongs to spec.template.metadata.annotations")
    ours = {key: value for key, value in meta.annotations.items() if key.startswith("autoscaling.nanopod/")}
    scale = read_scale({**ours, **revision.annotations}, revision.at, problems, around.profile)
    scale = with_pod(scale, pod_spec)
    pod, volumes = read_pod(pod_spec, around)
    container = first_container(pod_spec, around, volumes)
    pod_spec.done()
    if container is None:
        pod_spec.error("containers", "is missing; give one container")
        container = Container(pod_spec.path, image="host", command=("true",))
    model = commanded(meta.name, container, (), scale, problems)
    made = assemble(
        Meta(meta.name, meta.labels, {**revision.annotations, **meta.annotations}, meta.at), "Service", model,
        container, scale, rollout_of(meta, problems), hardware((container.asked, pod.query)), around, problems,
        account=pod.account,
    )  # fmt: skip
    return replace(made, spec=replace(made.spec, traffic=traffic, version_label=revision.name))


def _revision_meta(template: Reader, meta: Meta) -> Meta:
    """`template.metadata`: the name of the revision, if the author gives it one, and its annotations."""
    inner = template.object("metadata")
    if inner is None:
        return Meta("", {}, {}, template.at("metadata") + ".annotations")
    name = inner.text("name")
    if name and (not NAME.fullmatch(name) or not name.startswith(f"{meta.name}-")):
        inner.error("name", f"{name!r} must be the service's name, - and more: {meta.name}-first")
    labels, annotations = inner.pairs("labels"), inner.pairs("annotations")
    inner.quietly("creationTimestamp", "namespace")
    inner.done()
    return Meta(name, labels, annotations, inner.at("annotations"))


def _traffic(spec: Reader, name: str) -> tuple[Traffic, ...]:
    """`traffic[]`: shares by the names of revisions; \"\" is the newest."""
    found: list[Traffic] = []
    rows = spec.objects("traffic")
    for one in rows:
        revision, latest = one.text("revisionName"), one.raw("latestRevision")
        percent, tag = one.whole("percent", most=100), one.text("tag")
        one.quietly("url", "configurationName")
        one.done()
        if latest is not None and not isinstance(latest, bool):
            one.error("latestRevision", "must be true or false")
        if revision and latest:
            one.error("latestRevision", "a row names revisionName or has latestRevision: true; leave one out")
        elif not revision and latest is False:
            one.error("revisionName", "is missing; name a revision, or set latestRevision: true")
        if tag and not NAME.fullmatch(tag):
            one.error("tag", f"{tag!r} must be lower-case letters, digits and -, beginning with a letter")
        if tag and any(other.tag == tag for other in found):
            one.error("tag", f"{tag!r} is there twice; rename one")
        found.append(Traffic(revision, percent or 0, tag))
    total = sum(one.percent for one in found)
    if rows and total != 100:
        spec.error("traffic", f"the percents add up to {total}; they must be 100")
    # All to the newest, without a tag, is what an endpoint does by itself.
    return () if found == [Traffic(LATEST, 100, "")] else tuple(found)
