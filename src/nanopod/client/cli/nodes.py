"""`nanopod nodes list`."""

from __future__ import annotations

from typing import Final

from nanopod.client.cli import rows, show

COLUMNS: Final[list[show.Column]] = [
    ("ID", show.field("id")),
    ("STATE", show.field("state")),
    ("LINKED", show.field("linked")),
    ("SLOTS USED", lambda row: f"{row.get('slots_used', 0)}/{row.get('slots', 0)}"),
    ("SKU", show.field("instance_sku_id")),
    ("MACHINE", show.field("machine_id")),
    ("SEEN", show.moment("seen_at")),
]
NOUN: Final = rows.Noun("node", "/v1/nodes", COLUMNS, "no nodes; `nanopod up` makes this machine one", has_get=False)
configure = NOUN.configure
run = NOUN.run
