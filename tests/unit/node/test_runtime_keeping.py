"""What a worker begins with because an earlier one of its kind measured it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from executor_stage import Stage
from msgspec.structs import replace

from nanopod.model.endpoint import EndpointSpec, Fingerprints, InstanceSpec
from nanopod.node.records import Launch, Start
from nanopod.node.runtime import keeping as keeping_module
from nanopod.node.runtime.keeping import Findings, Keeping, Shown, told, usable
from nanopod.node.runtime.measuring import Perf

SHOWN = Shown(1000.0, 10, 4, 0, 20.1, 22.5)
FOUND = Findings({"f": 1000.0}, {"f": SHOWN})


def start_of(path: Path, code: str = "code", image: str = "image", **fields: Any) -> Start:
    app = EndpointSpec("a", fingerprints=Fingerprints(code, image))
    instance = InstanceSpec("i", 1, "w", "e", "r", "n", app, 4, "token")
    return Start(instance, [], Launch([], {}, ""), **{"benchmarks_dir": str(path / "b"), "cpu": "c", **fields})


def kept(start: Start) -> Keeping:
    found = Keeping.of(start)
    assert found is not None
    return found


def test_it_is_kept_for_the_same_code_image_and_kind_of_machine(tmp_path: Path) -> None:
    kept(start_of(tmp_path)).write(FOUND)
    assert kept(start_of(tmp_path)).read() == FOUND
    for other in ({"code": "2"}, {"image": "2"}, {"cpu": "d"}, {"gpu": "L4"}):
        assert kept(start_of(tmp_path, **other)).read() is None, other
    on_gpu = kept(start_of(tmp_path, gpu="L4"))
    on_gpu.write(FOUND)
    assert kept(start_of(tmp_path, gpu="L4", cpu="another")).read() == FOUND, "the GPU is what counts"
    [path, _] = (tmp_path / "b").iterdir()
    assert (path.stat().st_mode & 0o777, (tmp_path / "b").stat().st_mode & 0o777) == (0o600, 0o700)


def test_nothing_is_kept_in_local_mode_or_of_what_is_not_known(tmp_path: Path) -> None:
    start = start_of(tmp_path)
    for none in (replace(start, local=True), replace(start, benchmarks_dir=""), replace(start, cpu=""),
                 start_of(tmp_path, code="")):  # fmt: skip
        assert Keeping.of(none) is None


@pytest.mark.parametrize("damage", [
    b"", b"{", b"null", b'{"perf":{"f":"fast"}}', b'{"perf":{"f":0}}', b'{"perf":{"f":-1.0}}', b'{"perf":{"f":1e999}}',
    b'{"perf":{"f":1.0},"benchmarks":{"f":{"perf":1.0}}}', b"\xff\0" * 400_000,
])  # fmt: skip
def test_damage_means_measuring(tmp_path: Path, damage: bytes) -> None:
    start = start_of(tmp_path)
    kept(start).write(FOUND)
    [path] = (tmp_path / "b").iterdir()
    path.write_bytes(damage)
    assert kept(start).read() is None
    kept(start).write(FOUND)
    assert kept(start).read() == FOUND


def test_the_ones_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping_module, "FILES_MAX", 3)
    for number in range(3):
        kept(start_of(tmp_path, str(number))).write(FOUND)
    for age, path in enumerate(sorted((tmp_path / "b").iterdir())):
        os.utime(path, (1000 + age, 1000 + age))
    assert kept(start_of(tmp_path, "0")).read() is not None
    kept(start_of(tmp_path, "3")).write(FOUND)
    left = {code for code in "0123" if kept(start_of(tmp_path, code)).read() is not None}
    assert len(left) == 3 and {"0", "3"} <= left
    assert len(list((tmp_path / "b").iterdir())) == 3


def test_a_directory_that_cannot_be_used_is_no_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    (tmp_path / "b").write_text("not a directory")
    kept(start_of(tmp_path)).write(FOUND)
    assert "is not kept" in caplog.text
    assert kept(start_of(tmp_path)).read() is None


def test_several_workers_of_a_kind_may_write_at_once(tmp_path: Path) -> None:
    start = start_of(tmp_path)
    threads = [
        threading.Thread(target=lambda n=n: [kept(start).write(Findings({"f": n})) for _ in range(20)])  # type: ignore[misc]
        for n in (1.0, 2.0, 3.0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = kept(start).read()
    assert found is not None and found.perf["f"] in (1.0, 2.0, 3.0)
    assert len(list((tmp_path / "b").iterdir())) == 1


def test_a_benchmark_is_spared_only_if_all_of_them_are_known() -> None:
    assert usable(FOUND, {"f"}, {"f", "g"}) == {"f": 1000.0}
    assert usable(None, {"f"}, {"f"}) is None
    assert usable(FOUND, {"f", "g"}, {"f", "g"}) is None
    assert usable(Findings({"f": 1.0}), {"f"}, {"f"}) is None, "calls were measured, never a benchmark"
    assert usable(Findings({"f": 1.0, "gone": 2.0}), set(), {"f"}) == {"f": 1.0}
    assert told(SHOWN) == {
        "perf": 1000.0, "rounds": 10, "at_once": 4, "errors": 0, "p50_ms": 20.1, "p99_ms": 22.5, "kept": True,
    }  # fmt: skip


def test_what_calls_once_showed_is_corrected_by_any_calls() -> None:
    stage = Stage()
    stage.add(len, "f", concurrency=4)
    perf = Perf(stage.app.functions, {"f": 1000.0}, passive=True)
    assert perf.value == 1000
    for _ in range(20):
        perf.note("f", 100.0, 100_000, 1)
    assert perf.review()
    assert perf.measured == {"f": pytest.approx(4 * 100 / 0.1)}
