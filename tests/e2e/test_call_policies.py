"""What a call may ask of its way, with real workers: tries, sessions, route keys, the cache, calls of calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

pytestmark = pytest.mark.e2e

PROGRAM = """
import asyncio, json, os
from nanopod import Deployment, NanopodError, Retries, current_call

app = Deployment(name="policies")
app.image("python").env(POLICIES_FILE=os.environ["POLICIES_FILE"])
app.configure_autoscaling(min_scale=2, max_workers=2)
class Busy(Exception):
    pass

@app.remote(concurrency=4, retries=Retries(3, initial=0.05, on=(Busy,)))
async def flaky(good):
    call = current_call()
    if call.attempt < good:
        raise Busy(call.attempt)
    return call.attempt

@app.remote(idempotent=True, cache_ttl=60)
async def once(x):
    with open(os.environ["POLICIES_FILE"], "a") as log:
        log.write(f"once {x}\\n")
    return [x, os.getpid()]

@app.remote(concurrency=8)
async def where():
    return os.getpid()

@app.remote(concurrency=8)
async def closed(name):
    with open(os.environ["POLICIES_FILE"], "a") as log:
        log.write(f"closed {name} {os.getpid()}\\n")

@app.remote
async def depth(n):
    return 0 if n == 0 else 1 + await depth.remote.aio(n - 1)

async def main():
    await app.async_ensure_ready(wait=True)
    out = {"flaky": await flaky(3)}
    try:
        await flaky(9)
    except Exception as error:
        out["exhausted"] = [type(error).__name__, error.args]
    out["cached"] = [await once(7), await once(7), await once(8)]
    async with app.session(lifetime=30, on_close=closed, args=("s1",)) as session:
        pinned = where.with_options(session=session)
        out["session"] = sorted({await pinned() for _ in range(20)})
    try:
        await pinned()
    except NanopodError as error:
        out["after"] = type(error).__name__
    keyed = where.with_options(model="lora-a")
    out["keyed"] = sorted({await keyed() for _ in range(10)})
    out["nested"] = await depth(6)
    print(json.dumps(out), flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.timeout(120)
def test_policies_of_calls_hold_on_real_workers(cloud: Cloud, tmp_path: Path) -> None:
    program, log = tmp_path / "policies_app.py", tmp_path / "policies.log"
    program.write_text(PROGRAM)
    log.touch()
    env = {**cloud.client_env(), "POLICIES_FILE": str(log)}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=env, timeout=90)
    assert done.returncode == 0, done.stderr
    out: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert out["flaky"] == 3
    assert out["exhausted"] == ["Busy", [4]]
    assert out["cached"][0] == out["cached"][1] != out["cached"][2]
    assert len(out["session"]) == 1
    assert out["after"] in ("SessionLost", "Invalid")
    assert len(out["keyed"]) == 1
    assert out["nested"] == 6, "functions that run one at a time call each other through the fleet"

    def lines() -> list[str] | None:
        found = log.read_text().splitlines()
        return found if any(line.startswith("closed") for line in found) else None

    found = cloud.wait_for(lines, 20, "the function at the end of the session")
    assert sorted(line for line in found if line.startswith("once")) == ["once 7", "once 8"]
    assert [line for line in found if line.startswith("closed")] == [f"closed s1 {out['session'][0]}"]
    cloud.api("DELETE", "/v1/endpoints/policies")
