"""Webhooks: URLs of a workspace that its events are sent to."""

from __future__ import annotations

import re
import time
from typing import Any, Final, Literal, NotRequired, TypedDict, cast
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Key
from nanopod.model.errors import Invalid, NotFound
from nanopod.model.ids import ID_LENGTH, base62
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.capacities import Deleted
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.errors import BadRequest
from nanopod.server.api.fields import given
from nanopod.server.api.pages import PAGING, cut, page_answer, page_of
from nanopod.server.api.references import PATH_PREFIXES, Scope, check_name, scope_of, workspace_reference
from nanopod.server.api.showing import Changeable, Owners, changeable
from nanopod.server.api.tenants import OPERATOR_WORKSPACE
from nanopod.server.webhooks import GIVE_UP_S, is_public, resolve
from nanopod.store.hooks import Webhook
from nanopod.store.transaction import Transaction

PREFIX: Final = "whook_"
SECRET_PREFIX: Final = "whsec_"
SECRET_CHARACTERS: Final = 40
WEBHOOKS_MAX: Final = 20
"""Webhooks of one workspace."""
TYPES_MAX: Final = 100
URL_CHARACTERS_MAX: Final = 2_048
_TYPE: Final = re.compile(r"\*|[a-z][a-z_]{0,63}(\.(\*|[a-z][a-z_]{0,63}))?")


class WebhookWish(msgspec.Struct, frozen=True):
    """A webhook to be made. `types` are events such as `order.filled`, or `instance.*`; none means all of them."""

    url: str
    name: str
    types: list[str] = []
    enabled: bool = True
    workspace: str | None = None


class WebhookChange(msgspec.Struct, frozen=True):
    """What to change of a webhook. Events that happen while it is disabled are not sent later."""

    url: str | msgspec.UnsetType = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    types: list[str] | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET


class WebhookStatus(TypedDict):
    """`retrying`: the last attempt failed; `failing`: for 24 hours all did, and events are given up."""

    state: Literal["active", "retrying", "failing", "disabled"]
    message: str


class WebhookAnswer(Changeable):
    """A webhook. `failures` counts attempts since the last delivery; `secret` is shown once, when it is made."""

    url: str
    types: list[str]
    enabled: bool
    status: WebhookStatus
    last_delivered_at: int | None
    failures: int
    secret: NotRequired[str]


def check_url(url: str) -> str:
    """A URL that events may be sent to, as far as its text says. Raises `Invalid`."""
    field = "url"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Invalid("url: this is not a URL; write one such as https://example.com/hook", field=field) from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise Invalid(
            "url: begin it with http:// or https:// and a host, such as https://example.com/hook", field=field
        )
    if "@" in parts.netloc:
        raise Invalid("url: leave user and password out; deliveries are signed with the webhook's secret", field=field)
    if len(url) > URL_CHARACTERS_MAX or not url.isprintable() or " " in url:
        raise Invalid(f"url: use at most {URL_CHARACTERS_MAX} characters, without spaces", field=field)
    return url


async def check_address(url: str, workspace: str) -> None:
    """Whether events of a workspace may be sent to where a URL leads now. Raises `Invalid`."""
    if workspace == OPERATOR_WORKSPACE:
        return
    try:
        addresses = await resolve(url)
    except (OSError, UnicodeError):
        raise Invalid("url: its host cannot be resolved; check its spelling, or use an address", field="url") from None
    if not all(is_public(address) for _, address in addresses):
        raise Invalid(
            "url: its host has a loopback, link-local or private address; use a public one, or have the operator make "
            f"the webhook in workspace {OPERATOR_WORKSPACE!r}",
            field="url",
        )


def check_types(types: list[str]) -> tuple[str, ...]:
    """Types of events as they are kept. Raises `Invalid`."""
    if len(types) > TYPES_MAX:
        raise Invalid(f"types: {len(types)} of them; at most {TYPES_MAX}", field="types")
    for number, kind in enumerate(types):
        if not _TYPE.fullmatch(kind):
            raise Invalid(
                f"types[{number}]: {kind!r} is not a type of event; write one such as instance.running, or instance.*",
                field=f"types[{number}]",
            )
    return tuple(dict.fromkeys(types))


def status_of(hook: Webhook, now: float) -> WebhookStatus:
    """How deliveries go; `now` is wall time."""
    if not hook.enabled:
        return {"state": "disabled", "message": "nothing is sent"}
    if not hook.failures:
        return {"state": "active", "message": ""}
    failing = hook.failed_since is not None and now - hook.failed_since >= GIVE_UP_S
    return {"state": "failing" if failing else "retrying", "message": hook.message}


def show(read: Transaction, hook: Webhook, now: float) -> WebhookAnswer:
    """A webhook as the API shows it, without its secret."""
    shown: dict[str, Any] = {
        **changeable(
            Owners(read), "webhook", hook.webhook_id, hook.workspace_id, hook.name, hook.created_at, hook.updated_at
        ),
        "url": hook.url,
        "types": list(hook.types),
        "enabled": hook.enabled,
        "status": status_of(hook, now),
        "last_delivered_at": int(hook.last_delivered_at) if hook.last_delivered_at is not None else None,
        "failures": hook.failures,
    }
    return cast(WebhookAnswer, shown)


def find_webhook(read: Transaction, scope: Scope, reference: str) -> Webhook:
    """A webhook by id, name or resource path. Raises `NotFound`."""
    found = read.webhook(reference)
    if found is None:
        name, workspace_id = reference, scope.workspace.workspace_id
        parts = reference.split(":")
        if reference.startswith(PATH_PREFIXES) and len(parts) == 5 and parts[1] == "webhook":
            place = read.workspace_named(parts[3])
            owner = read.account(place.account_id) if place is not None else None
            known = place is not None and owner is not None and owner.name == parts[2]
            name, workspace_id = parts[4], place.workspace_id if place is not None and known else ""
        found = read.webhook_named(workspace_id, name)
    if found is None or not scope.sees(found.workspace_id):
        raise NotFound(f"there is no webhook {reference!r} that this key may see")
    return found


def _free_name(write: Transaction, workspace_id: str, name: str) -> str:
    if check_name(name).startswith(PREFIX):
        raise Invalid(f"name: {name!r} looks like an id; choose another name", field="name")
    if write.webhook_named(workspace_id, name) is not None:
        raise BadRequest(f"name: a webhook {name!r} exists already", field="name")
    return name


async def create_webhook(context: Context, request: Request, key: Key) -> Response:
    """Make a webhook; its secret is shown this once. It begins with what happens next."""
    wish = await body_as(request, WebhookWish)
    check_url(wish.url)
    types, reference = check_types(wish.types), workspace_reference(request, wish.workspace)
    place = (await context.store.read(lambda read: scope_of(read, key, reference))).workspace
    await check_address(wish.url, place.name)
    now, wall = context.clock(), time.time()
    webhook_id = PREFIX + base62(context.random_bytes(ID_LENGTH), ID_LENGTH)
    secret = SECRET_PREFIX + base62(context.random_bytes(SECRET_CHARACTERS), SECRET_CHARACTERS)

    def write(write: Transaction) -> WebhookAnswer:
        workspace_id = scope_of(write, key, reference).workspace.workspace_id
        _free_name(write, workspace_id, wish.name)
        if len(write.webhooks(workspace_id)) >= WEBHOOKS_MAX:
            raise Invalid(f"a workspace has at most {WEBHOOKS_MAX} webhooks; delete one, or change one of them")
        told = write.add_notice(now, workspace_id, "webhook.created", webhook_id, {"name": wish.name})
        made = Webhook(
            webhook_id, workspace_id, wish.name, wish.url, types, wish.enabled, secret, told.seq, now, now
        )  # fmt: skip
        write.add_webhook(made)
        return {**show(write, made, wall), "secret": secret}

    return answer(await context.store.write(write), 201)


async def list_webhooks(context: Context, request: Request, key: Key) -> Response:
    """Webhooks, newest first."""
    page, wall = page_of(request, PREFIX), time.time()

    def read(read: Transaction) -> list[WebhookAnswer]:
        scope = scope_of(read, key, workspace_reference(request))
        return [show(read, hook, wall) for hook in cut(page, read.webhooks(scope.listed), lambda h: h.webhook_id)]

    return page_answer(page, await context.store.read(read), lambda row: row, lambda row: str(row["id"]))


async def get_webhook(context: Context, request: Request, key: Key) -> Response:
    """One webhook, without its secret."""
    wall = time.time()

    def read(read: Transaction) -> WebhookAnswer:
        scope = scope_of(read, key, workspace_reference(request))
        return show(read, find_webhook(read, scope, request.path_params["id"]), wall)

    return answer(await context.store.read(read))


async def change_webhook(context: Context, request: Request, key: Key) -> Response:
    """Change a webhook; what is left out stays. With another URL, or enabled anew, it is tried at once."""
    wish = await body_as(request, WebhookChange)
    now, wall, sent = context.clock(), time.time(), given(wish)
    reference = workspace_reference(request)
    if "url" in sent:
        check_url(sent["url"])
        place = await context.store.read(
            lambda read: read.workspace(
                find_webhook(read, scope_of(read, key, reference), request.path_params["id"]).workspace_id
            )
        )
        await check_address(sent["url"], place.name if place is not None else "")

    def write(write: Transaction) -> WebhookAnswer:
        found = find_webhook(write, scope_of(write, key, reference), request.path_params["id"])
        values: dict[str, Any] = {
            n: sent[n] for n in ("url", "enabled") if sent.get(n, getattr(found, n)) != getattr(found, n)
        }
        if sent.get("name", found.name) != found.name:
            values["name"] = _free_name(write, found.workspace_id, sent["name"])
        if "types" in sent and (types := check_types(sent["types"])) != found.types:
            values["types"] = types
        if values:
            notice = {"name": values.get("name", found.name), "changed": sorted(values)}
            told = write.add_notice(now, found.workspace_id, "webhook.updated", found.webhook_id, notice)
            if values.get("enabled"):
                values["cursor"] = told.seq
            if "url" in values or values.get("enabled"):
                values |= {"failures": 0, "failed_since": None, "next_at": 0.0, "message": ""}
            write.set_webhook(found, **values, updated_at=now)
        after = write.webhook(found.webhook_id)
        assert after is not None
        return show(write, after, wall)

    return answer(await context.store.write(write))


async def delete_webhook(context: Context, request: Request, key: Key) -> Response:
    """Delete a webhook; what it has not been sent is not sent."""
    now = context.clock()

    def write(write: Transaction) -> Deleted:
        found = find_webhook(write, scope_of(write, key, workspace_reference(request)), request.path_params["id"])
        write.delete_webhook(found.webhook_id)
        write.add_notice(now, found.workspace_id, "webhook.deleted", found.webhook_id, {"name": found.name})
        return {"object": "webhook", "id": found.webhook_id, "deleted": True}

    return answer(await context.store.write(write))


_WORKSPACE: Final = Query("workspace", "Another workspace; for the operator.")
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/webhooks", create_webhook, "Make a webhook", body=WebhookWish, query=(_WORKSPACE,),
        answer=WebhookAnswer, status=201, errors=(400, 404),
        text="Events are sent as POST with `Nanopod-Event-Id` and `Nanopod-Signature: t=<Unix time>,v1=<hex>`, the "
        "HMAC-SHA-256 of `<t>.<body>` under the secret. Any 2xx within 10 s takes one; else it is sent again.",
    ),
    Operation(
        "GET", "/v1/webhooks", list_webhooks, "List webhooks", scope="read", query=(_WORKSPACE, *PAGING),
        answer=WebhookAnswer, listed=True,
    ),
    Operation(
        "GET", "/v1/webhooks/{id}", get_webhook, "One webhook", scope="read", query=(_WORKSPACE,),
        answer=WebhookAnswer, errors=(404,),
    ),
    Operation(
        "PATCH", "/v1/webhooks/{id}", change_webhook, "Change a webhook", body=WebhookChange, query=(_WORKSPACE,),
        answer=WebhookAnswer, errors=(400, 404, 409),
    ),
    Operation(
        "DELETE", "/v1/webhooks/{id}", delete_webhook, "Delete a webhook", query=(_WORKSPACE,), answer=Deleted,
        errors=(404,),
    ),
)  # fmt: skip
