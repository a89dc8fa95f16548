"""Units of load of one call, as the author's calculator says."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any

from nanopod.model.endpoint import DEFAULT_WORKLOAD
from nanopod.model.registry import RegisteredFunction

_log = logging.getLogger(__name__)


class Workload:
    """A function's calculator. It gets the bound arguments by name, or as one dict if it asks for `payload`."""

    def __init__(self, function: RegisteredFunction) -> None:
        self._name = function.spec.name
        self._calculate = function.workload
        signature = inspect.signature(function.call)
        if function.owner is not None:  # a method: callers do not give its object
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        self._signature = signature
        self._as_payload = (
            function.workload is not None
            and list(inspect.signature(function.workload).parameters) == ["payload"]
            and "payload" not in self._signature.parameters
        )
        self._warned = False

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        """Units of this call; the default when the calculator fails or answers nonsense (warns once)."""
        if self._calculate is None:
            return DEFAULT_WORKLOAD
        try:
            named = dict(self._signature.bind(*args, **kwargs).arguments)
            units = float(self._calculate(payload=named) if self._as_payload else self._calculate(**named))
        except Exception as error:  # whatever the author's calculator raises
            return self._default(f"raised {type(error).__name__}: {error}")
        return units if math.isfinite(units) and units >= 0 else self._default(f"answered {units}")

    def _default(self, why: str) -> float:
        if not self._warned:
            self._warned = True
            _log.warning("the workload calculator of %s %s; %g is used instead", self._name, why, DEFAULT_WORKLOAD)
        return DEFAULT_WORKLOAD
