"""A generator on a worker: its items arrive as they are made, no faster than they are taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from nanopod import Deployment

app = Deployment(name="stream")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=1)

TEXT = "A worker may go away at any moment; what it promised does not."


@app.remote
async def words(text: str, pause_s: float = 0.05) -> AsyncIterator[str]:
    """The words of a text, one after the other."""
    for word in text.split():
        await asyncio.sleep(pause_s)
        yield word


async def main() -> None:
    """Print the words as they come."""
    await app.async_ensure_ready()
    async for word in words(TEXT):
        print(word, end=" ", flush=True)
    print()


if __name__ == "__main__":
    asyncio.run(main())
