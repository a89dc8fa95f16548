"""The smallest deployment: functions that do nothing worth waiting for."""

from __future__ import annotations

from nanopod import Deployment

app = Deployment(name="bench-square")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=1, min_load=1)


@app.remote(concurrency=32)
async def square(x: int) -> int:
    """x squared."""
    return x * x


@app.remote(concurrency=32)
async def same(data: bytes) -> bytes:
    """What it was given."""
    return data
