"""A context: something costly that a worker makes once, when it starts, and every call then uses."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Self

from nanopod import Deployment

app = Deployment(name="counter")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=1)


@app.context(start=100)
class Counter:
    """Counts up. A model would be loaded here instead."""

    def __init__(self, start: int) -> None:
        self.value = start

    async def __aenter__(self) -> Self:
        """Runs once on each worker, before it takes calls."""
        await asyncio.sleep(0.1)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        """Runs when the worker ends, also when its machine is taken away."""


@app.remote(concurrency=4)
async def count(by: int = 1) -> tuple[int, int]:
    """(the counter after adding `by`, this worker's process id)."""
    counter: Counter = app.get_context(Counter)
    counter.value += by
    return counter.value, os.getpid()


async def main() -> None:
    """Ten calls at once, on one worker."""
    await app.async_ensure_ready()
    answers = await asyncio.gather(*(count() for _ in range(10)))
    print("values", sorted(value for value, _ in answers), "from", len({pid for _, pid in answers}), "process")


if __name__ == "__main__":
    asyncio.run(main())
