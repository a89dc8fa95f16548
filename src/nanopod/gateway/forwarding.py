"""What a worker is told of a request's caller: its headers without those of this hop, and who asked, and how."""

from __future__ import annotations

from typing import Final

from nanopod.gateway.heads import Head

_DROPPED: Final = frozenset(
    {
        "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect",
        "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix", "x-request-id",
    }
)  # fmt: skip


def scheme_of(head: Head, peer: str) -> str:
    """`http` or `https`, as the caller asked."""
    given = head.headers.get("x-forwarded-proto", "") if _is_near(peer) else ""
    return given if given in ("http", "https") else "http"


def forwarded(head: Head, peer: str, root: str, request_id: str, *, hide_key: bool) -> list[tuple[str, str]]:
    """The headers for the worker, in their order. `root` is what was taken off the path; `hide_key`: the caller
    carries a key of this cloud, which the worker's code must not see."""
    given = head.headers
    gone = _DROPPED
    hop = given.get("connection", "")
    if hop and hop.lower() not in ("keep-alive", "close", "upgrade"):
        gone = gone | {word.strip().lower() for word in hop.split(",")}
    if hide_key:
        gone = gone | {"authorization"}
    found = [
        (name, value.decode("latin-1").strip(" \t"))
        for raw, value in head.raw_headers
        if (name := raw.decode("latin-1").lower()) not in gone
    ]
    near = _is_near(peer)
    if not near:
        found = [line for line in found if line[0] != "forwarded"]
    before = given.get("x-forwarded-for", "") if near else ""
    found.append(("x-forwarded-for", ", ".join(part for part in (before, peer) if part) or "unknown"))
    host = (given.get("x-forwarded-host", "") if near else "") or given.get("host", "")
    found.append(("x-forwarded-host", host))
    found.append(("x-forwarded-proto", scheme_of(head, peer)))
    found.append(("x-forwarded-prefix", root))
    found.append(("x-request-id", request_id))
    return found


def _is_near(peer: str) -> bool:
    """True for a peer on this machine: a reverse proxy, whose word about its own caller is taken."""
    return not peer or peer.startswith("127.") or peer == "::1"
