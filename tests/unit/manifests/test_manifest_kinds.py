"""Knative Services, LLMInferenceServices and InferenceGraphs; and what a whole input must agree on."""

from __future__ import annotations

import textwrap

import pytest
from manifest_stage import KSERVE, model_of, planned, said, service, spec_of

from nanopod.model.endpoint import GraphStep, SecretRef, StorageSpec, Traffic, VolumeMount
from nanopod.server.manifests.planning import KINDS, ORDER, Known


def knative(spec: str = "", *, traffic: str = "", annotations: str = "{}", container: str = "") -> str:
    inner = container or "{image: host, command: [app], ports: [{containerPort: 8080}]}"
    text = f"""\
        apiVersion: serving.knative.dev/v1
        kind: Service
        metadata: {{name: hello}}
        spec:
          template:
            metadata: {{annotations: {annotations}}}
            spec: {{{spec}containers: [{inner}]}}
        """
    return textwrap.dedent(text) + (f"  traffic: {traffic}\n" if traffic else "")


def test_a_knative_service() -> None:
    annotations = "{autoscaling.knative.dev/min-scale: '0', autoscaling.knative.dev/target: '7'}"
    spec = spec_of(knative("containerConcurrency: 10, timeoutSeconds: 120, ", annotations=annotations))
    model, tuning = model_of(spec), spec.scale.tuning
    assert (model.engine, model.argv, model.protocols, model.port) == ("command", ("app",), ("http",), 8080)
    assert (tuning.container_concurrency, tuning.request_timeout_s, tuning.min_scale) == (10, 120, 0)
    assert (tuning.target, tuning.metrics) == (7.0, ("concurrency",))
    assert (spec.manifest, spec.traffic, model.slots) == ("Service", (), 10)
    assert spec_of(knative()).scale.tuning.min_scale is None, "zero is Knative's own default"


def test_shares_of_a_knative_service() -> None:
    rows = "[{revisionName: hello-00001, percent: 90, tag: stable}, {latestRevision: true, percent: 10, tag: next}]"
    assert spec_of(knative(traffic=rows)).traffic == (Traffic("hello-00001", 90, "stable"), Traffic("", 10, "next"))
    assert spec_of(knative(traffic="[{latestRevision: true, percent: 100}]")).traffic == ()


@pytest.mark.parametrize(
    ("rows", "path", "words"),
    [
        ("[{latestRevision: true, percent: 90}]", "spec.traffic", "add up to 90"),
        (
            "[{latestRevision: true, revisionName: hello-00001, percent: 100}]",
            "spec.traffic[0].latestRevision",
            "leave one out",
        ),
        ("[{latestRevision: false, percent: 100}]", "spec.traffic[0].revisionName", "is missing"),
        (
            "[{percent: 50, tag: a}, {percent: 50, tag: a, revisionName: hello-00001}]",
            "spec.traffic[1].tag",
            "there twice",
        ),
        ("[{percent: 100, tag: Big}]", "spec.traffic[0].tag", "lower-case"),
    ],
)
def test_shares_that_cannot_be(rows: str, path: str, words: str) -> None:
    found = said(knative(traffic=rows))
    assert [(line, where) for line, where, _ in found] == [(8, path)]
    assert words in found[0][2]


def test_what_else_is_said_of_a_knative_service() -> None:
    text = knative(container="{image: gcr.io/knative-samples/helloworld-go}")
    assert [(line, path) for line, path, _ in said(text)] == [(7, "spec.template.spec.containers[0].image")]
    outside = knative().replace("{name: hello}", "{name: hello, annotations: {autoscaling.knative.dev/window: 60s}}")
    assert "spec.template.metadata.annotations" in said(outside, level="warning")[0][2]
    named = knative().replace("metadata: {annotations: {}}", "metadata: {name: hello-first}")
    assert spec_of(named).version_label == "hello-first"
    assert [path for _, path, _ in said(named.replace("hello-first", "other"))] == ["spec.template.metadata.name"]


def llm(fields: str = "", *, model: str = "{uri: 'hf://org/model', name: org/model}") -> str:
    return textwrap.dedent(f"""\
        apiVersion: serving.kserve.io/v1alpha1
        kind: LLMInferenceService
        metadata: {{name: chat}}
        spec:
          model: {model}
        """) + "".join(f"  {line}\n" for line in fields.splitlines())


def test_an_llm_by_its_uri() -> None:
    spec = spec_of(llm("replicas: 2\nparallelism: {tensor: 4}"))
    model = model_of(spec)
    assert (model.engine, model.format, model.model_id, model.protocols) == (
        "server", "huggingface", "org/model", ("openai",),
    )  # fmt: skip
    assert model.storage == (StorageSpec("hf://org/model", "/mnt/models"),)
    assert spec.image.query == {"num_gpus": {"gte": 4}}
    assert (spec.scale.tuning.min_scale, spec.scale.tuning.max_scale) == (2, 2)


def test_an_llm_by_a_container_with_adapters() -> None:
    model = "{uri: 'hf://org/model', lora: {adapters: [{name: law, uri: 's3://b/law'}]}}"
    template = "template: {containers: [{name: main, image: vllm/vllm-openai, args: [--max-model-len=1024]}]}"
    made = model_of(spec_of(llm(template, model=model)))
    assert made.argv[:3] == ("vllm", "serve", "/mnt/models")
    assert "law=/mnt/models-lora/law" in made.argv
    assert [one.uri for one in made.storage] == ["hf://org/model", "s3://b/law"]
    assert [path for _, path, _ in said(llm(model=model))] == ["spec.model.lora"]


def test_bounds_of_an_llm() -> None:
    scaling = spec_of(llm("scaling: {minReplicas: 1, maxReplicas: 4, keda: {idleReplicaCount: 0}}")).scale.tuning
    assert (scaling.min_scale, scaling.max_scale) == (0, 4)
    assert spec_of(llm()).scale.tuning.min_scale == 1


@pytest.mark.parametrize(
    ("field", "path", "level"),
    [
        ("worker: {containers: []}", "spec.worker", "error"),
        ("parallelism: {pipeline: 2}", "spec.parallelism.pipeline", "error"),
        ("parallelism: {data: 8}", "spec.parallelism.data", "error"),
        ("replicas: 1\nscaling: {minReplicas: 1}", "spec.scaling", "error"),
        ("scaling: {minReplicas: 3, maxReplicas: 1}", "spec.scaling.minReplicas", "error"),
        ("router: {route: {}}", "spec.router", "warning"),
        ("prefill: {replicas: 1}", "spec.prefill", "warning"),
        ("kvCacheOffloading: {enabled: true}", "spec.kvCacheOffloading", "warning"),
        ("tracing: {enabled: true}", "spec.tracing", "warning"),
        ("scaling: {minReplicas: 1, wva: {}}", "spec.scaling.wva", "warning"),
        ("baseRefs: [{name: nothing}]", "spec.baseRefs", "warning"),
    ],
)
def test_what_an_llm_cannot_have(field: str, path: str, level: str) -> None:
    text = llm(field)
    assert [where for _, where, _ in said(text, level=level)] == [path]
    assert planned(text).rejected == (level == "error")


def test_base_references_of_the_same_input() -> None:
    base = """\
        apiVersion: serving.kserve.io/v1alpha1
        kind: LLMInferenceServiceConfig
        metadata: {name: big}
        spec: {parallelism: {tensor: 8}, replicas: 3}
        """
    text = f"{textwrap.dedent(base)}---\n{llm('baseRefs: [{name: big}]')}  replicas: 1\n"
    spec = spec_of(text)
    assert (spec.image.query["num_gpus"], spec.scale.tuning.min_scale) == ({"gte": 8}, 1)


def graph(nodes: str) -> str:
    head = "apiVersion: serving.kserve.io/v1alpha1\nkind: InferenceGraph\nmetadata: {name: flow}\n"
    return f"{head}spec:\n  nodes: {nodes}\n"


THERE = Known(endpoints={"a": "InferenceService", "b": ""})


def test_graphs_of_all_four_routers() -> None:
    nodes = (
        "{root: {routerType: Switch, steps: [{serviceName: a, condition: 'x.y==1'}, {nodeName: more, condition: z}]}, "
        "more: {routerType: Splitter, steps: [{serviceName: a, weight: 80}, {nodeName: both, weight: 20}]}, "
        "both: {routerType: Ensemble, steps: [{serviceName: a, name: one}, {serviceName: b, name: two}]}, "
        "last: {routerType: Sequence, steps: [{serviceUrl: 'http://h/p', dependency: Hard}, "
        "{serviceName: b, data: $response, mapPredictionsToInstances: true}]}}"
    )
    spec = spec_of(graph(nodes), THERE)
    assert (spec.kind, spec.manifest) == ("graph", "InferenceGraph")
    assert spec.graph is not None
    assert {name: node.router for name, node in spec.graph.nodes.items()} == {
        "root": "Switch", "more": "Splitter", "both": "Ensemble", "last": "Sequence",
    }  # fmt: skip
    assert spec.graph.nodes["more"].steps[0] == GraphStep(service="a", weight=80)
    assert spec.graph.nodes["last"].steps == (
        GraphStep(url="http://h/p", dependency="Hard"),
        GraphStep(service="b", data="$response", map_predictions=True),
    )


@pytest.mark.parametrize(
    ("nodes", "path", "words"),
    [
        ("{start: {routerType: Sequence, steps: [{serviceName: a}]}}", "nodes", "'root' is missing"),
        ("{root: {routerType: Sequence, steps: []}}", "nodes.root.steps", "at least one"),
        ("{root: {routerType: Random, steps: [{serviceName: a}]}}", "nodes.root.routerType", "not possible"),
        ("{root: {routerType: Sequence, steps: [{serviceName: zzz}]}}", "nodes.root.steps[0].serviceName", "no service"),
        ("{root: {routerType: Sequence, steps: [{nodeName: x}]}}", "nodes.root.steps[0].nodeName", "no node 'x'"),
        ("{root: {routerType: Sequence, steps: [{nodeName: root}]}}", "nodes.root", "root -> root"),
        ("{root: {routerType: Splitter, steps: [{serviceName: a, weight: 50}]}}", "nodes.root.steps", "add up to 50"),
        ("{root: {routerType: Switch, steps: [{serviceName: a}]}}", "nodes.root.steps[0].condition", "is missing"),
        ("{root: {routerType: Sequence, steps: [{serviceName: a, nodeName: root}]}}", "nodes.root.steps[0]",
         "exactly one"),
        ("{root: {routerType: Sequence, steps: [{serviceUrl: 'file:///etc'}]}}", "nodes.root.steps[0].serviceUrl",
         "no address"),
    ],
)  # fmt: skip
def test_graphs_that_cannot_be(nodes: str, path: str, words: str) -> None:
    found = said(graph(nodes), THERE)
    assert (5, f"spec.{path}") in [(line, where) for line, where, _ in found]
    assert any(words in text for _, _, text in found)


# --- a whole input ---

MODEL = "{sklearn: {storageUri: 's3://b/m'}}"


def test_other_kinds_are_refused_with_those_that_there_are() -> None:
    found = said("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n")
    assert found[0][:2] == (2, "kind")
    assert found[0][2].startswith("kind Deployment of apiVersion apps/v1 is not supported; supported are ")
    assert all(kind in found[0][2] for _, kind in KINDS)
    assert said("kind: Secret\n")[0][1] == "apiVersion"


def test_items_are_in_the_order_of_writing() -> None:
    parts = [
        graph("{root: {routerType: Sequence, steps: [{serviceName: iris}]}}"), service(MODEL),
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: p}\n"
        "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n",
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: sa}\nsecrets: [{name: s}]\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {a: b}\n",
    ]  # fmt: skip
    made = planned("---\n".join(parts))
    assert not made.rejected, made.found
    kinds = [item.kind for item in made.items]
    assert kinds == sorted(kinds, key=ORDER.index)
    assert kinds[0] == "Secret"
    assert kinds[-1] == "InferenceGraph"


def test_twice_in_one_input_and_names_that_others_have() -> None:
    twice = service(MODEL) + "---\n" + service(MODEL)
    assert [(line, path) for line, path, _ in said(twice)] == [(8, "metadata.name")]
    both = service(MODEL, name="hello") + "---\n" + knative()
    assert {path for _, path, _ in said(both)} == {"metadata.name"}
    foreign = said(service(MODEL), Known(endpoints={"iris": ""}))
    assert "was not made from a manifest" in foreign[0][2]
    assert not planned(service(MODEL), Known(endpoints={"iris": "InferenceService"})).rejected
    served = said(service(MODEL), Known(models={"iris": "other"}))
    assert "is served by endpoint other" in served[0][2]


def test_one_file_that_cannot_be_read_rejects_the_input() -> None:
    from nanopod.server.manifests.planning import plan

    made = plan([("good.yaml", service(MODEL)), ("bad.yaml", "a: b: c")], Known())
    assert made.rejected
    assert [(one.source, one.line, one.column) for one in made.found] == [("bad.yaml", 1, 5)]


def test_variables_volumes_and_secrets_of_other_documents() -> None:
    text = textwrap.dedent(f"""\
        apiVersion: {KSERVE}
        kind: InferenceService
        metadata: {{name: web}}
        spec:
          predictor:
            serviceAccountName: reader
            containers:
            - image: host
              command: [run]
              env:
              - {{name: MODE, valueFrom: {{configMapKeyRef: {{name: conf, key: mode}}}}}}
              - {{name: TOKEN, valueFrom: {{secretKeyRef: {{name: keys, key: tok.en}}}}}}
              - {{name: STORAGE_URI, value: 's3://b/m'}}
              envFrom: [{{configMapRef: {{name: conf}}}}, {{secretRef: {{name: all}}}}]
              volumeMounts: [{{name: data, mountPath: /data}}, {{name: files, mountPath: /etc/conf}}]
            volumes:
            - {{name: data, persistentVolumeClaim: {{claimName: disk}}}}
            - {{name: files, configMap: {{name: conf, items: [{{key: mode, path: mode.txt}}]}}}}
        ---
        {{apiVersion: v1, kind: ConfigMap, metadata: {{name: conf}}, data: {{mode: fast, OTHER: x}}}}
        ---
        {{apiVersion: v1, kind: Secret, metadata: {{name: keys}}, stringData: {{tok.en: hidden}}}}
        ---
        {{apiVersion: v1, kind: Secret, metadata: {{name: all}}, stringData: {{A: hidden}}}}
        ---
        apiVersion: v1
        kind: Secret
        metadata: {{name: s3, annotations: {{serving.kserve.io/s3-endpoint: minio:9000, serving.kserve.io/s3-usehttps: '0'}}}}
        stringData: {{AWS_ACCESS_KEY_ID: a, AWS_SECRET_ACCESS_KEY: hidden}}
        ---
        {{apiVersion: v1, kind: ServiceAccount, metadata: {{name: reader}}, secrets: [{{name: s3}}]}}
        ---
        apiVersion: v1
        kind: PersistentVolumeClaim
        metadata: {{name: disk}}
        spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}
        """)
    spec = spec_of(text)
    assert spec.image.env["MODE"] == "fast"
    assert spec.image.env["OTHER"] == "x"
    assert spec.image.secrets == (SecretRef("all"), SecretRef("keys", keys=(("TOKEN", "tok.en"),)))
    assert spec.image.volumes == (VolumeMount("/data", "disk"),)
    model, files = model_of(spec).storage
    assert (model.uri, model.secret) == ("s3://b/m", "s3")
    assert model.options == {"S3_ENDPOINT": "minio:9000", "S3_USE_HTTPS": "0"}
    assert (files.uri, files.path, files.options) == ("config://conf", "/etc/conf", {"mode.txt": "text:fast"})
    assert "hidden" not in repr(spec)
    lacking = text.replace("key: tok.en", "key: nope").replace("claimName: disk", "claimName: other")
    assert {line for line, _, _ in said(lacking)} == {12, 8}


def test_shares_name_revisions_that_there_are() -> None:
    rows = "[{revisionName: hello-00002, percent: 100}]"
    found = said(knative(traffic=rows))
    assert found == [(8, "spec.traffic[0].revisionName", "there is no revision 'hello-00002'; there are hello-00001")]
    known = Known(endpoints={"hello": "Service"}, revisions={"hello": frozenset({"hello-00001", "hello-00002"})})
    assert not planned(knative(traffic=rows), known).rejected


def test_two_services_cannot_have_one_model() -> None:
    named = "{sklearn: {storageUri: 's3://b/m', args: [--model_name=x]}}"
    found = said(service(named, name="a") + "---\n" + service(named, name="b"))
    assert [path for _, path, _ in found] == ["metadata.name", "metadata.name"]
    assert "model 'x' is that of b as well" in found[0][2]
