"""Batches, classes, cached models and functions that call each other, all on the one worker of a local cloud."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

SHOP = """
import asyncio, json
from nanopod import Batch, Deployment, Retries, current_call, enter, method
app = Deployment(name="shop")
app.image("")
app.configure_autoscaling(max_workers=1, cold_workers=1)

@app.remote(batch=Batch(max_size=8, wait_ms=20))
async def double(x):
    await asyncio.sleep(0.02)
    return [ValueError("13") if value == 13 else (value * 2, len(x)) for value in x]

@app.cls(concurrency=4)
class Model:
    @enter()
    async def load(self): self.offset = 100
    @method()
    async def add(self, x): return self.offset + x

@app.multiplexed(max=2)
async def adapter(name): return name.upper()

@app.remote(concurrency=4)
async def who(): return await adapter()

@app.remote()
def factorial(n): return 1 if n <= 1 else n * factorial.remote(n - 1)

@app.remote()
async def ping(n): return 0 if n == 0 else 1 + await pong.remote.aio(n - 1)

@app.remote()
async def pong(n): return 0 if n == 0 else 1 + await ping.remote.aio(n - 1)

attempts = []
@app.remote(retries=Retries(3, initial=0.01, on=(KeyError,)))
async def flaky():
    attempts.append(current_call().attempt)
    if len(attempts) < 3: raise KeyError("again")
    return attempts

async def main():
    doubled = await asyncio.gather(*(double(x) for x in range(20)), return_exceptions=True)
    print(json.dumps({
        "bad": repr(doubled.pop(13)),
        "doubled": [value for value, _ in doubled],
        "largest": max(size for _, size in doubled),
        "added": await Model().add(5),
        "models": [await who.with_options(model=name)() for name in ("a", "b", "c")],
        "factorial": await factorial(6),
        "ping": await ping(7),
        "attempts": await flaky(),
    }))

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_every_kind_of_function_on_one_worker(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("NANOPOD", "VAST"))}
    done = subprocess.run(
        [sys.executable, "shop.py"], cwd=tmp_path, env={**env, "NANOPOD_MODE": "local"}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.pop("bad") == "ValueError('13')"
    assert told.pop("doubled") == [2 * x for x in range(20) if x != 13]
    assert 2 <= told.pop("largest") <= 8, "calls that were in flight together ran together"
    assert told == {
        "added": 105, "models": ["A", "B", "C"], "factorial": 720, "ping": 7, "attempts": [1, 2, 3],
    }  # fmt: skip
