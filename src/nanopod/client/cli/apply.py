"""`nanopod apply`, `diff` and `delete`: objects as KServe and Knative write them, from files."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from nanopod.client.api import Api, segment
from nanopod.client.cli import show
from nanopod.client.config import target
from nanopod.model.endpoint import EndpointSpec
from nanopod.model.errors import Invalid, NanopodError, NotFound

SUFFIXES: Final = (".yaml", ".yml", ".json")
REQUEST_S_MAX: Final = 600.0
BYTES_MAX: Final = 3 << 20
SERVICES: Final = ("InferenceService", "LLMInferenceService", "Service", "InferenceGraph")
WAITED: Final = (*SERVICES, "TrainedModel", "Job")
REJECTED: Final = 2
"""Exit status of `diff`, which says 1 when something differs."""
_CHANGED: Final = ("created", "configured")
_encode: Final = msgspec.json.encode
_decode: Final = msgspec.json.decode


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the three verbs; which one it is, is known by the parser's name."""
    verb = parser.prog.rpartition(" ")[2]
    parser.add_argument(
        "-f", "--filename", action="append", default=[], metavar="FILE|DIR|-", required=True,
        help="a file, a directory of .yaml, .yml and .json files, or - for standard input; may be repeated",
    )  # fmt: skip
    parser.add_argument("-R", "--recursive", action="store_true", help="directories inside directories, too")
    if verb != "delete":
        parser.add_argument("--strict", action="store_true", help="every warning is an error")
    if verb == "apply":
        parser.add_argument("--dry-run", action="store_true", help="change nothing; print what would be made")
        parser.add_argument("--wait", action="store_true", help="wait until services are ready and jobs are done")
        parser.add_argument("--timeout", type=float, default=900.0, metavar="S", help="of --wait (default: 900)")
        parser.add_argument(
            "--no-job-order", action="store_true", help="start services at once, also where a job fills their volume"
        )
    show.add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    """Do what the verb says; 1 when a document was rejected. `diff`: 1 when something differs, 2 when rejected."""
    api = Api(target(args.url, args.api_key), request_s_max=REQUEST_S_MAX)
    body: dict[str, Any] = {"files": [{"name": name, "text": text} for name, text in read_files(args)]}
    path = "/v1/manifests" + ({"diff": "/diff", "delete": "/delete"}.get(args.verb, ""))
    if args.verb != "delete":
        body["strict"] = args.strict
    if args.verb == "apply":
        body |= {"dry_run": args.dry_run, "job_order": not args.no_job_order}
    try:
        found = api.post(path, body)
    except NanopodError as error:
        found = error.__dict__.get("body") or {}
        if "documents" not in found:
            raise
        return _refused(args, found)
    if args.json:
        show.print_json(found)
    tell_problems(found)
    if args.verb == "diff":
        return _differences(args, found)
    if not args.json:
        _tell_documents(args, found.get("documents") or ())
    if args.verb == "apply" and args.wait and not args.dry_run:
        return _wait(api, args, found.get("documents") or ())
    return 0


def read_files(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(name, text) of every file that was named. Raises `Invalid`."""
    found: list[tuple[str, str]] = []
    for name in args.filename:
        path = Path(name)
        if name == "-":
            found.append(("-", sys.stdin.read()))
        elif path.is_dir():
            inside = sorted(path.rglob("*") if args.recursive else path.iterdir())
            files = [one for one in inside if one.suffix in SUFFIXES and one.is_file()]
            if not files:
                raise Invalid(f"-f {name}: has no files that end with {', '.join(SUFFIXES)}", field="filename")
            found += [(str(one), _text(one)) for one in files]
        else:
            found.append((name, _text(path)))
    if sum(len(text.encode()) for _, text in found) > BYTES_MAX:
        raise Invalid(f"-f: more than {BYTES_MAX >> 20} MiB in all; apply fewer files at a time", field="filename")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Invalid(f"-f {path}: {why}", field="filename") from None


def tell_problems(found: Mapping[str, Any]) -> None:
    """Errors and warnings with their place, on standard error."""
    for one in found.get("problems") or ():
        place = ":".join(str(part) for part in (one.get("source"), one.get("line"), one.get("column")) if part)
        path = f"{one['path']}: " if one.get("path") else ""
        print(f"{place}: {one.get('level')}: {path}{one.get('message')}", file=sys.stderr, flush=True)


def _tell_documents(args: argparse.Namespace, documents: Sequence[Mapping[str, Any]]) -> None:
    dry = " (dry run)" if getattr(args, "dry_run", False) else ""
    for one in documents:
        print(f"{str(one.get('kind')).lower()}/{one.get('name')} {one.get('action')}{dry}")
        for reason in one.get("reasons") or ():
            print(f"  {reason}")
        if getattr(args, "dry_run", False) and one.get("native"):
            stated = _stated(one["native"], _decode(_encode(EndpointSpec(""))))
            print("\n".join(f"  {line}" for line in yaml_text(stated).splitlines()))


def _stated(native: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """What of a specification is not as usual, or empty."""
    made: dict[str, Any] = {}
    for key, value in native.items():
        known = usual.get(key)
        inner = _plain(value, known if isinstance(known, Mapping) else {})
        if inner not in (None, "", [], {}) and value != known and key != "fingerprints":
            made[key] = inner
    return made


def _plain(value: Any, usual: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return _stated(value, usual)
    return [_plain(one, {}) for one in value] if isinstance(value, list) else value


def yaml_text(value: Any) -> str:
    """YAML for people: keys in their own order, text of several lines as it is."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """With block text."""

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)).rstrip("\n")


def _refused(args: argparse.Namespace, found: Mapping[str, Any]) -> int:
    if args.json:
        show.print_json(found)
    tell_problems(found)
    rejected = [one for one in found.get("documents") or () if one.get("action") == "rejected"]
    if any(one.get("action") == "failed" for one in found.get("documents") or ()):
        if not args.json:
            _tell_documents(args, found.get("documents") or ())
        print(f"nanopod {args.verb}: {found['error']['message']}", file=sys.stderr)
        return 1
    words = f"{len(rejected)} of {len(found['documents'])} documents rejected" if rejected else "rejected"
    done = {"diff": "compared", "delete": "deleted"}.get(args.verb, "changed")
    print(f"nanopod {args.verb}: {words}; nothing was {done}", file=sys.stderr)
    return REJECTED if args.verb == "diff" else 1


def _differences(args: argparse.Namespace, found: Mapping[str, Any]) -> int:
    """Say what differs; 0 when nothing does."""
    changed = [one for one in found.get("documents") or () if one.get("action") in _CHANGED]
    if not args.json:
        for one in changed:
            print(f"{str(one.get('kind')).lower()}/{one.get('name')} would be {one.get('action')}")
            for change in one.get("changes") or ():
                for sign, value in (("-", change.get("old")), ("+", change.get("new"))):
                    if value is not None:
                        print(f"{sign} {change.get('path')}: {value}")
            for reason in one.get("reasons") or ():
                print(f"  {reason}")
    return 1 if changed else 0


def _wait(api: Api, args: argparse.Namespace, documents: Sequence[Mapping[str, Any]]) -> int:
    """Wait for all services and jobs; 1 when one failed or the time is over."""
    deadline = time.monotonic() + args.timeout
    status = 0
    for one in documents:
        if one.get("kind") in WAITED:
            status = max(status, _wait_one(api, str(one["kind"]), str(one["name"]), deadline, quiet=args.json))
    return status


def _wait_one(api: Api, kind: str, name: str, deadline: float, *, quiet: bool) -> int:
    path = f"/v1/manifests/{kind}/{segment(name)}"
    pause_s, told = 0.05, ""
    while True:
        try:
            found = api.get(path)
        except NotFound:
            return 0  # a job whose time to live is over
        ready, reason = found.get("ready"), str(found.get("reason") or "")
        if ready == "True":
            if not quiet:
                print(f"{kind.lower()}/{name} is {'done' if kind == 'Job' else 'ready'}")
            return 0
        conditions = (found["manifest"].get("status") or {}).get("conditions") or ()
        failed = reason in ("RevisionFailed", "ModelFailed", "Stopped") or any(
            one.get("type") == "Failed" and one.get("status") == "True" for one in conditions
        )
        if failed or time.monotonic() > deadline:
            why = next((one["message"] for one in conditions if one.get("message")), reason or "no word")
            words = "failed" if failed else "is not ready in time"
            print(f"{kind.lower()}/{name} {words}: {why}", file=sys.stderr)
            return 0 if reason == "Stopped" else 1
        if reason != told and reason:
            told = reason
            print(f"{kind.lower()}/{name}: {reason}", file=sys.stderr, flush=True)
        time.sleep(pause_s * random.uniform(0.8, 1.2))
        pause_s = min(1.0, pause_s * 1.3)
