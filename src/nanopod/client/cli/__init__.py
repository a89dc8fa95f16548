"""The verbs of the `nanopod` command that talk to a cloud, as plain data: {verb: (module, help)}.

A module has `configure(parser)` and `run(args) -> exit status`; it is imported only when its verb is used.
"""

from __future__ import annotations

from typing import Final

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "deploy": ("nanopod.client.cli.deploy", "create or update the deployment in a Python file"),
    "plan": ("nanopod.client.cli.plan", "say what `nanopod deploy` would change, and why"),
    "run": ("nanopod.client.cli.run", "call a remote function of a Python file once"),
    "serve": ("nanopod.client.cli.serve", "serve a model as an OpenAI-compatible endpoint"),
    "chat": ("nanopod.client.cli.chat", "send one prompt to a served model and stream its answer"),
    "models": ("nanopod.client.cli.models", "list the models that answer here"),
    "endpoints": ("nanopod.client.cli.endpoints", "list, show, wait for and delete endpoints"),
    "deployments": ("nanopod.client.cli.deployments", "list and show what keeps instances running"),
    "instances": ("nanopod.client.cli.instances", "list and show workers, starting or running"),
    "nodes": ("nanopod.client.cli.nodes", "list the machines' parts that run instances"),
    "capacities": ("nanopod.client.cli.capacities", "list and show time held on nodes"),
    "instance-skus": ("nanopod.client.cli.skus", "list the kinds of nodes"),
    "keys": ("nanopod.client.cli.keys", "create, list and revoke API keys"),
    "billing": ("nanopod.client.cli.billing", "show what was used"),
}
