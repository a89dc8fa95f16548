"""Where remote functions are written: one file, or a package. Finds it, and refuses what cannot be shipped."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanopod.model.errors import Invalid

MODULE_FALLBACK = "deployment"
"""Name under which a file is imported there when its own would hide a module of the standard library."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of remote functions. `root` is its package's outermost directory, None for a single file."""

    file: Path
    root: Path | None
    module: str
    """The name it is imported by on a worker."""

    @property
    def name(self) -> str:
        """The deployment's name when the user gives none: the file's stem, also when the file is run."""
        return clean_name(self.file.stem)

    @property
    def directory(self) -> Path:
        """Where imports of the bundled code start."""
        return self.root.parent if self.root is not None else self.file.parent


def clean_name(text: str) -> str:
    """`text` with everything that a name may not hold replaced by a dash."""
    name = re.sub(r"[^a-zA-Z0-9._-]+", "-", text).strip("-._")
    return name or MODULE_FALLBACK


def source_of(function: Callable[..., Any]) -> Source:
    """The source of a function. Raises `Invalid` when it was typed into an interactive session."""
    code = getattr(function, "__code__", None)
    filename = code.co_filename if code is not None else getattr(sys.modules.get(function.__module__), "__file__", "")
    path = Path(filename or "<unknown>")
    if str(path).startswith("<") or "ipykernel" in str(path) or not path.is_file():
        raise Invalid(
            f"Cowardly refusing to deploy function {function.__name__} defined in your interactive Python session! "
            "Save it in a .py file and run that, or call it here with .local()."
        )
    return source_at(path)


def source_at(path: Path) -> Source:
    """The source in a file."""
    path = path.resolve()
    root: Path | None = None
    directory = path.parent
    while (directory / "__init__.py").is_file() and directory.name.isidentifier():
        root, directory = directory, directory.parent
    if root is None:
        stem = path.stem
        usable = stem.isidentifier() and stem not in sys.stdlib_module_names and stem != "nanopod"
        return Source(path, None, stem if usable else MODULE_FALLBACK)
    dotted = path.relative_to(root.parent).with_suffix("").parts
    return Source(path, root, ".".join(dotted[:-1] if dotted[-1] == "__init__" else dotted))


def check_same(first: Source, other: Source, function: str) -> None:
    """Refuse a function from a second file, unless both lie in one package."""
    if first.file == other.file or (first.root is not None and first.root == other.root):
        return
    raise Invalid(
        "Using a single-file deployment object to deploy remote functions from multiple .py files! "
        f"Function {function} is in {other.file}, the others are in {first.file}. "
        "Put them into one file, or both files into a package (a directory with __init__.py)."
    )
