"""Whatever stands in a file, it is read or refused: no value in any place of an object breaks the reader."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_stage import KSERVE

from nanopod.server.manifests.planning import Known, plan

CONTAINER = {
    "name": "c", "image": "host", "command": ["run"], "args": ["--port=$(PORT)"],
    "env": [{"name": "A", "value": "b"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}],
    "envFrom": [{"configMapRef": {"name": "c"}}], "ports": [{"containerPort": 80}],
    "resources": {"limits": {"cpu": 2, "memory": "1Gi", "nvidia.com/gpu": 1}, "requests": {"cpu": "500m"}},
    "readinessProbe": {"httpGet": {"path": "/r", "port": 80}, "periodSeconds": 5},
    "volumeMounts": [{"name": "v", "mountPath": "/x"}],
}  # fmt: skip
PLAIN = {key: value for key, value in CONTAINER.items() if key != "volumeMounts"}
TERM = {"matchExpressions": [{"key": "gpu.nvidia.com/class", "operator": "In", "values": ["A40"]}]}
POD = {
    "containers": [CONTAINER], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "p"}}],
    "nodeSelector": {"topology.kubernetes.io/region": "R"}, "serviceAccountName": "a",
    "tolerations": [{"key": "x"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [TERM]}}},
}  # fmt: skip
META: dict[str, Any] = {"name": "one", "labels": {"a": "b"}, "annotations": {"autoscaling.knative.dev/target": "5"}}
KSERVE_ALPHA = "serving.kserve.io/v1alpha1"
DOCUMENTS: list[dict[str, Any]] = [
    {"apiVersion": KSERVE, "kind": "InferenceService", "metadata": META, "spec": {
        "predictor": {**POD, "minReplicas": 1, "canaryTrafficPercent": 5, "batcher": {"maxBatchSize": 3},
                      "logger": {"url": "http://x", "mode": "all"}},
        "transformer": {"containers": [PLAIN]}, "explainer": {"containers": [PLAIN]}}},
    {"apiVersion": KSERVE, "kind": "InferenceService", "metadata": {**META, "name": "two"}, "spec": {"predictor": {
        "model": {"modelFormat": {"name": "sklearn"}, "protocolVersion": "v2",
                  "storage": {"path": "p", "parameters": {"bucket": "b"}}, "args": ["--a=1"]}}}},
    {"apiVersion": "serving.kserve.io/v1alpha2", "kind": "InferenceService", "metadata": {"name": "old"}, "spec": {
        "default": {"predictor": {"sklearn": {"storageUri": "gs://b/m"}}}, "canaryTrafficPercent": 5,
        "canary": {"predictor": {"custom": {"container": PLAIN}}}}},
    {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "k"}, "spec": {
        "template": {"metadata": {"annotations": META["annotations"]}, "spec": {**POD, "containerConcurrency": 1, "timeoutSeconds": 5}},
        "traffic": [{"latestRevision": True, "percent": 100, "tag": "t"}]}},
    {"apiVersion": KSERVE_ALPHA, "kind": "LLMInferenceService", "metadata": {"name": "llm"}, "spec": {
        "model": {"uri": "hf://o/m", "lora": {"adapters": [{"name": "x", "uri": "s3://b/x"}]}},
        "parallelism": {"tensor": 2}, "template": POD, "baseRefs": [{"name": "base"}],
        "scaling": {"minReplicas": 1, "keda": {"idleReplicaCount": 0}}}},
    {"apiVersion": KSERVE_ALPHA, "kind": "LLMInferenceServiceConfig", "metadata": {"name": "base"},
     "spec": {"parallelism": {"tensor": 2}}},
    {"apiVersion": KSERVE_ALPHA, "kind": "InferenceGraph", "metadata": {"name": "g"}, "spec": {"nodes": {
        "root": {"routerType": "Splitter", "steps": [{"serviceName": "one", "weight": 50},
                                                     {"nodeName": "n", "weight": 50}]},
        "n": {"routerType": "Sequence", "steps": [{"serviceUrl": "http://x", "data": "$response"}]}}, "timeout": 5}},
    {"apiVersion": KSERVE_ALPHA, "kind": "TrainedModel", "metadata": {"name": "t"}, "spec": {
        "inferenceService": "two", "model": {"storageUri": "gs://b/t", "framework": "onnx", "memory": "1Gi"}}},
    {"apiVersion": "v1", "kind": "Secret", "metadata": META, "data": {"k": "YQ=="}, "stringData": {"l": "b"}},
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": META, "data": {"k": "v"}},
    {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}, "secrets": [{"name": "one"}]},
    {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "p"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}},
    {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {
        "backoffLimit": 2, "template": {"spec": {**POD, "restartPolicy": "Never"}}}},
]  # fmt: skip
VALUES = st.sampled_from(
    [None, True, 0, -1, 10**30, 1.5, "", "x", "5", "-", "a/b", "$(PORT)", "${", "\u00e9", [], [None], [[]], ["x"],
     [1, {}], {}, {"": None}, {"x": []}, {"name": 5}, {"name": ["x"]}]
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inner for found in ((*path, key), *places(one, (*path, key)))]


PLACES = [(index, path) for index, one in enumerate(DOCUMENTS) for path in places(one)]


@settings(max_examples=80)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=2), st.booleans())
def test_no_value_anywhere_breaks_the_reader(changes: list[tuple[tuple[int, Any], Any]], strict: bool) -> None:
    documents = copy.deepcopy(DOCUMENTS)
    for (index, path), value in changes:
        at: Any = documents[index]
        try:
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = copy.deepcopy(value)
        except (TypeError, KeyError, IndexError):
            continue  # the other change has taken this place away
    text = "---\n".join(json.dumps(one) + "\n" for one in documents)
    made = plan([("f.yaml", text)], Known(), strict=strict)
    assert made.unreadable == []
    for problem in made.found:
        assert problem.line > 0
        assert problem.message
        assert "YQ==" not in problem.message


def test_the_documents_themselves_are_good() -> None:
    text = yaml.safe_dump_all(DOCUMENTS).replace("name: s\n", "name: one\n").replace("name: c\n", "name: one\n")
    made = plan([("f.yaml", text)], Known())
    assert [(item.kind, one.path, one.message) for item in made.items for one in item.problems.errors] == []
