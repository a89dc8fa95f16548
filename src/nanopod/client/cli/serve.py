"""`nanopod serve MODEL`: a model by the built-in engine, by our model server, or by any command."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from nanopod.client import autoscaling
from nanopod.client.cli import deploy, scaling, served, show
from nanopod.client.cli.parser import Parser
from nanopod.client.source import clean_name
from nanopod.model.errors import NanopodError

EXAMPLES: Final = (
    "nanopod serve nanopod-tiny",
    "nanopod serve qwen -- vllm serve qwen --port {port}",
    "nanopod serve iris --format sklearn --storage s3://models/iris --protocol v2",
    "nanopod serve ./iris --format sklearn --option max_batch_size=32 --min 0 --idle 60",
    "nanopod serve web --command 'python3 server.py' --protocol http --port 8080 --profile knative",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod serve`."""
    parser.usage = "nanopod serve MODEL [options] [-- COMMAND ...]"
    parser.description = (
        "Serve a model: nanopod-tiny, a directory in Hugging Face layout or a hub id by the built-in engine; with "
        "--format a directory or a name by our model server; with a COMMAND any name. In COMMAND {port}, {host} and "
        "{model} are filled in."
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--name", help="of the endpoint (default: the model's last part)")
    served.add_options(parser)
    parser.add_argument(
        "--min", type=int, dest="least", metavar="N", help="workers kept loaded (default: 1; 0: may sleep)"
    )
    parser.add_argument("--max", type=int, dest="most", metavar="N", help="largest number of workers")
    parser.add_argument("--idle", type=float, metavar="S", help="sleep after so many idle seconds (implies --min 0)")
    scaling.add_options(parser, without=("--min", "--max", "--idle"))
    parser.add_argument("--no-wait", action="store_true", help="do not wait until a worker is ready")
    parser.add_argument("--timeout", type=float, default=900.0, metavar="S", help="longest wait (default: 900)")
    show.add_server_options(parser)
    if isinstance(parser, Parser):
        parser.takes_command = True
        parser.show_examples(EXAMPLES)


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
    print(f"{model_id} {state} at {served.address(api.target.url, body['name'], body['model'])}\n")
    print(served.snippets(api.target.url, body["name"], body["model"]))
    return 0


def body_of(args: argparse.Namespace) -> dict[str, Any]:
    """The request that creates the endpoint. Raises `Invalid` for options that do not fit together."""
    model = served.model_of(args)
    settings: dict[str, Any] = {}
    least = 0 if args.idle is not None and args.least is None else args.least
    if least is not None:
        settings |= {"min_scale": least} if least else {"min_load": 0}
    if args.most is not None:
        settings["max_workers"] = args.most
    if args.idle is not None:
        settings["inactivity_timeout"] = args.idle
    scale = scaling.scale_body(autoscaling.checked(settings) | scaling.settings_of(args))
    name = args.name or clean_name(model["model_id"].rpartition("/")[2]).lower()
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
