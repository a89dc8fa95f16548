"""InferenceServices become endpoints with the facts that they state, or are refused with the reason and the line."""

from __future__ import annotations

import textwrap

import pytest
from manifest_stage import KSERVE, model_of, planned, said, service, spec_of

from nanopod.model.endpoint import LoadedModel, StorageSpec
from nanopod.server.manifests.planning import Known

BUCKET = "storageUri: 's3://bucket/models/iris'"
HOST = "{name: kserve-container, image: host, command: [serve, --port, $(PORT)]}"


@pytest.mark.parametrize("form", ["sklearn", "xgboost", "lightgbm", "onnx", "pytorch", "huggingface"])
@pytest.mark.parametrize("new", [True, False])
def test_frameworks_in_both_forms(form: str, new: bool) -> None:
    inner = f"model: {{modelFormat: {{name: {form}, version: '1'}}, {BUCKET}}}" if new else f"{form}: {{{BUCKET}}}"
    model = model_of(spec_of(service(f"{{{inner}}}")))
    assert (model.engine, model.format, model.model_id) == ("server", form, "iris")
    assert model.storage == (StorageSpec("s3://bucket/models/iris", "/mnt/models"),)
    v2_first = form in ("onnx", "huggingface")
    assert [one for one in model.protocols if one != "openai"] == (["v2", "v1"] if v2_first else ["v1", "v2"])
    assert ("openai" in model.protocols) == (form == "huggingface")


def test_protocol_version_and_arguments_and_environment() -> None:
    spec = spec_of(
        service(
            f"{{model: {{modelFormat: {{name: sklearn}}, {BUCKET}, protocolVersion: v2, args: [--workers=2, --model_name, "
            "flowers, --enable_x], env: [{name: OMP_NUM_THREADS, value: 4}, {name: STORAGE_ALLOW_PATTERNS, "
            "value: '[\"*.joblib\"]'}]}}"
        )
    )
    model = model_of(spec)
    assert model.protocols == ("v2", "v1")
    assert model.model_id == "flowers"
    assert model.options == {"workers": "2", "model_name": "flowers", "enable_x": "true"}
    assert spec.image.env["OMP_NUM_THREADS"] == "4"
    assert model.storage[0].allow == ("*.joblib",)


def test_bounds_concurrency_and_timeout() -> None:
    text = f"{{minReplicas: 0, maxReplicas: 3, containerConcurrency: 2, timeout: 90, sklearn: {{{BUCKET}}}}}"
    spec = spec_of(service(text))
    tuning = spec.scale.tuning
    assert (tuning.min_scale, tuning.max_scale, tuning.container_concurrency) == (0, 3, 2)
    assert tuning.request_timeout_s == 90
    assert model_of(spec).slots == 2
    plain = spec_of(service(f"{{sklearn: {{{BUCKET}}}}}")).scale
    assert (plain.tuning.min_scale, plain.tuning.max_scale, plain.tuning.container_concurrency) == (1, None, 0)
    assert (plain.profile, plain.max_workers, plain.min_load, plain.target_util) == ("auto", 0, 0.0, 0.85)
    assert plain.tuning.metrics == (), "nothing was stated: the profile's own"


@pytest.mark.parametrize(
    ("fields", "metrics", "target", "share"),
    [
        ("scaleTarget: 5", ("concurrency",), 5.0, None),
        ("scaleTarget: 20, scaleMetric: rps", ("rps",), 20.0, None),
        ("scaleMetric: cpu, scaleTarget: 60", ("cpu",), None, 0.6),
        ("scaleMetric: memory", ("memory",), None, None),
    ],
)
def test_scale_targets(fields: str, metrics: tuple[str, ...], target: float | None, share: float | None) -> None:
    tuning = spec_of(service(f"{{{fields}, sklearn: {{{BUCKET}}}}}")).scale.tuning
    assert (tuning.metrics, tuning.target, tuning.target_utilization) == (metrics, target, share)


def test_batcher_and_logger_are_options_of_the_server() -> None:
    text = f"{{sklearn: {{{BUCKET}}}, batcher: {{maxBatchSize: 16, maxLatency: 500}}, logger: {{url: 'http://log', mode: request}}}}"
    options = model_of(spec_of(service(text))).options
    assert {"16", "500", "http://log", "request"} <= set(options.values())


def test_the_form_of_coreweave_works_unchanged() -> None:
    text = textwrap.dedent("""\
        apiVersion: serving.kubeflow.org/v1beta1
        kind: InferenceService
        metadata:
          name: gpt-neo
          annotations:
            autoscaling.knative.dev/scaleToZeroPodRetentionPeriod: 20m
        spec:
          predictor:
            minReplicas: 0
            maxReplicas: 3
            containerConcurrency: 1
            containers:
              - name: kfserving-container
                image: host
                command: [python3, /srv/serve.py]
                env:
                  - {name: STORAGE_URI, value: 's3://models/gpt-neo'}
                resources:
                  requests: {cpu: 1, memory: 6Gi}
                  limits: {cpu: 3, memory: 16Gi, nvidia.com/gpu: 1}
            affinity:
              nodeAffinity:
                requiredDuringSchedulingIgnoredDuringExecution:
                  nodeSelectorTerms:
                    - matchExpressions:
                        - {key: gpu.nvidia.com/class, operator: In, values: [Quadro_RTX_5000]}
        """)
    spec = spec_of(text)
    model, image, tuning = model_of(spec), spec.image, spec.scale.tuning
    assert (model.engine, model.argv, model.slots) == ("command", ("python3", "/srv/serve.py"), 1)
    assert "http" in model.protocols
    assert model.storage[0].uri == "s3://models/gpt-neo"
    assert image.query["num_gpus"] == {"gte": 1}
    assert image.query["gpu_name"] == {"eq": "Q RTX 5000"}
    assert image.query["cpu_cores"] == {"gte": 1}
    assert (tuning.min_scale, tuning.max_scale, tuning.retention_s) == (0, 3, 1200)
    # With the image that it names there, it is refused with the line of the image, and its facts are read all the same.
    made = planned(text.replace("image: host", "image: coreweave/ml-images:1"))
    assert [(one.line, one.path) for one in made.found if one.level == "error"] == [
        (14, "spec.predictor.containers[0].image")
    ]
    facts = made.items[0].spec
    assert facts is not None
    assert (facts.image.query, facts.scale) == (image.query, spec.scale)


@pytest.mark.parametrize(
    ("container", "argv", "protocols", "port"),
    [
        ("{image: host, command: [run, '{port} {x}'], args: [$(NAME)], env: [{name: NAME, value: '{host}'}]}",
         ("run", "{{port}} {x}", "{{host}}"), ("v1", "v2", "http"), 0),
        ("{image: nanopod/host, command: [run], args: [--port, $(PORT), $$(X), $(NAME)], env: [{name: NAME, value: v}]}",
         ("run", "--port", "{port}", "$(X)", "v"), ("v1", "v2", "http"), 0),
        ("{image: host, command: [run], ports: [{containerPort: 9090}]}", ("run",), ("v1", "v2", "http"), 9090),
        ("{image: 'vllm/vllm-openai:v0.10', args: [--model, Qwen/Qwen3-0.6B, --port, '8080', --max-model-len=4096]}",
         ("vllm", "serve", "Qwen/Qwen3-0.6B", "--max-model-len=4096", "--port", "{port}", "--host", "{host}"),
         ("openai", "http"), 0),
        ("{image: 'registry.local:5000/mirror/vllm/vllm-openai@sha256:00', command: [vllm, serve, m], ports: "
         "[{containerPort: 8000}]}", ("vllm", "serve", "m"), ("openai", "http"), 8000),
        ("{image: 'nvcr.io/nvidia/tritonserver:24.01-py3', args: [--model-store=/mnt/models]}",
         ("tritonserver", "--model-store=/mnt/models", "--http-port", "{port}"), ("v2", "http"), 0),
    ],
)  # fmt: skip
def test_containers_run_as_commands(
    container: str, argv: tuple[str, ...], protocols: tuple[str, ...], port: int
) -> None:
    model = model_of(spec_of(service(f"{{containers: [{container}]}}")))
    assert (model.engine, model.argv, model.protocols, model.port) == ("command", argv, protocols, port)


def test_images_of_known_servers_are_our_own() -> None:
    text = "{containers: [{image: kserve/huggingfaceserver:latest, args: [--model_id=org/model, --model_name=llm]}]}"
    model = model_of(spec_of(service(text)))
    assert (model.engine, model.format, model.model_id) == ("server", "huggingface", "llm")
    assert model.storage == (StorageSpec("hf://org/model"),)


def test_transformer_and_explainer() -> None:
    base = textwrap.dedent(f"""\
        apiVersion: {KSERVE}
        kind: InferenceService
        metadata: {{name: iris}}
        spec:
          predictor: {{sklearn: {{{BUCKET}}}}}
          transformer: {{containers: [{{image: host, command: [python3, t.py], resources: {{requests: {{cpu: 1}}}}}}]}}
          explainer: EXPLAINER
        """)
    spec = spec_of(base.replace("EXPLAINER", "{containers: [{image: host, command: [python3, e.py]}]}"))
    model = model_of(spec)
    assert (model.transformer, model.explainer) == (("python3", "t.py"), ("python3", "e.py"))
    assert spec.image.query == {"cpu_cores": {"gte": 1}}
    built_in = base.replace("EXPLAINER", "{alibi: {type: AnchorTabular}}")
    assert model_of(spec_of(built_in)).explainer == ()
    assert [(line, path) for line, path, _ in said(built_in, level="warning")] == [(7, "spec.explainer.alibi")]
    wrong = base.replace("EXPLAINER", "{containers: [{image: my/explainer}]}")
    assert [(line, path) for line, path, _ in said(wrong)] == [(7, "spec.explainer.containers[0].image")]


@pytest.mark.parametrize(
    ("predictor", "path", "words"),
    [
        (f"{{minReplicas: 3, maxReplicas: 2, sklearn: {{{BUCKET}}}}}", "minReplicas", "above maxReplicas 2"),
        (f"{{minReplicas: -1, sklearn: {{{BUCKET}}}}}", "minReplicas", "-1 is not possible"),
        (f"{{maxReplicas: '3', sklearn: {{{BUCKET}}}}}", "maxReplicas", "without quotes"),
        (f"{{containerConcurrency: 1.5, sklearn: {{{BUCKET}}}}}", "containerConcurrency", "whole number"),
        (f"{{scaleMetric: speed, sklearn: {{{BUCKET}}}}}", "scaleMetric", "choose one of concurrency"),
        (f"{{scaleMetric: cpu, scaleTarget: 200, sklearn: {{{BUCKET}}}}}", "scaleTarget", "percentage"),
        (f"{{canaryTrafficPercent: 101, sklearn: {{{BUCKET}}}}}", "canaryTrafficPercent", "from 0 to 100"),
        (f"{{sklearn: {{{BUCKET}}}, xgboost: {{{BUCKET}}}}}", "xgboost", "keep one"),
        (f"{{tensorflow: {{{BUCKET}}}}}", "tensorflow", "no runtime for tensorflow here; convert"),
        (f"{{model: {{modelFormat: {{name: pmml}}, {BUCKET}}}}}", "model.modelFormat", "no runtime for pmml"),
        (f"{{model: {{{BUCKET}}}}}", "model.modelFormat", "is missing"),
        ("{sklearn: {storageUri: 'ftp://x/y'}}", "sklearn.storageUri", "is not known"),
        ("{sklearn: {storageUri: 'oci://x/y'}}", "sklearn.storageUri", "not available here"),
        ("{sklearn: {storageUri: 'hf://a/b/c'}}", "sklearn.storageUri", "exactly owner and model"),
        (f"{{sklearn: {{{BUCKET}, protocolVersion: grpc-v2}}}}", "sklearn.protocolVersion", "gRPC"),
        ("{containers: [{image: my/server}]}", "containers[0].image", "no container engine"),
        ("{containers: [{image: host}]}", "containers[0].command", "is missing"),
        ("{containers: []}", "containers", "give one container"),
        ("{minReplicas: 1}", "", "no implementation"),
        ("{containers: [" + HOST.replace("}", ", env: [{name: 9x, value: 1}]}") + "]}", "containers[0].env[0].name",
         "cannot be set"),
        ("{containers: [" + HOST.replace("}", ", volumeMounts: [{name: v, mountPath: /x}]}") + "]}",
         "containers[0].volumeMounts[0].name", "no volume 'v'"),
        ("{containers: [" + HOST + "], volumes: [{name: v, hostPath: {path: /}}]}", "volumes[0].hostPath",
         "not available"),
        ("{containers: [" + HOST.replace("}", ", env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]}")
         + "]}", "containers[0].env[0].valueFrom.secretKeyRef.name", "does not exist"),
        (f"{{sklearn: {{{BUCKET}}}, logger: {{mode: all}}}}", "logger.url", "no address"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why_and_where(predictor: str, path: str, words: str) -> None:
    found = said(service(predictor))
    assert [(line, where) for line, where, _ in found] == [(4, f"spec.predictor.{path}".rstrip("."))]
    assert words in found[0][2]


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("deploymentStrategy: {type: Recreate}", "deploymentStrategy"),
        ("serviceAccountName: nobody", "serviceAccountName"),
        ("minReplica: 1", "minReplica"),
        ("initContainers: [{name: x}]", "initContainers"),
    ],
)
def test_what_is_ignored_is_warned_of_and_strict_makes_it_an_error(field: str, path: str) -> None:
    text = service(f"{{{field}, sklearn: {{{BUCKET}, runtimeVersion: '1.0', imagePullPolicy: Always}}}}")
    warned = [where.removeprefix("spec.predictor.") for _, where, _ in said(text, level="warning")]
    assert set(warned) == {path, "sklearn.runtimeVersion", "sklearn.imagePullPolicy"}
    assert not planned(text).rejected
    assert planned(text, strict=True).rejected


def test_an_unknown_field_names_its_nearest_kin() -> None:
    ((_, _, message),) = said(service(f"{{minReplica: 1, sklearn: {{{BUCKET}}}}}"), level="warning")
    assert "did you mean 'minReplicas'" in message


@pytest.mark.parametrize("name", ["Iris", "9iris", "iris_1", "a" * 64, "iris-", "a.b"])
def test_names_must_be_labels_of_a_host(name: str) -> None:
    found = said(service(f"{{sklearn: {{{BUCKET}}}}}", name=name))
    assert [path for _, path, _ in found] == ["metadata.name"]


def test_canary_pin_stop_and_gradual_rollout() -> None:
    def rollout(fields: str = "", annotations: str = "{}") -> tuple[int, bool, float, bool]:
        made = spec_of(service(f"{{{fields}sklearn: {{{BUCKET}}}}}", annotations=annotations)).rollout
        assert (made.auto_promote, made.auto_rollback, made.bake_s) == (False, False, 0.0)
        return made.canary_percent, made.pinned, made.duration_s, made.tag_routing

    assert rollout() == (0, False, 0.0, False)
    assert rollout("canaryTrafficPercent: 10, ") == (10, False, 0.0, False)
    assert rollout("canaryTrafficPercent: 0, ") == (0, True, 0.0, False)
    assert rollout("canaryTrafficPercent: 100, ") == (0, False, 0.0, False)
    slowly = "{serving.knative.dev/rollout-duration: 6m20s, serving.kserve.io/enable-tag-routing: 'true'}"
    assert rollout(annotations=slowly) == (0, False, 380.0, True)
    stopped = service(f"{{sklearn: {{{BUCKET}}}}}", annotations="{serving.kserve.io/stop: 'true'}")
    assert spec_of(stopped).stopped
    newer = service(f"{{sklearn: {{{BUCKET}}}}}").replace("spec: {", "spec: {canary: [], ")
    assert [(path, "canaryTrafficPercent" in text) for _, path, text in said(newer)] == [("spec.canary", True)]


@pytest.mark.parametrize("group", ["serving.kserve.io", "serving.kubeflow.org"])
def test_v1alpha2_is_converted_with_a_warning(group: str) -> None:
    text = textwrap.dedent(f"""\
        apiVersion: {group}/v1alpha2
        kind: InferenceService
        metadata: {{name: flowers}}
        spec:
          default:
            predictor:
              minReplicas: 2
              parallelism: 4
              sklearn:
                storageUri: gs://b/old
          canaryTrafficPercent: 20
          canary:
            predictor:
              sklearn:
                storageUri: WHERE
        """)
    spec = spec_of(text.replace("WHERE", "gs://b/new"))
    assert model_of(spec).storage[0].uri == "gs://b/new"
    assert spec.rollout.canary_percent == 20
    assert ("apiVersion", 1) in [(path, line) for line, path, _ in said(text, level="warning")]
    assert [(line, path) for line, path, _ in said(text)] == [(15, "spec.canary.predictor.sklearn.storageUri")]
    plain = text.replace("canaryTrafficPercent: 20", "canaryTrafficPercent: 0").replace("WHERE", "gs://b/new")
    spec = spec_of(plain)
    assert model_of(spec).storage[0].uri == "gs://b/old"
    assert (spec.scale.tuning.min_scale, spec.scale.tuning.container_concurrency) == (2, 4)


MULTI = """\
apiVersion: serving.kserve.io/v1alpha1
kind: TrainedModel
metadata: {name: rose}
spec: {inferenceService: many, model: {storageUri: 'gs://b/rose', framework: sklearn, memory: 256Mi}}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: many}
spec: {predictor: {minReplicas: 1, sklearn: {protocolVersion: v2}}}
"""


def test_trained_models_are_loaded_by_their_service() -> None:
    model = model_of(spec_of(MULTI))
    assert model.models == (LoadedModel("rose", "sklearn", StorageSpec("gs://b/rose", "/mnt/models/rose"), 256 << 20),)
    lonely = MULTI.partition("---\n")[0]
    assert [path for _, path, _ in said(lonely)] == ["spec.inferenceService"]
    assert not planned(lonely, Known(endpoints={"many": "InferenceService"})).rejected
    wrong = MULTI.replace("256Mi", "much").replace("framework: sklearn", "framework: tensorflow")
    assert [path for _, path, _ in said(wrong)] == ["spec.model.framework", "spec.model.memory"]
    waiting = planned(MULTI.partition("---\n")[2])
    assert not waiting.rejected
    assert waiting.items[0].made.waits_for_models
