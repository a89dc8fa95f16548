"""Bodies of KServe's V1 protocol: `{"instances": [...]}` and `{"predictions": [...]}`."""

from __future__ import annotations

from typing import Any

import numpy as np

from nanopod.node.engines.serving.answers import Answer, Refused, json_object, said


def instances(body: bytes) -> list[Any]:
    """What is to be predicted, one value per prediction; `inputs` is read as well. Raises `Refused` 400."""
    fields = json_object(body)
    name = "instances" if "instances" in fields else "inputs"
    found = fields.get(name)
    if found is None:
        raise Refused(400, "the body must have `instances`: a list with one value per prediction")
    if not isinstance(found, list) or not found:
        raise Refused(400, f"`{name}` must be a list with one value per prediction")
    return found


def answer(predictions: Any) -> Answer:
    """Predictions as they are sent: arrays become lists."""
    return said({"predictions": plain(predictions)})


def plain(value: Any) -> Any:
    """A model's answer in JSON's types."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value
