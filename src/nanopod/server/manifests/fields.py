"""Objects read strictly: known fields by type, ignored ones and unknown ones with a warning, wrong ones with the fix.

A reader never raises: it notes the problem with its path and line, gives a value that fits, and goes on, so that one
look at a file finds all that is wrong with it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from nanopod.server.manifests.reading import Document, step

PROBLEMS_MAX: Final = 200
Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong or overlooked, and where. `path` is the field's, `line` and `column` count from 1 (0: unknown)."""

    level: Level
    source: str
    line: int
    column: int
    path: str
    message: str


@dataclass(slots=True)
class Problems:
    """The problems of one document. With `strict` every warning is an error."""

    document: Document
    strict: bool = False
    found: list[Problem] = field(default_factory=list)

    def error(self, path: str, message: str) -> None:
        """The document is rejected."""
        self._add("error", path, message)

    def warn(self, path: str, message: str) -> None:
        """Something is ignored, or not done quite as it would be elsewhere."""
        self._add("error" if self.strict else "warning", path, message)

    def _add(self, level: Level, path: str, message: str) -> None:
        line, column = self.document.mark(path)
        one = Problem(level, self.document.source, line, column, path, message)
        if len(self.found) < PROBLEMS_MAX and one not in self.found:
            self.found.append(one)

    @property
    def errors(self) -> list[Problem]:
        """Those for which it is rejected."""
        return [one for one in self.found if one.level == "error"]

    @property
    def rejected(self) -> bool:
        """True when there is an error."""
        return any(one.level == "error" for one in self.found)


def shown(value: Any) -> str:
    """A value in an error: short, and never a whole object."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Reader:
    """One object at a path. Each method notes that its field is known; `done` warns of the fields nobody asked for."""

    def __init__(self, value: Any, path: str, problems: Problems) -> None:
        self.path = path
        self.problems = problems
        if not isinstance(value, Mapping):
            if value is not None:
                problems.error(path, f"must be an object, not {shown(value)}")
            value = {}
        self.value: Mapping[str, Any] = value
        self._known: set[str] = set()

    def at(self, name: str) -> str:
        """The path of a field."""
        return step(self.path, name)

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self.value.get(name) is not None

    def error(self, name: str, message: str) -> None:
        """Reject a field."""
        self._known.add(name)
        self.problems.error(self.at(name), message)

    def warn(self, name: str, message: str) -> None:
        """Warn of a field."""
        self._known.add(name)
        self.problems.warn(self.at(name), message)

    def raw(self, name: str) -> Any:
        """The value as it is; None when it is missing."""
        self._known.add(name)
        return self.value.get(name)

    def text(
        self, name: str, default: str = "", *, one_of: Collection[str] = (), required: bool = False, fix: str = ""
    ) -> str:
        """Text. A number or truth value is taken as it would be written, as YAML makes them of plain words."""
        found = self.raw(name)
        if found is None:
            if required:
                self.error(name, f"is missing; {fix or 'give it'}")
            return default
        if isinstance(found, Mapping | list):
            self.error(name, f"must be text, not {shown(found)}")
            return default
        if isinstance(found, bool):
            found = str(found).lower()
        found = str(found)
        if one_of and found not in one_of:
            near = difflib.get_close_matches(found, list(one_of), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(one_of)}"
            self.error(name, f"{found!r} is not possible; {hint}")
            return default
        return found

    def number(self, name: str, *, least: float = 0.0, most: float = math.inf) -> float | None:
        """A number within limits; None when it is missing or wrong."""
        found = self.raw(name)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            self.error(name, f"must be a number, not {shown(found)}")
            return None
        if not least <= found <= most:
            upper = "" if most == math.inf else f" and at most {most:g}"
            self.error(name, f"{found:g} is not possible; give a number of at least {least:g}{upper}")
            return None
        return float(found)

    def whole(self, name: str, *, least: int = 0, most: int = 2**31 - 1) -> int | None:
        """A whole number within limits; None when it is missing or wrong."""
        found = self.raw(name)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int):
            hint = " (without quotes)" if isinstance(found, str) and found.strip().lstrip("-").isdigit() else ""
            self.error(name, f"must be a whole number{hint}, not {shown(found)}")
            return None
        if not least <= found <= most:
            upper = "" if most == 2**31 - 1 else f" to {most}"
            self.error(name, f"{found} is not possible; give a whole number from {least}{upper or ' on'}")
            return None
        return found

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth value."""
        found = self.raw(name)
        if found is None:
            return default
        if not isinstance(found, bool):
            self.error(name, f"must be true or false, not {shown(found)}")
            return default
        return found

    def object(self, name: str, *, required: bool = False, fix: str = "") -> Reader | None:
        """A reader of an object; None when it is missing or no object."""
        found = self.raw(name)
        if found is None:
            if required:
                self.error(name, f"is missing; {fix or 'give an object'}")
            return None
        if not isinstance(found, Mapping):
            self.error(name, f"must be an object, not {shown(found)}")
            return None
        return Reader(found, self.at(name), self.problems)

    def objects(self, name: str) -> list[Reader]:
        """Readers of the objects of a list."""
        found = []
        for at, one in enumerate(self._list(name)):
            path = f"{self.at(name)}[{at}]"
            if isinstance(one, Mapping):
                found.append(Reader(one, path, self.problems))
            else:
                self.problems.error(path, f"must be an object, not {shown(one)}")
        return found

    def named(self, name: str) -> Iterator[tuple[str, Reader]]:
        """(name, reader) of the objects of a map."""
        inner = self.object(name)
        for key in inner.value if inner is not None else ():
            one = inner.object(key) if inner is not None else None
            if one is not None:
                yield key, one

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts of a list; numbers and truth values as they would be written."""
        found = []
        for at, one in enumerate(self._list(name)):
            if isinstance(one, Mapping | list) or one is None:
                self.problems.error(f"{self.at(name)}[{at}]", f"must be text, not {shown(one)}")
            else:
                found.append(str(one).lower() if isinstance(one, bool) else str(one))
        return tuple(found)

    def _list(self, name: str) -> Sequence[Any]:
        found = self.raw(name)
        if found is None:
            return ()
        if not isinstance(found, list):
            self.error(name, f"must be a list, not {shown(found)}")
            return ()
        return found

    def pairs(self, name: str) -> dict[str, str]:
        """A map of text to text, such as labels."""
        inner = self.object(name)
        return {key: inner.text(key) for key in inner.value} if inner is not None else {}

    def quietly(self, *names: str) -> None:
        """Fields that have no meaning here and need no words."""
        self._known.update(names)

    def ignored(self, why: str, *names: str) -> None:
        """Fields that are known, and overlooked with a warning."""
        for name in names:
            if self.has(name):
                self.warn(name, f"is ignored: {why}")
            self._known.add(name)

    def done(self) -> None:
        """Warn of every field that was not asked for."""
        for name in self.value:
            if name not in self._known:
                near = difflib.get_close_matches(name, sorted(self._known), n=1, cutoff=0.75)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                self.problems.warn(self.at(name), f"is unknown and ignored{hint}")
