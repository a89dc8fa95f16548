"""`nanopod dev FILE`: deploy under a tag of one's own, show what workers print, take changes as files are saved."""

from __future__ import annotations

import argparse
import getpass
import importlib
import inspect
import os
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from nanopod.client import config, deploying, source
from nanopod.client.api import Api
from nanopod.client.bundle import Bundle
from nanopod.client.cli import deploy, logs, show
from nanopod.client.cli.loading import deployment_in, load
from nanopod.client.sdk import Deployment
from nanopod.client.watching import Watch
from nanopod.model import bodies
from nanopod.model.endpoint import EndpointSpec
from nanopod.model.errors import NanopodError, NotFound

TTL_S: Final = 300.0
"""A session that was killed, and could not clean up, is torn down after so long."""
END_S_MAX: Final = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod dev`."""
    parser.add_argument("file", help="Python file with a Deployment")
    parser.add_argument("--tag", help="deploy under this tag (default: dev-USER)")
    parser.add_argument("--no-reload", action="store_true", help="do not take changes of the files")
    show.add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    """Until Ctrl-C (then 0): what was deployed is deleted again. 3 when the first deploy is not possible."""
    session = Session(args)
    try:
        if not session.begin():
            return 3
        session.watch()
    except KeyboardInterrupt:
        session.say("ending")
    except NanopodError as error:
        return deploy.failed(error)
    finally:
        session.end()
    return 0


def tag_of_user() -> str:
    """The tag of this person's dev deployments."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        name = str(os.getuid())
    return f"dev-{source.clean_name(name)}"


class Session:
    """One run of `nanopod dev`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._file = Path(args.file).expanduser().resolve()
        self._tag = args.tag or tag_of_user()
        self._url = config.find_url(args.url)
        self._app: Deployment | None = None
        self._spec: EndpointSpec | None = None
        self._bundle: Bundle | None = None
        self._module: ModuleType | None = None
        self._over = threading.Event()
        self._follower: threading.Thread | None = None

    # --- what it says ---

    def say(self, text: str, **fields: Any) -> None:
        """A line of the session itself, apart from what workers print."""
        if self._args.json:
            show.print_line({"event": text, **fields})
        else:
            more = " ".join(f"{name}={value}" for name, value in fields.items())
            print(f"nanopod dev: {text}{' ' + more if more else ''}", file=sys.stderr, flush=True)

    # --- deploying ---

    def begin(self) -> bool:
        """The first deploy; False (and the reason on standard error) when it is not possible."""
        watch = Watch([self._file])
        while True:
            try:
                self._deploy(self._load())
                break
            except NanopodError as error:
                deploy.failed(error)
            except Exception as error:
                deploy.print_user_error(self._args.file, error)
            if self._args.no_reload or not self._file.is_file():
                return False
            self.say("waiting for a change")
            watch.wait(self._over.is_set)
        self._introduce()
        self._follower = threading.Thread(target=self._follow, name="dev-logs", daemon=True)
        self._follower.start()
        return True

    def _load(self) -> Deployment:
        """The file's deployment as it is now; what an earlier version of it registered is forgotten."""
        os.environ["NANOPOD_MODE"] = "deploy" if self._url else "local"
        here = source.source_at(self._file) if self._file.is_file() else None
        top = here.module.partition(".")[0] if here is not None and here.root is not None else ""
        for name in [name for name in sys.modules if top and (name == top or name.startswith(f"{top}."))]:
            del sys.modules[name]
        importlib.invalidate_caches()
        path, bytecode = list(sys.path), sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # two saves within a second would meet the same bytecode file
        try:
            self._module = load(str(self._file))
            app = deployment_in(self._module)
        finally:
            sys.path[:], sys.dont_write_bytecode = path, bytecode
            sys.path.insert(0, str(here.directory if here is not None else self._file.parent))
        app._url, app._api_key = self._url, self._args.api_key or app._api_key
        app.tag, app.ttl = self._tag, app.ttl or TTL_S
        return app

    def _deploy(self, app: Deployment) -> None:
        app.ensure_ready()
        self._spec, self._bundle = deploying.build(app)
        self._app = app

    def _introduce(self) -> None:
        app = self._app
        assert app is not None and app._route is not None and self._module is not None
        functions = {}
        for name, bound in app._functions.items():
            try:
                functions[name] = str(inspect.signature(bound.function)) if bound.function is not None else "(...)"
            except (TypeError, ValueError):
                functions[name] = "(...)"
        name = f"{app.name}:{app.tag}"
        self.say(
            "ready", name=name, url=app._route.url, functions=functions if self._args.json else ",".join(functions)
        )
        if not self._args.json:
            for function, signature in functions.items():
                print(f"  {function}{signature}", file=sys.stderr)
            ending = "" if self._args.no_reload else f"; watching {self._file.name}"
            print(f"  Ctrl-C deletes {name}{ending}", file=sys.stderr, flush=True)

    # --- changes ---

    def watch(self) -> None:
        """Take changes until interrupted."""
        if self._args.no_reload:
            while not self._over.wait(0.5):
                pass
            return
        watch = Watch(self._places())
        while not self._over.is_set():
            changed = watch.wait(self._over.is_set)
            if not changed:
                return
            began = time.monotonic()
            self._reload([path.name for path in changed], began)
            watch.places = self._places()

    def _places(self) -> list[Path]:
        app = self._app
        assert app is not None
        here = source.source_at(self._file)
        copies = [Path(origin).expanduser() for origin, _ in app._image.copies] if app._image is not None else []
        return [here.root or self._file, *(path if path.is_absolute() else self._file.parent / path for path in copies)]

    def _reload(self, names: list[str], began: float) -> None:
        """Deploy what is there now. Whatever is wrong with it is told, and what runs goes on."""
        try:
            compile(self._file.read_bytes(), str(self._file), "exec", dont_inherit=True)
            app = self._load()
            deploying._check_complete(app)
            what = self._send(app)
        except SyntaxError as error:
            text = "".join(traceback.format_exception_only(error))
            print(text, end="", file=sys.stderr, flush=True)
            self.say("not taken: the file does not parse; the code before goes on", files=",".join(names))
        except NanopodError as error:
            deploy.failed(error)
            self.say("not taken; the code before goes on", files=",".join(names))
        except Exception as error:
            deploy.print_user_error(self._args.file, error)
            self.say("not taken: the file does not import; the code before goes on", files=",".join(names))
        else:
            self.say(what, files=",".join(names), ms=round((time.monotonic() - began) * 1000))

    def _send(self, app: Deployment) -> str:
        """Deploy a version; what that means for the workers."""
        before, spec_before = self._app, self._spec
        assert before is not None and before._route is not None and spec_before is not None and self._bundle is not None
        spec, bundle = deploying.build(app)
        api = Api(config.Target(before._route.url, before._route.key))
        if spec.fingerprints == spec_before.fingerprints:
            self._app = app
            self._keep(app, before)
            return "nothing that runs changed"
        why = bodies.obstacle_in(self._bundle.files, bundle.files)
        same = (spec.functions, spec.image, spec.asgi) == (spec_before.functions, spec_before.image, spec_before.asgi)
        if not why and same:
            spec = replace(spec, swap_from=spec_before.fingerprints.code)
        answer = deploying.send(api, spec, bundle)
        self._keep(app, before)
        self._app, self._spec, self._bundle = app, spec, bundle
        tier = int(answer.get("tier", 0))
        if tier < 2:
            return "settings changed" if tier else "nothing changed"
        if spec.swap_from:
            return "function bodies swapped, workers go on"
        return f"workers are replaced ({why or '; '.join(map(str, answer.get('reasons') or ('the code changed',)))})"

    def _keep(self, app: Deployment, before: Deployment) -> None:
        """What the first version of the deployment knows of its server is true of the next one."""
        app._route, app._cloud, app._endpoint, app._heart = (
            before._route,
            before._cloud,
            before._endpoint,
            before._heart,
        )

    # --- output ---

    def _follow(self) -> None:
        app = self._app
        assert app is not None and app._route is not None
        api = Api(config.Target(app._route.url, app._route.key))
        follower = logs.Follower(api, f"{app.name}:{app.tag}")
        printer = logs.Printer(as_json=self._args.json, error_stream=True)
        failure: Any = None
        try:
            for lines in follower.follow():
                if self._over.is_set():
                    return
                printer.show(lines)
                now = follower.endpoint.get("failure")
                if now != failure and now:
                    deploy.failed(deploying.failure_of(now, str(follower.endpoint.get("name"))))
                    self.say("the new code does not start; the code before goes on where there is one")
                failure = now
        except NanopodError as error:
            if not self._over.is_set():
                self.say(f"no more output: {error.message}")

    # --- the end ---

    def end(self) -> None:
        """Delete what was deployed."""
        self._over.set()
        app = self._app
        if app is None or app._route is None:
            return
        if app._heart is not None:
            app._heart.set()
        try:
            api = Api(config.Target(app._route.url, app._route.key), tries_max=2, request_s_max=END_S_MAX)
            api.delete(f"/v1/endpoints/{app.name}:{app.tag}")
        except NotFound:
            pass
        except NanopodError as error:
            self.say(f"{app.name}:{app.tag} may be left; it goes after {TTL_S:.0f} s: {error.message}")
