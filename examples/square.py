"""The smallest deployment: run it, and `square` runs in your cloud, or in one that starts beside this file."""

from __future__ import annotations

import asyncio

from nanopod import Deployment

app = Deployment(name="square")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=2)


@app.remote
async def square(x: int) -> int:
    """x squared, on a worker."""
    return x * x


async def main() -> None:
    """Deploy, call, print."""
    await app.async_ensure_ready()
    print("square(5) =", await square(5))


if __name__ == "__main__":
    asyncio.run(main())
