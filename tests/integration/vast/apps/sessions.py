"""The genuine client's sessions: calls of one stay on one worker, and a closed one takes none."""

import asyncio
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import demo
import genuine
from vastai import CoroutineServerless

demo.app.ensure_ready()


async def main():
    async with CoroutineServerless(webserver_url=genuine.URL, autoscaler_url=genuine.URL) as client:
        endpoint = await client.get_endpoint("demo")
        session = await endpoint.session(lifetime=30)
        counts = []
        for _ in range(3):
            answer = await session.request("/remote/count", {"kwargs": {}})
            counts.append(answer["response"]["result"]["ok"])
        open_before = await session.is_open()
        await session.close()
        try:
            await session.request("/remote/count", {"kwargs": {}})
            refused = False
        except ValueError:
            refused = True
        workers = await endpoint.get_workers()
        return {"counts": counts, "open": open_before, "refused": refused, "workers": len(workers)}


print(json.dumps(asyncio.run(main())))
