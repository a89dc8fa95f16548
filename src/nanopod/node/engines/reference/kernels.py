"""Matrix products whose rows do not feel each other.

A token's logits must not depend on who else is in the batch, nor on whether its row was computed while prefilling or
while decoding. A BLAS picks its inner loops by the shape of the product, so the same row may come out with other last
bits in a taller matrix. Here every product over token rows has one shape only: `ROW_BLOCK` rows, short blocks padded
with zeros, taller ones cut. Inside that shape a row's result is the same at every place in the block
(`rows_are_independent` proves it on the machine at hand before an engine promises anything).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROW_BLOCK = 4
"""Rows per product: the smallest height at which the vector units are busy, so a lone stream is not slowed much."""

Array = NDArray[Any]

_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
)


def pin_blas_threads(threads: int) -> bool:
    """Set the thread count of the BLAS NumPy loaded, whatever the environment said; True when one was found.

    One thread per engine is fastest at these sizes, and a changing count could change the order of sums.
    """
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    except OSError:
        return False
    found = False
    names = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "blas" in line or "mkl" in line}
    for name in sorted(names):
        if ".so" not in name:
            continue
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        for symbol in _SETTERS:
            setter = getattr(library, symbol, None)
            if setter is not None:
                setter.argtypes = [ctypes.c_int]
                setter.restype = None
                setter(threads)
                found = True
                break
    return found


def blocks(rows: int) -> int:
    """How many row blocks hold `rows` rows."""
    return -(-rows // ROW_BLOCK)


def rows_are_independent(weights: list[Array], seed: int = 7) -> bool:
    """Whether, for each (inputs, outputs) weight matrix, a row's product is bit-equal at any place beside any rows."""
    rng = np.random.default_rng(seed)
    for weight in weights:
        inputs = weight.shape[0]
        row = rng.standard_normal((inputs,)).astype(weight.dtype)
        expected: Array | None = None
        for place in range(2 * ROW_BLOCK):
            x = rng.standard_normal((2, ROW_BLOCK, inputs)).astype(weight.dtype)
            x[place // ROW_BLOCK, place % ROW_BLOCK] = row
            got = np.matmul(x, weight)[place // ROW_BLOCK, place % ROW_BLOCK]
            if expected is None:
                expected = got
            elif not np.array_equal(expected, got):
                return False
    return True


def rms_norm(x: Array, eps: float, out: Array) -> Array:
    """Rows of `x` divided by their root mean square (the gain is folded into the next weight matrix)."""
    np.multiply(x, x, out=out)
    scale = np.add.reduce(out, axis=-1, keepdims=True)
    scale /= x.shape[-1]
    scale += eps
    np.sqrt(scale, out=scale)
    return np.divide(x, scale, out=out)


def silu_gate(gate_up: Array, out: Array) -> Array:
    """SwiGLU: `gate_up` holds gate and up side by side on the last axis; returns silu(gate) * up in `out`.

    silu(g) = g / (1 + exp(-g)); for very negative g the exponential overflows to inf and the quotient is a clean -0.
    """
    half = out.shape[-1]
    gate = gate_up[..., :half]
    np.negative(gate, out=out)
    np.exp(out, out=out)
    out += 1.0
    np.divide(gate, out, out=out)
    return np.multiply(out, gate_up[..., half:], out=out)


def softmax_rows(scores: Array) -> Array:
    """Softmax numerators of the last axis, in place; returns the row sums (keepdims) to divide by later."""
    scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    return np.asarray(np.add.reduce(scores, axis=-1, keepdims=True))
