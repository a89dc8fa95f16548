"""`nanopod serve MODEL`: a model behind the OpenAI API, by the built-in engine or by any command that speaks it."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nanopod.client import autoscaling
from nanopod.client.cli import deploy, scaling, show
from nanopod.client.source import clean_name
from nanopod.model.errors import Invalid, NanopodError


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod serve`."""
    parser.usage = "nanopod serve MODEL [options] [-- COMMAND ...]"
    parser.epilog = (
        "MODEL is nanopod-tiny, a directory in Hugging Face layout, a hub id, or with a COMMAND any id. "
        "In COMMAND {port}, {host} and {model} are filled in: nanopod serve qwen -- vllm serve qwen --port {port}"
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--name", help="of the endpoint (default: the model's last part)")
    parser.add_argument("--engine", choices=("reference", "command"), help="default: command when there is a COMMAND")
    parser.add_argument("--slots", type=int, default=8, help="requests that one worker runs at once (default: 8)")
    parser.add_argument(
        "--min", type=int, dest="least", metavar="N", help="workers kept loaded (default: 1; 0: may sleep)"
    )
    parser.add_argument("--max", type=int, dest="most", metavar="N", help="largest number of workers")
    parser.add_argument("--idle", type=float, metavar="S", help="sleep after so many idle seconds (implies --min 0)")
    scaling.add_options(parser, without=("--min", "--max", "--idle"))
    parser.add_argument("--ready-path", default="/v1/models", help="of a COMMAND: answers 200 when ready")
    parser.add_argument("--no-wait", action="store_true", help="do not wait until a worker is ready")
    parser.add_argument("--timeout", type=float, default=900.0, metavar="S", help="longest wait (default: 900)")
    show.add_server_options(parser)
    _split_command(parser)


def run(args: argparse.Namespace) -> int:
    """Create or update the endpoint, wait, print how to call it. Exit status 3 when it does not start."""
    api = show.api_of(args)
    body = body_of(args)
    model_id = body["model"]["model_id"]
    try:
        answer = api.post("/v1/endpoints", body)
        endpoint = answer.get("endpoint", {})
        if not args.no_wait:
            from nanopod.client.deploying import wait_endpoint

            with waiting(f"{body['name']}: {answer.get('action', 'created')}", quiet=args.json) as progress:
                endpoint = wait_endpoint(api, str(endpoint.get("id") or body["name"]), args.timeout, progress=progress)
    except NanopodError as error:
        return deploy.failed(error)
    if args.json:
        show.print_json({**answer, "endpoint": endpoint})
        return 0
    state = "is ready" if endpoint.get("ready_instance_count") else f"is {endpoint.get('status', 'created')}"
    print(f"{model_id} {state} at {api.target.url}/v1\n")
    print(snippets(api.target.url, model_id, embedding=embeds(body["model"])))
    return 0


def body_of(args: argparse.Namespace) -> dict[str, Any]:
    """The request that creates the endpoint. Raises `Invalid` for options that do not fit together."""
    command: Sequence[str] = getattr(args, "command", ())
    engine = args.engine or ("command" if command else "reference")
    if (engine == "command") is not bool(command):
        raise Invalid(
            "--engine command needs the command after --, and a command needs that engine: nanopod serve M -- CMD ...",
            field="engine",
        )
    source, model_id = args.model, args.model
    path = Path(args.model).expanduser()
    if engine == "reference" and (path.is_dir() or args.model.startswith((".", "/", "~"))):
        if not path.is_dir():
            raise Invalid(f"there is no directory {args.model}", field="model")
        source, model_id = str(path.resolve()), path.resolve().name
    settings: dict[str, Any] = {}
    least = 0 if args.idle is not None and args.least is None else args.least
    if least is not None:
        settings |= {"min_scale": least} if least else {"min_load": 0}
    if args.most is not None:
        settings["max_workers"] = args.most
    if args.idle is not None:
        settings["inactivity_timeout"] = args.idle
    scale = scaling.scale_body(autoscaling.checked(settings) | scaling.settings_of(args))
    model = {"model_id": model_id, "engine": engine, "source": source, "slots": args.slots}
    if command:
        model |= {"argv": list(command), "ready_path": args.ready_path, "source": ""}
    name = args.name or clean_name(model_id.rpartition("/")[2]).lower()
    return {"name": name, "kind": "model", "model": model, "scale": scale}


@contextlib.contextmanager
def waiting(title: str, *, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A spinner that shows the newest reason while an endpoint wakes; a line per change where nobody watches."""
    begin = time.monotonic()
    last = ""

    def describe(endpoint: dict[str, Any]) -> str:
        phases = [str(instance.get("phase", "")) for instance in endpoint.get("instances") or []]
        counted = ", ".join(f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases))
        return f"{title}, {endpoint.get('status', '?')}" + (f" ({counted})" if counted else "")

    if quiet:
        yield lambda endpoint: None
    elif show.for_people():
        from rich.console import Console

        with Console().status(title) as status:
            yield lambda endpoint: status.update(f"{describe(endpoint)}  {time.monotonic() - begin:.1f} s")
    else:

        def say(endpoint: dict[str, Any]) -> None:
            nonlocal last
            if (now := describe(endpoint)) != last:
                last = now
                print(now, file=sys.stderr, flush=True)

        yield say


def snippets(url: str, model_id: str, *, embedding: bool) -> str:
    """How to call a model, by curl and from Python."""
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


def embeds(model: dict[str, Any]) -> bool:
    """Whether a model makes vectors rather than text, as far as its files or its name tell."""
    try:
        kind = json.loads((Path(model["source"]) / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError):
        name = model["model_id"].lower()
        return any(word in name for word in ("minilm", "embed", "bert", "bge-", "gte-", "e5-"))
    return str(kind) in ("bert", "roberta", "xlm-roberta", "mpnet")


def _split_command(parser: argparse.ArgumentParser) -> None:
    """Everything after `--` is the command; argparse alone mixes it with the options before."""
    plain = parser.parse_known_args

    def parse(args: Any = None, namespace: Any = None) -> Any:
        words = list(args or ())
        at = words.index("--") if "--" in words else len(words)
        parsed, extra = plain(words[:at], namespace)
        parsed.command = words[at + 1 :]
        return parsed, extra

    parser.parse_known_args = parse  # type: ignore[method-assign]
