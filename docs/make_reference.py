"""Writes docs/REFERENCE.md from docstrings, signatures and the parser of the command line: `make reference`.

Nothing is imported but nanopod itself; a test compares the file with what this module makes.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("REFERENCE.md")
ORDER = (
    "Deployment", "Batch", "Retries", "Cron", "Period", "Call", "gather", "current_call", "enter", "method", "exit",
    "multiplexed", "Secret", "Volume", "Dict", "Queue", "Trial", "Notice",
)  # fmt: skip
"""What `nanopod` exports beside its errors, as a reader meets it; what is missing here comes after these."""
RELATED = (
    ("nanopod.client.function", "RemoteFunction", "What `@app.remote` makes of a function."),
    ("nanopod.client.function", "RemoteGenerator", "What `@app.remote` makes of a generator."),
    ("nanopod.client.image", "Image", "What `app.image()` gives."),
    ("nanopod.client.mapping", "Results", "What `map` and `starmap` give."),
    ("nanopod.client.sessions", "Session", "What `app.session()` gives."),
    ("nanopod.client.ephemeral", "Run", "What `app.run()` gives."),
)
"""Classes that users hold but never import: (module, name, where it is from)."""
MAGIC = ("__call__", "__aenter__", "__enter__", "__aiter__", "__iter__", "__await__")
INTRO = """\
# Reference

Made from the code by `make reference`; edit the docstrings, not this page. The [tutorial](tutorial/README.md) is the
place to begin, [CLI.md](CLI.md) explains what holds for every command.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRO, _contents(), *_exports(), *_related(), *_errors(), *_query(), *_commands()]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _contents() -> str:
    titles = (
        "nanopod", "Objects that calls and deployments give", "Errors", "nanopod.data.query", "The command line",
    )  # fmt: skip
    return "\n".join(f"- [{title}](#{_anchor(title)})" for title in titles)


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


# --- classes and functions ---


def _exports() -> Iterator[str]:
    import nanopod

    yield "## nanopod"
    names = [name for _, group in nanopod._ROOMS.items() for name in group]
    for name in sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        yield _entry(name, getattr(nanopod, name))


def _related() -> Iterator[str]:
    yield "## Objects that calls and deployments give"
    for module, name, where in RELATED:
        yield _entry(name, getattr(importlib.import_module(module), name), where)


def _entry(name: str, value: Any, where: str = "") -> str:
    if not isinstance(value, type):
        return f"### {name}\n\n{_code(name, value)}\n\n{_doc(value)}"
    lines = [f"### {name}", "", *([where, ""] if where else [])]
    if not where:
        lines += [_code(name, value), ""]
    lines += [_doc(value), ""]
    if value.__init__.__doc__ and "__init__" in vars(value) and not dataclasses.is_dataclass(value):
        lines += [_text(value.__init__.__doc__), ""]
    lines += [_member(owner, key, member) for owner, key, member in _members(value)]
    return "\n".join(lines)


def _members(cls: type) -> Iterator[tuple[type, str, Any]]:
    """Public members with a docstring, those of base classes after its own."""
    seen = set()
    for owner in cls.__mro__:
        if not owner.__module__.startswith("nanopod"):
            continue
        for key, member in vars(owner).items():
            public = not key.startswith("_") or key in MAGIC
            if public and key not in seen and _plain(member) is not None and _doc(_plain(member)):
                seen.add(key)
                yield owner, key, member


def _plain(member: Any) -> Any:
    """The function below a property, a class method or a method with a twin; None for plain values."""
    if isinstance(member, property):
        return member.fget
    if isinstance(member, classmethod | staticmethod):
        return member.__func__
    if inspect.isfunction(member):
        return member
    inner = getattr(member, "__wrapped__", None) or getattr(member, "_method", None) or getattr(member, "_f", None)
    return inner if inspect.isfunction(inner) else None


def _member(owner: type, key: str, member: Any) -> str:
    plain = _plain(member)
    text = " ".join(_doc(plain).split())
    if isinstance(member, property):
        return f"- **`.{key}`**: {text}"
    shown = _signature(plain, bound=not isinstance(member, staticmethod))
    twin = "" if inspect.isfunction(member) or isinstance(member, classmethod | staticmethod) else " (and `.aio`)"
    name = "" if key == "__call__" else key if key in MAGIC else f".{key}"
    return f"- **`{name}{shown}`**{twin}: {text}"


def _code(name: str, value: Any) -> str:
    return f"```python\n{name}{_signature(value, bound=False)}\n```"


def _signature(value: Any, *, bound: bool) -> str:
    """Parameters and defaults, without annotations: those are for type checkers, and make lines long."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    parameters = list(signature.parameters.values())[1 if bound else 0 :]
    bare = [
        parameter.replace(
            annotation=inspect.Parameter.empty,
            default=parameter.default if parameter.default is inspect.Parameter.empty else _Default(parameter.default),
        )
        for parameter in parameters
    ]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


class _Default:
    """A default as it is written: values without a literal form are dots, so that the page is the same everywhere."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        value = self._value
        if isinstance(value, enum.Enum):
            return value.name
        plain = isinstance(value, str | int | float | bool | bytes | tuple | list | dict | None)
        return repr(value) if plain else "..."


def _doc(value: Any) -> str:
    own = value.__doc__ if isinstance(value, type) else getattr(value, "__doc__", None)
    return _text(own or "")


def _text(text: str) -> str:
    return inspect.cleandoc(text)


# --- errors ---


def _errors() -> Iterator[str]:
    from nanopod.model import errors

    yield "## Errors\n\nAll are imported from `nanopod`, and all are kinds of `NanopodError`.\n"
    rows = ["| class | also a | raised when |", "| --- | --- | --- |"]
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.NanopodError) and value.__module__ == errors.__name__:
            also = [base.__name__ for base in value.__mro__[1:] if base.__module__ == "builtins"]
            said = " ".join(_doc(value).split()).replace("|", "\\|")
            rows.append(f"| `{name}` | `{also[0]}` | {said} |")
    yield "\n".join(rows)


# --- the query language ---


def _query() -> Iterator[str]:
    from nanopod.client import columns, gpus, query

    yield "## nanopod.data.query"
    yield _text(query.__doc__ or "")
    for name in ("Query", "Column", "parse_query"):
        value = getattr(query, name)
        yield _entry(name, value) if isinstance(value, type) else f"### {name}\n\n{_code(name, value)}\n\n{_doc(value)}"
    found = sorted(name for name, value in vars(columns).items() if isinstance(value, query.Column))
    yield f"### Columns\n\nThe {len(found)} properties of an offer:\n\n" + _words(found)
    models = sorted(name for name, value in vars(gpus).items() if name[0].isupper() and isinstance(value, str))
    yield f"### GPUs\n\nThe {len(models)} constants for `gpu_name`:\n\n" + _words(models)


def _words(names: list[str]) -> str:
    lines, line = [], ""
    for name in names:
        word = f"`{name}`, "
        if len(line) + len(word) > 118:
            lines.append(line.rstrip())
            line = ""
        line += word
    return "\n".join([*lines, line.rstrip(", ")])


# --- the command line ---


def _commands() -> Iterator[str]:
    from nanopod.__main__ import make_parser, table
    from nanopod.client.cli.agents import tree

    yield "## The command line"
    yield "Every command also takes `--help`; those that talk to a server take `--url`, `--api-key`, `--json`, `-o`.\n"
    whole = tree(make_parser(table(), None), name="nanopod")
    for command in whole["commands"]:
        yield from _command(command, 3)


COMMON = {"url", "api_key", "json", "output", "yes", "no_input", "utc", "workspace"}


def _command(found: dict[str, Any], depth: int) -> Iterator[str]:
    words = " ".join(_shown(argument) for argument in found["arguments"])
    aliases = f" (also `{'`, `'.join(found['aliases'])}`)" if found.get("aliases") else ""
    lines = [f"{'#' * min(depth, 4)} {found['command']}", "", f"{_sentence(found['help'])}{aliases}", ""]
    if words or found["options"]:
        lines += [f"`{found['command']}{' ' + words if words else ''}`", ""]
    lines += [f"- `{a['metavar']}`: {a['help']}" for a in found["arguments"] if a["help"] and a["metavar"] != "..."]
    for option in found["options"]:
        if option["name"] in COMMON:
            continue
        value = "" if option["switch"] else f" {option.get('metavar') or ''}".rstrip()
        choices = f" (one of {', '.join(map(str, option['choices']))})" if option.get("choices") else ""
        lines.append(f"- `{', '.join(option['flags'])}{value}`: {option['help']}{choices}")
    if found.get("examples"):
        lines += ["", "```sh", *found["examples"], "```"]
    yield "\n".join(lines)
    for below in found.get("commands", ()):
        yield from _command(below, depth + 1)


def _shown(argument: dict[str, Any]) -> str:
    word = str(argument["metavar"])
    word = f"{word} ..." if argument["repeatable"] and word != "..." else word
    return word if argument["required"] else f"[{word}]"


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[0].upper()}{text[1:]}." if text and not text.endswith(".") else text


def main() -> int:
    """Write the page, or with `--check` say whether it is as it should be."""
    parser = argparse.ArgumentParser(description="Write docs/REFERENCE.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the page is stale")
    check = parser.parse_args().check
    made = page()
    if check:
        return int(made != PAGE.read_text())
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
