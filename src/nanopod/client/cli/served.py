"""What `nanopod serve` makes of its words: the model, how it is served, and how it is called then."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from nanopod.model.endpoint import ModelSpec, Protocol
from nanopod.model.errors import Invalid

FORMATS: Final = ("sklearn", "xgboost", "lightgbm", "onnx", "pytorch", "huggingface")
"""What our own model server loads."""
ENGINES: Final = ("reference", "command", "server")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how a model is served."""
    parser.add_argument("--engine", choices=ENGINES, help="default: command with a COMMAND, server with --format")
    group = parser.add_argument_group("our model server, for files of models")
    group.add_argument("--format", choices=FORMATS, help="of the model's files")
    group.add_argument(
        "--storage", action="append", default=[], metavar="URI",
        help="where the files are: s3://, gs://, hf://, https://, pvc://VOLUME/PATH; with a COMMAND, too",
    )  # fmt: skip
    group.add_argument("--storage-secret", default="", metavar="NAME", help="the secret that opens them")
    group.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the server, such as max_batch_size=32"
    )
    group = parser.add_argument_group("any command")
    group.add_argument("--command", dest="line", metavar="LINE", help="the command as one word, in place of -- COMMAND")
    group.add_argument("--port", type=int, metavar="N", help="that the command listens on (default: PORT tells it one)")
    group.add_argument("--ready-path", help="answers 200 once the command is ready (default: as its protocols say)")
    parser.add_argument(
        "--protocol", action="append", default=[], choices=get_args(Protocol),
        help="that it speaks, may be repeated (default: v1 and v2 with --format, else openai)",
    )  # fmt: skip
    parser.add_argument("--slots", type=int, default=8, help="requests that one worker runs at once (default: 8)")


def model_of(args: argparse.Namespace) -> dict[str, Any]:
    """The model as the API takes it. Raises `Invalid` for options that do not fit together."""
    command = _command(args)
    engine = args.engine or ("command" if command else "server" if args.format else "reference")
    _check(args, engine, command)
    source, model_id = args.model, args.model
    path = Path(args.model).expanduser()
    local = engine != "command" and not args.storage
    if local and (path.is_dir() or args.model.startswith((".", "/", "~"))):
        there = path.is_dir() or (engine == "server" and path.is_file())
        if not there:
            raise Invalid(f"there is no directory {args.model}", field="model")
        path = path.resolve()
        source, model_id = str(path), path.name if path.is_dir() else path.stem
    elif engine == "server" and not args.storage:
        raise Invalid(
            f"--storage: say where the files of {args.model} are, such as s3://bucket/prefix; or give a directory "
            "in place of its name",
            field="model.storage",
        )
    model: dict[str, Any] = {"model_id": model_id, "engine": engine, "source": source, "slots": args.slots}
    if engine == "command":
        model |= {"argv": command, "ready_path": args.ready_path or ModelSpec("").ready_path, "source": ""}
        if args.port is not None:
            model["port"] = args.port
    if engine == "server":
        model |= {"format": args.format, "options": _options(args.option)}
        if args.storage:
            model["source"] = ""
    if args.storage:
        secret = {"secret": args.storage_secret} if args.storage_secret else {}
        model["storage"] = [{"uri": uri, "path": _path(at), **secret} for at, uri in enumerate(args.storage)]
    protocols = tuple(dict.fromkeys(args.protocol)) or _usual(engine, args.format)
    return model | ({"protocols": list(protocols)} if protocols != ("openai",) else {})


def _command(args: argparse.Namespace) -> list[str]:
    command = list(getattr(args, "command", ()))
    if args.line is None:
        return command
    if command:
        raise Invalid("--command: give the command once, there or after --", field="model.argv")
    try:
        return shlex.split(args.line)
    except ValueError as error:
        raise Invalid(f"--command {args.line!r}: {error}", field="model.argv") from None


def _check(args: argparse.Namespace, engine: str, command: Sequence[str]) -> None:
    if (engine == "command") is not bool(command):
        raise Invalid(
            "--engine command needs the command after --, and a command needs that engine: nanopod serve M -- CMD ...",
            field="engine",
        )
    if engine == "server" and not args.format:
        raise Invalid(f"--format: name the format of the files: {', '.join(FORMATS)}", field="model.format")
    only = (
        ("--format", args.format, ("server",)), ("--option", args.option, ("server",)),
        ("--storage", args.storage, ("server", "command")), ("--port", args.port is not None, ("command",)),
        ("--ready-path", args.ready_path, ("command",)),
        ("--protocol", args.protocol and args.protocol != ["openai"], ("server", "command")),
    )  # fmt: skip
    for name, given, engines in only:
        if given and engine not in engines:
            raise Invalid(f"{name} is for engine {' or '.join(engines)}, not {engine}", field="engine")
    if args.storage_secret and not args.storage:
        raise Invalid("--storage-secret opens --storage: give that, too", field="model.storage")


def _options(words: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name.strip():
            raise Invalid(f"--option {word}: write NAME=VALUE", field="model.options")
        found[name.strip()] = value if equals else "true"
    return found


def _path(at: int) -> str:
    return "/mnt/models" if not at else f"/mnt/models-{at + 1}"


def _usual(engine: str, form: str | None) -> tuple[str, ...]:
    if engine != "server":
        return ("openai",)
    return ("openai", "v1", "v2") if form == "huggingface" else ("v1", "v2")


def address(url: str, name: str, model: Mapping[str, Any]) -> str:
    """Where a model answers."""
    protocols = model.get("protocols") or ["openai"]
    if "openai" in protocols:
        return f"{url}/v1"
    if protocols == ["http"]:
        return f"{url}/services/{name}"
    return f"{url}/{'v1' if 'v1' in protocols else 'v2'}/models/{model['model_id']}"


def snippets(url: str, name: str, model: Mapping[str, Any]) -> str:
    """How to call a model, by curl and from Python."""
    model_id, protocols = model["model_id"], model.get("protocols") or ["openai"]
    curl = '  curl {} -H "Authorization: Bearer $NANOPOD_API_KEY"'
    if "openai" in protocols:
        return openai_snippets(url, model_id, embedding=embeds(model))
    made = []
    if "v1" in protocols:
        body = '{"instances": [[0.0, 1.0]]}'
        made.append(curl.format(f"{url}/v1/models/{model_id}:predict") + f" \\\n    -d '{body}'")
    if "v2" in protocols:
        body = '{"inputs": [{"name": "input-0", "shape": [1, 2], "datatype": "FP32", "data": [0.0, 1.0]}]}'
        made.append(curl.format(f"{url}/v2/models/{model_id}/infer") + f" \\\n    -d '{body}'")
    if "http" in protocols:
        made.append(curl.format(f"{url}/services/{name}/"))
    return "\n\n".join(made)


def openai_snippets(url: str, model_id: str, *, embedding: bool) -> str:
    """The same of a model behind OpenAI's API."""
    if embedding:
        path, body = "embeddings", f'{{"model": "{model_id}", "input": "Hello"}}'
        python = f'client.embeddings.create(model="{model_id}", input="Hello").data[0].embedding'
    else:
        path = "chat/completions"
        body = f'{{"model": "{model_id}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
        messages = '[{"role": "user", "content": "Hello"}]'
        python = f'client.chat.completions.create(model="{model_id}", messages={messages}).choices[0].message.content'
    return (
        f'  curl {url}/v1/{path} -H "Authorization: Bearer $NANOPOD_API_KEY" \\\n'
        f"    -H 'Content-Type: application/json' -d '{body}'\n\n"
        "  import os\n  from openai import OpenAI\n"
        f'  client = OpenAI(base_url="{url}/v1", api_key=os.environ["NANOPOD_API_KEY"])\n'
        f"  print({python})"
    )


def embeds(model: Mapping[str, Any]) -> bool:
    """Whether a model makes vectors rather than text, as far as its files or its name tell."""
    try:
        kind = json.loads((Path(model["source"]) / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError):
        name = model["model_id"].lower()
        return any(word in name for word in ("minilm", "embed", "bert", "bge-", "gte-", "e5-"))
    return str(kind) in ("bert", "roberta", "xlm-roberta", "mpnet")
