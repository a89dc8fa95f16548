"""`nanopod plan FILE`: what a deploy would change, without changing it."""

from __future__ import annotations

import argparse
import dataclasses

from nanopod.client.cli import deploy, show
from nanopod.model.errors import NanopodError


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod plan`."""
    parser.add_argument("file", help="Python file with a Deployment")
    parser.add_argument("--tag", help="plan for another tag than the file's own")
    show.add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit status 0 when nothing changes, 2 when something does, 3 when it is impossible."""
    app = deploy.prepared(args)
    if app is None:
        return 3
    try:
        plan = app.plan()
    except NanopodError as error:
        return deploy.failed(error) or 3
    if args.json:
        show.print_json(dataclasses.asdict(plan))
    else:
        print(plan)
    return 0 if plan.tier == 0 else 2
