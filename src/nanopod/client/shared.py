"""`Dict` and `Queue`: values that programs and workers of a workspace share by name.

| | |
| --- | --- |
| `d = Dict.from_name("scores")` | `d["a"] = 1`, `d.get("a")`, `await d.get.aio("a")`, `for k, v in d.items()` |
| `q = Queue.from_name("jobs")` | `q.put(job)`, `q.get(timeout=5)`, `q.get(lease=30)` |

Values are anything that can be an argument of a remote function, at most 16 MiB each. Entries and items that nobody
uses for seven days are forgotten. A name that is new is made when it is first used.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from nanopod.client.api import segment
from nanopod.client.twins import Pages, refuse_in_loop, twin
from nanopod.client.wires import Wire, batches, user_module, wire
from nanopod.model import codec
from nanopod.model.errors import Invalid, NotFound
from nanopod.model.ids import NAME_PATTERN

VALUE_BYTES_MAX: Final = 16 << 20
BATCH_BYTES_MAX: Final = 20 << 20
BATCH_MAX: Final = 1000
POLL_S_MAX: Final = 45.0
"""How long one request sleeps in the server; longer waits are several of them."""
PAGE: Final = 500
_MISSING: Final = object()


def _encoded(value: Any, what: str) -> bytes:
    data = codec.encode(value, path=what)
    if len(data) > VALUE_BYTES_MAX:
        raise Invalid(
            f"{what}: {len(data)} bytes are more than the {VALUE_BYTES_MAX >> 20} MiB a value may have; put it into a "
            "volume and share its path",
            field=what,
        )
    return data


def _decoded(data: bytes) -> Any:
    return codec.decode(data, module=user_module())


def _checked(name: str, noun: str) -> str:
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise Invalid(
            f"{noun}: {name!r} must be letters, digits and . _ -, beginning with a letter or digit", field="name"
        )
    return name


class _Shared:
    """What both have in common: a name, the server, being made when first used."""

    _noun = ""

    def __init__(self, name: str, *, url: str | None = None, api_key: str | None = None) -> None:
        self.name = _checked(name, type(self).__name__)
        self._url, self._api_key = url, api_key
        self._made_at: Wire | None = None

    @property
    def _path(self) -> str:
        return f"/v1/{self._noun}/{segment(self.name)}"

    def _wire(self) -> Wire:
        found = wire(self._url, self._api_key)
        if self._made_at is not found:
            found.send("POST", f"/v1/{self._noun}", json.dumps({"name": self.name}).encode(), json=True)
            self._made_at = found
        return found

    def _send(self, method: str, more: str, data: bytes | None = None, **options: Any) -> bytes:
        try:
            return self._wire().send(method, self._path + more, data, **options)
        except NotFound as error:
            if self._noun.removesuffix("s") not in error.message or self._made_at is None:
                raise
            self._made_at = None  # somebody deleted it: it is made again
            return self._wire().send(method, self._path + more, data, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __reduce__(self) -> Any:
        return type(self), (self.name,)


class Dict(_Shared):
    """A dictionary that is shared by name. Keys and values are encoded: a key is found by what equals its bytes, so
    `1` and `True` are two keys. Every operation is one request; what must not race uses `put_if_absent` or `pop`.
    """

    _noun = "dicts"

    @classmethod
    def from_name(cls, name: str, *, url: str | None = None, api_key: str | None = None) -> Dict:
        """The dictionary of this name; made when it is first used."""
        return cls(name, url=url, api_key=api_key)

    @twin
    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        try:
            return _decoded(self._send("GET", "/entry", key=_text(key)))
        except NotFound:
            return default

    @twin
    def put(self, key: Any, value: Any) -> None:
        """Set a key."""
        self._send("PUT", "/entry", _encoded(value, "value"), key=_text(key))

    @twin
    def put_if_absent(self, key: Any, value: Any) -> bool:
        """Set a key unless it is set; True when this call set it. Of several callers one gets True."""
        raw = self._send("PUT", "/entry", _encoded(value, "value"), key=_text(key), if_absent="true")
        return bool(json.loads(raw)["stored"])

    @twin
    def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Take a key out; its value. Raises KeyError without a `default`. Of several callers one gets the value."""
        try:
            return _decoded(self._send("DELETE", "/entry", key=_text(key)))
        except NotFound:
            if default is _MISSING:
                raise KeyError(key) from None
            return default

    @twin
    def contains(self, key: Any) -> bool:
        """Whether a key is set."""
        try:
            self._send("HEAD", "/entry", key=_text(key))
        except NotFound:
            return False
        return True

    @twin
    def update(self, entries: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (), /, **named: Any) -> None:
        """Set several keys, in as few requests as hold them."""
        from msgspec import msgpack

        pairs = [*(entries.items() if isinstance(entries, Mapping) else entries), *named.items()]
        encoded = [(_key(key), _encoded(value, f"value[{key!r}]")) for key, value in pairs]
        for group in batches(encoded, lambda pair: len(pair[0]) + len(pair[1]), BATCH_BYTES_MAX, BATCH_MAX):
            self._send("POST", "/entries", msgpack.encode(group))

    @twin
    def len(self) -> int:
        """How many keys are set."""
        return int(json.loads(self._send("GET", ""))["entries"])

    @twin
    def clear(self) -> int:
        """Take everything out; how many keys that were."""
        return int(json.loads(self._send("DELETE", "/entries"))["count"])

    def items(self) -> Pages[tuple[Any, Any]]:
        """Keys with values, for `for` and `async for`. What changes meanwhile may be seen or not."""
        return Pages(lambda: self._pages(values=True))

    def keys(self) -> Pages[Any]:
        """The keys, for `for` and `async for`."""
        return Pages(lambda: ([key for key, _ in page] for page in self._pages(values=False)))

    def values(self) -> Pages[Any]:
        """The values, for `for` and `async for`."""
        return Pages(lambda: ([value for _, value in page] for page in self._pages(values=True)))

    def _pages(self, *, values: bool) -> Iterator[list[tuple[Any, Any]]]:
        from msgspec import msgpack

        after: str | None = None
        while True:
            raw = self._send("GET", "/entries", limit=PAGE, values="true" if values else "false", after=after)
            page = msgpack.decode(raw)
            entries = page["entries"]
            yield [(_decoded(key), _decoded(value) if values else None) for key, value in entries]
            if not page["more"] or not entries:
                return
            after = _base64(entries[-1][0])

    def __getitem__(self, key: Any) -> Any:
        found = self.get(key, _MISSING)
        if found is _MISSING:
            raise KeyError(key)
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def __contains__(self, key: Any) -> bool:
        return self.contains(key)

    def __len__(self) -> int:
        return self.len()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    @classmethod
    def list(cls) -> list[str]:
        """Names of all dictionaries of the workspace."""
        return _names("dicts")

    @classmethod
    def delete(cls, name: str) -> None:
        """Delete a dictionary and everything in it. Raises `NotFound`."""
        wire().send("DELETE", f"/v1/dicts/{segment(_checked(name, 'Dict'))}")


class Leased:
    """An item of a queue that comes back unless it is acknowledged in time. `deliveries` is 1 the first time."""

    def __init__(self, queue: Queue, seq: int, value: Any, deliveries: int, lease: str) -> None:
        self.value = value
        self.deliveries = deliveries
        self._queue, self._seq, self._lease = queue, seq, lease

    @twin
    def ack(self) -> bool:
        """It is dealt with; False when the lease was over, so that somebody else may get it."""
        return self._queue._settle(self._seq, self._lease, again=False)

    @twin
    def nack(self) -> bool:
        """Somebody shall get it at once; False when the lease was over."""
        return self._queue._settle(self._seq, self._lease, again=True)

    def __repr__(self) -> str:
        return f"Leased({self.value!r}, deliveries={self.deliveries})"


class Queue(_Shared):
    """A queue that is shared by name: first in, first out in each of its partitions.

    `get` removes what it returns. With `lease` (seconds) items come as `Leased`: they are delivered again, with a
    higher count, unless `.ack()` is called in time; so each is dealt with at least once whatever dies.
    """

    _noun = "queues"

    @classmethod
    def from_name(cls, name: str, *, url: str | None = None, api_key: str | None = None) -> Queue:
        """The queue of this name; made when it is first used."""
        return cls(name, url=url, api_key=api_key)

    @twin
    def put(self, value: Any, *, partition: str = "") -> None:
        """Append an item. Raises `QuotaExceeded` when the queue is full (100,000 items)."""
        self._put([value], partition)

    @twin
    def put_many(self, values: Iterable[Any], *, partition: str = "") -> None:
        """Append items, in as few requests as hold them; those of one request arrive together."""
        self._put(values, partition)

    def _put(self, values: Iterable[Any], partition: str) -> None:
        from msgspec import msgpack

        encoded = [_encoded(value, f"values[{number}]") for number, value in enumerate(values)]
        for group in batches(encoded, len, BATCH_BYTES_MAX, BATCH_MAX):
            self._send("POST", "/items", msgpack.encode(group), partition=partition or None)

    @twin
    def get(self, timeout: float | None = None, *, partition: str = "", lease: float | None = None) -> Any:
        """The oldest item, waiting up to `timeout` seconds for one (None: for ever, 0: not at all).

        Raises `queue.Empty` when there is none. With `lease` a `Leased`.
        """
        import queue

        found = self._get(1, timeout, partition, lease)
        if not found:
            waited = "now" if timeout == 0 else f"within {timeout} s"
            raise queue.Empty(f"queue {self.name!r} had no item {waited}")
        return found[0]

    @twin
    def get_many(
        self, count: int, timeout: float | None = 0.0, *, partition: str = "", lease: float | None = None
    ) -> list[Any]:
        """Up to `count` of the oldest items, waiting up to `timeout` seconds for the first one; maybe none."""
        return self._get(count, timeout, partition, lease)

    def _get(self, count: int, timeout: float | None, partition: str, lease: float | None) -> list[Any]:
        from msgspec import msgpack

        if timeout is not None and timeout < 0:
            raise Invalid(f"timeout: {timeout} must be a number of seconds, 0 or more, or None", field="timeout")
        if lease is not None and lease <= 0:
            raise Invalid(f"lease: {lease} must be a number of seconds above 0, or None", field="lease")
        if timeout != 0:
            refuse_in_loop("Queue.get()", "await q.get.aio(...)")
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left_s = POLL_S_MAX if until is None else min(POLL_S_MAX, max(0.0, until - time.monotonic()))
            body = {"partition": partition, "count": count, "wait_s": left_s, "lease_s": lease or 0.0}
            raw = self._send("POST", "/take", json.dumps(body).encode(), json=True, silence_s_max=left_s + 30.0)
            if rows := msgpack.decode(raw):
                if lease is None:
                    return [_decoded(value) for _, value, _, _ in rows]
                return [Leased(self, seq, _decoded(value), times, token) for seq, value, times, token in rows]
            if until is not None and time.monotonic() >= until:
                return []

    def _settle(self, seq: int, lease: str, *, again: bool) -> bool:
        body = {"items": [[seq, lease]], "again": again}
        return bool(json.loads(self._send("POST", "/settle", json.dumps(body).encode(), json=True))["count"])

    @twin
    def len(self, *, partition: str | None = None) -> int:
        """How many items there are (leased ones as well), in one partition or in all."""
        found = json.loads(self._send("GET", ""))
        return int(found["items"] if partition is None else found["partitions"].get(partition, 0))

    @twin
    def clear(self, *, partition: str | None = None) -> int:
        """Throw items away, of one partition or of all; how many."""
        return int(json.loads(self._send("DELETE", "/items", partition=partition))["count"])

    def __len__(self) -> int:
        return self.len()

    @classmethod
    def list(cls) -> list[str]:
        """Names of all queues of the workspace."""
        return _names("queues")

    @classmethod
    def delete(cls, name: str) -> None:
        """Delete a queue and everything in it. Raises `NotFound`."""
        wire().send("DELETE", f"/v1/queues/{segment(_checked(name, 'Queue'))}")


def _names(noun: str) -> list[str]:
    found: list[str] = []
    after: str | None = None
    while True:
        page = json.loads(wire().send("GET", f"/v1/{noun}", limit=200, starting_after=after))
        found += [str(row["name"]) for row in page["data"]]
        if not page["has_more"]:
            return found
        after = page["cursor"]


def _key(key: Any) -> bytes:
    return codec.encode(key, path="key")


def _text(key: Any) -> str:
    return _base64(_key(key))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
