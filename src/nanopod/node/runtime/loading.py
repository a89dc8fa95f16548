"""From a bundle's module to an app that can serve, and from whatever goes wrong on the way to a `Failure`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final

from nanopod.model import registry
from nanopod.model.endpoint import EndpointSpec, Failure, Stage
from nanopod.node.runtime import output, vastalias

TRACEBACK_CHARS: Final = 16_384
LOG_TAIL_CHARS: Final = 16_384
_OWN: Final = (str(Path(__file__).parents[2]), "<frozen importlib")


class StartFailed(Exception):
    """The worker cannot serve; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.stage}: {failure.message}")
        self.failure = failure


def failure_of(stage: Stage, error: BaseException, prefix: str = "") -> Failure:
    """What `error` looks like to the person who deployed: class, message, their own frames, their last output."""
    try:
        message = str(error)
    except Exception:  # whatever a user's __str__ raises
        message = ""
    if isinstance(error, SystemExit):
        message = f"the code called sys.exit({error.code!r}) while it was loaded"
    return Failure(
        stage=stage,
        message=f"{prefix}{message}" or type(error).__name__,
        type_name=type(error).__qualname__,
        traceback=_trace(error)[-TRACEBACK_CHARS:],
        log_tail=output.tail()[-LOG_TAIL_CHARS:],
    )


def _trace(error: BaseException) -> str:
    """The traceback without the frames of this package and of the import machinery that led to the user's code."""
    step: TracebackType | None = error.__traceback__
    while step is not None and step.tb_next is not None and step.tb_frame.f_code.co_filename.startswith(_OWN):
        step = step.tb_next
    return "".join(traceback.format_exception(type(error), error, step))


def load_app(spec: EndpointSpec, directory: Path) -> registry.App:
    """Import the user's module from `directory` and find its app. Raises `StartFailed` of stage `import`."""
    os.environ["NANOPOD_MODE"] = "serve"
    vastalias.install()
    sys.path.insert(0, str(directory))
    try:
        importlib.import_module(spec.module)
    except BaseException as error:  # sys.exit() in a user's file is a failure to load it too
        raise StartFailed(failure_of("import", error)) from error
    app = _find(spec.name)
    if app is None:
        known = ", ".join(sorted(name or "(unnamed)" for name in registry.apps)) or "none"
        raise StartFailed(
            Failure(
                "import",
                f"module {spec.module} registers no deployment named {spec.name}; registered: {known}",
                log_tail=output.tail(),
            )
        )
    missing = [function.name for function in spec.functions if function.name not in app.functions]
    if missing:
        raise StartFailed(
            Failure(
                "import",
                f"module {spec.module} does not define {_names(missing)} when it is imported; "
                "a remote function must be defined at the top level, not below `if __name__ == '__main__'`",
                log_tail=output.tail(),
            )
        )
    return app


def _find(name: str) -> registry.App | None:
    """The app of this name, else the only one there is."""
    found = registry.apps.get(name)
    if found is None and len(registry.apps) == 1:
        found = next(iter(registry.apps.values()))
    return found


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"{name}()" for name in names)
