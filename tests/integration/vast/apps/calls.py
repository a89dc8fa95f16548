"""The genuine client deploys `demo` and calls its functions; prints what it got as JSON."""

import asyncio
import json
import os
import sys
import traceback

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import demo
import genuine  # noqa: F401

demo.app.ensure_ready()


async def main():
    found = {"square": await demo.square(5)}
    found["many"] = sorted(await asyncio.gather(*(demo.square(x) for x in range(20))))
    value = [1, 2.5, "three", None, b"\x00\xff", (1, (2,)), {"k": [1], 2: "two"}]
    found["mirror"] = await demo.mirror(value) == value
    point = await demo.moved(demo.Point(1, 2), by=2)
    found["point"] = [type(point).__name__, point.x, point.y]
    found["count"] = [await demo.count(), await demo.count()]
    try:
        await demo.hello("you")
    except ValueError as error:
        found["error"] = str(error)
        found["trace"] = "".join(traceback.format_exception(error))
    return found


print(json.dumps(asyncio.run(main())))
