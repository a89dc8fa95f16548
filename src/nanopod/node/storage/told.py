"""What an instance is told of its files: variables, and the paths in its command that lead to them. Imports little.

A path such as `/mnt/models` can only be made once on a machine, and instances of a node share its system. So each has
a directory of its own, and wherever its specification names the path, the directory is put in its place.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal

import msgspec

from nanopod.model.endpoint import LoadedModel, ModelSpec

DIRECTORY: Final = "NANOPOD_MODEL_DIR"
"""Where the files of the first storage are; further models are in directories of their names in it."""
LACKING: Final = "NANOPOD_MODELS_FAILED"
"""JSON, {further model: why its files cannot be had}."""
TABLE: Final = "NANOPOD_STORAGE"
"""JSON, {path of a storage: where its files are}."""


class Furnished(msgspec.Struct, frozen=True):
    """A further model and its files: on their way, in `directory`, or why they cannot be had."""

    model: LoadedModel
    state: Literal["fetching", "there", "failed"]
    directory: str = ""
    error: str = ""


def table_of(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """{path that was asked for: where its files are}."""
    try:
        found = json.loads((os.environ if environ is None else environ).get(TABLE, ""))
    except ValueError:
        return {}
    return {str(path): str(place) for path, place in found.items()} if isinstance(found, dict) else {}


def located(text: str, table: Mapping[str, str]) -> str:
    """`text` with every absolute path of the table replaced, where it stands alone or begins a longer path."""
    paths = sorted((path for path in table if path.startswith("/")), key=len, reverse=True)
    if not paths:
        return text
    found = re.compile(r"(?<![\w./-])(?:file://)?(" + "|".join(map(re.escape, paths)) + r")(?![\w.-])")
    return found.sub(lambda match: match.group().replace(match.group(1), table[match.group(1)], 1), text)


def located_model(model: ModelSpec, environ: Mapping[str, str] | None = None) -> ModelSpec:
    """A model whose command, options and source lead to where its files are."""
    table = table_of(environ)
    if not table:
        return model
    return replace(
        model,
        source=located(model.source, table),
        argv=tuple(located(word, table) for word in model.argv),
        options={name: located(value, table) for name, value in model.options.items()},
        transformer=tuple(located(word, table) for word in model.transformer),
        explainer=tuple(located(word, table) for word in model.explainer),
    )
