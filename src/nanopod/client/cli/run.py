"""`nanopod run FILE::FUNCTION --x 5`: call a remote function once and print what it returns."""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from nanopod.client.cli import deploy, show
from nanopod.client.function import RemoteFunction, RemoteGenerator
from nanopod.model.errors import DeploymentFailed, Invalid, NanopodError, NotFound


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod run`; those of the function follow its name."""
    show.add_server_options(parser)
    parser.add_argument(
        "--tag", help="use (and leave) the deployment under this tag; default: one that is deleted after"
    )
    parser.add_argument(
        "--detach",
        action="store_true",
        help="start the call, print its id and return; it is deployed under its own tag",
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds the function may run")
    parser.add_argument("target", metavar="FILE[::FUNCTION]", help="the function may be left out when there is one")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the function: values, or --name value"
    )


def run(args: argparse.Namespace) -> int:
    """Deploy, call, print, and delete what was deployed for this call alone.

    Exit status 1 when the function raised, 2 for wrong arguments, 3 when it could not be deployed.
    """
    import os

    from nanopod.client import config, printing
    from nanopod.client.cli.loading import deployment_in, load

    file, _, name = args.target.partition("::")
    url = config.find_url(args.url)
    if args.detach and url is None:
        raise Invalid("--detach needs a server that outlives this command: start one with `nanopod up`", field="url")
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
    app.tag = args.tag or app.tag
    function = _function(vars(module), name, file)
    places, names = parse_arguments(function, args.arguments)
    try:
        function._bound.bind(tuple(places), names)
    except TypeError as error:
        raise Invalid(str(error), field="arguments") from None
    if args.timeout is not None:
        function = function.with_options(timeout=args.timeout)
    printing.to_stderr = args.json
    only_once = url is not None and not args.detach and args.tag is None
    with contextlib.ExitStack() as stack:
        try:
            if only_once:
                stack.enter_context(app.run())
            else:
                if url is not None and not app.version_label:
                    app.version_label = _label(app)
                app.ensure_ready()
        except NanopodError as error:
            return deploy.failed(error)
        return _call(function, places, names, args)


def _label(app: Any) -> str:
    """The label of what is deployed: a call must not take it away."""
    from nanopod.client import deploying

    try:
        return str(deploying.fetch(app).get("version_label") or "")
    except NotFound:
        return ""


def _call(
    function: RemoteFunction[..., Any] | RemoteGenerator[..., Any], places: list[Any], names: dict[str, Any],
    args: argparse.Namespace,
) -> int:  # fmt: skip
    """Make the call and print what comes of it; the exit status."""
    try:
        if args.detach:
            made = function.spawn(*places, **names)
            print(json.dumps({"id": made.id}) if args.json else made.id, flush=True)
        elif isinstance(function, RemoteGenerator):
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
        if name not in parameters and name.startswith("no_") and _names_of(_of(parameters, name[3:])) == ["bool"]:
            named[name[3:]] = False
            continue
        if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise Invalid(f"--{name} is no parameter; there are {', '.join(parameters) or 'none'}", field=name)
        annotation = _of(parameters, name)
        if not given and _names_of(annotation) == ["bool"] and (not rest or rest[0].startswith("--")):
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


def _of(parameters: Any, name: str) -> Any:
    """The annotation of a parameter by its name."""
    return parameters[name].annotation if name in parameters else inspect.Parameter.empty


def _names_of(annotation: Any) -> list[str]:
    """The plain types that an annotation allows, without None: `int | None` is `["int"]`."""
    if annotation is inspect.Parameter.empty:
        return []
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "") or str(annotation)
    if not isinstance(annotation, str) and ("|" in str(annotation) or "Optional" in str(annotation)):
        text = str(annotation)
    text = text.strip().removeprefix("typing.")
    if text.startswith("Optional[") and text.endswith("]"):
        text = text[len("Optional[") : -1]
    return [part.strip() for part in text.split("|") if part.strip() not in ("None", "NoneType")]


def _value(text: str, annotation: Any) -> Any:
    """Text as the annotated type; without one, a Python literal or JSON where it is one, else the text."""
    names = _names_of(annotation)
    name = names[0] if len(names) == 1 else ""
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
        print(json.dumps(value, default=repr), flush=True)
    else:
        print(value, flush=True)
