"""A deployment whose functions leave a line in a file when they start."""

import asyncio
import os
import time

from nanopod import Deployment, Period, current_call

app = Deployment(name="spawned")
app.image("python").env(MARKS=os.environ.get("MARKS", "/dev/null"))
app.configure_autoscaling(cold_workers=1, max_workers=1, min_load=1)


def mark(text):
    with open(os.environ["MARKS"], "a") as file:
        file.write(f"{text}\n")


@app.remote(concurrency=16)
async def once(x: int, seconds: float = 0.0):
    mark(f"once {x} {current_call().call_id}")
    await asyncio.sleep(seconds)
    return x


@app.remote(concurrency=16)
async def gated(path: str):
    """Runs until the file is there."""
    mark(f"gated {path}")
    print("waiting", flush=True)
    while not os.path.exists(path):
        await asyncio.sleep(0.02)
    print("done", flush=True)
    return path


@app.remote(concurrency=4)
async def count(n: int):
    for number in range(n):
        yield number


@app.remote(concurrency=4)
async def echo(value):
    return value


@app.remote(concurrency=4)
async def fail(text: str):
    raise ValueError(text)


@app.remote(concurrency=4, schedule=Period(1))
async def tick():
    mark(f"tick {current_call().call_id}")
    return time.time()
