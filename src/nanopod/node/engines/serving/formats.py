"""From a directory to a model in memory: which file it is, which package reads it, and what to install for that."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nanopod.node.engines.serving.predictors import Predictor, first_line

DEPTH_MAX: Final = 3
"""How deep a model's file may lie: `1/model.onnx`, `NAME/1/model.onnx`."""
FILES_MAX: Final = 10_000
SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "sklearn": (".joblib", ".pkl", ".pickle"),
    "xgboost": (".ubj", ".json", ".bst", ".model", ".xgb"),
    "lightgbm": (".txt", ".bst", ".model"),
    "onnx": (".onnx",),
    "pytorch": (".pt", ".pth", ".ts"),
}
"""Names of model files by format, usual ones first."""
NOT_MODELS: Final = frozenset(
    {"model-settings.json", "config.json", "settings.json", "requirements.txt", "readme.txt", "license.txt",
     "metadata.json", "environment.json"}
)  # fmt: skip
PACKAGES: Final[Mapping[str, tuple[str, str, str]]] = {
    "sklearn": ("joblib", "sklearn", "nanopod.node.engines.serving.tabular"),
    "xgboost": ("xgboost", "xgboost", "nanopod.node.engines.serving.tabular"),
    "lightgbm": ("lightgbm", "lightgbm", "nanopod.node.engines.serving.tabular"),
    "onnx": ("onnxruntime", "onnx", "nanopod.node.engines.serving.graphfile"),
    "pytorch": ("torch", "torch", "nanopod.node.engines.serving.torchscript"),
    "huggingface": ("transformers", "transformers", "nanopod.node.engines.serving.huggingface"),
}
"""{format: (module that must be there, extra that installs it, where our side of it is)}."""


class LoadFailed(Exception):
    """A model cannot be loaded; the message says what to do."""


def load(name: str, form: str, directory: Path, options: Mapping[str, str]) -> Predictor:
    """Load the model in `directory` (or the file itself). Blocks; raises `LoadFailed`."""
    if not directory.exists():
        raise LoadFailed(f"model {name}: there is no {directory}; set model.storage or model.source")
    form = form or guess(directory)
    if form not in PACKAGES:
        known = ", ".join(sorted(PACKAGES))
        what = form or "of its files"
        raise LoadFailed(f"model {name}: the format {what} is not served here; model.format is one of {known}")
    need(form)
    path = directory if form == "huggingface" else model_file(name, form, directory)
    module = importlib.import_module(PACKAGES[form][2])
    try:
        found: Predictor = getattr(module, f"load_{form}")(path, options)
    except LoadFailed:
        raise
    except ModuleNotFoundError as error:
        text = f"model {name}: {path.name} needs the module {error.name}; add it to the image's pip_install"
        raise LoadFailed(text) from error
    except Exception as error:
        raise LoadFailed(f"model {name}: {path} cannot be loaded as {form}: {first_line(error)}") from error
    return found


def need(form: str) -> None:
    """Raises `LoadFailed`, which says what to install, when the format's package is missing."""
    package, extra, _ = PACKAGES[form]
    try:
        importlib.import_module(package)
    except ImportError as error:
        text = f"the format {form} needs the package {package}: pip install 'nanopod[{extra}]' on the node, or"
        raise LoadFailed(f"{text} add it to the image's pip_install ({error})") from error


def model_file(name: str, form: str, directory: Path) -> Path:
    """The file of a model: the only one of its format, nearest to the top. Raises `LoadFailed`."""
    if directory.is_file():
        return directory
    suffixes = SUFFIXES[form]
    found = sorted(
        (path for path in _files(directory) if path.suffix.lower() in suffixes and path.name.lower() not in NOT_MODELS),
        key=lambda path: (len(path.parts), -_version(path, directory)),
    )
    if not found:
        raise LoadFailed(f"model {name}: {directory} has no file of format {form} ({', '.join(suffixes)})")
    nearest = [path for path in found if path.parent == found[0].parent]
    named = [path for path in nearest if path.stem == "model"] or nearest
    if len(named) > 1:
        best = min(suffixes.index(path.suffix.lower()) for path in named)
        named = [path for path in named if suffixes.index(path.suffix.lower()) == best]
    if len(named) > 1:
        names = ", ".join(sorted(path.name for path in named))
        raise LoadFailed(f"model {name}: {directory} has several models ({names}); call the one that is meant `model`")
    return named[0]


def _files(directory: Path) -> list[Path]:
    found: list[Path] = []
    top = len(directory.parts)
    for base, directories, names in os.walk(directory):
        if len(Path(base).parts) - top >= DEPTH_MAX:
            directories.clear()
        found += [Path(base, name) for name in names if not name.startswith(".")]
        if len(found) > FILES_MAX:
            break
    return found


def _version(path: Path, directory: Path) -> int:
    """Of `3/model.onnx` 3: the newest version is served."""
    numbers = [int(part) for part in path.parts[len(directory.parts) : -1] if part.isdigit()]
    return numbers[-1] if numbers else 0


def guess(directory: Path) -> str:
    """The format of a directory that does not say; "" when that cannot be told."""
    files = [directory] if directory.is_file() else _files(directory)
    if any(path.name == "config.json" for path in files) and not any(path.suffix == ".onnx" for path in files):
        return "huggingface"
    for form in ("onnx", "sklearn", "pytorch", "xgboost", "lightgbm"):
        if any(path.suffix.lower() in SUFFIXES[form] and path.name.lower() not in NOT_MODELS for path in files):
            return form
    return ""


def number(options: Mapping[str, str], name: str, default: int) -> int:
    """A whole number among the options. Raises `LoadFailed` naming it."""
    text = options.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise LoadFailed(f"model.options.{name}: {text!r} is not a whole number") from None


def flag(options: Mapping[str, str], name: str) -> bool:
    """A switch among the options; present without a value means on."""
    return name in options and options[name].lower() not in ("0", "false", "no", "off")


def plain_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Options by one spelling of their names: `max-batchSize` is `maxbatchsize`."""
    return {"".join(c for c in name.lower() if c.isalnum()): str(value) for name, value in options.items()}
