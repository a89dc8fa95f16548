"""A deployment for tests of `app.test()`."""

import os

from nanopod import Deployment

app = Deployment(name="faulty")
app.image("python").env(MARKS=os.environ.get("FAULTY_MARKS", "/dev/null"))
app.configure_autoscaling(cold_workers=1, max_workers=1, min_load=1)


@app.context()
class Model:
    async def __aenter__(self):
        return self

    async def __aexit__(self, *about):
        pass


@app.remote(idempotent=True)
async def square(x: int) -> int:
    return x * x


@app.remote(idempotent=True)
async def pid() -> int:
    return os.getpid()


@app.on_preempt
def told(notice):
    with open(os.environ["MARKS"], "a") as file:
        file.write(f"{notice.reason}\n")
