"""A deployment as its author wrote it for Vast: no word of this cloud."""

import os

from vastai import Deployment
from vastai.data.query import RTX_4090, RTX_5090, gpu_name

app = Deployment(name="demo", webserver_url=os.environ.get("NP_URL", ""), autoscaler_url=os.environ.get("NP_URL"))


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y


@app.context(3)
class Counter:
    def __init__(self, start):
        self.value = start

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        pass


@app.remote(benchmark_dataset=[{"x": 2}])
async def square(x):
    return x * x


@app.remote
async def hello(name):
    raise ValueError(f"hello {name}")


@app.remote
async def mirror(value):
    return value


@app.remote
async def moved(point, by=1):
    return Point(point.x + by, point.y + by)


@app.remote
async def count():
    counter = app.get_context(Counter)
    counter.value += 1
    return counter.value


image = app.image("vastai/base-image:@vastai-automatic-tag", 16)
image.require(gpu_name.in_([RTX_4090, RTX_5090]))
app.configure_autoscaling(min_load=1, max_workers=1)
