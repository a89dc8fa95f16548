"""A deployment that a genuine worker serves."""

import os

from vastai import Deployment

app = Deployment(name="plain", webserver_url=os.environ.get("NP_URL", ""), autoscaler_url=os.environ.get("NP_URL"))


@app.remote(benchmark_dataset=[{"x": 2}], benchmark_runs=2)
async def where(x):
    return [os.getpid(), os.environ.get("CONTAINER_ID", "ours"), x + 1]


app.image("any", 10)
app.configure_autoscaling(cold_workers=0, min_load=0, inactivity_timeout=0, max_workers=1)
