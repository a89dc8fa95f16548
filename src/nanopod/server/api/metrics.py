"""Metrics of the whole cloud for Prometheus, under Knative's names where Knative has them.

`kn_revision_*` are those of Knative Serving's autoscaler (OpenTelemetry names as Prometheus writes them); the labels
name the endpoint as service and configuration, the revision that runs as `NAME-NNNNN`, and the workspace as namespace.
What Knative has no word for begins with `nanopod_`. Counters begin at zero with the server's process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from nanopod import __version__
from nanopod.control.views import endpoint_view, instance_view
from nanopod.model.chain import Endpoint, Instance, Key
from nanopod.model.wire import LATENCY_BUCKETS_S
from nanopod.server.api.context import Context, Operation
from nanopod.server.api.endpoints import Whole, whole_endpoint
from nanopod.server.exposition import CONTENT_TYPE, Exposition
from nanopod.store.transaction import Transaction

GAUGES: Final = (
    ("kn_revision_pods_desired", "Workers that the autoscaler wants, before bounds."),
    ("kn_revision_pods_requested", "Workers that are asked for."),
    ("kn_revision_pods_count", "Workers that are ready."),
    ("kn_revision_pods_not_ready_count", "Workers that are asked for and not ready."),
    ("kn_revision_pods_pending_count", "Workers that wait for a place or for time on one."),
    ("kn_revision_pods_terminating_count", "Workers that drain or stop."),
    ("kn_revision_capacity_excess", "Requests at once that could come in addition."),
    ("kn_revision_panic_mode", "1 while a burst suspends every decrease."),
    ("kn_revision_concurrency_stable", "Requests at once, mean over the stable window."),
    ("kn_revision_concurrency_panic", "Requests at once, mean over the panic window."),
    ("kn_revision_concurrency_target", "Requests at once that one worker should have."),
    ("kn_revision_rps_stable", "Requests a second, mean over the stable window."),
    ("kn_revision_rps_panic", "Requests a second, mean over the panic window."),
    ("kn_revision_rps_target", "Requests a second that one worker should have."),
    ("nanopod_metric_stable", "Value of a metric of the autoscaler over the stable window."),
    ("nanopod_metric_panic", "Value of a metric of the autoscaler over the panic window."),
    ("nanopod_metric_target", "Value of a metric that one worker should have."),
    ("nanopod_cold_workers", "Hibernated workers."),
    ("nanopod_waiting_requests", "Requests that wait for a worker."),
    ("nanopod_oldest_wait_seconds", "How long the first in line has waited."),
    ("nanopod_units_per_second", "Units of load that one worker does in a second, as measured."),
    ("nanopod_start_seconds", "Median time of a start, by kind."),
)
COUNTERS: Final = (
    ("nanopod_requests_total", "Requests that arrived."),
    ("nanopod_load_units_total", "Units of load that arrived."),
    ("nanopod_request_seconds_total", "Time that completed requests took, summed."),
    ("nanopod_tokens_total", "Prompt and generated tokens."),
    ("nanopod_ended_total", "Tries that ended on a worker."),
    ("nanopod_failed_total", "Tries that failed on a worker."),
)
LATENCY: Final = "nanopod_request_duration_seconds"
CLOUD: Final = (
    ("nanopod_info", "The version that runs."),
    ("nanopod_uptime_seconds", "Time since the server's process began."),
    ("nanopod_nodes", "Nodes by state."),
    ("nanopod_instances", "Instances by phase."),
    ("nanopod_gateways", "Gateways that are linked."),
    ("nanopod_machines", "Machines whose agent is linked."),
)


async def get_metrics(context: Context, _request: Request, key: Key) -> Response:
    """Everything at once, in Prometheus' text format. An `admin` key of the default workspace sees all workspaces."""

    def read(read: Transaction) -> tuple[list[Whole], dict[str, str], dict[str, int], list[Instance]]:
        default = read.workspace_named("default")
        everything = "admin" in key.scopes and default is not None and key.workspace_id == default.workspace_id
        own = None if everything else key.workspace_id
        wholes = [whole_endpoint(read, endpoint) for endpoint in read.endpoints(own)]
        names = {one.workspace_id: one.name for one in read.workspaces_all()}
        nodes = Counter(str(node.state) for node in read.nodes())
        instances = [one for one in read.instances_live() if own is None or one.workspace_id == own]
        return wholes, names, dict(nodes), instances

    wholes, names, nodes, instances = await context.store.read(read)
    out = Exposition()
    _cloud(out, context, nodes, instances)
    for name, text in GAUGES:
        out.family(name, "gauge", text)
    for name, text in COUNTERS:
        out.family(name, "counter", text)
    out.family(LATENCY, "histogram", "Time from a request's arrival to the end of its answer.")
    for whole in wholes:
        labels = _labels(whole, names)
        _scale(out, labels, whole, endpoint_view(*whole, context.live).get("autoscaling") or {})
        _traffic(out, labels, context, whole[0])
    return Response(out.text(), media_type=CONTENT_TYPE)


def _cloud(out: Exposition, context: Context, nodes: Mapping[str, int], instances: list[Instance]) -> None:
    for name, text in CLOUD:
        out.family(name, "gauge", text)
    out.value("nanopod_info", {"version": __version__}, 1)
    out.value("nanopod_uptime_seconds", {}, round(time.time() - context.started_at, 3))
    out.value("nanopod_gateways", {}, len(context.live.gateways))
    out.value("nanopod_machines", {}, len(context.live.machines))
    for state, count in sorted(nodes.items()):
        out.value("nanopod_nodes", {"state": state}, count)
    phases = Counter(str(instance_view(one, context.live)["phase"]) for one in instances)
    for phase, count in sorted(phases.items()):
        out.value("nanopod_instances", {"phase": phase}, count)


def _labels(whole: Whole, names: Mapping[str, str]) -> dict[str, str]:
    endpoint, _, revision, _ = whole
    name = endpoint.name if endpoint.tag == "default" else endpoint.full_name
    return {
        "k8s_namespace_name": names.get(endpoint.workspace_id, endpoint.workspace_id),
        "kn_service_name": name,
        "kn_configuration_name": name,
        "kn_revision_name": f"{endpoint.name}-{revision.number:05d}",
    }


def _scale(out: Exposition, labels: dict[str, str], whole: Whole, scale: Mapping[str, Any]) -> None:
    """What the autoscaler sees and wants of one endpoint."""
    endpoint, _, _, instances = whole
    running = [one for one in instances if one.intent == "run"]
    ready = int(scale.get("ready") or 0)
    out.value("kn_revision_pods_desired", labels, max(0, int(scale.get("desired") or 0)))
    out.value("kn_revision_pods_requested", labels, max(0, endpoint.target))
    out.value("kn_revision_pods_count", labels, ready)
    out.value("kn_revision_pods_not_ready_count", labels, max(0, len(running) - ready))
    out.value("kn_revision_pods_pending_count", labels, sum(1 for one in running if one.phase == "queued"))
    ending = sum(1 for one in instances if one.intent != "run" and one.phase != "hibernated")
    out.value("kn_revision_pods_terminating_count", labels, ending)
    out.value("kn_revision_capacity_excess", labels, float(scale.get("excess_burst_capacity") or 0))
    out.value("kn_revision_panic_mode", labels, 1 if scale.get("panic_since") else 0)
    for metric in scale.get("metrics") or ():
        name = str(metric["name"])
        for window in ("stable", "panic", "target"):
            if (value := metric.get(window)) is None:
                continue
            out.value(f"nanopod_metric_{window}", {**labels, "metric": name}, float(value))
            if name in ("concurrency", "rps"):
                out.value(f"kn_revision_{name}_{window}", labels, float(value))
    out.value("nanopod_cold_workers", labels, sum(1 for one in instances if one.phase == "hibernated"))
    out.value("nanopod_waiting_requests", labels, float(scale.get("waiting") or 0))
    out.value("nanopod_oldest_wait_seconds", labels, float(scale.get("oldest_wait_s") or 0))
    if scale.get("units_per_s") is not None:
        out.value("nanopod_units_per_second", labels, float(scale["units_per_s"]))
    for kind, seconds in (scale.get("start_s") or {}).items():
        if seconds is not None:
            out.value("nanopod_start_seconds", {**labels, "kind": kind}, float(seconds))


def _traffic(out: Exposition, labels: dict[str, str], context: Context, endpoint: Endpoint) -> None:
    """What one endpoint did since the server began."""
    total = context.live.totals.endpoints.get(endpoint.endpoint_id)
    if total is None:
        return
    own = {name: value for name, value in labels.items() if name != "kn_revision_name"}
    out.value("nanopod_requests_total", own, total.requests)
    out.value("nanopod_load_units_total", own, total.units)
    out.value("nanopod_request_seconds_total", own, total.served_s)
    out.value("nanopod_tokens_total", own, total.tokens)
    for revision_id, counted in sorted(total.revisions.items()):
        one = {**own, "revision_id": revision_id}
        out.value("nanopod_ended_total", one, counted.ended)
        out.value("nanopod_failed_total", one, counted.failed)
        out.histogram(LATENCY, one, LATENCY_BUCKETS_S, counted.buckets)


OPERATIONS: Final = (
    Operation(
        "GET", "/metrics", get_metrics, "Metrics for Prometheus", scope="read", media="text/plain",
        text="Knative's names where it has them (`kn_revision_...`), else `nanopod_...`.",
    ),
)  # fmt: skip
