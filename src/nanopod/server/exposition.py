"""The text format of Prometheus (version 0.0.4), written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """Families of metrics in the order of their first use. Names and labels are given as they are to be read."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}

    def family(self, name: str, kind: Literal["counter", "gauge", "histogram"], text: str) -> None:
        """Begin a family; values of a family that was not begun are refused."""
        self._families.setdefault(name, [f"# HELP {name} {_help(text)}", f"# TYPE {name} {kind}"])

    def value(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """One value of a family."""
        self._families[name].append(f"{name}{_labels(labels)} {number(value)}")

    def histogram(self, name: str, labels: Mapping[str, str], bounds: Sequence[float], counts: Sequence[int]) -> None:
        """One histogram: `counts` by bucket, one more than `bounds`. There is no sum: nobody took it by revision."""
        lines = self._families[name]
        seen = 0
        for bound, count in zip((*bounds, math.inf), counts, strict=True):
            seen += count
            lines.append(f"{name}_bucket{_labels({**labels, 'le': number(bound)})} {seen}")
        lines.append(f"{name}_count{_labels(labels)} {seen}")

    def text(self) -> str:
        """All of it."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterable[str]:
        for lines in self._families.values():
            yield from lines


def number(value: float) -> str:
    """A number as the format writes it."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
