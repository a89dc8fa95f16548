"""What values cost on their way: `model/codec.py` against the plain `msgpack` package (its extension in C), in turns.

`msgpack` knows no tuple, set, class or array: the codec returns what it was given, so it does more. Encoding and
decoding are one figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.figures import Figure, median, say

CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "small": (("a question of some words", 64), {"temperature": 0.7, "stream": False}),
    "one": ((2,), {}),
}
SIZE = 10_000_000


def once(work: Callable[[], object], rounds: int) -> float:
    """Seconds of one round."""
    begin = time.perf_counter()
    for _ in range(rounds):
        work()
    return (time.perf_counter() - begin) / rounds


def compared(ours: Callable[[], object], theirs: Callable[[], object], rounds: int, repeats: int) -> tuple[float, ...]:
    """(median ratio, median seconds of ours, of theirs)."""
    rows = []
    for work in (ours, theirs):
        once(work, max(1, rounds // 10))
    for _ in range(repeats):
        rows.append((once(ours, rounds), once(theirs, rounds)))
    return median([a / b for a, b in rows]), median([a for a, _ in rows]), median([b for _, b in rows])


def run(*, quick: bool = False) -> Iterator[Figure]:
    """Figures of this cell."""
    try:
        import msgpack
    except ImportError:
        say("left out: msgpack is not installed; pip install 'nanopod[bench]'")
        return
    from nanopod.model import codec

    pack, unpack = msgpack.packb, msgpack.unpackb
    repeats = 7 if quick else 41
    text = f"msgpack {'.'.join(map(str, msgpack.version))} ({msgpack.Packer.__module__}), same run"
    for name, call in CALLS.items():
        assert codec.decode(codec.encode(call)) == call
        value, ours, theirs = compared(
            lambda call=call: codec.decode(codec.encode(call)),  # type: ignore[misc]
            lambda call=call: unpack(pack(call)),  # type: ignore[misc]
            10_000, repeats,
        )  # fmt: skip
        detail = {"us": round(ours * 1e6, 3), "msgpack_us": round(theirs * 1e6, 3)}
        yield Figure(f"codec_vs_msgpack_{name}", value, "ratio", text, "<= 2", detail)
    yield from _large(codec, msgpack, text, repeats)


def _large(codec: Any, msgpack: Any, text: str, repeats: int) -> Iterator[Figure]:
    import numpy

    data = bytes(SIZE)
    call = ((data,), {})
    value, ours, theirs = compared(
        lambda: codec.decode(codec.encode(call)),
        lambda: msgpack.unpackb(msgpack.packb(call)),
        10, repeats,
    )  # fmt: skip
    detail = {"ms": round(ours * 1e3, 3), "msgpack_ms": round(theirs * 1e3, 3)}
    yield Figure("codec_vs_msgpack_10mb", value, "ratio", text, "<= 1.2", detail)
    array = ((numpy.frombuffer(data, dtype="float32"),), {})
    value, ours, theirs = compared(
        lambda: codec.decode(codec.encode(array)),
        lambda: msgpack.unpackb(msgpack.packb(call)),
        10, repeats,
    )  # fmt: skip
    detail = {"ms": round(ours * 1e3, 3), "msgpack_ms": round(theirs * 1e3, 3)}
    yield Figure("codec_vs_msgpack_array_10mb", value, "ratio", f"{text}, plain bytes of that size", "", detail)
