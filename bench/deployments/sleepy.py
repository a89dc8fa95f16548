"""A deployment that sleeps as soon as it may, to measure how it wakes."""

from __future__ import annotations

from nanopod import Deployment

app = Deployment(name="bench-sleepy")
app.image("python")
app.configure_autoscaling(cold_workers=0, min_load=0, max_workers=1, inactivity_timeout=1)


@app.remote
async def square(x: int) -> int:
    """x squared."""
    return x * x
