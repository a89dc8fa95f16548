"""Instance templates: an image and a start-up script, from which deployments make instances."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final, NotRequired, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nanopod.model.chain import Image, Key, Template
from nanopod.model.errors import Conflict, Invalid
from nanopod.server.api.answers import answer
from nanopod.server.api.bodies import body_as
from nanopod.server.api.capacities import Deleted
from nanopod.server.api.context import Context, Operation, Query
from nanopod.server.api.errors import BadRequest
from nanopod.server.api.fields import TAG_QUERIES, check_tags, given, tag_filter
from nanopod.server.api.pages import PAGING, cut, page_answer, page_of
from nanopod.server.api.references import (
    Scope,
    check_name,
    find_image,
    find_template,
    scope_of,
    workspace_reference,
)
from nanopod.server.api.showing import Changeable, Owners, Summary, changeable
from nanopod.store.transaction import Transaction

HOST: Final = "host"
"""The image of the machine itself."""
CLOUD_INIT_BYTES_MAX: Final = 64 << 10
INCLUDED: Final = "cloud_init_user_data"
INCLUDE: Final = Query("include", "Fields that are left out otherwise.", values=(INCLUDED,), repeated=True)


class TemplateWish(msgspec.Struct, frozen=True):
    """A template to be made. `cloud_init_user_data` is base64 of a script (`#!...`) or of a `#cloud-config`."""

    name: str
    image: str = HOST
    cloud_init_user_data: str | None = None
    tags: dict[str, str] = {}
    workspace: str | None = None


class TemplateChange(msgspec.Struct, frozen=True):
    """What to change of a template; new instances follow it, those that exist stay as they are."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    image: str | msgspec.UnsetType = msgspec.UNSET
    cloud_init_user_data: str | msgspec.UnsetType | None = msgspec.UNSET
    tags: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


def check_cloud_init(text: str | None) -> str:
    """A start-up script as it is stored. Raises `Invalid`."""
    if not text:
        return ""
    field = INCLUDED
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(f"{field}: this is not base64; encode the script (base64 -w0 FILE)", field=field) from None
    if len(data) > CLOUD_INIT_BYTES_MAX:
        raise Invalid(
            f"{field}: {len(data)} bytes; at most {CLOUD_INIT_BYTES_MAX >> 10} KiB are allowed. Fetch the rest from "
            "the script",
            field=field,
        )
    if not data.startswith((b"#!", b"#cloud-config")):
        raise Invalid(f"{field}: begin the script with #! (such as #!/bin/sh), or with #cloud-config", field=field)
    return text


def usable_image(read: Transaction, scope: Scope, reference: str) -> Image:
    """An image that new instances may be made from. Raises `NotFound` or `Conflict`."""
    image = find_image(read, scope, reference)
    if image.upload_status == "revoked":
        raise Conflict(
            f"image: {image.name} is revoked, no new instances are made from it; reinstate it "
            f"(POST /v1/images/{image.image_id}/reinstate) or take another",
            field="image",
        )
    if image.upload_status != "completed":
        raise Conflict(f"image: the upload of {image.name} is {image.upload_status}; complete it first", field="image")
    return image


def wants_cloud_init(request: Request) -> bool:
    """`?include=cloud_init_user_data`. Raises `Invalid` for anything else."""
    wanted = [name for text in request.query_params.getlist("include") for name in text.split(",") if name]
    for name in wanted:
        if name != INCLUDED:
            raise Invalid(f"include: {name!r} is not one of {INCLUDED}", field="include")
    return bool(wanted)


class TemplateAnswer(Changeable):
    """An instance template."""

    image: Summary
    cloud_init_user_data_used: bool
    cloud_init_user_data: NotRequired[str | None]
    endpoint_id: str | None
    tags: dict[str, str]


def show(read: Transaction, template: Template, *, cloud_init: bool = False) -> TemplateAnswer:
    """A template as the API shows it."""
    image = read.image(template.image_id) if template.image_id else None
    shown: dict[str, Any] = {
        **changeable(
            Owners(read), "instance_template", template.template_id, template.workspace_id, template.name,
            template.created_at, template.updated_at,
        ),
        "image": {"id": template.image_id, "name": image.name if image else HOST},
        "cloud_init_user_data_used": bool(template.cloud_init),
        "endpoint_id": template.endpoint_id or None,
        "tags": dict(template.tags),
    }  # fmt: skip
    if cloud_init:
        shown[INCLUDED] = template.cloud_init or None
    return cast(TemplateAnswer, shown)


async def create_template(context: Context, request: Request, key: Key) -> Response:
    """Make an instance template."""
    wish = await body_as(request, TemplateWish)
    check_name(wish.name)
    cloud_init, tags = check_cloud_init(wish.cloud_init_user_data), check_tags(wish.tags)
    template_id, now = context.new_id("template"), context.clock()

    def write(write: Transaction) -> TemplateAnswer:
        scope = scope_of(write, key, workspace_reference(request, wish.workspace))
        image = usable_image(write, scope, wish.image)
        workspace_id = scope.workspace.workspace_id
        if write.template_named(workspace_id, wish.name) is not None:
            raise BadRequest(f"name: an instance template {wish.name!r} exists already", field="name")
        made = Template(template_id, workspace_id, wish.name, image.image_id, cloud_init, "", tags, now, now)
        write.add_template(made)
        write.add_notice(now, workspace_id, "instance_template.created", template_id, {"name": wish.name})
        return show(write, made)

    return answer(await context.store.write(write), 201)


async def list_templates(context: Context, request: Request, key: Key) -> Response:
    """Instance templates, newest first."""
    page = page_of(request, "itmpl_")
    include = wants_cloud_init(request)
    fits = tag_filter(request)

    def read(read: Transaction) -> list[TemplateAnswer]:
        scope = scope_of(read, key, workspace_reference(request))
        places = [scope.listed] if scope.listed else [w.workspace_id for w in read.workspaces_all()]
        found = [t for place in places for t in read.templates(place) if fits(t.tags)]
        found.sort(key=lambda t: (t.created_at, t.template_id), reverse=True)
        return [show(read, t, cloud_init=include) for t in cut(page, found, lambda t: t.template_id)]

    return page_answer(page, await context.store.read(read), lambda row: row, lambda row: str(row["id"]))


async def get_template(context: Context, request: Request, key: Key) -> Response:
    """One instance template."""
    include = wants_cloud_init(request)

    def read(read: Transaction) -> TemplateAnswer:
        scope = scope_of(read, key, workspace_reference(request))
        return show(read, find_template(read, scope, request.path_params["id"], None), cloud_init=include)

    return answer(await context.store.read(read))


def _own(found: Template) -> Template:
    """Raises `Conflict` for a template that an endpoint keeps."""
    if found.endpoint_id:
        raise Conflict(
            f"template {found.name} belongs to endpoint {found.endpoint_id}, which changes it with its code; "
            "change or delete the endpoint (nanopod deploy, nanopod endpoints delete)"
        )
    return found


async def change_template(context: Context, request: Request, key: Key) -> Response:
    """Change a template; what is left out stays."""
    wish = await body_as(request, TemplateChange)
    now = context.clock()

    def write(write: Transaction) -> TemplateAnswer:
        scope = scope_of(write, key, workspace_reference(request))
        found = _own(find_template(write, scope, request.path_params["id"], None))
        sent = given(wish)
        values: dict[str, Any] = {}
        if sent.get("name", found.name) != found.name:
            values["name"] = check_name(sent["name"])
            if write.template_named(found.workspace_id, values["name"]) is not None:
                raise BadRequest(f"name: an instance template {wish.name!r} exists already", field="name")
        if "image" in sent:
            values["image_id"] = usable_image(write, scope, sent["image"]).image_id
        if INCLUDED in sent:
            values["cloud_init"] = check_cloud_init(sent[INCLUDED])
        if "tags" in sent:
            values["tags"] = check_tags(sent["tags"])
        if values:
            write.set_template(found.template_id, **values, updated_at=now)
            notice = {"name": values.get("name", found.name), "changed": sorted(values)}
            write.add_notice(now, found.workspace_id, "instance_template.updated", found.template_id, notice)
        after = write.template(found.template_id)
        assert after is not None
        return show(write, after)

    return answer(await context.store.write(write))


async def delete_template(context: Context, request: Request, key: Key) -> Response:
    """Delete a template that no deployment uses."""
    now = context.clock()

    def write(write: Transaction) -> Deleted:
        scope = scope_of(write, key, workspace_reference(request))
        found = _own(find_template(write, scope, request.path_params["id"], None))
        users = [d.name for d in write.deployments(found.workspace_id) if d.template_id == found.template_id]
        if users:
            raise Invalid(
                f"template {found.name} is used by deployment {', '.join(users[:10])}; give it another template or "
                "delete it first"
            )
        write.delete_template(found.template_id)
        write.add_notice(now, found.workspace_id, "instance_template.deleted", found.template_id, {"name": found.name})
        return {"object": "instance_template", "id": found.template_id, "deleted": True}

    return answer(await context.store.write(write))


_WORKSPACE: Final = Query("workspace", "Another workspace; for the operator.")
OPERATIONS: Final = (
    Operation(
        "POST", "/v1/instance_templates", create_template, "Make an instance template", body=TemplateWish,
        query=(_WORKSPACE,), answer=TemplateAnswer, status=201, errors=(400, 404, 409),
    ),
    Operation(
        "GET", "/v1/instance_templates", list_templates, "List instance templates", scope="read",
        query=(_WORKSPACE, INCLUDE, *TAG_QUERIES, *PAGING), answer=TemplateAnswer, listed=True,
    ),
    Operation(
        "GET", "/v1/instance_templates/{id}", get_template, "One instance template", scope="read",
        query=(_WORKSPACE, INCLUDE), answer=TemplateAnswer, errors=(404,),
    ),
    Operation(
        "PATCH", "/v1/instance_templates/{id}", change_template, "Change an instance template", body=TemplateChange,
        query=(_WORKSPACE,), answer=TemplateAnswer, errors=(400, 404, 409),
    ),
    Operation(
        "DELETE", "/v1/instance_templates/{id}", delete_template, "Delete an instance template", query=(_WORKSPACE,),
        answer=Deleted, errors=(404, 409),
    ),
)  # fmt: skip
