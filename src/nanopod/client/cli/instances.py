"""`nanopod instances list|get`."""

from __future__ import annotations

from typing import Final

from nanopod.client.cli import rows, show

COLUMNS: Final[list[show.Column]] = [
    ("ID", show.field("id")),
    ("ENDPOINT", lambda row: row.get("endpoint") or row.get("endpoint_name") or row.get("endpoint_id")),
    ("PHASE", show.field("phase")),
    ("NODE", lambda row: row.get("node_id") or row.get("node")),
    ("EPOCH", show.field("epoch")),
    ("SINCE", lambda row: show.when(row.get("since") or row.get("updated_at"))),
    ("WHY", show.field("reason")),
]
NOUN: Final = rows.Noun("instance", "/v1/instances", COLUMNS, "no instances: nothing runs")
configure = NOUN.configure
run = NOUN.run
