"""`nanopod instance-templates`: what a new instance is made of."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Final

from nanopod.client.cli.nouns import (
    TAG,
    TAG_FILTERS,
    Noun,
    commands,
    field_of,
    moment_of,
    name_of,
    tag_filter,
    tags_in,
    tags_of,
)  # fmt: skip
from nanopod.client.cli.parser import Option, Verb, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid

CLOUD_INIT_BYTES_MAX: Final = 64 << 10
IMAGES: Final = "/v1/images"

NOUN: Final = Noun(
    "instance template", "instance-templates", "/v1/instance_templates",
    columns=[
        ("NAME", field_of("name")), ("IMAGE", name_of("image")),
        ("CLOUD-INIT", field_of("cloud_init_user_data_used")), ("CREATED", moment_of("created_at")),
        ("ID", field_of("id")),
    ],
    wide=[("TAGS", tags_of), ("UPDATED", moment_of("updated_at"))],
    empty="no templates; make one with: nanopod instance-templates create --name worker --image host",
)  # fmt: skip

CLOUD_INIT: Final = option("--cloud-init", metavar="FILE", help="start-up script (#!) or #cloud-config, at most 64 KB")


def cloud_init_of(path: str | None) -> dict[str, str]:
    """The body's field for a start-up file. Raises `Invalid` when it is missing or too large."""
    if path is None:
        return {}
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise Invalid(f"--cloud-init {path}: {error.strerror or error}", field="cloud-init") from None
    if len(data) > CLOUD_INIT_BYTES_MAX:
        raise Invalid(
            f"--cloud-init {path} has {len(data)} bytes; at most {CLOUD_INIT_BYTES_MAX} are allowed: put the rest into "
            "the image, or fetch it in the script",
            field="cloud-init",
        )
    return {"cloud_init_user_data": base64.b64encode(data).decode()}


def image_of(session: Session) -> str:
    """`--image`, or the only one, or the picked one."""
    if session.args.image:
        return str(session.args.image)
    picked = session.pick(
        IMAGES, flag="image", label=lambda row: str(row.get("name")),
        wanted=lambda row: row.get("upload_status") in (None, "completed"),
    )  # fmt: skip
    return str(picked["id"])


def image_option() -> Option:
    """`--image`."""
    return option("--image", metavar="IMAGE", completes=IMAGES, help="id or name (default: the only one)")


def create(session: Session) -> int:
    """Make a template."""
    body: dict[str, Any] = {
        "name": session.args.name, "image": image_of(session), **cloud_init_of(session.args.cloud_init),
    }  # fmt: skip
    if tags := tags_in(session.args.tag):
        body["tags"] = tags
    NOUN.card(session, NOUN.create(session, body))
    return 0


def get(session: Session) -> int:
    """One template; with --cloud-init its script too."""
    include = {"include": "cloud_init_user_data"} if session.args.script else {}
    row = session.api.get(session.path(NOUN.path, session.args.id), **session.scope, **include)
    NOUN.card(session, row)
    if session.args.script and not session.json and row.get("cloud_init_user_data"):
        print("\n" + base64.b64decode(row["cloud_init_user_data"]).decode("utf-8", "replace").rstrip())
    return 0


def change(session: Session) -> int:
    """Change it; only instances made later see it."""
    args = session.args
    body: dict[str, Any] = {name: value for name in ("name", "image") if (value := getattr(args, name)) is not None}
    body |= cloud_init_of(args.cloud_init)
    if tags := tags_in(args.tag):
        body["tags"] = tags
    NOUN.card(session, NOUN.change(session, body))
    return 0


configure, run = commands(
    Verb(
        "create", "make a template",
        create, (option("--name", "-n", metavar="NAME", required=True), image_option(), CLOUD_INIT, TAG),
        ("nanopod instance-templates create --name inference-worker --image ubuntu-22.04.5-cuda-12.7 "
         "--cloud-init ./startup.sh",),
    ),
    NOUN.list_verb(*TAG_FILTERS, query=lambda session: tag_filter(session.args)),
    Verb(
        "get", "show one template", get,
        (NOUN.reference(), option("--cloud-init", dest="script", action="store_true", help="its script too")),
        ("nanopod instance-templates get inference-worker --cloud-init",), aliases=("show",),
    ),
    Verb(
        "set", "change a template; running instances stay as they are", change,
        (NOUN.reference(), option("--name", "-n", metavar="NAME"), image_option(), CLOUD_INIT, TAG),
        ("nanopod instance-templates set inference-worker --cloud-init ./startup.sh",), aliases=("update",),
    ),
    NOUN.delete_verb(examples=("nanopod instance-templates delete inference-worker",)),
)  # fmt: skip
