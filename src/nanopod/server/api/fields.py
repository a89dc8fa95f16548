"""What requests say, checked: times, flags, words, tags, schedules. Errors name the field and what would do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final
from urllib.parse import unquote

import msgspec
from starlette.requests import Request

from nanopod.market.shape import Shape, to_schedule
from nanopod.market.terms import admit_window
from nanopod.model.errors import Invalid
from nanopod.model.schedule import Schedule
from nanopod.server.api.context import Query

TAG_VALUE: Final = re.compile(r"[^,=]{0,256}")
TAG_KEY: Final = re.compile(r"[^,=]{1,256}")
TAGS_MAX: Final = 64
TIME_MAX: Final = 1 << 40
"""The last Unix second that is read."""

Price = Annotated[
    str,
    msgspec.Meta(
        extra_json_schema={"pattern": r"^\d+\.\d+$"},
        description="Dollars per node-hour, with a point; rounded to a whole step and echoed with 6 decimals.",
        examples=["2.50"],
    ),
]


class Window(msgspec.Struct, frozen=True):
    """`node_count` nodes during `[start_at, end_at)`: Unix seconds on block boundaries, 1 to 1024 nodes."""

    start_at: int
    end_at: int
    node_count: int


def window_of(entries: Sequence[Window], *, now: float, block_s: int) -> tuple[Schedule, int, int, int]:
    """The one entry of an order or a transfer: (what it asks for from the next block on, start, end, nodes).

    Raises `Invalid` (R1).
    """
    field = "allocation_schedule_delta"
    if len(entries) != 1:
        raise Invalid(f"{field}: has {len(entries)} entries; it needs one, with start_at and end_at", field=field)
    entry = entries[0]
    try:
        shape: Shape = admit_window(entry.start_at, entry.end_at, entry.node_count, now=now, block_s=block_s)
    except Invalid as error:
        raise Invalid(f"{field}[0].{error.message}", field=f"{field}[0].{error.field}") from None
    return to_schedule(shape, block_s), entry.start_at, entry.end_at, entry.node_count


# --- query parameters ---


def word_of(request: Request, name: str, values: Sequence[str]) -> str | None:
    """A parameter that is one of some words. Raises `Invalid`."""
    text = request.query_params.get(name)
    if not text:
        return None
    if text not in values:
        raise Invalid(f"{name}: {text!r} is not one of {', '.join(values)}", field=name)
    return text


def words_of(request: Request, name: str, values: Sequence[str] = ()) -> tuple[str, ...]:
    """A parameter that may be repeated, each one of some words. Raises `Invalid`."""
    found = tuple(text for text in request.query_params.getlist(name) if text)
    for text in found:
        if values and text not in values:
            raise Invalid(f"{name}: {text!r} is not one of {', '.join(values)}", field=name)
    return found


def whole_of(
    request: Request, name: str, *, default: int | None = None, least: int = 0, most: int = TIME_MAX
) -> int | None:
    """A parameter that is a whole number. Raises `Invalid`."""
    text = request.query_params.get(name)
    if not text:
        return default
    if not re.fullmatch(r"-?\d{1,15}", text) or not least <= int(text) <= most:
        raise Invalid(f"{name}: {text!r} must be a whole number from {least} to {most}", field=name)
    return int(text)


def time_of(request: Request, name: str, *, needed: bool = False) -> int | None:
    """A parameter that is a time in Unix seconds. Raises `Invalid`."""
    found = whole_of(request, name)
    if found is None and needed:
        raise Invalid(f"{name}: is missing; send a time in Unix seconds", field=name)
    return found


def flag_of(request: Request, name: str) -> bool | None:
    """A parameter that is true or false. Raises `Invalid`."""
    text = request.query_params.get(name)
    if not text:
        return None
    if text.lower() not in ("true", "false", "1", "0"):
        raise Invalid(f"{name}: {text!r} must be true or false", field=name)
    return text.lower() in ("true", "1")


# --- tags ---

TAG_QUERIES: Final[tuple[Query, ...]] = (
    Query("tag", "Only objects with this tag, `key=value`; an inner = is percent-encoded.", repeated=True),
    Query("tag_key", "Only objects that have a tag of this key.", repeated=True),
)


def check_tags(tags: Mapping[str, str], field: str = "tags") -> dict[str, str]:
    """Tags that may be given to an object. Raises `Invalid`."""
    if len(tags) > TAGS_MAX:
        raise Invalid(f"{field}: {len(tags)} tags; at most {TAGS_MAX}", field=field)
    for key, value in tags.items():
        if not TAG_KEY.fullmatch(key):
            raise Invalid(f"{field}: the key {key!r} must be 1 to 256 characters without , and =", field=field)
        if not TAG_VALUE.fullmatch(value):
            where = f"{field}.{key}"
            raise Invalid(f"{where}: {value!r} must be at most 256 characters without , and =", field=where)
    return dict(tags)


def tag_filter(request: Request) -> Callable[[Mapping[str, str]], bool]:
    """Whether tags fit the filters of a list; all of them must hold. Raises `Invalid`."""
    pairs = []
    for text in request.query_params.getlist("tag"):
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise Invalid(f"tag: {text!r} must be key=value (an inner = as %3D)", field="tag")
        pairs.append((unquote(key), unquote(value)))
    keys = [text for text in request.query_params.getlist("tag_key") if text]

    def fits(tags: Mapping[str, str]) -> bool:
        return all(tags.get(key) == value for key, value in pairs) and all(key in tags for key in keys)

    return fits


# --- changes ---


def given(body: msgspec.Struct) -> dict[str, Any]:
    """The fields of a PATCH that were sent; those left out are not in it."""
    names = body.__struct_fields__
    return {name: value for name in names if (value := getattr(body, name)) is not msgspec.UNSET}
