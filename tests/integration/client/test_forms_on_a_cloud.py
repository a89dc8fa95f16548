"""Every form of a call through a whole cloud: programs of users, run as programs."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

pytestmark = pytest.mark.integration
PROGRAM_S_MAX = 110.0

FORMS = """
import asyncio, json, os
import nanopod
from nanopod import Call, Deployment, current_call, gather

app = Deployment(name="forms")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=1)

@app.remote(concurrency=16)
async def square(x: int) -> int:
    return x * x

@app.remote
async def numbers(n: int):
    for i in range(n):
        yield i

@app.remote
def fails(x):
    raise ValueError("no", x)

@app.remote
async def echo(x):
    return x

@app.remote
def reverse(x):
    return x[::-1]

kept = []

@app.remote(concurrency=4)
async def keep(value):
    kept.append(value)
    call = current_call()
    return {"kept": list(kept), "pid": os.getpid(), "session": call.session, "key": call.route_key}

@app.remote
async def forget(value):
    kept.append(value)

@app.remote
async def nested(n: int):
    call = current_call()
    return {
        "here": await square(n), "there": await square.remote.aio(n),
        "many": [x async for x in square.map(range(n))], "depth": call.depth,
        "deeper": (await nested.remote.aio(0))["depth"] if n else None,
        "spawned": await (await square.spawn.aio(n)) if n else None,
    }

@app.cls(concurrency=4)
class Model:
    def __init__(self):
        self.state = ["made"]
    @nanopod.enter()
    def load(self):
        self.state.append("entered")
    @nanopod.method()
    async def add(self, x, y=1):
        return x + y
    @nanopod.method(concurrency=2)
    def tell(self):
        return self.state
    @nanopod.method
    async def items(self, n):
        for i in range(n):
            yield self.state[0], i

found = {}
def main():
    app.ensure_ready()
    found["map"] = sum(square.map(range(500)))
    found["as completed"] = sorted(square.map(range(5), order=False))
    found["class"] = [Model().add.remote(1), list(Model().add.starmap([(1, 2), (3, 4)])), Model().tell.remote()]
    found["items"] = list(Model().items(2))
    call = square.with_options(priority=5).spawn(6)
    found["spawned"] = [call.get(60), Call.from_id(call.id).get(60), Call.from_id(call.id, call.share()).get(60)]
    found["status"] = [call.status()["status"], call.cost()]
    found["gathered"] = gather(square.spawn(2), fails.spawn(3), return_exceptions=True)
    found["spawn_map"] = gather(*square.spawn_map(range(3)))
    found["spawned items"] = numbers.spawn(3).get(60)
    try:
        fails.remote(4)
    except ValueError as error:
        found["error"] = error.args
    found["stats"] = [app.stats()["ready"], square.stats()["function"]["concurrency"]]
    with app.session(lifetime=30, on_close=forget, args=("closed",)) as session:
        bound = keep.with_options(session=session, model="lora")
        found["session"] = [bound.remote(1), bound.remote(2), session.id, bool(session.worker)]
    large = bytes(range(256)) * (33 << 12)
    found["large"] = [echo.remote(large) == large, reverse.remote(large) == large[::-1], echo.spawn(large).get(60) == large]
    asyncio.run(waits())
    found["after"] = keep.remote(3)["kept"]

async def waits():
    ticks = 0
    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)
    ticking = asyncio.ensure_future(tick())
    calls = [await square.spawn.aio(n) for n in range(3)]
    found["awaited"] = [await calls[0], await gather(*calls)]
    found["loop went on"] = ticks > 10
    ticking.cancel()
    async with app.session() as session:
        found["async session"] = (await keep.with_options(session=session)(0))["session"] == session.id

if __name__ == "__main__":
    main()
    print(json.dumps(found, default=repr))
"""


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with Cloud() as running:
        yield running


def program(cloud: Cloud, directory: Path, text: str, *words: str, name: str = "prog.py", **env: str) -> Any:
    """What a user's program prints, as JSON."""
    path = directory / name
    path.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, *(words or [str(path)])],
        capture_output=True, text=True, timeout=PROGRAM_S_MAX, cwd=directory,
        env={**cloud.client_env(), "NANOPOD_MODE": "deploy", **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_all_forms_give_what_they_say(cloud: Cloud, tmp_path: Path) -> None:
    found = program(cloud, tmp_path, FORMS)
    assert found["map"] == sum(n * n for n in range(500))
    assert found["as completed"] == [0, 1, 4, 9, 16]
    assert found["class"] == [2, [3, 7], ["made", "entered"]] and found["items"] == [["made", 0], ["made", 1]]
    assert found["spawned"] == [36, 36, 36]
    assert found["status"][0] == "succeeded" and float(found["status"][1]) >= 0
    assert found["gathered"] == [4, "ValueError('no', 3)"] and found["spawn_map"] == [0, 1, 4]
    assert found["spawned items"] == [0, 1, 2] and found["error"] == ["no", 4]
    assert found["stats"] == [1, 16]
    first, second, session, worker = found["session"]
    assert first["kept"] == [1] and second["kept"] == [1, 2] and first["pid"] == second["pid"] and worker
    assert first["session"] == session and first["key"] == "lora"
    assert found["awaited"] == [0, [0, 1, 4]] and found["loop went on"] and found["async session"]
    assert found["large"] == [True] * 3, "beyond what frames hold"
    assert "closed" in found["after"], "on_close ran on the worker"


def test_functions_reach_the_fleet_from_a_worker(cloud: Cloud, tmp_path: Path) -> None:
    text = FORMS.replace("    main()\n    print", "    app.ensure_ready()\n    found = nested.remote(3)\n    print")
    found = program(cloud, tmp_path, text.replace('"forms"', '"inner"'))
    assert (found["here"], found["there"], found["many"]) == (9, 9, [0, 1, 4])
    assert (found["depth"], found["deeper"], found["spawned"]) == (0, 1, 9)


BY_VALUE = """
import dataclasses, json, os
import nanopod
from nanopod import Deployment
app = Deployment(name="cells", by_value=True)
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=1)
FACTOR = 3

@dataclasses.dataclass
class Point:
    x: int
    y: int

class Negative(Exception):
    pass

def scaled(x):
    return x * FACTOR

@app.context()
class Offset:
    async def __aenter__(self):
        self.by = 100
        return self
    async def __aexit__(self, *about):
        pass

@app.remote
async def twice(x):
    return 2 * x

@app.remote
async def move(point: Point) -> Point:
    if point.x < 0:
        raise Negative(point.x)
    return Point(scaled(point.x), await twice(point.y) + app.get_context(Offset).by)

@app.cls
class Counter:
    @nanopod.enter()
    def begin(self):
        self.n = 40
    @nanopod.method()
    def up(self, by=1):
        self.n += by
        return self.n

app.ensure_ready()
found = {"point": dataclasses.asdict(move.remote(Point(2, 3))), "counts": [Counter().up.remote(), Counter().up.remote(2)]}
try:
    move.remote(Point(-1, 0))
except Negative as error:
    found["error"] = error.args
app.ensure_ready()
found["again"] = app._last_plan.action
FACTOR = 4
app.ensure_ready()
found["edited"] = app._last_plan.action
print(json.dumps(found))
"""


def test_functions_of_a_session_travel_by_value(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "cells").write_text(BY_VALUE)
    found = program(cloud, tmp_path, "", "-c", "exec(compile(open('cells').read(), '<stdin>', 'exec'))")
    assert found["point"] == {"x": 6, "y": 106} and found["counts"] == [41, 43] and found["error"] == [-1]
    assert (found["again"], found["edited"]) == ("exists", "soft_update")


EPHEMERAL = """
import asyncio, json
from nanopod import Deployment
app = Deployment(name="short", serializer="pickle")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=1)

@app.remote(concurrency=4)
def apply(f, x):
    return f(x), lambda y: y + x

if __name__ == "__main__":
    found = {}
    try:
        with app.run():
            found["tag"] = app.tag
            value, add = apply.remote(lambda v: v * 10, 4)
            found["values"] = [value, add(1), [v for v, _ in apply.map([abs, str], [-1, 2])], apply.spawn(abs, -3).get(60)[0]]
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        found["after"] = app.tag

    async def again():
        async with app.run(wait=True):
            found["other tag"] = app.tag
            found["awaited"] = (await apply(len, "four"))[0]

    asyncio.run(again())
    print(json.dumps(found))
"""


def test_a_run_is_gone_when_its_block_ends_and_pickles_travel_if_both_ends_want(cloud: Cloud, tmp_path: Path) -> None:
    found = program(cloud, tmp_path, EPHEMERAL)
    assert found["tag"].startswith("run-") and found["after"] == "default"
    assert found["values"] == [40, 5, [1, "2"], 3]
    assert found["other tag"] != found["tag"] and found["awaited"] == 4
    there = {(row["name"], row["tag"]) for row in cloud.api("GET", "/v1/endpoints")["data"]}
    assert not [tag for name, tag in there if name == "short"]


GUARDED = """
from nanopod import Deployment
app = Deployment(name="guarded")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=1)

@app.remote
async def version() -> int:
    return 1
"""


def test_an_older_file_that_is_merely_imported_does_not_go_back(cloud: Cloud, tmp_path: Path) -> None:
    def nanopod(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nanopod", *words], capture_output=True, text=True, timeout=PROGRAM_S_MAX,
            env=cloud.client_env(), cwd=tmp_path,
        )  # fmt: skip

    file = tmp_path / "guarded.py"
    for text in (GUARDED, GUARDED.replace("return 1", "return 2")):
        file.write_text(text)
        if "return 2" in text:
            plan = nanopod("plan", "guarded.py")
            assert plan.returncode == 2 and "guarded.py:9: - return 1 + return 2" in plan.stdout, plan.stdout
        assert nanopod("deploy", "guarded.py").returncode == 0
    file.write_text(GUARDED)
    caller = "import json, warnings, guarded\n" + textwrap.dedent(
        """
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            guarded.app.ensure_ready()
        print(json.dumps([str(one.message) for one in said]))
        """
    )
    (warning,) = program(cloud, tmp_path, caller, name="caller.py")
    assert "revision 1, older than what is deployed (revision 2)" in warning and "nanopod rollback" in warning
    assert cloud.api("GET", "/v1/endpoints/guarded:default")["revision_number"] == 2
    assert nanopod("deploy", "guarded.py").returncode == 0
    assert cloud.api("GET", "/v1/endpoints/guarded:default")["revision_number"] == 3
