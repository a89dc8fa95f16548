"""A user's file as a module, and the deployment in it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from nanopod.client.sdk import Deployment
from nanopod.client.source import source_at
from nanopod.model.errors import Invalid


def load(path: str) -> ModuleType:
    """Import a file under the name that workers know it by. Raises `Invalid` when it is not there."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise Invalid(f"there is no file {path}; name a Python file with a Deployment in it", field="file")
    source = source_at(file)
    sys.path.insert(0, str(source.directory))
    if source.root is not None:
        return importlib.import_module(source.module)
    spec = importlib.util.spec_from_file_location(source.module, file)
    if spec is None or spec.loader is None:
        raise Invalid(f"{path} is not a Python file", field="file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[source.module] = module
    spec.loader.exec_module(module)
    return module


def deployment_in(module: ModuleType) -> Deployment:
    """The one deployment of a module. Raises `Invalid` when there is none, or more than one."""
    found = {id(value): value for value in vars(module).values() if isinstance(value, Deployment)}
    if not found:
        raise Invalid(f"{module.__file__} has no Deployment at its top level; write: app = Deployment()", field="file")
    if len(found) > 1:
        names = ", ".join(sorted(app.name for app in found.values()))
        raise Invalid(f"{module.__file__} has several deployments ({names}); give each a file of its own", field="file")
    app = next(iter(found.values()))
    app._meant = True
    return app
