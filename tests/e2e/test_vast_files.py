"""Files as they are written for Vast run here with only their two import lines changed, on a laptop without an account."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
RUN_S_MAX = 90

IMPORTS = """
from nanopod import Deployment
from nanopod.data.query import gpu_name, gpu_ram, RTX_4090, RTX_5090
"""
SQUARE = """
@app.remote(benchmark_dataset=[{"x": 2}])
async def square(x):
    return x * x
"""
IMAGE = """
image = app.image("vastai/base-image:@vastai-automatic-tag", 16)
image.require(gpu_name.in_([RTX_4090, RTX_5090]))
"""
SCALING = """
app.configure_autoscaling(min_load=1)
"""
INFER = """
import random

class Net:
    async def __aenter__(self):
        self.weights = [random.random() for _ in range(10)]
        return self

    async def __aexit__(self, *exc):
        pass

    def run(self, image):
        total = sum(map(sum, image))
        return [total * w for w in self.weights]

Net = app.context()(Net)

@app.remote(benchmark_generator=lambda: {"image": [[0.0] * 28 for _ in range(28)]}, benchmark_runs=3)
async def infer(image):
    return app.get_context(Net).run(image)
"""
ENGINE = """
def calculate_tokens(payload):
    return payload["max_tokens"] + len(payload["prompt"].split())

@app.context(model="stub")
class VLLMEngine:
    def __init__(self, model):
        self.model = model

    async def __aenter__(self):
        return self

    async def __aexit__(self, exc_type, exc, tb):
        self.model = None

    async def generate(self, prompt, max_tokens):
        return " ".join([self.model, *prompt.split()][:max_tokens])

@app.remote(
    benchmark_dataset=[{"prompt": "a b", "max_tokens": 8}],
    workload_calculator=calculate_tokens,
    allow_parallel_requests=True,
    max_queue_time=20.0,
)
async def generate(prompt, max_tokens=16):
    return await app.get_context(VLLMEngine).generate(prompt, max_tokens)
"""
MAIN = """
if __name__ == "__main__":
    import asyncio, json
    app.ensure_ready()

    async def main():
        found = {}
        if "square" in globals():
            found["square"] = await asyncio.gather(*(square(x) for x in range(5)))
        if "infer" in globals():
            found["infer"] = await infer([[0.0] * 28 for _ in range(28)])
        if "generate" in globals():
            found["generate"] = await generate("hello there you", 3)
        return found

    print(json.dumps(asyncio.run(main())))
"""


def run(directory: Path, *words: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NANOPOD_", "VAST_", "IS_"))}
    done = subprocess.run(
        [sys.executable, *words], cwd=directory, env={**kept, **environment}, capture_output=True, text=True,
        timeout=RUN_S_MAX,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vast-files")


def test_the_three_examples_of_its_guide(directory: Path) -> None:
    file = directory / "guide.py"
    file.write_text(f"{IMPORTS}\napp = Deployment()\n{SQUARE}{INFER}{ENGINE}{IMAGE}{SCALING}{MAIN}")
    found = json.loads(run(directory, file.name).splitlines()[-1])
    assert found["square"] == [0, 1, 4, 9, 16]
    assert found["infer"] == [0.0] * 10
    assert found["generate"] == "stub hello there"


def test_every_order_of_its_definitions(directory: Path) -> None:
    """One process imports them all, and asks each for its plan's parts: what is deployed does not depend on the order."""
    names = []
    for index, order in enumerate(itertools.permutations([SQUARE, IMAGE, SCALING])):
        file = directory / f"order{index}.py"
        file.write_text(f"{IMPORTS}\napp = Deployment(name='order')\n{''.join(order)}")
        names.append(file.stem)
    script = directory / "orders.py"
    script.write_text(
        "import importlib, json\n"
        "from nanopod.client.deploying import build\n"
        f"specs = [build(importlib.import_module(name).app)[0] for name in {names!r}]\n"
        "print(json.dumps([[s.fingerprints.image, s.fingerprints.scale, [f.name for f in s.functions]] for s in specs]))\n"
    )
    found = json.loads(run(directory, script.name, NANOPOD_URL="http://127.0.0.1:1").splitlines()[-1])
    assert all(one == found[0] for one in found)
    assert found[0][2] == ["square"]


def test_a_separate_file_calls_what_another_deployed(directory: Path) -> None:
    (directory / "parts.py").write_text(f"{IMPORTS}\napp = Deployment()\n{SQUARE}{IMAGE}{SCALING}")
    (directory / "caller.py").write_text(
        "import asyncio, json\nimport parts\nparts.app.ensure_ready()\nprint(json.dumps(asyncio.run(parts.square(12))))\n"
    )
    assert json.loads(run(directory, "caller.py").splitlines()[-1]) == 144


def test_a_call_before_it_is_ready_says_so_where_a_server_is_named(directory: Path) -> None:
    (directory / "early.py").write_text(
        f"{IMPORTS}\napp = Deployment(api_key='npk_x')\n{SQUARE}{IMAGE}{SCALING}\n"
        "import asyncio\ntry:\n    asyncio.run(square(2))\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    said = run(directory, "early.py", NANOPOD_URL="http://127.0.0.1:1").splitlines()[-1]
    assert said == "NotReady Deployment is not ready. Call .ensure_ready() first!"
