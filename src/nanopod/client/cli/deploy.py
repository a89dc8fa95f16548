"""`nanopod deploy FILE`: create or update the deployment in a file."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import traceback

from nanopod.client import config
from nanopod.client.api import Api
from nanopod.client.cli import show
from nanopod.client.sdk import Deployment
from nanopod.model.errors import DeploymentFailed, Invalid, NanopodError


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod deploy`."""
    parser.add_argument("file", help="Python file with a Deployment")
    parser.add_argument("--tag", help="deploy under another tag than the file's own")
    parser.add_argument("--label", metavar="TEXT", help="free text on this version (it restarts nothing)")
    parser.add_argument("--wait", action="store_true", help="return when a worker is ready")
    parser.add_argument("--timeout", type=float, default=900.0, metavar="S", help="for --wait (default: 900)")
    show.add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    """Deploy; exit status 3 when that is not possible."""
    app = prepared(args)
    if app is None:
        return 3
    try:
        app.ensure_ready()
        plan = app._last_plan
        assert plan is not None, "a deploy has a plan"
        if not args.json:
            print(plan)
        if args.wait:
            _wait(app, args)
    except NanopodError as error:
        return failed(error)
    if args.json:
        show.print_json({**dataclasses.asdict(plan), "endpoint": app._endpoint})
    elif args.wait:
        print(f"{plan.endpoint} is ready")
    return 0


def _wait(app: Deployment, args: argparse.Namespace) -> None:
    """Wait for a ready worker, and show meanwhile how far it is. Raises `DeploymentFailed`."""
    from nanopod.client import deploying
    from nanopod.client.cli import serve

    name = f"{app.name}:{app.tag}"
    with serve.waiting(name, quiet=args.json) as progress:
        app._endpoint = deploying.wait_endpoint(
            Api(config.Target(app._route.url, app._route.key)) if app._route else show.api_of(args), name, args.timeout,
            progress=progress,
        )  # fmt: skip


def prepared(args: argparse.Namespace) -> Deployment | None:
    """The file's deployment, aimed at a server; None (and a message) when the file does not import."""
    import os

    from nanopod.client.cli.loading import deployment_in, load

    url = config.find_url(args.url)
    if url is None:
        raise Invalid("no nanopod server is known; start one with `nanopod up`, or set NANOPOD_URL", field="url")
    os.environ["NANOPOD_MODE"] = "deploy"
    try:
        app = deployment_in(load(args.file))
    except (NanopodError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's file may raise anything, even SystemExit
        print_user_error(args.file, error)
        return None
    app._url = url
    app._api_key = args.api_key or app._api_key
    app.tag = args.tag or app.tag
    app.version_label = getattr(args, "label", None) or app.version_label
    return app


def print_user_error(file: str, error: BaseException) -> None:
    """The traceback of a user's file, from its own first frame on."""
    print(f"{file} does not import:", file=sys.stderr)
    frames = error.__traceback__
    while (
        frames is not None and frames.tb_next is not None and "nanopod/client/cli" in frames.tb_frame.f_code.co_filename
    ):
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames, file=sys.stderr)


def failed(error: NanopodError) -> int:
    """Print why a deploy failed; its exit status."""
    print(f"{type(error).__name__}: {error.message}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(note, file=sys.stderr)
    return 3 if isinstance(error, DeploymentFailed) else 2 if isinstance(error, Invalid) else 3
