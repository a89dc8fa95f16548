"""`nanopod models list`."""

from __future__ import annotations

import argparse

from nanopod.client.cli import show


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs of `nanopod models`."""
    show.add_verbs(parser, {"list": "list the models that answer at this server"})


def run(args: argparse.Namespace) -> int:
    """Print the models."""
    rows = list(show.api_of(args).items("/v1/models"))
    if args.json:
        show.print_page(rows)
        return 0
    columns: list[show.Column] = [
        ("MODEL", show.field("id")),
        ("STATE", lambda row: (row.get("nanopod") or {}).get("state")),
        ("ENDPOINT", lambda row: (row.get("nanopod") or {}).get("endpoint")),
        ("OWNER", show.field("owned_by")),
        ("CREATED", show.moment("created")),
    ]
    show.print_rows(rows, columns, empty="no models; serve one with: nanopod serve nanopod-tiny")
    return 0
