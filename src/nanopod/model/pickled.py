"""Values by cloudpickle, for deployments that opted in on both ends (`Deployment(serializer="pickle")`).

Such a payload begins with a byte that msgpack never writes, so neither end takes one for the other. Reading a pickle
runs code of whoever wrote it: `decode` does so only where the deployment itself says so, never because the bytes do.
"""

from __future__ import annotations

from typing import Any

from nanopod.model.codec import PICKLED
from nanopod.model.errors import SerializationError


def encode(value: object, *, path: str = "") -> bytes:
    """The bytes of any value that cloudpickle takes. Raises `SerializationError`; `path` is the value's name there."""
    import cloudpickle

    try:
        return PICKLED + bytes(cloudpickle.dumps(value))
    except Exception as error:  # whatever a class's own __reduce__ raises
        raise SerializationError(
            f"{path or 'the value'} cannot be pickled: {type(error).__name__}: {error}; pass plain data"
        ) from error


def decode(data: bytes, *, allowed: bool) -> Any:
    """The value of `encode`'s bytes. Raises `SerializationError` when it is not allowed here, or cannot be read."""
    if not allowed:
        raise SerializationError(
            'the value came as a pickle, which this side does not read; give Deployment(serializer="pickle") on both '
            "sides, or on neither"
        )
    import pickle

    try:
        return pickle.loads(memoryview(data)[1:])
    except Exception as error:  # whatever the pickled classes raise
        raise SerializationError(f"the received pickle cannot be read: {type(error).__name__}: {error}") from error
