"""The verbs of the `nanopod` command that talk to a cloud, as plain data: {verb: (module, help)}.

A module has `configure(parser)` and `run(args) -> exit status`; it is imported only when its verb is used.
"""

from __future__ import annotations

from typing import Final

_ROOM: Final = "nanopod.client.cli."
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "deploy": (_ROOM + "deploy", "create or update the deployment in a Python file"),
    "plan": (_ROOM + "plan", "say what `nanopod deploy` would change, and why"),
    "run": (_ROOM + "run", "call a remote function of a Python file once"),
    "dev": (_ROOM + "dev", "deploy a Python file, show its output, take changes as it is saved"),
    "ps": (_ROOM + "ps", "list deployments, their workers and calls"),
    "top": (_ROOM + "top", "watch load, queue, times and cost of deployments"),
    "shell": (_ROOM + "shell", "open a terminal in a worker of a deployment"),
    "bench": (_ROOM + "bench_verb", "measure calls of a deployed function against a plain echo"),
    "versions": (_ROOM + "rollback", "list the versions of a deployment"),
    "rollback": (_ROOM + "rollback", "take a deployment back to an earlier version"),
    "promote": (_ROOM + "rollback", "give the canary of a deployment all calls"),
    "traffic": (_ROOM + "traffic", "show or say how calls are divided among versions"),
    "serve": (_ROOM + "serve", "serve a model as an OpenAI-compatible endpoint"),
    "chat": (_ROOM + "chat", "send one prompt to a served model and stream its answer"),
    "models": (_ROOM + "models", "list the models that answer here"),
    "apply": (_ROOM + "apply", "bring a workspace to the KServe and Knative objects in files"),
    "diff": (_ROOM + "apply", "say what `nanopod apply` would change"),
    "delete": (_ROOM + "apply", "delete the objects in files"),
    "get": (_ROOM + "manifests", "show applied objects and their status"),
    "endpoints": (_ROOM + "endpoints", "list, show, wait for and delete endpoints"),
    "buy": (_ROOM + "trade", "buy time on nodes"),
    "sell": (_ROOM + "trade", "sell time that you hold"),
    "availability": (_ROOM + "skus", "show what is for sale"),
    "capacities": (_ROOM + "capacities", "hold time on nodes, and move it"),
    "deployments": (_ROOM + "deployments", "keep instances running"),
    "procurements": (_ROOM + "procurements", "keep a capacity supplied with time"),
    "instances": (_ROOM + "instances", "run, enter, replace and end instances"),
    "instance-templates": (_ROOM + "templates", "say what a new instance is made of"),
    "images": (_ROOM + "images", "upload and manage root file systems"),
    "instance-skus": (_ROOM + "skus", "list the kinds of nodes"),
    "nodes": (_ROOM + "nodes", "list the machines' parts that run instances"),
    "orders": (_ROOM + "orders", "place, follow and cancel orders"),
    "orderbook": (_ROOM + "orderbook", "look at prices, windows and trades"),
    "contracts": (_ROOM + "contracts", "list what was bought and sold"),
    "providers": (_ROOM + "providers", "see and set how nodes are sold"),
    "offers": (_ROOM + "providers", "see and set the terms of what is on sale"),
    "events": (_ROOM + "events", "see what happened, and follow what happens"),
    "calls": (_ROOM + "calls", "list, fetch, follow and cancel spawned calls"),
    "schedules": (_ROOM + "schedules", "see, pause and start functions that start by themselves"),
    "webhooks": (_ROOM + "webhooks", "have events sent to a program of yours"),
    "secrets": (_ROOM + "secrets", "keep values that workers get as environment variables"),
    "volumes": (_ROOM + "volumes", "keep files that workers mount"),
    "dicts": (_ROOM + "dicts", "look at shared dictionaries, and delete them"),
    "queues": (_ROOM + "queues", "look at shared queues, and delete them"),
    "billing": (_ROOM + "billing", "balances, transactions, invoices and usage"),
    "keys": (_ROOM + "keys", "create, list and revoke API keys"),
    "workspaces": (_ROOM + "workspaces", "make and manage workspaces"),
    "test-clock": (_ROOM + "clock", "look at and advance the clock of a test cluster"),
    "login": (_ROOM + "account", "keep a server and a key for later commands"),
    "me": (_ROOM + "account", "show who this key is"),
    "version": (_ROOM + "account", "show the versions of program and server"),
    "completion": (_ROOM + "completion", "print the shell's completion script"),
    "agents": (_ROOM + "agents", "describe all commands to programs"),
}
ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "capacities": ("pools",),
    "keys": ("tokens",),
    "instances": ("vms",),
    "instance-templates": ("node-templates",),
}
"""Other names of verbs, from earlier vocabularies."""
EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "deploy": ("nanopod deploy app.py --wait",),
    "plan": ("nanopod plan app.py",),
    "run": ("nanopod run app.py::square --x 5",),
    "dev": ("nanopod dev app.py",),
    "serve": ("nanopod serve nanopod-tiny", "nanopod serve qwen -- vllm serve qwen --port {port}"),
    "chat": ('nanopod chat nanopod-tiny "What is a nanopod?"',),
    "models": ("nanopod models list",),
    "endpoints": ("nanopod endpoints get nanopod-tiny",),
    "apply": ("nanopod apply -f service.yaml --wait", "nanopod apply -f models/ --dry-run"),
    "diff": ("nanopod diff -f service.yaml",),
    "delete": ("nanopod delete -f service.yaml",),
    "get": ("nanopod get inferenceservices", "nanopod get isvc iris -o kserve"),
    "nodes": ("nanopod nodes list",),
}
"""Examples of verbs whose modules do not hold their own."""
