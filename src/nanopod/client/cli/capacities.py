"""`nanopod capacities list|get`."""

from __future__ import annotations

from typing import Final

from nanopod.client.cli import rows, show

COLUMNS: Final[list[show.Column]] = [
    ("ID", lambda row: row.get("id") or row.get("capacity_id")),
    ("NAME", show.field("name")),
    ("KIND", show.field("kind")),
    ("NODES NOW", lambda row: row.get("nodes_now", row.get("quantity"))),
    ("CREATED", show.moment("created_at")),
]
NOUN: Final = rows.Noun("capacity", "/v1/capacities", COLUMNS, "no capacities are held")
configure = NOUN.configure
run = NOUN.run
