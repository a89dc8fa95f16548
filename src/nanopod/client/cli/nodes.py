"""`nanopod nodes list`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nanopod.client.cli.nouns import Noun, commands, field_of, moment_of, named
from nanopod.client.cli.session import Session


def _sku(_session: Session, row: Mapping[str, Any]) -> Any:
    return named(row.get("instance_sku")) or row.get("instance_sku_id")


NOUN: Final = Noun(
    "node", "nodes", "/v1/nodes",
    columns=[
        ("ID", field_of("id")), ("STATE", field_of("state")), ("LINKED", field_of("linked")),
        ("SLOTS USED", lambda _s, row: f"{row.get('slots_used', 0)}/{row.get('slots', 0)}"), ("SKU", _sku),
        ("MACHINE", field_of("machine_id")), ("SEEN", moment_of("seen_at")),
    ],
    wide=[("PROVIDER", lambda _s, row: named(row.get("provider")) or row.get("provider_id"))],
    empty="no nodes; `nanopod up` makes this machine one",
)  # fmt: skip
configure, run = commands(NOUN.list_verb())
