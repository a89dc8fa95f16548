"""`nanopod instance-skus list|get|set` and `nanopod availability`: the kinds of nodes, and what of them is for sale."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Final

from nanopod.client.cli import show
from nanopod.client.cli.nouns import Noun, commands, field_of, given
from nanopod.client.cli.parser import Verb, fill, option
from nanopod.client.cli.session import Session

LIVES: Final = ("stable", "deprecated", "deleted")
_FILTERS: Final = ("region", "availability_zone", "accelerator", "form_factor", "rdma_type", "num_accelerators")


def value(row: Mapping[str, Any], name: str) -> Any:
    """A property: plain, or `{value, display_value}`, at the top or below `properties`."""
    found = (row.get("properties") or {}).get(name) if isinstance(row.get("properties"), Mapping) else None
    found = row.get(name) if found is None else found
    return found.get("value") if isinstance(found, Mapping) else found


def _shown(name: str) -> Any:
    return lambda _session, row: value(row, name)


def _bytes(name: str) -> Any:
    return lambda _session, row: show.size(value(row, name))


def _accelerator(_session: Session, row: Mapping[str, Any]) -> str:
    count = value(row, "num_accelerators") or 0
    return f"{count} x {value(row, 'accelerator')}" if count else "none"


NOUN: Final = Noun(
    "instance SKU", "instance-skus", "/v1/instance_skus",
    columns=[
        ("NAME", lambda _s, row: row.get("alias") or row.get("name")),
        ("ACCELERATOR", _accelerator),
        ("MEMORY", _bytes("memory")),
        ("STORAGE", _bytes("local_storage")),
        ("VCPUS", _shown("num_vcpus")),
        ("ID", field_of("id")),
    ],
    wide=[
        ("REGION", _shown("region")), ("ZONE", _shown("availability_zone")), ("FORM FACTOR", _shown("form_factor")),
        ("RDMA", _shown("rdma_type")), ("ACCELERATOR MEMORY", _bytes("accelerator_memory")),
        ("PROVIDER", _shown("provider")), ("FEDERATED", _shown("federated")), ("LATENCY", field_of("latency_class")),
        ("WATTS", _shown("max_watts")), ("LIFECYCLE", field_of("lifecycle")), ("AUDIENCE", field_of("audience_hint")),
    ],
    empty="no kinds of nodes are known; `nanopod up` makes this machine one",
)  # fmt: skip


def _query(session: Session) -> Mapping[str, Any]:
    session.wide = session.wide or session.args.verbose
    return {name: found for name in (*_FILTERS, "lifecycle") if (found := getattr(session.args, name)) is not None}


def change(session: Session) -> int:
    """Name a kind of node, say whom it is for, deprecate it, delete it."""
    NOUN.card(session, NOUN.change(session, given(session.args, "alias", "lifecycle", "audience_hint")))
    return 0


AVAILABILITY: Final = "/v1/instance_skus/availability"


def available(session: Session) -> int:
    """What is for sale: nodes by SKU and time."""
    query = {"instance_sku": session.args.instance_sku} if session.args.instance_sku else {}
    found = session.api.get(AVAILABILITY, **session.scope, **query)
    if session.json:
        show.print_json(found)
        return 0
    lines: list[dict[str, Any]] = []
    for row in found.get("data") or ():
        for entry in row.get("availability") or ():
            if entry.get("node_count"):
                lines.append({"sku": _name(row), **entry})
    columns: list[show.Column] = [
        ("INSTANCE SKU", show.field("sku")),
        ("NODES", show.field("node_count")),
        ("PERIOD", lambda line: session.period(line["start_at"], line.get("end_at"))),
    ]
    show.print_rows(lines, columns, empty="nothing is for sale now")
    return 0


def _name(row: Mapping[str, Any]) -> Any:
    sku = row.get("instance_sku", row)
    return sku.get("alias") or sku.get("name") or sku.get("id") if isinstance(sku, Mapping) else sku


ONE_SKU: Final = option("--instance-sku", metavar="SKU", completes=NOUN.path, help="only this kind")
_list, run = commands(
    NOUN.list_verb(
        option("--verbose", "-v", action="store_true", help="all columns"),
        *(option(f"--{name.replace('_', '-')}", metavar="V", help=f"only with this {name.replace('_', ' ')}")
          for name in _FILTERS),
        option("--lifecycle", choices=LIVES, help="only these (default: stable and deprecated)"),
        query=_query, examples=("nanopod instance-skus list --verbose", "nanopod instance-skus list --region local"),
    ),
    NOUN.get_verb(examples=("nanopod instance-skus get isku_...",)),
    Verb("set", "name a kind of node, deprecate it, delete it (operator)", change,
         (NOUN.reference(), option("--alias", metavar="NAME", help="what it is called from now on"),
          option("--lifecycle", choices=LIVES, help="stable -> deprecated -> deleted"),
          option("--audience-hint", metavar="TEXT", help="whom it is for")),
         ("nanopod instance-skus set cpu --lifecycle deprecated",), aliases=("update",)),
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs of `nanopod instance-skus`; options of `nanopod availability`."""
    if parser.prog.endswith("availability"):
        verb = Verb("availability", "what is for sale", available, (ONE_SKU,), ("nanopod availability",))
        fill(parser, verb)
    else:
        _list(parser)
