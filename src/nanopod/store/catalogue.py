"""Accounts, workspaces, templates and images in a transaction: who there is, and what instances are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, delete, or_, select

from nanopod.model.chain import Account, Image, Template, Workspace
from nanopod.store.base import Base, tags_json, tags_of, to_json
from nanopod.store.market_schema import image, instance_template
from nanopod.store.schema import account, api_key, workspace

_parts: Final = msgspec.json.Decoder(tuple[str, ...]).decode


class CatalogueRows(Base):
    """Reads and writes of owners and of what they keep for their instances."""

    # --- accounts ---

    def add_account(self, made: Account) -> None:
        """A new account."""
        values = asdict(made)
        self._insert(account, id=values.pop("account_id"), **values)

    def account(self, account_id: str) -> Account | None:
        """One account."""
        row = self._row(account, id=account_id)
        return _account(row) if row else None

    def account_named(self, name: str) -> Account | None:
        """An account by its name."""
        row = self._row(account, name=name)
        return _account(row) if row else None

    def accounts(self) -> list[Account]:
        """All accounts, oldest first."""
        return [_account(row) for row in self._rows(select(account).order_by(account.c.created_at, account.c.id))]

    # --- workspaces ---

    def workspace(self, workspace_id: str) -> Workspace | None:
        """One workspace."""
        row = self._row(workspace, id=workspace_id)
        return _workspace(row) if row else None

    def workspace_named(self, name: str) -> Workspace | None:
        """A workspace by its name."""
        row = self._row(workspace, name=name)
        return _workspace(row) if row else None

    def workspaces_all(self) -> list[Workspace]:
        """All workspaces, oldest first."""
        statement = select(workspace).order_by(workspace.c.created_at, workspace.c.id)
        return [_workspace(row) for row in self._rows(statement)]

    def workspaces(self) -> list[tuple[str, str, float]]:
        """(id, name, created at) of every workspace, by name."""
        return [(row.id, row.name, row.created_at) for row in self._rows(select(workspace).order_by(workspace.c.name))]

    def add_workspace(self, made: Workspace) -> None:
        """A new workspace."""
        self._insert(
            workspace, id=made.workspace_id, name=made.name, account_id=made.account_id, created_at=made.created_at
        )  # fmt: skip

    def rename_workspace(self, workspace_id: str, name: str) -> None:
        """Give a workspace another name; its id stays."""
        self._update(workspace, workspace_id, name=name)

    def set_workspace_account(self, workspace_id: str, account_id: str) -> None:
        """Put a workspace that belongs to nobody yet under an account."""
        self._update(workspace, workspace_id, account_id=account_id)

    def delete_workspace(self, workspace_id: str) -> None:
        """Forget an empty workspace and its keys."""
        self.connection.execute(delete(api_key).where(api_key.c.workspace_id == workspace_id))
        self.connection.execute(delete(workspace).where(workspace.c.id == workspace_id))
        self.hint("tables")

    # --- templates ---

    def add_template(self, made: Template) -> None:
        """A new template."""
        values = asdict(made) | {"tags": tags_json(made.tags)}
        self._insert(instance_template, id=values.pop("template_id"), **values)

    def template(self, template_id: str) -> Template | None:
        """One template."""
        row = self._row(instance_template, id=template_id)
        return _template(row) if row else None

    def template_named(self, workspace_id: str, name: str) -> Template | None:
        """A template of a workspace by its name."""
        row = self._row(instance_template, workspace_id=workspace_id, name=name)
        return _template(row) if row else None

    def template_of_endpoint(self, endpoint_id: str) -> Template | None:
        """The template that was made for an endpoint."""
        row = self._row(instance_template, endpoint_id=endpoint_id)
        return _template(row) if row else None

    def templates(self, workspace_id: str | None = None) -> list[Template]:
        """Templates, newest first."""
        t = instance_template
        statement: Select[Any] = select(t).order_by(t.c.created_at.desc(), t.c.id.desc())
        if workspace_id is not None:
            statement = statement.where(t.c.workspace_id == workspace_id)
        return [_template(row) for row in self._rows(statement)]

    def set_template(self, template_id: str, **columns: Any) -> None:
        """Change fields of a template."""
        self._update(instance_template, template_id, **_plain(columns))

    def delete_template(self, template_id: str) -> None:
        """Forget a template."""
        self.connection.execute(delete(instance_template).where(instance_template.c.id == template_id))

    # --- images ---

    def add_image(self, made: Image) -> None:
        """A new image."""
        values = asdict(made) | {"parts": to_json(made.parts)}
        self._insert(image, id=values.pop("image_id"), **values)

    def image(self, image_id: str) -> Image | None:
        """One image."""
        row = self._row(image, id=image_id)
        return _image(row) if row else None

    def image_named(self, workspace_id: str, name: str) -> Image | None:
        """An image of a workspace by its name."""
        row = self._row(image, workspace_id=workspace_id, name=name)
        return _image(row) if row else None

    def images(self, workspace_id: str | None = None) -> list[Image]:
        """The images a workspace may use (None: all of them), newest first: its own and everyone's public ones."""
        statement: Select[Any] = select(image).order_by(image.c.created_at.desc(), image.c.id.desc())
        if workspace_id is not None:
            statement = statement.where(or_(image.c.workspace_id == workspace_id, image.c.is_public.is_(True)))
        return [_image(row) for row in self._rows(statement)]

    def set_image(self, image_id: str, **columns: Any) -> None:
        """Change fields of an image."""
        self._update(image, image_id, **_plain(columns))

    def delete_image(self, image_id: str) -> None:
        """Forget an image."""
        self.connection.execute(delete(image).where(image.c.id == image_id))


def _plain(columns: Mapping[str, Any]) -> dict[str, Any]:
    plain = dict(columns)
    if "tags" in plain:
        plain["tags"] = tags_json(plain["tags"])
    if "parts" in plain:
        plain["parts"] = to_json(plain["parts"])
    return plain


def _account(row: Row[Any]) -> Account:
    return Account(row.id, row.name, row.kind, row.created_at)


def _workspace(row: Row[Any]) -> Workspace:
    return Workspace(row.id, row.name, row.account_id, row.created_at)


def _template(row: Row[Any]) -> Template:
    return Template(
        row.id, row.workspace_id, row.name, row.image_id, row.cloud_init, row.endpoint_id, tags_of(row.tags),
        row.created_at, row.updated_at,
    )  # fmt: skip


def _image(row: Row[Any]) -> Image:
    return Image(
        row.id, row.workspace_id, row.name, row.upload_status, row.sha256, row.size, row.is_public,
        _parts(row.parts), row.created_at, row.updated_at,
    )  # fmt: skip
