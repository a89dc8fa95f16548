"""Settings of rollouts and of what is paid, and which edits of hardware requirements are edits of the code."""

from __future__ import annotations

from typing import Any

import pytest

from nanopod.client.autoscaling import checked, rollout_spec, scale_spec
from nanopod.client.fingerprint import of_each, of_python
from nanopod.model.endpoint import RolloutSpec
from nanopod.model.errors import Invalid

CODE = b"""
from nanopod import Deployment
from nanopod.data.query import cpu_cores
app = Deployment(name="x")
image = app.image("python").env(A="1").require(cpu_cores >= 2)
image.prefer(cpu_cores >= 8)

@app.remote
def check(form, x):
    return form.require(x)
"""


def test_rollout_settings_add_up() -> None:
    first = rollout_spec(RolloutSpec(), {"canary": 10, "bake": 300, "auto_rollback": True})
    assert first == RolloutSpec(canary_percent=10, bake_s=300.0)
    assert rollout_spec(first, {"max_error_percent": 2}) == RolloutSpec(10, 300.0, True, 2.0)
    gradual = rollout_spec(RolloutSpec(), {"duration": 60, "max_slowdown_percent": 50, "auto_promote": False})
    assert gradual == RolloutSpec(duration_s=60.0, max_slowdown_percent=50.0, auto_promote=False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"canary": 100}, "canary is from 0 to 99"),
        ({"canary": 2.5}, "whole number"),
        ({"bake": -1}, "bake is from 0"),
        ({"auto_rollback": 1}, "True or False"),
        ({"cannary": 1}, "did you mean canary"),
    ],
)
def test_impossible_rollouts_name_the_setting(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        rollout_spec(RolloutSpec(), settings)


def test_what_is_paid_is_a_setting_of_the_scaling() -> None:
    spec = scale_spec(checked({"spot": False, "on_demand_fallback": 0.2, "max_price": 1.5}))
    assert (spec.spot, spec.on_demand_fallback, spec.max_price) == (False, 0.2, 1.5)
    for wrong in ({"spot": "no"}, {"on_demand_fallback": 2}, {"max_price": 0}):
        with pytest.raises(Invalid):
            checked(wrong)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (b"cpu_cores >= 2", b"cpu_cores >= 3", True),
        (b"import cpu_cores", b"import cpu_cores, gpu_name", True),
        (b"image.prefer(cpu_cores >= 8)", b"", True),
        (b'env(A="1")', b'env(A="2")', False),
        (b"form.require(x)", b"form.require(x + 1)", False),
    ],
)
def test_hardware_is_not_code_but_a_method_of_that_name_is(old: bytes, new: bytes, same: bool) -> None:
    edited = CODE.replace(old, new)
    assert edited != CODE
    assert (of_python(edited) == of_python(CODE)) is same


def test_files_are_told_apart() -> None:
    files = {"a.py": b"x = 1", "b.txt": b"1"}
    before = of_each(files, python=["a.py"])
    after = of_each({"a.py": b"x = 1  # same", "b.txt": b"2"}, python=["a.py"])
    assert [name for name in before if before[name] != after[name]] == ["b.txt"]
