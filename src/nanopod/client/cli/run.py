"""`nanopod run FILE::FUNCTION --x 5`: call a remote function once and print what it returns."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from nanopod.client.cli import deploy, show
from nanopod.client.function import RemoteFunction, RemoteGenerator
from nanopod.model.errors import DeploymentFailed, Invalid, NanopodError


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod run`; those of the function follow its name."""
    show.add_server_options(parser)
    parser.add_argument("target", metavar="FILE[::FUNCTION]", help="the function may be left out when there is one")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the function: values, or --name value"
    )


def run(args: argparse.Namespace) -> int:
    """Deploy if need be, call, print. Exit status 1 when the function raised, 3 when it could not be deployed."""
    import os

    from nanopod.client import config
    from nanopod.client.cli.loading import deployment_in, load

    file, _, name = args.target.partition("::")
    url = config.find_url(args.url)
    os.environ["NANOPOD_MODE"] = "deploy" if url else "local"
    try:
        module = load(file)
    except (NanopodError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's file may raise anything, even SystemExit
        deploy.print_user_error(file, error)
        return 3
    app = deployment_in(module)
    app._url, app._api_key = url, args.api_key or app._api_key
    function = _function(vars(module), name, file)
    places, names = parse_arguments(function, args.arguments)
    try:
        app.ensure_ready()
    except NanopodError as error:
        return deploy.failed(error)
    try:
        if isinstance(function, RemoteGenerator):
            for item in function(*places, **names):
                _print(item, args.json)
        else:
            _print(function.remote(*places, **names), args.json)
    except DeploymentFailed as error:
        return deploy.failed(error)
    except Exception as error:  # whatever the remote function raised
        traceback.print_exception(type(error), error, None, file=sys.stderr)
        return 1
    return 0


def _function(names: dict[str, Any], wanted: str, file: str) -> RemoteFunction[..., Any] | RemoteGenerator[..., Any]:
    found = {name: value for name, value in names.items() if isinstance(value, RemoteFunction | RemoteGenerator)}
    if wanted in found:
        return found[wanted]
    if not wanted and len(found) == 1:
        return next(iter(found.values()))
    there = ", ".join(sorted(found)) or "none"
    what = f"no remote function {wanted!r}" if wanted else "several remote functions"
    raise Invalid(f"{file} has {what}; it has {there}: name one as {file}::NAME", field="function")


def parse_arguments(function: Callable[..., Any], words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """(positional, by name) from the command line, typed by the function's annotations. Raises `Invalid`."""
    parameters = inspect.signature(function).parameters
    positional: list[Any] = []
    named: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            continue
        if not word.startswith("--") or _is_number(word):
            positional.append(_value(word, _annotation(parameters, len(positional))))
            continue
        name, given, text = word[2:].partition("=")
        name = name.replace("-", "_")
        if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise Invalid(f"--{name} is no parameter; there are {', '.join(parameters) or 'none'}", field=name)
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        if not given and (annotation in (bool, "bool")) and (not rest or rest[0].startswith("--")):
            named[name] = True
            continue
        if not given and not rest:
            raise Invalid(f"--{name} needs a value", field=name)
        named[name] = _value(text if given else rest.pop(0), annotation)
    return positional, named


def _annotation(parameters: Any, index: int) -> Any:
    listed = list(parameters.values())
    return listed[index].annotation if index < len(listed) else inspect.Parameter.empty


def _is_number(word: str) -> bool:
    return word.startswith("-") and word[1:].replace(".", "", 1).isdigit()


def _value(text: str, annotation: Any) -> Any:
    """Text as the annotated type; without one, a Python literal or JSON where it is one, else the text."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    try:
        if name in ("int", "float"):
            return {"int": int, "float": float}[name](text)
        if name == "bool":
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    except (ValueError, KeyError):
        raise Invalid(f"{text!r} is no {name}") from None
    if name == "str":
        return text
    if name == "bytes":
        return text.encode()
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def _print(value: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(value, default=repr))
    else:
        print(value)
