"""Update tiers, fingerprints, and what a specification must look like."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chain_rows import SPEC, endpoint, revision

from nanopod.control.update import check, compare, fingerprinted
from nanopod.model.endpoint import EndpointSpec, Fingerprints, FunctionSpec, ImageSpec, ModelSpec, ScaleSpec
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
    assert compare(known, revision(spec=BASE), wanted).reasons == ("settings: max_workers",)


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
        ({"scale": ScaleSpec(max_workers=0)}, "scale.max_workers"),
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
