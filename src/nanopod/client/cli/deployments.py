"""`nanopod deployments list|get`."""

from __future__ import annotations

from typing import Final

from nanopod.client.cli import rows, show

COLUMNS: Final[list[show.Column]] = [
    ("ID", show.field("id")),
    ("ENDPOINT", lambda row: row.get("endpoint") or row.get("endpoint_id")),
    ("REVISION", show.field("revision_id")),
    ("READY", lambda row: f"{row.get('ready_instance_count', 0)}/{row.get('target_instance_count', 0)}"),
    ("CREATED", show.moment("created_at")),
    ("WHY", lambda row: (row.get("status") or {}).get("message")),
]
NOUN: Final = rows.Noun("deployment", "/v1/deployments", COLUMNS, "no deployments; make an endpoint first")
configure = NOUN.configure
run = NOUN.run
