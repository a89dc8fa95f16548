"""`nanopod nodes list`."""

from __future__ import annotations

from typing import Final

from nanopod.client.cli import rows, show

COLUMNS: Final[list[show.Column]] = [
    ("ID", lambda row: row.get("id") or row.get("node_id")),
    ("STATE", show.field("state")),
    ("SLOTS", show.field("slots")),
    ("SKU", lambda row: row.get("sku") or row.get("sku_id")),
    ("MACHINE", show.field("machine_id")),
    ("SEEN", show.moment("seen_at")),
]
NOUN: Final = rows.Noun("node", "/v1/nodes", COLUMNS, "no nodes; `nanopod up` makes this machine one", has_get=False)
configure = NOUN.configure
run = NOUN.run
