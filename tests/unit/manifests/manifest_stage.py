"""Manifests read as one input, for tests: their specifications, and what is said of them."""

from __future__ import annotations

import textwrap

from nanopod.model.endpoint import EndpointSpec, ModelSpec
from nanopod.server.manifests.planning import Known, Plan, plan

NOTHING = Known()
KSERVE = "serving.kserve.io/v1beta1"


def planned(text: str, known: Known = NOTHING, *, strict: bool = False) -> Plan:
    """One file, `input.yaml`."""
    return plan([("input.yaml", textwrap.dedent(text))], known, strict=strict)


def spec_of(text: str, known: Known = NOTHING, *, name: str = "") -> EndpointSpec:
    """The endpoint that the one service of an input is, which must be good."""
    made = planned(text, known)
    assert not made.rejected, [f"{one.line}: {one.path}: {one.message}" for one in made.found]
    found = [item.spec for item in made.items if item.spec is not None and name in ("", item.name)]
    assert len(found) == 1
    spec = found[0]
    assert spec is not None
    return spec


def model_of(spec: EndpointSpec) -> ModelSpec:
    """Its model."""
    assert spec.model is not None
    return spec.model


def said(text: str, known: Known = NOTHING, *, level: str = "error") -> list[tuple[int, str, str]]:
    """(line, path, message) of the problems of an input; lines count from 1."""
    return [(one.line, one.path, one.message) for one in planned(text, known).found if one.level == level]


def service(predictor: str, *, name: str = "iris", annotations: str = "{}", api: str = KSERVE) -> str:
    """An InferenceService whose `spec.predictor` is in flow style, in line 4."""
    return (
        f"apiVersion: {api}\nkind: InferenceService\n"
        f"metadata: {{name: {name}, annotations: {annotations}}}\nspec: {{predictor: {predictor}}}\n"
    )
