"""Annotations and profiles as settings: the names, forms and limits of Knative's."""

from __future__ import annotations

import json

import pytest
from manifest_stage import KSERVE, said, service, spec_of

from nanopod.model.chain import Applied
from nanopod.model.endpoint import ScaleSpec, Tuning
from nanopod.server.manifests.applying import stored_spec
from nanopod.server.manifests.autoscaling import ANNOTATIONS, duration
from nanopod.server.manifests.planning import Known
from nanopod.server.manifests.reading import read_documents

MODEL = "{sklearn: {storageUri: 's3://b/m'}}"
KNATIVE = "autoscaling.knative.dev/"
OURS = "autoscaling.nanopod/"


def annotated(**annotations: str) -> str:
    joined = ", ".join(f"{key}: '{value}'" for key, value in annotations.items())
    return service(MODEL, annotations=f"{{{joined}}}")


def scale_of(**annotations: str) -> ScaleSpec:
    return spec_of(annotated(**annotations)).scale


def tuning_of(**annotations: str) -> Tuning:
    return scale_of(**annotations).tuning


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1m30s", 90.0),
        ("2h", 7200.0),
        ("0", 0.0),
        ("1.5h", 5400.0),
        ("100ms", 0.1),
        ("1h0m0.5s", 3600.5),
        ("90s", 90.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["90", "1 m", "m", "", "1d", "1m-3s", "s1"])
def test_what_is_no_duration_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        duration(text)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("target", "5", "target", 5.0),
        ("target-utilization-percentage", "80", "target_utilization", 0.8),
        ("min-scale", "2", "min_scale", 2),
        ("max-scale", "9", "max_scale", 9),
        ("initial-scale", "0", "initial_scale", 0),
        ("activation-scale", "3", "activation_scale", 3),
        ("window", "3m", "stable_window_s", 180.0),
        ("panic-window-percentage", "13.33", "panic_window_percentage", 13.33),
        ("panic-threshold-percentage", "250", "panic_threshold_percentage", 250.0),
        ("scale-down-delay", "15m", "scale_down_delay_s", 900.0),
        ("scale-to-zero-pod-retention-period", "1m5s", "retention_s", 65.0),
        ("target-burst-capacity", "-1", "target_burst_capacity", -1.0),
        ("metric-aggregation-algorithm", "weightedExponential", "aggregation", "weighted-exponential"),
    ],
)
def test_annotations_in_both_spellings(name: str, text: str, field: str, value: object) -> None:
    assert getattr(tuning_of(**{KNATIVE + name: text}), field) == value
    camel = ANNOTATIONS[name][2]
    if camel:
        assert getattr(tuning_of(**{KNATIVE + camel: text}), field) == value


def test_kebab_case_counts_before_camel_case() -> None:
    text = annotated(**{KNATIVE + "minScale": "5", KNATIVE + "min-scale": "2"})
    assert spec_of(text).scale.tuning.min_scale == 2
    assert [path for _, path, _ in said(text, level="warning")] == [f'metadata.annotations["{KNATIVE}minScale"]']


def test_metric_class_deadline_and_our_own() -> None:
    assert tuning_of(**{KNATIVE + "metric": "rps"}).metrics == ("rps",)
    assert tuning_of(**{KNATIVE + "class": "hpa.autoscaling.knative.dev"}).metrics == ("cpu",)
    assert tuning_of(**{KNATIVE + "class": "kpa.autoscaling.knative.dev"}).metrics == ()
    assert tuning_of(**{"serving.knative.dev/progress-deadline": "20m"}).progress_deadline_s == 1200
    tuning = tuning_of(
        **{
            OURS + "max-scale-up-rate": "5", OURS + "max-scale-down-rate": "1.5", OURS + "panic-window": "24s",
            OURS + "tick": "15s", OURS + "metrics": "load,kv", OURS + "missing-data": "knative-freeze",
            OURS + "scale-to-zero-grace-period": "45s", OURS + "enable-scale-to-zero": "false",
        }
    )  # fmt: skip
    assert (tuning.max_scale_up_rate, tuning.max_scale_down_rate, tuning.panic_window_s) == (5.0, 1.5, 24.0)
    assert (tuning.tick_s, tuning.metrics, tuning.missing_data) == (15.0, ("load", "kv"), "knative-freeze")
    assert (tuning.grace_s, tuning.enable_scale_to_zero) == (45.0, False)
    scale = scale_of(**{OURS + "cold-workers": "2", OURS + "min-load": "100", OURS + "inactivity-timeout": "5m"})
    assert (scale.cold_workers, scale.min_load, scale.inactivity_timeout) == (2, 100.0, 300.0)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        (KNATIVE + "window", "5s", "from 6 to 3600"),
        (KNATIVE + "window", "90", "no duration"),
        (KNATIVE + "window", "6.5s", "whole number"),
        (KNATIVE + "activation-scale", "1", "from 2"),
        (KNATIVE + "panic-window-percentage", "0.5", "from 1 to 100"),
        (KNATIVE + "panic-threshold-percentage", "100", "from 110 to 1000"),
        (KNATIVE + "target-utilization-percentage", "0", "from 1 to 100"),
        (KNATIVE + "target", "0.001", "from 0.01"),
        (KNATIVE + "min-scale", "-1", "from 0"),
        (KNATIVE + "min-scale", "1.5", "whole number"),
        (KNATIVE + "max-scale", "many", "not a number"),
        (KNATIVE + "target-burst-capacity", "-0.5", "-1, or 0 or more"),
        (KNATIVE + "target-burst-capacity", "-2", "from -1"),
        (KNATIVE + "scale-to-zero-pod-retention-period", "2h", "from 0 to 3600"),
        (KNATIVE + "metric", "vibes", "choose one of"),
        (KNATIVE + "metric-aggregation-algorithm", "median", "linear or weighted"),
        (OURS + "profile", "gke", "choose one of auto"),
        (OURS + "max-scale-up-rate", "1", "from 1"),
        (OURS + "metrics", "load,x", "name some of"),
        (OURS + "enable-scale-to-zero", "maybe", "true or false"),
    ],
)
def test_limits_name_the_annotation(key: str, text: str, words: str) -> None:
    found = said(annotated(**{key: text}))
    assert [(line, path) for line, path, _ in found] == [(3, f'metadata.annotations["{key}"]')]
    assert words in found[0][2]


def test_unknown_parameters_are_warned_of() -> None:
    text = annotated(**{KNATIVE + "windows": "60s", OURS + "magic": "1"})
    assert [path for _, path, _ in said(text, level="warning")] == [
        f'metadata.annotations["{KNATIVE}windows"]', f'metadata.annotations["{OURS}magic"]',
    ]  # fmt: skip


def test_profiles_of_the_file_and_of_the_server() -> None:
    assert scale_of(**{OURS + "profile": "coreweave"}).profile == "coreweave"
    coreweave = spec_of(service(MODEL), Known(profile="coreweave")).scale
    assert (coreweave.profile, coreweave.cold_workers, coreweave.max_workers) == ("coreweave", 0, 0)
    assert spec_of(annotated(**{OURS + "profile": "knative"}), Known(profile="vast")).scale.profile == "knative"
    vast = spec_of(service("{maxReplicas: 3, sklearn: {storageUri: 's3://b/m'}}"), Known(profile="vast")).scale
    assert (vast.max_workers, vast.cold_workers, vast.cold_mult, vast.target_util) == (3, 3, 2.5, 0.9)


def test_the_exact_profiles_keep_the_longest_timeout_of_the_original() -> None:
    long = "{timeout: 3600, sklearn: {storageUri: 's3://b/m'}}"
    assert spec_of(service(long)).scale.tuning.request_timeout_s == 3600
    found = said(service(long), Known(profile="knative"))
    assert [path for _, path, _ in found] == ["spec.predictor.timeout"]
    assert "600 s" in found[0][2]


def test_fields_count_before_annotations() -> None:
    text = service(
        "{minReplicas: 0, sklearn: {storageUri: 's3://b/m'}}",
        annotations=f"{{{KNATIVE}min-scale: '3', {KNATIVE}max-scale: '5'}}",
    )
    tuning = spec_of(text).scale.tuning
    assert (tuning.min_scale, tuning.max_scale) == (0, 5)
    found = said(text.replace("minReplicas: 0", "minReplicas: 9"))
    assert "min-scale 9 is above max-scale 5" in found[0][2]


def test_the_installations_limit_of_the_scale() -> None:
    limited = Known(max_scale_limit=10)
    scale = spec_of(service("{maxReplicas: 10, sklearn: {storageUri: 's3://b/m'}}"), limited).scale
    assert scale.tuning.max_scale == 10
    unstated = spec_of(service(MODEL), limited).scale
    assert (unstated.tuning.max_scale, unstated.max_workers) == (10, 10), "which states none gets the limit"
    vast = spec_of(service(MODEL), Known(profile="vast", max_scale_limit=3)).scale
    assert (vast.max_workers, vast.cold_workers) == (3, 3)
    for most in ("0", "11"):
        found = said(service(f"{{maxReplicas: {most}, sklearn: {{storageUri: 's3://b/m'}}}}"), limited)
        assert [(line, path) for line, path, _ in found] == [(4, "spec.predictor.maxReplicas")]
        assert "max_scale_limit" in found[0][2]
        found = said(annotated(**{KNATIVE + "max-scale": most}), limited)
        assert [path for _, path, _ in found] == [f'metadata.annotations["{KNATIVE}max-scale"]']
    found = said(service("{minReplicas: 11, sklearn: {storageUri: 's3://b/m'}}"), limited)
    assert "min-scale 11 is above the 10" in found[0][2]


def test_models_that_do_not_fit_into_a_worker() -> None:
    text = service("{sklearn: {storageUri: 's3://b/m', resources: {limits: {memory: 64Mi}}}}")
    more = """---
apiVersion: serving.kserve.io/v1alpha1
kind: TrainedModel
metadata: {name: other}
spec: {inferenceService: iris, model: {framework: sklearn, storageUri: 's3://b/o', memory: %s}}
"""
    assert said(text + more % "64Mi") == []
    [(line, path, message)] = said(text + more % "65Mi")
    assert (line, path) == (9, "spec.model.memory")
    assert "reserve 65 MiB in all (other 65 MiB), and its resources ask for 64 MiB" in message
    [(_, _, message)] = said(text.replace("64Mi", "4Gi") + more % "2Gi", Known(memory_max=1 << 30))
    assert "the largest node has 1024 MiB" in message


def test_what_is_stored_can_still_be_read_under_limits_that_came_later() -> None:
    text = service("{minReplicas: 2, maxReplicas: 11, sklearn: {storageUri: 's3://b/m'}}")
    [document] = read_documents(text, "input.yaml")
    text = json.dumps(document.data)
    row = Applied("mani_1", "w", "default", KSERVE, "InferenceService", "iris", 1, text, "", (), {}, 0.0, 0.0)
    spec = stored_spec(row, Known(max_scale_limit=3, memory_max=1))
    assert spec is not None
    assert spec.scale.tuning.max_scale == 3
