"""10,000 items through one function, in batches, with a progress bar; failed items are counted and not lost."""

from __future__ import annotations

import math
import time

from nanopod import Batch, Deployment

app = Deployment(name="batch-map")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=2)


@app.remote(batch=Batch(max_size=256, wait_ms=5))
def root(x: list[int]) -> list[float | ValueError]:
    """Square roots of a batch; an element that cannot be computed fails alone."""
    return [math.sqrt(value) if value >= 0 else ValueError(f"{value} has no root") for value in x]


def main(items: int = 10_000) -> None:
    """Map, count, say how fast it was."""
    app.ensure_ready(wait=True)
    begin = time.perf_counter()
    total, failed = 0.0, 0
    # Results come in the order of the items; the range is read as far as workers can take it.
    for result in root.map(range(-3, items - 3), return_exceptions=True, progress=True):
        if isinstance(result, Exception):
            failed += 1
        else:
            total += result
    took = time.perf_counter() - begin
    print(f"{items} items, {failed} failed, the roots add up to {total:.1f}")
    print(f"{items / took:.0f} items per second")


if __name__ == "__main__":
    main()
