"""`nanopod secrets`: values that workers get as environment variables. They are set here and never shown."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from nanopod.client.api import segment
from nanopod.client.cli import show
from nanopod.client.cli.nouns import Noun, commands, field_of, moment_of
from nanopod.client.cli.parser import Verb, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid

NOUN: Final = Noun(
    "secret", "secrets", "/v1/secrets",
    columns=[
        ("NAME", field_of("name")), ("VERSION", field_of("version")), ("KEYS", field_of("keys")),
        ("UPDATED", moment_of("updated_at")),
    ],
    wide=[("ID", field_of("id")), ("CREATED", moment_of("created_at"))],
    facts=[
        ("NAME", field_of("name")), ("ID", field_of("id")), ("VERSION", field_of("version")),
        ("KEYS", field_of("keys")), ("USED BY", field_of("used_by")), ("CREATED", moment_of("created_at")),
        ("UPDATED", moment_of("updated_at")),
    ],
    empty="no secrets; make one with: nanopod secrets create NAME KEY=VALUE",
)  # fmt: skip


def pairs_of(words: list[str], files: list[str], variables: list[str]) -> dict[str, str]:
    """What was given, later ones win: files, then variables, then words. Raises `Invalid` (never with a value)."""
    found: dict[str, str] = {}
    for name in files:
        found |= _file(name)
    for name in variables:
        if name not in os.environ:
            raise Invalid(f"--from-env {name}: it is not set here; set it, or leave it out", field="from-env")
        found[name] = os.environ[name]
    for number, word in enumerate(words, 1):
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise Invalid(f"argument {number} after the name is no pair; write KEY=VALUE", field="pairs")
        found[name] = sys.stdin.read().removesuffix("\n") if value == "-" else value
    if not found:
        raise Invalid("give at least one pair: KEY=VALUE, --from-env KEY or --from-file FILE", field="pairs")
    return found


def _file(name: str) -> dict[str, str]:
    """The pairs in a file of lines `KEY=VALUE`; quotes around a value, `export` and comments are left out."""
    try:
        text = Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Invalid(f"--from-file {name}: {why}", field="from-file") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip().removeprefix("export ")
        if not line or line.startswith("#"):
            continue
        key, sign, value = line.partition("=")
        if not sign or not key.strip():
            raise Invalid(f"--from-file {name}: line {number} is not KEY=VALUE", field="from-file")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[key.strip()] = value
    return found


def create(session: Session) -> int:
    """Set a secret: make it, or a new version of it."""
    args = session.args
    values = pairs_of(args.pairs or [], args.from_file or [], args.from_env or [])
    made = session.api.put(f"{NOUN.path}/{segment(args.name)}", {"values": values}, **session.scope)
    if session.json:
        show.print_json(made)
    else:
        session.out(f"secret {made['name']} is at version {made['version']} ({', '.join(made['keys'])})")
    return 0


configure, run = commands(
    Verb(
        "create", "set a secret: make it, or a new version of it", create,
        (
            option("name", metavar="NAME", completes=NOUN.path),
            option("pairs", metavar="KEY=VALUE", nargs="*", help="a pair; KEY=- reads the value from standard input"),
            option("--from-env", action="append", metavar="KEY", help="this variable of your environment; repeatable"),
            option("--from-file", action="append", metavar="FILE", help="lines KEY=VALUE; may be repeated"),
        ),
        ("nanopod secrets create hf --from-env HF_TOKEN", "nanopod secrets create db --from-file .env"),
        aliases=("set",),
    ),
    NOUN.list_verb(),
    NOUN.get_verb(examples=("nanopod secrets get hf",)),
    NOUN.delete_verb(examples=("nanopod secrets delete hf",)),
)  # fmt: skip
