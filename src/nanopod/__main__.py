"""The `nanopod` command: a table of verbs. A room's commands are imported only when their verb is used."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence

CLOUD: dict[str, tuple[str, str]] = {
    "up": ("nanopod.server.up", "start a whole cloud on this machine"),
    "down": ("nanopod.server.down", "stop it; running requests finish first"),
    "status": ("nanopod.server.status", "what runs here, and is it well"),
    "logs": ("nanopod.server.logs", "what its processes and instances wrote"),
    "sim": ("nanopod.sim.command", "replay requests against the scaling rule on a simulated clock"),
}
"""Verbs of the cloud itself; those of its users come from `nanopod.client.cli.COMMANDS`."""


def table() -> Mapping[str, tuple[str, str]]:
    """{verb: (module with `configure` and `run`, help)} of every command."""
    from nanopod.client.cli import COMMANDS

    return {**CLOUD, **COMMANDS}


def make_parser(commands: Mapping[str, tuple[str, str]], chosen: str | None) -> argparse.ArgumentParser:
    """The parser; only the chosen verb's options are known (all of them when `chosen` is None, for completion)."""
    from nanopod import __version__

    parser = argparse.ArgumentParser(
        prog="nanopod",
        description="Spare and reclaimable accelerators as one dependable inference cloud.",
        epilog="Start with: nanopod up   then: nanopod serve nanopod-tiny   (docs: README.md)",
    )
    parser.add_argument("--version", action="version", version=f"nanopod {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", title="commands")
    for verb, (module, text) in commands.items():
        sub = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        if chosen is None or verb == chosen:
            importlib.import_module(module).configure(sub)
    return parser


def _complete(commands: Mapping[str, tuple[str, str]]) -> None:
    """Serve shell completion when the shell asks for it (`eval "$(register-python-argcomplete nanopod)"`)."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(make_parser(commands, None))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 usage, 3 could not deploy, 130 interrupted."""
    import os

    words = list(sys.argv[1:] if argv is None else argv)
    commands = table()
    if "_ARGCOMPLETE" in os.environ:
        _complete(commands)
    chosen = next((word for word in words if not word.startswith("-")), "")
    parser = make_parser(commands, chosen)
    args = parser.parse_args(words)
    if not args.verb:
        parser.print_help()
        return 2
    from nanopod.model.errors import NanopodError

    try:
        return int(importlib.import_module(commands[args.verb][0]).run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`nanopod ... | head`): that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except NanopodError as error:
        print(f"nanopod {args.verb}: {error.message}", file=sys.stderr)
        return 2 if error.code == "unprocessable_entity" else 1


if __name__ == "__main__":
    sys.exit(main())
