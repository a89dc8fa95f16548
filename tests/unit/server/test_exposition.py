"""Prometheus' text format as we write it, read by Prometheus' own parser; and a dashboard that shows only what exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nanopod.server.api import metrics
from nanopod.server.exposition import Exposition, number

ROOT = Path(__file__).parents[3]


def test_what_is_written_is_read_back() -> None:
    out = Exposition()
    out.family("a_total", "counter", 'how "many"\nthere were, C:\\x')
    out.family("b", "gauge", "a value")
    out.family("c_seconds", "histogram", "times")
    out.value("b", {"name": 'quo"ted\\and\nbroken'}, 1.25)
    out.value("a_total", {}, 3)
    out.value("a_total", {"x": "y"}, 1e20)
    out.histogram("c_seconds", {"x": "y"}, (0.5, 1.0), (1, 0, 4))
    families = {one.name: one for one in text_string_to_metric_families(out.text())}
    assert families["a"].documentation == 'how "many"\nthere were, C:\\x'
    assert [(one.labels, one.value) for one in families["a"].samples] == [({}, 3.0), ({"x": "y"}, 1e20)]
    assert families["b"].samples[0].labels == {"name": 'quo"ted\\and\nbroken'}
    assert families["b"].samples[0].value == 1.25
    found = {(one.name, one.labels.get("le", "")): one.value for one in families["c_seconds"].samples}
    assert found == {
        ("c_seconds_bucket", "0.5"): 1,
        ("c_seconds_bucket", "1"): 1,
        ("c_seconds_bucket", "+Inf"): 5,
        ("c_seconds_count", ""): 5,
    }


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (3.0, "3"), (0.1, "0.1"), (-1, "-1"), (float("inf"), "+Inf"), (1e20, "1e+20")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_the_dashboard_shows_only_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "nanopod.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name for text in expressions for name in re.findall(r"\b(?:kn|nanopod)_[a-z_]+\b", text)}
    shown -= {"kn_service_name", "kn_revision_name"}
    known = {name for name, _ in (*metrics.GAUGES, *metrics.COUNTERS, *metrics.CLOUD)}
    known |= {f"{metrics.LATENCY}_bucket", f"{metrics.LATENCY}_count"}
    assert shown <= known, shown - known
    assert {name for name in known if name.startswith("kn_")} <= shown, "all of Knative's are on it"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
