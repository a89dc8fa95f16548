"""The genuine client makes an endpoint and a group by hand, and takes them away; prints what it saw."""

import asyncio
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import genuine
from vastai import CoroutineServerless
from vastai.data.endpoint import EndpointConfig


async def main():
    async with CoroutineServerless(webserver_url=genuine.URL, autoscaler_url=genuine.URL) as client:
        made = await client.create_endpoint(EndpointConfig("by-hand", min_load=2, max_workers=3))
        group = await made.add_workergroup("some-template")
        data = await client.fetch_endpoint(made.id)
        groups = await client.find_workergroup_for_endpoint(made.id)
        waiting = await (await client.get_endpoint("by-hand"))._route(cost=1)
        await client.delete_workergroup(group)
        await made.delete()
        names = [endpoint.name for endpoint in await client.get_endpoints()]
        return {
            "id": made.id, "group": group, "found": groups, "scale": [data.config.min_load, data.config.max_workers],
            "status": waiting.status, "gone": "by-hand" not in names,
        }  # fmt: skip


print(json.dumps(asyncio.run(main())))
