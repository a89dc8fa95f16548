"""Hardware requirements: `gpu_ram >= 48`, combined with `&`, `|` and `~`, as text and as JSON.

| Python | JSON | text | read as well |
| --- | --- | --- | --- |
| `==` `!=` | `eq` `neq` | `=` `!=` | `==`, `eq`; `neq`, `noteq`, `not eq` |
| `<` `<=` `>` `>=` | `lt` `lte` `gt` `gte` | the same signs | the words |
| `.in_(list)` `.notin_(list)` | `in` `notin` | ` in a,b` ` notin a,b` | `nin`, `not in`; brackets, quotes |

A `Query` wraps `{column: {op: value}}` in wire units; its text form is in the units people write. Text that would be
read back as something else is quoted, so `parse_query(str(query)) == query.query`.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

Value = Any
Conditions = dict[str, dict[str, Value]]

SIGNS: Final = {"eq": "=", "neq": "!=", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
NEGATIONS: Final = {
    "eq": "neq", "neq": "eq", "lt": "gte", "gte": "lt", "gt": "lte", "lte": "gt", "in": "notin", "notin": "in",
}  # fmt: skip
_WORDS: Final = {
    **{sign: op for op, sign in SIGNS.items()}, **{op: op for op in NEGATIONS},
    "==": "eq", "noteq": "neq", "not eq": "neq", "nin": "notin", "not in": "notin",
}  # fmt: skip
ALIASES: Final = {
    "cuda_vers": "cuda_max_good",
    "display_active": "gpu_display_active",
    "dlperf_usd": "dlperf_per_dphtotal",
    "dph": "dph_total",
    "flops_usd": "flops_per_dphtotal",
}
ALTERNATIVES_MAX: Final = 256
_WILDCARDS: Final = ("any", "?", "*")
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\''
_ITEM: Final = rf"(?:{_QUOTED}|[^\s,\[\]\"'=<>!]+)"
_CONDITION: Final = re.compile(
    r"\s*(?P<field>[A-Za-z_]\w*)"
    r"(?P<op>\s*(?:>=|<=|!=|==|=|<|>)\s*|\s+(?:not\s+in|not\s+eq|notin|noteq|nin|neq|eq|lte|lt|gte|gt|in)(?=[\s\[\"'])\s*)"
    rf"(?P<value>\[[^\]]*\]|{_ITEM}(?:\s*,\s*{_ITEM})*)(?=\s|$)"
)
_PLAIN: Final = re.compile(r"[^\s,\[\]\"'=<>!]+(?: [^\s,\[\]\"'=<>!]+)*")
_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")

columns: dict[str, Column] = {}
"""Every column by its wire name, filled by `nanopod.client.columns`."""


class Column:
    """A property of an offer. Comparing it with a value makes a `Query`; `unit` is one written unit in wire units."""

    kind = "number"

    def __init__(self, name: str, *, unit: int = 1) -> None:
        self.name = name
        self.unit = unit
        columns[name] = self

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Column({self.name!r})"

    def __eq__(self, other: object) -> Query:  # type: ignore[override]
        return self._query("eq", other)

    def __ne__(self, other: object) -> Query:  # type: ignore[override]
        return self._query("neq", other)

    def __lt__(self, other: Value) -> Query:
        return self._query("lt", other)

    def __le__(self, other: Value) -> Query:
        return self._query("lte", other)

    def __gt__(self, other: Value) -> Query:
        return self._query("gt", other)

    def __ge__(self, other: Value) -> Query:
        return self._query("gte", other)

    def in_(self, values: Iterable[Value]) -> Query:
        """One of the values."""
        return self._query("in", self._several(values))

    def notin_(self, values: Iterable[Value]) -> Query:
        """None of the values."""
        return self._query("notin", self._several(values))

    def between(self, low: Value, high: Value) -> Query:
        """From `low` to `high`, both included."""
        return self._query("gte", low) & self._query("lte", high)

    def prefer(self, values: Iterable[Value]) -> Query:
        """One of the values, the earlier the better: the scheduler falls back along the list."""
        several = self._several(values)
        found = self.in_(several)
        found.order = [self._query("eq", value).query for value in several]
        return found

    def to_wire(self, value: Value) -> Value:
        """A value as people write it, in wire units."""
        if isinstance(value, list | tuple):
            return [self.to_wire(item) for item in value]
        if value is None or isinstance(value, bool | str):
            return value
        if not isinstance(value, int | float | Decimal):
            raise TypeError(f"{self.name} cannot be compared with a {type(value).__name__}")
        return _whole(Decimal(str(value)) * self.unit)

    def from_wire(self, value: Value) -> Value:
        """A wire value as people write it."""
        if isinstance(value, list):
            return [self.from_wire(item) for item in value]
        if value is None or isinstance(value, bool | str) or self.unit == 1:
            return value
        return Decimal(str(value)) / self.unit

    def read(self, word: str) -> Value:
        """An unquoted word of the text form, in wire units."""
        if (known := _CONSTANTS.get(word.lower(), word)) is not word:
            return known
        if _NUMBER.fullmatch(word):
            return self.to_wire(Decimal(word))
        return word.replace("_", " ")

    def _several(self, values: Iterable[Value]) -> list[Value]:
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise TypeError(f"{self.name}.in_() takes a list of values, not {values!r}")
        return list(values)

    def _query(self, op: str, value: Value) -> Query:
        if isinstance(value, Column | Query):
            raise TypeError(f"{self.name} can be compared with values only, not with {type(value).__name__}s")
        return Query({self.name: {op: self.to_wire(value)}})


class TextColumn(Column):
    """A column of words: what looks like a number is text there."""

    kind = "text"

    def to_wire(self, value: Value) -> Value:
        """Numbers become their text."""
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            return str(value)
        return super().to_wire(value)

    def read(self, word: str) -> Value:
        """An unquoted word; underscores stand for spaces."""
        known = _CONSTANTS.get(word.lower(), word)
        return known if known is not word else word.replace("_", " ")


class FlagColumn(Column):
    """A column of true and false."""

    kind = "flag"


_CONSTANTS: Final[dict[str, bool | None]] = {"true": True, "false": False, "none": None}


class Query:
    """Conditions that must all hold. Immutable but for `extend`, which `Image.require` uses."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, query: Mapping[str, Any] | None = None) -> None:
        self.query: dict[str, Any] = {
            column: dict(conditions) if isinstance(conditions, Mapping) else list(conditions)
            for column, conditions in (query or {}).items()
        }
        self._seeded: set[str] = set()
        self.order: list[dict[str, Any]] = []
        """Further conditions, best first: the first that can be met is to be used; any will do. Not part of `query`."""

    @classmethod
    def search_defaults(cls, *, verified: bool = True, rentable: bool = True, rented: bool = False) -> Query:
        """The usual conditions of a search; a condition on the same column takes their place."""
        found = cls({"verified": {"eq": verified}, "rentable": {"eq": rentable}, "rented": {"eq": rented}})
        found._seeded = set(found.query)
        return found

    def extend(self, *others: Query) -> Query:
        """Add conditions to this query and return it.

        Raises `ValueError` when a column has the same operator already, with another value, and for alternatives that
        exclude each other.
        """
        for other in others:
            for column, conditions in other.query.items():
                if column in self._seeded:
                    self._seeded.discard(column)
                    del self.query[column]
                if column == "any":
                    known = self.query.get("any")
                    self.query["any"] = list(conditions) if known is None else _both(known, conditions)
                    continue
                here = self.query.setdefault(column, {})
                twice = {op for op, value in conditions.items() if op in here and here[op] != value}
                if twice:
                    raise ValueError(f"Cannot redefine op(s) {twice} for column '{column}'")
                here.update(conditions)
            self.order = _both(self.order, other.order) if self.order and other.order else self.order or other.order
        return self

    def unparse_query(self) -> str:
        """The text form. Raises `ValueError` for alternatives, which only JSON can say."""
        if "any" in self.query:
            raise ValueError(
                "alternatives (|) over different columns have no text form; use .query (JSON) or several require()"
            )
        return " ".join(
            f"{column}{f' {op} ' if op in ('in', 'notin') else SIGNS[op]}{_text(column, value)}"
            for column, conditions in self.query.items()
            for op, value in conditions.items()
        )

    def __str__(self) -> str:
        return self.unparse_query()

    def __repr__(self) -> str:
        return f"Query({self.query!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Query) and self.query == other.query and self.order == other.order

    def __bool__(self) -> bool:
        raise TypeError(
            "a query is neither true nor false: write gpu_ram.between(24, 48) instead of 24 <= gpu_ram <= 48, and "
            "combine queries with & | ~ instead of and, or, not"
        )

    def __and__(self, other: Query) -> Query:
        made = Query(self.query)
        made.order = list(self.order)
        return made.extend(other)

    def __or__(self, other: Query) -> Query:
        merged = _as_in(self, other)
        return merged if merged is not None else Query({"any": [*_alternatives(self), *_alternatives(other)]})

    def __invert__(self) -> Query:
        negated = [
            {column: {NEGATIONS[op]: value}}
            for column, conditions in self.query.items()
            if column != "any"
            for op, value in conditions.items()
        ]
        if "any" in self.query:
            # Not one of the alternatives: all of their negations hold.
            negated.append(Query().extend(*(~Query(one) for one in self.query["any"])).query)
        if not negated:
            raise ValueError("a query without conditions is always true: there is nothing to negate")
        return Query(negated[0]) if len(negated) == 1 else Query({"any": negated})


def prefer_of(queries: Iterable[Query]) -> Query:
    """Any of the queries, the earlier the better. Raises `ValueError` when there is none."""
    parts = list(queries)
    if not parts:
        raise ValueError("prefer() needs at least one condition")
    found = Query(parts[0].query)
    for part in parts[1:]:
        found = found | part
    found.order = [part.query for part in parts]
    return found


def parse_query(text: str, base: Query | Mapping[str, Any] | None = None) -> Conditions:
    """The conditions of the text form, in wire units, added to (and taking the place of) those of `base`.

    `field=any` (or `?`, `*`) removes the conditions on a field. Raises `ValueError` for text that is not a query; an
    unknown field is a warning.
    """
    from nanopod.client import columns as _filled  # noqa: F401 - defines the columns

    found: Conditions = {
        column: dict(conditions)
        for column, conditions in (base.query if isinstance(base, Query) else base or {}).items()
    }
    at = 0
    while text[at:].strip():
        match = _CONDITION.match(text, at)
        if match is None:
            raise ValueError(
                f"cannot read {text[at:].strip()!r} as a condition; write for example: gpu_ram>=24 num_gpus=1"
            )
        at = match.end()
        name = ALIASES.get(match["field"], match["field"])
        column = _column(name)
        op = _WORDS[" ".join(match["op"].split())]
        if match["value"] in _WILDCARDS:
            if op != "eq":
                raise ValueError(f"{name}: {match['value']!r} means no condition, and goes with = only")
            found.pop(name, None)
            continue
        found.setdefault(name, {})[op] = _read(column, op, match["value"])
    return found


def _column(name: str) -> Column:
    column = columns.get(name)
    if column is not None:
        return column
    near = difflib.get_close_matches(name, columns, 1)
    advice = f"; did you mean {near[0]}?" if near else ""
    warnings.warn(f"{name} is not a known property of offers{advice}", stacklevel=3)
    unknown = Column(name)
    del columns[name]
    return unknown


def _read(column: Column, op: str, text: str) -> Value:
    listed = text.startswith("[")
    words = re.findall(_ITEM, text[1:-1] if listed else text)
    if op in ("in", "notin"):
        return [_read_word(column, word) for word in words]
    if listed or len(words) != 1:
        raise ValueError(f"{column.name}: {text!r} is a list; compare with a list by in or notin")
    return _read_word(column, words[0])


def _read_word(column: Column, word: str) -> Value:
    if word[0] in "\"'":
        inner = re.sub(r"\\(.)", r"\1", word[1:-1])
        if not inner or (not inner.strip() and column.kind != "text"):
            raise ValueError(f"{column.name}: the value is blank")
        return inner
    return column.read(word)


def _text(name: str, value: Value) -> str:
    """A wire value in the text form of its column."""
    from nanopod.client import columns as _filled  # noqa: F401 - defines the columns

    column = columns.get(name) or TextColumn.__new__(TextColumn)
    if isinstance(value, list):
        items = [_word(column, item) for item in value]
        return ",".join(items) if items else "[]"
    return _word(column, value)


def _word(column: Column, value: Value) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "None"
    if not isinstance(value, str):
        unit = getattr(column, "unit", 1)
        # All digits that a division leaves, so that multiplying again gives the wire value back.
        written = Decimal(str(value)) / unit
        if written == written.to_integral_value():
            return str(int(written))
        return format(written, "f" if unit > 1 else "")
    plain = value.replace(" ", "_")
    if _PLAIN.fullmatch(value) and "_" not in value and plain not in _WILDCARDS and _reads_back(column, plain, value):
        return plain
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _reads_back(column: Column, word: str, value: str) -> bool:
    try:
        return type(read := column.read(word)) is str and bool(read == value)
    except (AttributeError, ArithmeticError):
        return False


def _whole(number: Decimal) -> int | float:
    """An int where nothing is lost, else a float."""
    if not number.is_finite():
        raise ValueError("a requirement needs a finite number")
    near = float(number)
    if number == number.to_integral_value() or near.is_integer():
        return int(number.to_integral_value())
    return near


def _as_in(one: Query, other: Query) -> Query | None:
    """`eq` and `in` on one column, joined to one `in`; None where that is not what the queries are."""
    values: list[Value] = []
    for query in (one, other):
        if set(query.query) != set(one.query) or len(query.query) != 1 or "any" in query.query:
            return None
        conditions = next(iter(query.query.values()))
        if len(conditions) != 1 or next(iter(conditions)) not in ("eq", "in"):
            return None
        op, value = next(iter(conditions.items()))
        values += [item for item in (value if op == "in" else [value]) if item not in values]
    return Query({next(iter(one.query)): {"in": values}})


def _alternatives(query: Query) -> list[Any]:
    return list(query.query["any"]) if set(query.query) == {"any"} else [query.query]


def _both(one: list[Any], other: list[Any]) -> list[Any]:
    """Alternatives of two lists that must both hold: every pair that can be met. Raises `ValueError`."""
    if len(one) * len(other) > ALTERNATIVES_MAX:
        raise ValueError(
            f"{len(one)} and {len(other)} alternatives make more than {ALTERNATIVES_MAX} pairs; use fewer, or .in_()"
        )
    found = [met for first in one for second in other if (met := _met(first, second)) is not None]
    if not found:
        raise ValueError("these alternatives exclude each other: no offer could ever meet both")
    return found


def _met(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    """Conditions that all hold as one; None when some exclude each other."""
    made: dict[str, Any] = {column: _copied(conditions) for column, conditions in one.items()}
    for column, conditions in other.items():
        if column == "any":
            made["any"] = _both(made["any"], conditions) if "any" in made else list(conditions)
            continue
        here = made.setdefault(column, {})
        for op, value in conditions.items():
            if op not in here or here[op] == value:
                here[op] = value
                continue
            narrower = _narrower(op, here[op], value)
            if narrower is None:
                return None
            op, value = narrower
            if op == "notin":
                here.pop("neq", None)
                value = [*here.get("notin", []), *(item for item in value if item not in here.get("notin", []))]
            here[op] = value
    return made


def _narrower(op: str, one: Value, other: Value) -> tuple[str, Value] | None:
    """What two conditions with one operator come to together; None when nothing meets both."""
    match op:
        case "gt" | "gte":
            return op, max(one, other)
        case "lt" | "lte":
            return op, min(one, other)
        case "in":
            kept = [item for item in one if item in other]
            return (op, kept) if kept else None
        case "neq" | "notin":
            both = [one, other] if op == "neq" else [*one, *other]
            return "notin", [item for n, item in enumerate(both) if item not in both[:n]]
    return None


def _copied(conditions: Any) -> Any:
    return dict(conditions) if isinstance(conditions, Mapping) else list(conditions)
