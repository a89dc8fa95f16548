"""Functions that travel as they are in memory: for notebooks and interactive sessions (`Deployment(by_value=True)`).

The bundle holds `deployment.pkl`, made by cloudpickle, and a `deployment.py` whose import registers what is in it.
Code objects belong to one version of Python, so the worker must have the one that the session has. Functions of the
session's own module travel with what they refer to there; everything imported from elsewhere is imported on the worker.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanopod.model.errors import Invalid, SerializationError

if TYPE_CHECKING:
    from nanopod.client.function import BoundFunction
    from nanopod.client.sdk import Deployment

MODULE: Final = "deployment"
PICKLE: Final = "deployment.pkl"
_LOADER: Final = """\
# Registers the functions in deployment.pkl, which was made in an interactive session.
from nanopod.client.notebook import load

load(__file__, __name__, name={name!r}, tag={tag!r}, serializer={serializer!r}, python={python!r})
"""


def files_of(app: Deployment) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """(the files of the bundle, the same with a stable text in place of the pickle, for fingerprints).

    Raises `Invalid` for a function that refers to something that cannot be pickled.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    text = _LOADER.format(name=app.name, tag=app.tag, serializer=app.serializer, python=python)
    head = {f"{MODULE}.py": text.encode()}
    return {**head, PICKLE: _pickled(app)}, {**head, PICKLE: "\n".join(_described(app)).encode()}


def _pickled(app: Deployment) -> bytes:
    import cloudpickle

    modules = [sys.modules[name] for name in sorted(_modules(app)) if name != "__main__" and name in sys.modules]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        content = {
            "functions": [
                (name, bound.function, bound.owner, app._given.get(name, {}))
                for name, bound in app._functions.items()
                if bound.function is not None
            ],
            "contexts": list(app._app.contexts.values()),
            "asgi": app._app.asgi,
            "on_preempt": app._app.on_preempt,
            "healthcheck": app._app.healthcheck,
            "classes": _classes(app),
        }
        return bytes(cloudpickle.dumps(content))
    except Exception as error:  # whatever a global's own __reduce__ raises
        raise Invalid(
            f"the functions of {app.name} refer to something that cannot travel: {type(error).__name__}: {error}; make "
            "it inside the function or in a context",
            field="by_value",
        ) from error
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _modules(app: Deployment) -> set[str]:
    """Names of the modules in which the deployment's functions and contexts are written."""
    names = {bound.function.__module__ for bound in app._functions.values() if bound.function is not None}
    return names | {cls.__module__ for cls in app._app.contexts}


def _classes(app: Deployment) -> dict[str, type]:
    """Classes of the session that arguments and results may be of, by name."""
    import cloudpickle

    found: dict[str, type] = {}
    for module in _modules(app):
        for name, value in list(vars(sys.modules.get(module, types)).items()):
            if not isinstance(value, type) or value.__module__ != module or hasattr(value, "nanopod_class"):
                continue
            try:
                cloudpickle.dumps(value)
            except Exception:  # a class that cannot travel is no matter until a call has an object of it
                continue
            found[name] = value
    return found


def load(path: str, module: str, *, name: str, tag: str, serializer: Any, python: str) -> None:
    """On a worker: register what is in the pickle beside `path`. Raises ImportError on another version of Python."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here != python:
        raise ImportError(
            f"the deployment was made by value with Python {python}, this worker has {here}; use an image with Python "
            f"{python}, or put the functions into a file"
        )
    import pickle

    from nanopod.client.classes import bind_method
    from nanopod.client.sdk import Deployment

    app = Deployment(name=name, tag=tag, by_value=True, serializer=serializer)
    content: dict[str, Any] = pickle.loads(Path(path).with_name(PICKLE).read_bytes())
    for cls_name, cls in content["classes"].items():
        cls.__module__ = module
        setattr(sys.modules[module], cls_name, cls)
    for context in content["contexts"]:
        app._app.contexts[context.cls] = context
    for full, function, owner, options in content["functions"]:
        if owner is None:
            app._add(function, options)
        else:
            bind_method(app, full, owner, function, options)
    app._app.asgi.update(content["asgi"])
    app._app.on_preempt.extend(content["on_preempt"])
    app._app.healthcheck = content["healthcheck"]


def looked_up(name: str, tag: str) -> Deployment:
    """The deployment of this process with that name; what a pickled deployment becomes."""
    from nanopod.client.sdk import Deployment

    return Deployment.lookup(name) or Deployment(name=name, tag=tag, by_value=True)


class Reference:
    """A remote function that another one referred to when it was pickled; the function itself, once it is called."""

    def __init__(self, app: str, name: str) -> None:
        self._app = app
        self._name = name

    def _function(self) -> Any:
        from nanopod.model import registry

        app = registry.apps.get(self._app)
        if app is None or self._name not in app.functions:
            raise SerializationError(f"there is no remote function {self._name} of {self._app} in this process")
        return app.functions[self._name].call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._function(), name)


def reduced(bound: BoundFunction) -> tuple[Any, ...]:
    """How a remote function is pickled: by its names."""
    return Reference, (bound.app.name, bound.name)


# --- fingerprints ---


def _described(app: Deployment) -> Iterator[str]:
    """What the functions are made of, as text that is equal when the same cells are run again."""
    seen: dict[int, int] = {}
    for name, bound in sorted(app._functions.items()):
        if bound.function is not None:
            yield f"function {name}"
            yield from _describe(bound.function, seen)
    for cls in sorted(app._app.contexts, key=lambda cls: cls.__qualname__):
        context = app._app.contexts[cls]
        yield f"context {cls.__qualname__} {context.args!r} {sorted(context.kwargs)!r} {context.snapshot}"
        yield from _describe(cls, seen)


def _describe(value: Any, seen: dict[int, int]) -> Iterator[str]:
    if id(value) in seen:
        yield f"see {seen[id(value)]}"
        return
    seen[id(value)] = len(seen)
    if isinstance(value, types.FunctionType):
        yield from _describe_code(value.__code__)
        yield f"defaults {value.__defaults__!r} {value.__kwdefaults__!r}"
        for cell in value.__closure__ or ():
            yield from _describe(cell.cell_contents, seen)
        for name in sorted(_globals_of(value.__code__) & value.__globals__.keys()):
            yield f"global {name}"
            yield from _describe(value.__globals__[name], seen)
    elif isinstance(value, types.ModuleType):
        yield f"module {value.__name__}"
    elif isinstance(value, type):
        yield f"class {value.__module__}.{value.__qualname__}"
        if value.__module__ not in sys.stdlib_module_names and "site-packages" not in _file_of(value):
            for name, part in sorted(vars(value).items()):
                if not name.startswith("__") or isinstance(part, types.FunctionType):
                    yield f"attribute {name}"
                    yield from _describe(part, seen)
    else:
        yield f"{type(value).__qualname__} {_stable(value)}"


def _describe_code(code: types.CodeType) -> Iterator[str]:
    yield f"code {code.co_name} {code.co_code.hex()} {code.co_names!r} {code.co_varnames!r} {code.co_flags}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _describe_code(constant)
        else:
            yield f"constant {sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant!r}"


def _globals_of(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals_of(constant)
    return names


def _file_of(cls: type) -> str:
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or ""


def _stable(value: Any) -> str:
    """A digest of a plain value; of others only what they are called."""
    import hashlib

    from nanopod.model import codec

    try:
        return hashlib.sha256(codec.encode(value)).hexdigest()
    except SerializationError:
        return str(getattr(value, "__qualname__", getattr(value, "name", "")))
