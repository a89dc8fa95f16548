"""`nanopod keys create|list|revoke`."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from nanopod.client.api import segment
from nanopod.client.cli import show


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs of `nanopod keys`."""
    verbs = show.add_verbs(
        parser,
        {
            "create": "make a key; it is shown once",
            "list": "list keys",
            "revoke": "revoke a key; it is refused at once",
        },
    )
    create = verbs["create"]
    create.add_argument("name", metavar="NAME")
    create.add_argument(
        "--scope", action="append", choices=("admin", "call", "read"), help="default: admin; may be repeated"
    )
    create.add_argument("--endpoint", action="append", metavar="NAME", help="may call only this one; may be repeated")
    create.add_argument("--expires-in", type=float, metavar="S", help="seconds until it ends by itself")
    verbs["revoke"].add_argument("id", metavar="ID")


def run(args: argparse.Namespace) -> int:
    """Do what the verb says."""
    api = show.api_of(args)
    if args.action == "create":
        body: dict[str, Any] = {"name": args.name}
        body |= {"scopes": args.scope} if args.scope else {}
        body |= {"endpoints": args.endpoint} if args.endpoint else {}
        body |= {"expires_in_s": args.expires_in} if args.expires_in is not None else {}
        made = api.post("/v1/keys", body, retry=False)
        if args.json:
            show.print_json(made)
            return 0
        print(made["key"])
        print("Keep it: it is not shown again.", file=sys.stderr)
        return 0
    if args.action == "revoke":
        answer = api.delete(f"/v1/keys/{segment(args.id)}")
        if args.json:
            show.print_json(answer or {"revoked": True})
        else:
            print(f"{args.id} is revoked")
        return 0
    rows = list(api.items("/v1/keys"))
    if args.json:
        show.print_json(rows)
    else:
        show.print_rows(rows, COLUMNS, empty="no keys; make one with: nanopod keys create NAME")
    return 0


COLUMNS: Final[list[show.Column]] = [
    ("ID", show.field("id")),
    ("NAME", show.field("name")),
    ("SCOPES", show.field("scopes")),
    ("ENDPOINTS", lambda row: row.get("endpoints") or "all"),
    ("CREATED", show.moment("created_at")),
    ("EXPIRES", show.moment("expires_at")),
    ("LAST USED", show.moment("last_used_at")),
    ("REVOKED", show.moment("revoked_at")),
]
