"""Inference on arrays: a small numpy network for 28 x 28 images, with hardware requirements and a benchmark."""

from __future__ import annotations

import asyncio
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nanopod import Deployment
from nanopod.data.query import RTX_4090, RTX_5090, gpu_name

Image = NDArray[np.float32]

app = Deployment(name="digit-inference")
app.image("python").pip_install("numpy").require(gpu_name.in_([RTX_4090, RTX_5090]))
app.configure_autoscaling(cold_workers=1, max_workers=2, min_load=1)


@app.context(seed=7)
class Network:
    """Two dense layers with fixed random weights: 784 -> 64 -> 10."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.first = rng.standard_normal((784, 64), dtype=np.float32) / 28
        self.second = rng.standard_normal((64, 10), dtype=np.float32) / 8

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...

    def probabilities(self, images: Image) -> Image:
        """(n, 28, 28) images to (n, 10) class probabilities."""
        logits = np.maximum(images.reshape(len(images), 784) @ self.first, 0) @ self.second
        scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


@app.remote(
    benchmark_dataset=[{"images": np.zeros((1, 28, 28), np.float32)}], workload_calculator=lambda images: len(images)
)
def infer(images: Image) -> Image:
    """Class probabilities of a batch of images."""
    network: Network = app.get_context(Network)
    return network.probabilities(images)


async def main() -> None:
    """One black image: every class is as likely as any other."""
    await app.async_ensure_ready()
    answer = await infer(np.zeros((1, 28, 28), np.float32))
    print("probabilities of a black image:", " ".join(f"{p:.3f}" for p in answer[0]))


if __name__ == "__main__":
    asyncio.run(main())
