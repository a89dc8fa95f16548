"""Pages of lists: `limit` 1..200, `starting_after` and `ending_before`, answered as
`{object: "list", cursor, has_more, data}`.

A cursor is opaque and says by its prefix which list it belongs to. `cursor=` is read as `starting_after`. Lists are
newest first; `ending_before` turns the pages around, not the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.errors import Invalid
from nanopod.model.ids import ALIASES
from nanopod.server.api.answers import LIMIT_DEFAULT, LIMIT_MAX, answer, limit_of
from nanopod.server.api.context import Query

T = TypeVar("T")

PAGING: Final[tuple[Query, ...]] = (
    Query("limit", "Rows of a page.", "integer", least=1, most=LIMIT_MAX, default=LIMIT_DEFAULT),
    Query("starting_after", "The cursor of the page before this one."),
    Query("ending_before", "The cursor of the page after this one: the rows before it."),
    Query("cursor", "The same as `starting_after`."),
)
"""What every list takes."""


@dataclass(frozen=True, slots=True)
class Page:
    """What was asked for: at most `limit` rows `after` a row or `before` one (ids of rows)."""

    limit: int = LIMIT_DEFAULT
    after: str | None = None
    before: str | None = None

    @property
    def fetch(self) -> int:
        """Rows to look for: one more than are shown tells whether there are more."""
        return self.limit + 1


def page_of(request: Request, prefix: str) -> Page:
    """The page that a request asks for, of a list whose ids begin with `prefix`. Raises `Invalid`."""
    query = request.query_params
    after = query.get("starting_after") or query.get("cursor")
    before = query.get("ending_before")
    if after and before:
        raise Invalid("ending_before: give starting_after or ending_before, not both", field="ending_before")
    name = "starting_after" if query.get("starting_after") else "cursor"
    return Page(
        limit_of(request),
        _cursor(after, name, prefix) if after else None,
        _cursor(before, "ending_before", prefix) if before else None,
    )


def _cursor(text: str, field: str, prefix: str) -> str:
    for old, new in ALIASES.items():
        if new == prefix and text.startswith(old):
            text = new + text[len(old) :]
    if not text.startswith(prefix):
        raise Invalid(
            f"{field}: {text!r} is not a cursor of this list; send back a page's `cursor` (it begins with {prefix!r})",
            field=field,
        )
    return text


def page_answer(
    page: Page, rows: Sequence[T], show: Callable[[T], Mapping[str, Any]], id_of: Callable[[T], str]
) -> Response:
    """The answer for up to `page.fetch` rows in the order of the list."""
    more = len(rows) > page.limit
    kept = list(rows[-page.limit :] if page.before else rows[: page.limit]) if more else list(rows)
    edge = kept[0] if page.before and kept else kept[-1] if kept else None
    cursor = id_of(edge) if more and edge is not None else None
    return answer({"object": "list", "cursor": cursor, "has_more": more, "data": [show(row) for row in kept]})


def cut(page: Page, rows: Sequence[T], id_of: Callable[[T], str]) -> list[T]:
    """The rows of a page (and one more) out of a whole list. Raises `Invalid` for a cursor that is not in it."""
    mark = page.after or page.before
    if mark is None:
        return list(rows[: page.fetch])
    at = next((index for index, row in enumerate(rows) if id_of(row) == mark), None)
    if at is None:
        field = "starting_after" if page.after else "ending_before"
        raise Invalid(f"{field}: {mark!r} is not in this list any more; begin again without it", field=field)
    if page.after:
        return list(rows[at + 1 : at + 1 + page.fetch])
    return list(rows[max(0, at - page.fetch) : at])
