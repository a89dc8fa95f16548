"""Shared dictionaries. Keys and values are bytes (the SDK encodes values of any kind); an entry that nobody uses for
seven days is forgotten. Content travels as msgpack, keys in queries as base64url without padding."""

from __future__ import annotations

import base64
import binascii
import time
from dataclasses import dataclass
from typing import Any, Final, TypedDict, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.model.errors import Invalid, NotFound
from nanopod.server.api.answers import answer, whole_list
from nanopod.server.api.bodies import TooLarge, body_as
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.fields import flag_of, whole_of
from nanopod.server.api.objects import check_name, content_key, octets, room_for
from nanopod.server.api.tenants import workspace_of
from nanopod.store.dicts import SharedDict
from nanopod.store.transaction import Transaction

T = TypeVar("T")
VALUE_BYTES_MAX: Final = 16 << 20
KEY_BYTES_MAX: Final = 1024
ENTRIES_MAX: Final = 100_000
BATCH_BYTES_MAX: Final = 24 << 20
"""Of a request with several entries or items; the SDK sends more of them in several requests."""
PAGE_BYTES_MAX: Final = 8 << 20
UNUSED_S_MAX: Final = 7 * 86_400.0
TOUCH_S: Final = 3600.0
"""A use is written down when it would make the entry live so much longer."""
OCTETS: Final = "application/octet-stream"
_pairs: Final = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]]).decode
_encode: Final = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class NewDict:
    """A dictionary to be made."""

    name: str


class DictAnswer(TypedDict):
    """A dictionary."""

    id: str
    object: str
    name: str
    created_at: int


class DictCard(DictAnswer):
    """One dictionary, with the number of its entries."""

    entries: int


class StoredAnswer(TypedDict):
    """Whether something was stored; false where an entry was there already."""

    object: str
    stored: bool


class CountAnswer(TypedDict):
    """How many entries or items it was about."""

    object: str
    count: int


class DeletedObject(TypedDict):
    """What is left."""

    id: str
    object: str
    name: str
    deleted: bool


def show(found: SharedDict) -> DictAnswer:
    """A dictionary as the API shows it."""
    return {"id": found.dict_id, "object": "dict", "name": found.name, "created_at": int(found.created_at)}


def unpacked(data: bytes, decode: Any, what: str) -> Any:
    """A msgpack body. Raises `Invalid`."""
    try:
        return decode(data)
    except msgspec.MsgspecError:
        raise Invalid(f"the body is not {what}", field="body") from None


def _find(read: Transaction, key: Key, request: Request) -> SharedDict:
    reference = request.path_params["id"]
    place = workspace_of(read, key, request.query_params.get("workspace")).workspace_id
    found = read.shared_dict(place, reference)
    if found is None:
        known = ", ".join(one.name for one in read.shared_dicts(place)[:20]) or "none yet"
        raise NotFound(f"there is no dict {reference!r} in this workspace (there are: {known})")
    return found


def _key_of(request: Request) -> bytes:
    text = request.query_params.get("key")
    if text is None:
        raise Invalid("key: is missing; send the entry's key as base64url", field="key")
    try:
        found = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise Invalid("key: is not base64url", field="key") from None
    return _checked(found)


def _checked(key: bytes) -> bytes:
    if len(key) > KEY_BYTES_MAX:
        raise Invalid(f"key: it has {len(key)} bytes; at most {KEY_BYTES_MAX}, hash what is longer", field="key")
    return key


def check_value(value: bytes, field: str) -> None:
    """Raises `TooLarge` beyond `VALUE_BYTES_MAX`."""
    if len(value) > VALUE_BYTES_MAX:
        raise TooLarge(
            f"{field}: {len(value)} bytes are more than the {VALUE_BYTES_MAX >> 20} MiB a value may have; put it into "
            "a volume and share its path",
            field=field,
        )


# --- dictionaries ---


async def create_dict(context: Context, request: Request, key: Key) -> Response:
    """Make a dictionary: 201; 200 with the one that is there when its name is taken."""
    wanted = await body_as(request, NewDict)
    content_key(key)
    check_name(wanted.name)
    made = SharedDict(context.new_id("dict"), "", wanted.name, context.clock())
    workspace = request.query_params.get("workspace")

    def create(write: Transaction) -> tuple[SharedDict, bool]:
        place = workspace_of(write, key, workspace).workspace_id
        found = write.shared_dict(place, wanted.name)
        if found is not None:
            return found, False
        room_for(len(write.shared_dicts(place)), "dicts")
        fresh = SharedDict(made.dict_id, place, made.name, made.created_at)
        write.add_shared_dict(fresh)
        return fresh, True

    found, fresh = await context.store.write(create)
    return answer(show(found), 201 if fresh else 200)


async def list_dicts(context: Context, request: Request, key: Key) -> Response:
    """Every dictionary of the workspace, by name."""
    workspace = request.query_params.get("workspace")
    found = await context.store.read(lambda read: read.shared_dicts(workspace_of(read, key, workspace).workspace_id))
    return whole_list(request, found, show)


async def get_dict(context: Context, request: Request, key: Key) -> Response:
    """One dictionary by name or id."""
    now = time.time()

    def read(read: Transaction) -> DictCard:
        found = _find(read, key, request)
        return {**show(found), "entries": read.dict_count(found.dict_id, now)}

    return answer(await context.store.read(read))


async def delete_dict(context: Context, request: Request, key: Key) -> Response:
    """Delete a dictionary and everything in it."""

    def delete(write: Transaction) -> SharedDict:
        found = _find(write, key, request)
        write.delete_shared_dict(found.dict_id)
        return found

    gone = await context.store.write(delete)
    deleted: DeletedObject = {"id": gone.dict_id, "object": "dict", "name": gone.name, "deleted": True}
    return answer(deleted)


# --- entries ---


async def get_entry(context: Context, request: Request, key: Key) -> Response:
    """The value of an entry."""
    content_key(key)
    name, now = _key_of(request), time.time()

    def read(read: Transaction) -> tuple[str, tuple[bytes, float] | None]:
        dict_id = _find(read, key, request).dict_id
        return dict_id, read.dict_get(dict_id, name, now)

    dict_id, found = await context.store.read(read)
    if found is None:
        raise NotFound("there is no entry with this key")
    value, expires_at = found
    if expires_at < now + UNUSED_S_MAX - TOUCH_S:
        await context.store.write(
            lambda write: write.dict_touch(dict_id, [name], now + UNUSED_S_MAX), durable=False
        )  # fmt: skip
    return Response(value, media_type=OCTETS)


async def has_entry(context: Context, request: Request, key: Key) -> Response:
    """204 when there is an entry with this key, 404 when not."""
    content_key(key)
    name, now = _key_of(request), time.time()
    there = await context.store.read(lambda read: read.dict_has(_find(read, key, request).dict_id, name, now))
    return Response(status_code=204 if there else 404)


async def put_entry(context: Context, request: Request, key: Key) -> Response:
    """Set an entry; with `if_absent`, only where none is."""
    content_key(key)
    name, absent = _key_of(request), bool(flag_of(request, "if_absent"))
    value = await octets(request, VALUE_BYTES_MAX + 1)
    check_value(value, "value")
    now = time.time()

    def put(write: Transaction) -> bool:
        dict_id = _find(write, key, request).dict_id
        if absent and write.dict_has(dict_id, name, now):
            return False
        _room(write, dict_id, 1, now)
        write.dict_put(dict_id, [(name, value)], now + UNUSED_S_MAX)
        return True

    stored: StoredAnswer = {"object": "dict.entry", "stored": await context.store.write(put)}
    return answer(stored)


def _room(read: Transaction, dict_id: str, count: int, now: float) -> None:
    if read.dict_count(dict_id, now) + count > ENTRIES_MAX:
        raise Invalid(f"a dict holds at most {ENTRIES_MAX} entries; delete some, or use several", field="key")


async def pop_entry(context: Context, request: Request, key: Key) -> Response:
    """Take an entry out; its value."""
    content_key(key)
    name, now = _key_of(request), time.time()
    found = await context.store.write(lambda write: write.dict_pop(_find(write, key, request).dict_id, name, now))
    if found is None:
        raise NotFound("there is no entry with this key")
    return Response(found, media_type=OCTETS)


async def put_entries(context: Context, request: Request, key: Key) -> Response:
    """Set several entries at once: msgpack `[[key, value], ...]`."""
    content_key(key)
    pairs = unpacked(await octets(request, BATCH_BYTES_MAX), _pairs, "msgpack [[key, value], ...]")
    for name, value in pairs:
        check_value(value, "value")
        _checked(name)
    now = time.time()

    def put(write: Transaction) -> int:
        dict_id = _find(write, key, request).dict_id
        _room(write, dict_id, len(pairs), now)
        write.dict_put(dict_id, pairs, now + UNUSED_S_MAX)
        return len(pairs)

    stored: CountAnswer = {"object": "dict.entries", "count": await context.store.write(put)}
    return answer(stored)


async def list_entries(context: Context, request: Request, key: Key) -> Response:
    """A page of entries in the order of their keys' bytes: msgpack `{"entries": [[key, value], ...], "more": bool}`.

    Without `values` the values are empty. The next page is asked for with `after`, the last key as base64url.
    """
    content_key(key)
    limit = whole_of(request, "limit", default=1000, least=1, most=1000) or 1000
    values = bool(flag_of(request, "values"))
    text = request.query_params.get("after")
    after = None if text is None else base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    now = time.time()

    def read(read: Transaction) -> list[tuple[bytes, bytes]]:
        dict_id = _find(read, key, request).dict_id
        found: list[tuple[bytes, bytes]] = []
        size, last = 0, after
        # Values are large or many: few rows are held at once.
        while len(found) <= limit and size < PAGE_BYTES_MAX:
            step = read.dict_page(
                dict_id, now, last, min(16 if values else 1001, limit + 1 - len(found)), values=values
            )
            if not step:
                return found
            for pair in step:
                found.append(pair)
                size += len(pair[1])
                if size >= PAGE_BYTES_MAX:
                    found.append((b"", b""))  # stands for what follows
                    return found
            last = step[-1][0]
        return found

    found = await context.store.read(read)
    more = len(found) > limit or (bool(found) and found[-1] == (b"", b""))
    entries = found[:-1] if more else found
    return Response(_encode({"entries": entries, "more": more}), media_type=OCTETS)


async def clear_entries(context: Context, request: Request, key: Key) -> Response:
    """Take everything out of a dictionary."""
    content_key(key)
    count = await context.store.write(lambda write: write.dict_clear(_find(write, key, request).dict_id))
    cleared: CountAnswer = {"object": "dict.entries", "count": count}
    return answer(cleared)


_W: Final = ("workspace",)
_KEY: Final = ("workspace", Query("key", "The entry's key, base64url.", required=True))
_ENTRY: Final = "/v1/dicts/{id}/entry"
_ENTRIES: Final = "/v1/dicts/{id}/entries"
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/dicts", create_dict, "Make a shared dictionary", scope="call", body=NewDict, answer=DictAnswer,
        status=201, also=(200,), query=_W,
    ),
    Operation(
        "GET", "/v1/dicts", list_dicts, "List shared dictionaries", scope="call", answer=DictAnswer, listed=True,
        query=("workspace", "limit", "starting_after"),
    ),
    Operation(
        "GET", "/v1/dicts/{id}", get_dict, "One dictionary", scope="call", answer=DictCard, query=_W,
        errors=(404,),
    ),
    Operation(
        "DELETE", "/v1/dicts/{id}", delete_dict, "Delete a dictionary", answer=DeletedObject, query=_W,
        errors=(404,),
    ),
    Operation(
        "HEAD", _ENTRY, has_entry, "Is there such an entry?", scope="call", query=_KEY, status=204,
        errors=(404,),
    ),
    Operation("GET", _ENTRY, get_entry, "The value of an entry", scope="call", query=_KEY, errors=(404,), media=OCTETS),
    Operation(
        "PUT", _ENTRY, put_entry, "Set an entry", scope="call", answer=StoredAnswer, errors=(404, 413),
        query=(*_KEY, Query("if_absent", "Only where there is none.", "boolean", default=False)),
    ),
    Operation("DELETE", _ENTRY, pop_entry, "Take an entry out", scope="call", query=_KEY, errors=(404,), media=OCTETS),
    Operation(
        "GET", _ENTRIES, list_entries, "A page of entries", scope="call", errors=(404,), media=OCTETS,
        query=("workspace", Query("limit", "", "integer", least=1, most=1000, default=1000),
               Query("after", "The last key of the page before, base64url."),
               Query("values", "With their values.", "boolean", default=False)),
    ),
    Operation(
        "POST", _ENTRIES, put_entries, "Set several entries", scope="call", answer=CountAnswer, query=_W,
        errors=(404, 413),
    ),
    Operation(
        "DELETE", _ENTRIES, clear_entries, "Empty a dictionary", scope="call", answer=CountAnswer, query=_W,
        errors=(404,),
    ),
)  # fmt: skip
