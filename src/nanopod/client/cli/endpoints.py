"""`nanopod endpoints list|get|wait|scale|simulate|delete`."""

from __future__ import annotations

import argparse
from typing import Any

from nanopod.client.api import Api, segment
from nanopod.client.cli import deploy, manifests, scaling, serve, show, simulating
from nanopod.client.cli.instances import COLUMNS as INSTANCE_COLUMNS
from nanopod.model.errors import Invalid, NanopodError


def configure(parser: argparse.ArgumentParser) -> None:
    """Verbs of `nanopod endpoints`."""
    verbs = show.add_verbs(
        parser,
        {
            "list": "list all endpoints",
            "get": "show one endpoint, and why it has the workers it has",
            "wait": "wait until an endpoint has a ready worker",
            "scale": "change settings of its scaling; no worker is replaced",
            "simulate": "what its scaling, or another, would do with a load; nothing changes",
            "delete": "delete an endpoint; running requests finish first",
        },
    )
    for verb in ("get", "wait", "scale", "simulate", "delete"):
        verbs[verb].add_argument("name", metavar="NAME", help="an id, a name, or name:tag")
    verbs["wait"].add_argument("--timeout", type=float, default=900.0, metavar="S", help="default: 900")
    scaling.add_options(verbs["scale"])
    output = next(action for action in verbs["get"]._actions if action.dest == "output")
    output.choices, output.help = ("wide", "json", "kserve"), "json: the same as --json; kserve: as it was applied"
    simulating.add_options(verbs["simulate"])


def run(args: argparse.Namespace) -> int:
    """Do what the verb says."""
    api = show.api_of(args)
    if args.action == "list":
        rows = list(api.items("/v1/endpoints"))
        if args.json:
            show.print_page(rows)
        else:
            show.print_rows(rows, COLUMNS, empty="no endpoints; make one with `nanopod serve` or `nanopod deploy`")
        return 0
    path = f"/v1/endpoints/{segment(args.name)}"
    if args.action == "delete":
        answer = api.delete(path)
        if args.json:
            show.print_json(answer or {"deleted": True})
        else:
            print(f"{args.name} is deleted")
        return 0
    if args.action == "wait":
        return _wait(api, args)
    if args.action == "simulate":
        return simulating.run(api, args)
    if args.action == "scale":
        settings = scaling.settings_of(args)
        if not settings:
            raise Invalid("scale: give at least one setting, such as --min 1 or --profile vast", field="scale")
        found = api.patch(f"{path}/scale", scaling.scale_body(settings))
    else:
        found = api.get(path)
    if getattr(args, "output", None) == "kserve":
        print_applied(api, found)
    elif args.json:
        show.print_json(found)
    else:
        describe(found)
    return 0


def print_applied(api: Api, found: dict[str, Any]) -> None:
    """The object that an endpoint was made from, with its status, as YAML. Raises `Invalid` when it has none."""
    for row in api.items("/v1/manifests"):
        if found.get("id") in row.get("native", ()):
            manifests.print_objects([row], "kserve")
            return
    raise Invalid(f"{found.get('name')} was not made from a manifest; leave -o kserve out", field="output")


def describe(found: dict[str, Any]) -> None:
    """An endpoint for people: what, why, its workers, its failure."""
    failure = found.get("failure") or {}
    scale = found.get("scale") or {}
    show.print_facts(
        [
            ("endpoint", f"{found.get('name')}:{found.get('tag')}  {found.get('id')}"),
            ("kind", found.get("kind")),
            ("status", found.get("status")),
            (
                "workers",
                f"{found.get('ready_instance_count', 0)} ready of {found.get('target_instance_count', 0)} wanted",
            ),
            ("why", "\n".join(map(str, found.get("reasons") or ()))),
            ("functions", [f.get("name") if isinstance(f, dict) else f for f in found.get("functions") or ()]),
            ("web", "\n".join(_web_paths(found))),
            ("models", found.get("model_ids")),
            ("revision", found.get("revision_id")),
            ("label", found.get("version_label")),
            ("scale", " ".join(_settings(scale)) if found.get("kind") != "graph" else None),
            *scaling.facts(found),
            ("created", show.when(found.get("created_at"))),
            ("updated", show.when(found.get("updated_at"))),
        ]
    )
    if failure:
        print()
        show.print_facts(
            [
                ("failed in", failure.get("stage")),
                ("error", f"{failure.get('type_name') or 'Error'}: {failure.get('message')}"),
                ("traceback", str(failure.get("traceback") or "").rstrip()),
                ("log", str(failure.get("log_tail") or "").rstrip()),
            ]
        )
    if found.get("instances"):
        print()
        columns = [column for column in INSTANCE_COLUMNS if column[0] != "ENDPOINT"]
        show.print_rows(found["instances"], columns, empty="")


def _settings(scale: dict[str, Any]) -> list[str]:
    """The settings that say something, those of `tuning` by their own names."""
    tuned = {name: value for name, value in (scale.get("tuning") or {}).items() if value not in (None, "", [])}
    plain = {name: value for name, value in scale.items() if name != "tuning" and value is not None}
    return [f"{name}={show.text(value)}" for name, value in {**plain, **tuned}.items()]


def _wait(api: Api, args: argparse.Namespace) -> int:
    from nanopod.client.deploying import wait_endpoint

    try:
        with serve.waiting(args.name, quiet=args.json) as progress:
            found = wait_endpoint(api, args.name, args.timeout, progress=progress)
    except NanopodError as error:
        return deploy.failed(error)
    if args.json:
        show.print_json(found)
    else:
        print(f"{args.name} is {found.get('status')}")
    return 0


def _web_paths(found: dict[str, Any]) -> list[str]:
    """What answers over HTTP, with its method, and whether a key is needed."""
    functions = [dict(f["web"]) for f in found.get("functions") or () if isinstance(f, dict) and f.get("web")]
    mounted = [{**a, "method": "ANY", "path": f"{str(a.get('path')).rstrip('/')}/*"} for a in found.get("asgi") or ()]
    name = found.get("name") if found.get("tag") == "default" else f"{found.get('name')}:{found.get('tag')}"
    return [
        f"{web['method']} /web/{name}{web['path']}{'  (public)' if web.get('auth') == 'public' else ''}"
        for web in functions + mounted
    ]


def _workers(row: Any) -> str:
    return f"{row.get('ready_instance_count', 0)}/{row.get('target_instance_count', 0)}"


COLUMNS: list[show.Column] = [
    ("NAME", lambda row: row.get("name") if row.get("tag") == "default" else f"{row.get('name')}:{row.get('tag')}"),
    ("KIND", show.field("kind")),
    ("STATUS", show.field("status")),
    ("READY", _workers),
    ("MODELS", show.field("model_ids")),
    ("ID", show.field("id")),
    ("CREATED", show.moment("created_at")),
]
