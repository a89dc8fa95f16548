"""`auto` against Knative's exact rule: fewer GPU-minutes at waits that are not longer, on loads nobody has chosen."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nanopod.model.errors import Invalid
from nanopod.sim import comparing
from nanopod.sim.command import configure, run
from nanopod.sim.comparing import Cell
from nanopod.sim.traces import LOADS


def test_auto_takes_fewer_minutes_than_knatives_rule_and_makes_nobody_wait_longer() -> None:
    cells = comparing.compare(starts_s=(15.0,), seeds=comparing.fresh(4))
    assert comparing.broken(cells) == [], comparing.table(cells)
    assert all(cell.timeouts == 0 for cell in cells)


def cells_of(minutes: float, wait_s: float) -> list[Cell]:
    rule = [Cell(name, 5.0, "coreweave", 100.0, 10.0, 0) for name in LOADS]
    return rule + [Cell(name, 5.0, "auto", minutes, wait_s, 0) for name in LOADS]


def test_bars_that_are_missed_are_named() -> None:
    assert comparing.broken(cells_of(55.0, 10.0)) == []
    assert comparing.broken(cells_of(55.0, 10.1)) == [
        f"5 s starts, {name}: p99 wait 10.1 s, under the rule 10.0 s" for name in LOADS
    ]
    assert comparing.broken(cells_of(56.0, 1.0)) == ["5 s starts: 0.56 of the GPU-minutes together, above 0.55"]
    one = [replace(cell, minutes=86.0) if cell == cells_of(40.0, 1.0)[4] else cell for cell in cells_of(40.0, 1.0)]
    assert comparing.broken(one) == ["5 s starts, step: 0.86 of the GPU-minutes, above 0.85"]
    waits = {"coreweave": (9.0, 11.0, 8.0, 12.0), "auto": (11.0, 10.0, 12.0, 9.0)}
    noisy = [replace(cell, waits=waits[cell.profile]) for cell in cells_of(40.0, 10.5)]
    assert comparing.broken(noisy) == [], "half a second is within what chance does to these runs"
    slow = [replace(cell, start_s=120.0) for cell in cells_of(99.0, 99.0)]
    assert comparing.broken(slow) == [], "no bars for starts that no reactive rule is good for"


def test_the_command_prints_the_table_and_fails_where_a_bar_does_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    configure(parser)
    words = [
        "compare",
        "--starts",
        "5",
        "--seeds",
        "1",
        "--first-seed",
        "3",
        "--minutes",
        "12",
        "--processes",
        "1",
        "--json",
    ]
    code = run(parser.parse_args(words))
    found = json.loads(capsys.readouterr().out)
    assert code == (1 if found["broken"] else 0)
    assert len(found["cells"]) == 8
    assert found["seeds"] == [3]
    assert run(parser.parse_args(words[:-1])) == code
    said = capsys.readouterr().out
    assert "5 s KPA" in said
    assert "5 s auto" in said
    with pytest.raises(Invalid, match="--starts"):
        run(parser.parse_args(["compare", "--starts", "soon"]))
