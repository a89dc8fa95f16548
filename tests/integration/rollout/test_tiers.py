"""Every kind of edit does what its plan says: observed by the workers' processes, builds of environments and uploads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.cloud import Cloud
from rollout_stage import Edited, wheel

pytestmark = pytest.mark.integration

TEXT = '''"""What it is for."""
from nanopod import Deployment
from nanopod.data.query import cpu_cores, num_gpus

app = Deployment(name="tiers", tag="TAG", version_label="LABEL")
image = app.image("python").env(MODE="x").pip_install("WHEEL").require(cpu_cores >= 1)
app.configure_autoscaling(cold_workers=1, max_workers=2)
MARK = 1  # nanopod: ignore-change


@app.remote
async def square(x: int) -> int:
    """Squares."""
    return x * x
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiers")


@pytest.fixture
def edited(cloud: Cloud, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Edited, str]]:
    """The file, deployed as it was first: after an edit of a test before, that is an edit as well."""
    file = Edited(cloud, place, "tiers", monkeypatch)
    first = wheel(place, "left")
    text = TEXT.replace("WHEEL", str(first)).replace("TAG", "default")
    file.deploy(text)
    file.settled()
    return file, text


def old_and_new(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "tier", "builds", "uploads"),
    [
        ("@app.remote", "# a comment\n@app.remote", 0, 0, 0),
        ("Squares.", "Squares a number.", 0, 0, 0),
        ("What it is for.", "What else it is for.", 0, 0, 0),
        ("MARK = 1", "MARK = 2", 0, 0, 0),
        ("max_workers=2", "max_workers=3", 1, 0, 0),
        ('version_label="LABEL"', 'version_label="LABEL", ttl=3600', 1, 0, 0),
        ("max_workers=2)", "max_workers=2)\napp.configure_rollout(max_error_percent=7)", 1, 0, 0),
        ("return x * x", "return x ** 2", 2, 0, 1),
        ('MODE="x"', 'MODE="y"', 3, 0, 1),
        ('image("python")', 'image("other")', 3, 0, 1),
        ("cpu_cores >= 1", "cpu_cores >= 1, cpu_cores <= 4096", 3, 0, 1),
    ],
    ids=[
        "comment", "docstring", "module-docstring", "marked-line", "autoscaling", "ttl", "rollout", "body", "env",
        "image", "query",
    ],
)  # fmt: skip
def test_an_edit_does_what_its_plan_says(
    edited: tuple[Edited, str], old: str, new: str, tier: int, builds: int, uploads: int
) -> None:
    file, text = edited
    before = file.seen()
    changed = old_and_new(text, old, new)
    plan = file.load(changed).plan()
    assert plan.tier == tier, plan
    assert file.seen() == before, "a plan changes nothing"
    file.deploy(changed)
    file.settled()
    after = file.seen()
    keeps = tier < 2 or old == "cpu_cores >= 1"  # this worker's node meets the new requirements as well
    assert (after.workers == before.workers) is keeps
    if not keeps:
        assert {pid for _, _, pid in after.workers}.isdisjoint(pid for _, _, pid in before.workers)
    assert after.environments - before.environments == builds
    assert after.bundles - before.bundles <= uploads
    if tier == 0:
        assert after == before, "nothing was written"
    if tier == 1:
        assert after.written[1] == before.written[1], "the same revision"


def test_packages_are_built_once_and_a_new_tag_is_a_new_endpoint(edited: tuple[Edited, str], cloud: Cloud) -> None:
    file, text = edited
    before = file.seen()
    second = wheel(file.path.parent, "right")
    more = old_and_new(text, '.pip_install("', f'.pip_install("{second}", "')
    plan = file.load(more).plan()
    assert (plan.tier, plan.changed) == (2, ("code",))
    assert "pip_install" in plan.reasons[0]
    file.deploy(more)
    file.settled()
    after = file.seen()
    assert after.environments - before.environments == 1
    assert after.workers.isdisjoint(before.workers)
    tagged = old_and_new(more, 'tag="default"', 'tag="blue"')
    assert file.load(tagged).plan().tier == 4
    file.deploy(tagged)
    file.settled("tiers:blue")
    assert file.seen().workers == after.workers, "the other tag goes on as it was"
    assert file.seen("tiers:blue").environments == after.environments, "its environment was there already"
    cloud.api("DELETE", "/v1/endpoints/tiers:blue")


def test_a_label_is_written_and_restarts_nothing(edited: tuple[Edited, str]) -> None:
    file, text = edited
    before = file.seen()
    labelled = old_and_new(text, "LABEL", "v2")
    assert file.load(labelled).plan().tier == 0
    file.deploy(labelled)
    after = file.seen()
    assert (after.workers, after.written[1], after.written[3]) == (before.workers, before.written[1], "v2")


def test_a_plan_names_files_and_workers(edited: tuple[Edited, str], cloud: Cloud) -> None:
    from dataclasses import asdict

    from nanopod.client.deploying import build

    file, text = edited
    worker = file.endpoint()["instances"][0]["id"]
    spec, _ = build(file.load(old_and_new(text, "return x * x", "return x * x * x")))
    plan = cloud.api("POST", "/v1/endpoints?dry_run=1", asdict(spec))
    assert (plan["tier"], plan["workers_affected"], plan["workers"]) == (2, 1, [worker])
    assert plan["files"] == ["tiers.py"]
    assert "tiers.py" in plan["reasons"][0]
    assert plan["earlier_revision"] is None or isinstance(plan["earlier_revision"], int)
