"""`nanopod capacities list|get`."""

from __future__ import annotations

from typing import Final

from nanopod.client.cli import rows, show

COLUMNS: Final[list[show.Column]] = [
    ("ID", show.field("id")),
    ("NAME", show.field("name")),
    ("KIND", show.field("kind")),
    ("NODES NOW", show.field("nodes_now")),
    ("DEPLOYMENTS", lambda row: len(row.get("deployments") or ())),
]
NOUN: Final = rows.Noun("capacity", "/v1/capacities", COLUMNS, "no capacities are held")
configure = NOUN.configure
run = NOUN.run
