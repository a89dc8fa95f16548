"""`nanopod completion bash|zsh|fish`: the shell's script; it asks this program what may come next."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import Final

from nanopod.client import config
from nanopod.client.api import Api
from nanopod.client.cli.parser import Parser
from nanopod.model.errors import NanopodError

NAMES_MAX: Final = 200
ANSWER_S_MAX: Final = 2.0
"""A server that is slower than a person's patience offers no names."""
SCRIPTS: Final = {
    "bash": """\
_nanopod() {
    local IFS=$'\\n'
    COMPREPLY=($(nanopod completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _nanopod nanopod
""",
    "zsh": """\
#compdef nanopod
_nanopod() {
    local -a found
    found=("${(@f)$(nanopod completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -- ${found:#}
}
if [ "$funcstack[1]" = "_nanopod" ]; then _nanopod; else compdef _nanopod nanopod; fi
""",
    "fish": """\
function __nanopod_words
    set -l typed (commandline -opc) (commandline -ct)
    nanopod completion words -- $typed[2..-1] 2>/dev/null
end
complete -c nanopod -f -a '(__nanopod_words)'
""",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod completion`."""
    parser.add_argument("shell", choices=(*SCRIPTS, "words"), help="words: what may follow the words after --")
    if isinstance(parser, Parser):
        parser.takes_command = True
        parser.show_examples((
            'eval "$(nanopod completion bash)"', "nanopod completion zsh > ~/.zfunc/_nanopod",
            "nanopod completion fish > ~/.config/fish/completions/nanopod.fish",
        ))  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the script, or what may come next."""
    if args.shell != "words":
        print(SCRIPTS[args.shell], end="")
        return 0
    words = list(getattr(args, "command", [])) or [""]
    for word in candidates(args.whole_parser(), words):
        print(word)
    return 0


def candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """What the last word may become, after the words before it."""
    *before, typed = words
    waiting: argparse.Action | None = None
    place = 0
    for word in before:
        below = _below(parser)
        if waiting is not None:
            waiting = None
        elif word.startswith("-"):
            waiting = _taking(parser, word)
        elif below is not None and word in below.choices:
            parser, place = below.choices[word], 0
        else:
            place += 1
    return sorted({word for word in _possible(parser, waiting, typed, place) if word.startswith(typed)})


def _possible(
    parser: argparse.ArgumentParser, waiting: argparse.Action | None, typed: str, place: int
) -> Iterable[str]:
    if waiting is not None:
        return _values(waiting)
    if typed.startswith("-"):
        return [flag for a in parser._actions if a.help is not argparse.SUPPRESS for flag in a.option_strings]
    below = _below(parser)
    if below is not None:
        return list(below.choices)
    places = [action for action in parser._actions if not action.option_strings]
    if not places:
        return []
    action = places[min(place, len(places) - 1)]
    return _values(action) if place < len(places) or action.nargs in ("+", "*") else []


def _below(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser] | None:
    return next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)


def _taking(parser: argparse.ArgumentParser, flag: str) -> argparse.Action | None:
    """The option of a flag, if a value has to follow it."""
    return next((a for a in parser._actions if flag in a.option_strings and a.nargs != 0), None)


def _values(action: argparse.Action) -> list[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    path = getattr(action, "completes", "")
    return _names(path) if path else []


def _names(path: str) -> list[str]:
    """Names of the objects of a list; nothing when no server answers at once."""
    if os.environ.get("NANOPOD_COMPLETION_OFFLINE"):
        return []
    try:
        page = Api(config.target(), tries_max=1, request_s_max=ANSWER_S_MAX).get(path, limit=NAMES_MAX)
    except NanopodError:
        return []
    return [str(row.get("name") or row.get("alias") or row.get("id")) for row in page.get("data", [])]
