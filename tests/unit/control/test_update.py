"""Update tiers, fingerprints, and what a specification must look like."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chain_rows import SPEC, endpoint, instance, revision

from nanopod.control.update import check, compare, fingerprinted, workers_affected
from nanopod.model.endpoint import (
    EndpointSpec,
    Fingerprints,
    FunctionSpec,
    ImageSpec,
    LoadedModel,
    ModelSpec,
    RolloutSpec,
    ScaleSpec,
    SecretRef,
    StorageSpec,
    Tuning,
    VolumeMount,
)
from nanopod.model.errors import Invalid

BASE = fingerprinted(replace(SPEC, fingerprints=Fingerprints("code-1", "image-1", "scale-1")))


def update(**more: Any) -> tuple[str, int, tuple[str, ...]]:
    known = endpoint(scale=BASE.scale, scale_fingerprint="scale-1")
    found = compare(known, revision(spec=BASE), fingerprinted(replace(BASE, **more)))
    return found.action, found.tier, found.changed


def prints(code: str = "code-1", image: str = "image-1", scale: str = "scale-1") -> Fingerprints:
    return Fingerprints(code, image, scale)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, ("exists", 0, ())),
        ({"bundle": "b" * 64}, ("exists", 0, ())),  # other bytes, the same meaning
        ({"version_label": "v2"}, ("exists", 0, ())),
        (
            {"scale": replace(BASE.scale, max_workers=3), "fingerprints": prints(scale="s2")},
            ("autoscale_update", 1, ("scale",)),
        ),
        ({"ttl_s": 60.0}, ("autoscale_update", 1, ("scale",))),
        ({"fingerprints": prints(code="c2")}, ("soft_update", 2, ("code",))),
        ({"fingerprints": prints(code="c2", scale="s2")}, ("soft_update", 2, ("scale", "code"))),
        ({"fingerprints": prints(image="i2")}, ("hard_update", 3, ("image",))),
        ({"fingerprints": prints("c2", "i2", "s2")}, ("hard_update", 3, ("scale", "code", "image"))),
        ({"isolation": "none"}, ("hard_update", 3, ("image",))),
    ],
)
def test_tiers(more: dict[str, Any], expected: tuple[str, int, tuple[str, ...]]) -> None:
    assert update(**more) == expected


def test_a_new_name_is_a_new_endpoint() -> None:
    assert compare(None, None, BASE).action == "created"


def test_what_differs_is_named() -> None:
    known = endpoint(scale=BASE.scale, scale_fingerprint="scale-1")
    wanted = replace(BASE, scale=replace(BASE.scale, max_workers=3), fingerprints=prints(scale="s2"))
    assert compare(known, revision(spec=BASE), wanted).reasons == ("settings: max_workers 10 -> 3",)


def test_fingerprints_that_were_left_out_follow_the_fields() -> None:
    model = EndpointSpec("m", kind="model", model=ModelSpec("m", source="x"))
    one = fingerprinted(model)
    assert one == fingerprinted(model)
    assert one.fingerprints != fingerprinted(replace(model, model=ModelSpec("m", source="y"))).fingerprints
    scaled = fingerprinted(replace(model, scale=ScaleSpec(max_workers=3)))
    assert scaled.fingerprints.code == one.fingerprints.code
    assert scaled.fingerprints.scale != one.fingerprints.scale
    built = fingerprinted(replace(model, image=ImageSpec(env={"A": "1"})))
    assert built.fingerprints.image != one.fingerprints.image
    assert built.fingerprints.code == one.fingerprints.code


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"name": "-x"}, "name"),
        ({"name": ""}, "name"),
        ({"tag": "a b"}, "tag"),
        ({"bundle": ""}, "bundle"),
        ({"functions": ()}, "functions"),
        ({"functions": (FunctionSpec("a"), FunctionSpec("a"))}, "functions[1].name"),
        ({"functions": (FunctionSpec("a", concurrency=0),)}, "functions[0].concurrency"),
        ({"functions": (FunctionSpec("a", timeout_s=0),)}, "functions[0].timeout_s"),
        ({"model": ModelSpec("m")}, "model"),
        ({"ttl_s": 0.0}, "ttl_s"),
        ({"ttl_s": float("nan")}, "ttl_s"),
        ({"scale": ScaleSpec(max_workers=-1)}, "scale.max_workers"),
        ({"scale": ScaleSpec(tuning=Tuning(stable_window_s=5))}, "scale.tuning.stable_window_s"),
        ({"scale": ScaleSpec(tuning=Tuning(stable_window_s=60.5))}, "scale.tuning.stable_window_s"),
        (
            {"scale": ScaleSpec(tuning=Tuning(panic_threshold_percentage=109))},
            "scale.tuning.panic_threshold_percentage",
        ),
        ({"scale": ScaleSpec(tuning=Tuning(max_scale_up_rate=1.0))}, "scale.tuning.max_scale_up_rate"),
        ({"scale": ScaleSpec(tuning=Tuning(target_burst_capacity=-0.5))}, "scale.tuning.target_burst_capacity"),
        ({"scale": ScaleSpec(tuning=Tuning(min_scale=3, max_scale=2))}, "scale.tuning.min_scale"),
        ({"scale": ScaleSpec(cold_workers=5, max_workers=2)}, "scale.cold_workers"),
        ({"scale": ScaleSpec(target_util=1.5)}, "scale.target_util"),
        ({"scale": ScaleSpec(min_load=float("inf"))}, "scale.min_load"),
        ({"scale": ScaleSpec(inactivity_timeout=float("nan"))}, "scale.inactivity_timeout"),
        ({"scale": ScaleSpec(target_concurrency=0.0)}, "scale.target_concurrency"),
        ({"kind": "model", "model": None}, "model"),
        ({"kind": "model", "model": ModelSpec("", source="x")}, "model.model_id"),
        ({"kind": "model", "model": ModelSpec("m", source="")}, "model.source"),
        ({"kind": "model", "model": ModelSpec("m", source="x", slots=0)}, "model.slots"),
        ({"kind": "model", "model": ModelSpec("m", engine="command")}, "model.argv"),
    ],
)
def test_impossible_specifications_name_the_field(more: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        check(replace(BASE, **more))
    assert caught.value.field == field
    assert field in str(caught.value)


def test_good_specifications_pass() -> None:
    check(BASE)
    check(EndpointSpec("m", kind="model", model=ModelSpec("m", engine="command", argv=("serve", "{port}"))))


def test_edits_are_sorted_into_their_parts() -> None:
    known = endpoint(scale=BASE.scale, scale_fingerprint="scale-1")
    base = replace(BASE, files={"a.py": "1", "b.py": "1"})

    def edit(**more: Any) -> Any:
        return compare(known, revision(spec=base), fingerprinted(replace(base, **more)))

    code = edit(fingerprints=prints(code="c2"), files={"a.py": "1", "b.py": "2", "c.py": "1"})
    assert (code.tier, code.files) == (2, ("b.py", "c.py"))
    assert code.reasons == ("code: b.py, c.py",)
    pips = edit(fingerprints=prints(code="c2"), image=ImageSpec(pip_install=("x",)), files=base.files)
    assert (pips.tier, pips.changed, pips.reasons) == (2, ("code",), ("code: pip_install",))
    rollout = edit(rollout=RolloutSpec(canary_percent=10))
    assert (rollout.tier, rollout.reasons) == (1, ("rollout: canary_percent 0 -> 10",))
    for image in (
        ImageSpec(secrets=(SecretRef("hf", 2),)), ImageSpec(volumes=(VolumeMount("/m", "m"),)),
        ImageSpec(prefer=({"num_gpus": {"eq": 1}},)),
    ):  # fmt: skip
        assert edit(image=image).tier == 3, image


def test_a_query_edit_keeps_workers_that_still_fit() -> None:
    known = endpoint(scale=BASE.scale, scale_fingerprint="scale-1")
    rows = [instance("cpu", sku_id="s1"), instance("gpu", sku_id="s2"), instance("old", sku_id="s1", intent="stop")]
    query = ImageSpec(query={"num_gpus": {"gte": 1}})
    hardware = compare(known, revision(spec=BASE), replace(BASE, image=query, fingerprints=prints(image="i2")))
    assert (hardware.tier, hardware.hardware_only) == (3, True)
    assert workers_affected(hardware, rows, ["s2"]) == ["cpu"]
    env = compare(
        known, revision(spec=BASE), replace(BASE, image=replace(query, env={"A": "1"}), fingerprints=prints(image="i2"))
    )
    assert not env.hardware_only
    assert workers_affected(env, rows, ["s2"]) == ["cpu", "gpu"]
    both = compare(known, revision(spec=BASE), replace(BASE, image=query, fingerprints=prints("c2", "i2")))
    assert not both.hardware_only, "the code changed as well"
    settings = compare(known, revision(spec=BASE), fingerprinted(replace(BASE, ttl_s=5.0)))
    assert workers_affected(settings, rows, []) == []


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"rollout": RolloutSpec(canary_percent=101)}, "rollout.canary_percent"),
        ({"rollout": RolloutSpec(canary_percent=5, pinned=True)}, "rollout.pinned"),
        ({"rollout": RolloutSpec(duration_s=-1.0)}, "rollout.duration_s"),
        ({"rollout": RolloutSpec(max_slowdown_percent=-1.0)}, "rollout.max_slowdown_percent"),
        ({"rollout": RolloutSpec(bake_s=-1)}, "rollout.bake_s"),
        ({"rollout": RolloutSpec(max_error_percent=101)}, "rollout.max_error_percent"),
        ({"rollout": RolloutSpec(min_calls=0)}, "rollout.min_calls"),
        ({"scale": ScaleSpec(on_demand_fallback=1.5)}, "scale.on_demand_fallback"),
        ({"scale": ScaleSpec(max_price=0.0)}, "scale.max_price"),
        ({"image": ImageSpec(storage_gb=10**30)}, "image.storage_gb"),
        ({"scale": ScaleSpec(max_price=1e308)}, "scale.max_price"),
        ({"scale": ScaleSpec(min_load=1e308)}, "scale.min_load"),
        ({"scale": ScaleSpec(target_concurrency=5e-324)}, "scale.target_concurrency"),
    ],
)
def test_impossible_rollouts_and_prices_name_the_field(more: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        check(replace(BASE, **more))
    assert caught.value.field == field


def test_further_models_alone_leave_the_workers() -> None:
    other = LoadedModel("b", "sklearn", StorageSpec("s3://m/b"))
    model = ModelSpec("a", "server", format="sklearn", storage=(StorageSpec("s3://m/a"),), models=(other,))
    before = fingerprinted(EndpointSpec("a", kind="model", model=model))

    def hot(spec: EndpointSpec) -> tuple[str, bool]:
        known = endpoint(scale=before.scale, scale_fingerprint=before.fingerprints.scale)
        found = compare(known, revision(spec=before), fingerprinted(replace(spec, fingerprints=Fingerprints())))
        return found.action, found.models_only

    assert hot(replace(before, model=replace(model, models=()))) == ("soft_update", True)
    assert hot(replace(before, model=replace(model, models=(other, replace(other, name="c"))))) == ("soft_update", True)
    assert hot(replace(before, model=replace(model, models=(), slots=2))) == ("soft_update", False)
    env = replace(before, model=replace(model, models=()), image=ImageSpec(env={"A": "1"}))
    assert hot(env) == ("hard_update", False)
    assert hot(before) == ("exists", False)
