"""`nanopod agents ctx`: the whole command tree as JSON, for programs that write commands. Made from the parser."""

from __future__ import annotations

import argparse
from typing import Any, Final

from nanopod.client import times
from nanopod.client.cli import exits, show
from nanopod.client.cli.nouns import commands
from nanopod.client.cli.parser import Parser, Verb
from nanopod.client.cli.session import Session

ENVIRONMENT: Final = {
    "NANOPOD_URL": "the server",
    "NANOPOD_API_KEY": "the API key",
    "NANOPOD_TOKEN": "the API key, where NANOPOD_API_KEY is not set",
    "NO_COLOR": "no colours when it is set",
    "TZ": "the zone that bare dates are in and times are shown in",
}


def tree(parser: argparse.ArgumentParser, *, name: str, text: str = "") -> dict[str, Any]:
    """A command with its arguments, options and commands below it."""
    found: dict[str, Any] = {"name": name, "command": parser.prog, "help": text or parser.description or ""}
    aliases = getattr(parser, "alias_names", ())
    if aliases:
        found["aliases"] = list(aliases)
    below = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    plain = [a for a in parser._actions if a is not below and a.help is not argparse.SUPPRESS]
    found["arguments"] = [_argument(action) for action in plain if not action.option_strings]
    found["options"] = [_option(action) for action in plain if action.option_strings and action.dest != "help"]
    if isinstance(parser, Parser):
        found["examples"] = list(parser.examples)
        if parser.takes_command:
            found["takes_command"] = "everything after -- is the command"
    if below is not None:
        found["commands"] = _below(below)
    return found


def _below(action: argparse._SubParsersAction[Any]) -> list[dict[str, Any]]:
    """Each command once: an alias is the same parser under another name."""
    texts = {choice.dest: str(choice.help or "") for choice in action._choices_actions}
    seen: set[int] = set()
    found = []
    for name, sub in action.choices.items():
        if id(sub) not in seen:
            seen.add(id(sub))
            found.append(tree(sub, name=name, text=next((t for d, t in texts.items() if d.split(" ")[0] == name), "")))
    return found


def _argument(action: argparse.Action) -> dict[str, Any]:
    return {
        "name": action.dest, "metavar": action.metavar or action.dest, "help": action.help or "",
        "required": action.nargs not in ("?", "*", argparse.REMAINDER), "repeatable": action.nargs in ("+", "*", "..."),
        **_values(action),
    }  # fmt: skip


def _option(action: argparse.Action) -> dict[str, Any]:
    switch = action.nargs == 0
    found = {
        "flags": list(action.option_strings), "name": action.dest, "help": action.help or "",
        "switch": switch, "required": bool(action.required),
        "repeatable": isinstance(action, argparse._AppendAction), "default": _default(action.default),
    }  # fmt: skip
    if not switch:
        found["metavar"] = action.metavar or action.dest.upper()
        found |= _values(action)
    return found


def _values(action: argparse.Action) -> dict[str, Any]:
    found: dict[str, Any] = {"type": getattr(action.type, "__name__", "str") if action.type else "str"}
    if action.choices is not None:
        found["choices"] = list(action.choices)
    if completes := getattr(action, "completes", ""):
        found["values_from"] = f"GET {completes}"
    return found


def _default(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list) else None


def whole(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The tree with what holds for all of it."""
    from nanopod import __version__

    return {
        **tree(parser, name="nanopod"),
        "version": __version__,
        "exit_codes": {str(code): meaning for code, meaning in exits.MEANINGS.items()},
        "environment": ENVIRONMENT,
        "times": list(times.TIME_FORMS),
        "durations": list(times.DURATION_FORMS),
        "prices": "dollars per node-hour with a point, such as 2.50",
        "output": "--json prints exactly what the API answered, errors too; -y answers yes, --no-input never asks",
    }


def ctx(session: Session) -> int:
    """Print it."""
    show.print_json(whole(session.args.whole_parser()))
    return 0


configure, run = commands(
    Verb("ctx", "print the whole command tree as JSON", ctx, (), ("nanopod agents ctx",)),
)
