"""`nanopod login`, `nanopod me` and `nanopod version`: who you are, and where."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from typing import Any

from nanopod.client import config
from nanopod.client.api import Api
from nanopod.client.cli import show
from nanopod.client.cli.parser import Verb, fill, option
from nanopod.client.cli.session import Session
from nanopod.model.errors import Invalid, NanopodError, NotFound


def login(session: Session) -> int:
    """Check a key and keep it, with its server, for later commands."""
    args = session.args
    url = config.find_url(args.url)
    if url is None:
        raise Invalid("name the server: nanopod login --url http://127.0.0.1:8900", field="url")
    key = args.key or args.api_key or _asked(session)
    api = Api(config.Target(url, key.strip()))
    who = _who(api)
    directory = config.config_directory()
    directory.mkdir(parents=True, exist_ok=True)
    _private(directory / "api_key", key.strip() + "\n")
    path = directory / "config.json"
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    _private(path, json.dumps({**kept, "url": url}, indent=2) + "\n")
    if session.json:
        show.print_json(who)
    else:
        session.out(f"logged in at {url} as {who.get('name') or who.get('id') or 'a key'}; kept in {directory}")
    return 0


def _asked(session: Session) -> str:
    if not session.interactive:
        raise Invalid("name the key with --key, or pipe nothing and type it on a terminal", field="key")
    return getpass.getpass("API key: ", stream=sys.stderr)


def _who(api: Api) -> dict[str, Any]:
    """What the server says of the key; a server that does not say still has to accept it."""
    try:
        return api.get("/v1/me")
    except NotFound:
        return api.get("/v1/status")


def _private(path: Any, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
    os.replace(fresh, path)


def me(session: Session) -> int:
    """The key, its workspace and what it may do."""
    found = session.api.get("/v1/me")
    if session.json:
        show.print_json(found)
        return 0
    show.print_card([("SERVER", session.api.target.url), *_facts(session, found)])
    return 0


def _facts(session: Session, found: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = []
    for name, value in found.items():
        title = f"{prefix} {name}".strip().upper().replace("_", " ")
        if name == "object":
            continue
        if isinstance(value, dict):
            facts += _facts(session, value, f"{prefix} {name}".strip())
        elif name.endswith("_at"):
            facts.append((title, session.when(value)))
        else:
            facts.append((title, value))
    return facts


def version(session: Session) -> int:
    """The versions of this program and of the server, if one answers."""
    from nanopod import __version__

    found: dict[str, Any] = {"version": __version__, "server": None, "url": None}
    try:
        found |= {"url": session.api.target.url, "server": session.api.get("/v1/status").get("version")}
    except NanopodError:
        pass  # the program has a version without any server
    if session.json:
        show.print_json(found)
        return 0
    session.out(f"nanopod {__version__}")
    session.out(f"server  {found['server']} at {found['url']}" if found["server"] else "server  none answers")
    return 0


_KEY = option("--key", metavar="KEY", help="the API key (default: asked for)")
_VERBS = {
    "login": Verb("login", "keep a server and a key for later commands", login, (_KEY,),
                  ("nanopod login --url https://cloud.example.org",)),
    "me": Verb("me", "who this key is", me, (), ("nanopod me --json",)),
    "version": Verb("version", "the versions of program and server", version, (), ("nanopod version",)),
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the one that the parser is for."""
    fill(parser, _VERBS[parser.prog.rpartition(" ")[2]])


def run(args: argparse.Namespace) -> int:
    """Do it."""
    return int(args.handler(Session(args)))
