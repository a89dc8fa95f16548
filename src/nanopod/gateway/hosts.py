"""Requests that name their endpoint by host (`NAME.anything`, `TAG-NAME.anything`) or prefix (`/services/NAME/`).

The first label of a host that has at least two is looked up among the endpoints of the key's workspace, so that
`NAME.localhost` works without any name server. A tag that the endpoint's traffic knows may stand before the name, as
Knative has it.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from nanopod.gateway import heads
from nanopod.gateway.heads import Head
from nanopod.gateway.jobs import TAG_HEADER
from nanopod.model.wire import KeyRow, RouteRow

if TYPE_CHECKING:
    from nanopod.gateway.tables import Known

PREFIX: Final = "/services/"
FORWARDED_PREFIX: Final = "x-forwarded-prefix"


@dataclass(frozen=True, slots=True)
class Addressed:
    """A request for one endpoint, whatever its path is; `head` has the path below the endpoint."""

    key: KeyRow
    route: RouteRow
    head: Head
    by_prefix: bool = False


def label_of(host: str) -> str:
    """The first label of a host with more than one; "" for addresses and single names."""
    name = host.partition(":")[0].rstrip(".").lower()
    label, dot, rest = name.partition(".")
    return label if dot and rest and not label.isdigit() and not host.startswith("[") else ""


def addressed(known: Known, head: Head) -> Addressed | None:
    """The endpoint that a request names by its host or prefix; None when it names none. Raises `Failed` 401 or 404."""
    if head.path.startswith(PREFIX):
        return _by_prefix(known, head)
    label = label_of(head.headers.get("host", ""))
    if not label:
        return None
    key = known.authenticate(head.authorization)
    if key is None:
        if known.default_workspace and find(known, known.default_workspace, label) is not None:
            raise heads.unauthenticated()
        return None
    found = find(known, key.workspace_id, label)
    if found is None or found[0].kind not in ("model", "graph"):
        return None
    return Addressed(key, found[0], moved(head, head.target, tag=found[1]) if found[1] else head)


def _by_prefix(known: Known, head: Head) -> Addressed:
    key = known.authenticate(head.authorization)
    if key is None:
        raise heads.unauthenticated()
    name, _, rest = head.target[len(PREFIX) :].partition("/")
    if "?" in name:
        name, _, query = name.partition("?")
        rest = f"?{query}"
    found = find(known, key.workspace_id, unquote(name))
    if found is None or found[0].kind not in ("model", "graph"):
        there = [row.name for row in known.routes.values() if row.workspace_id == key.workspace_id]
        text = (
            f"there is no service {unquote(name)} in this workspace; there is {', '.join(sorted(there)[:10]) or 'none'}"
        )
        raise heads.invalid("not_found", text, status=404)
    return Addressed(key, found[0], moved(head, f"/{rest}", tag=found[1], prefix=PREFIX + name), True)


def find(known: Known, workspace_id: str, label: str) -> tuple[RouteRow, str] | None:
    """(endpoint, tag) that a label means: a whole name before a tag and a name."""
    route = known.endpoint(workspace_id, label)
    if route is not None:
        return route, ""
    at = label.find("-")
    while at > 0:
        route = known.endpoint(workspace_id, label[at + 1 :])
        if route is not None and any(share.tag == label[:at] for share in route.traffic):
            return route, label[:at]
        at = label.find("-", at + 1)
    return None


def moved(head: Head, target: str, *, tag: str = "", prefix: str = "") -> Head:
    """The same head with another target; heads are shared between requests, so it is a copy."""
    found = copy(head)
    found.target = target
    found.path = target.partition("?")[0]
    found.way = found.opening = None
    if tag or prefix:
        found.headers = dict(head.headers)
        if tag:
            found.headers[TAG_HEADER] = tag
        if prefix:
            found.headers[FORWARDED_PREFIX] = prefix
    return found
