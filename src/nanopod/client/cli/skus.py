"""`nanopod instance-skus list`."""

from __future__ import annotations

from typing import Any, Final

from nanopod.client.cli import rows, show


def _accelerator(row: Any) -> str:
    count = row.get("num_accelerators") or 0
    return f"{count} x {row.get('accelerator')}" if count else "none"


COLUMNS: Final[list[show.Column]] = [
    ("ALIAS", show.field("alias")),
    ("ACCELERATORS", _accelerator),
    ("VCPUS", show.field("num_vcpus")),
    ("MEMORY", lambda row: show.size(row.get("memory"))),
    ("REGION", show.field("region")),
    ("ID", lambda row: row.get("id")),
]
NOUN: Final = rows.Noun("instance SKU", "/v1/instance_skus", COLUMNS, "no kinds of nodes are known", has_get=False)
configure = NOUN.configure
run = NOUN.run
