"""Which remote functions a deployment's code defines, found without running it: by its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, Literal

from nanopod.client.options import PARALLEL_REQUESTS
from nanopod.model.endpoint import FunctionSpec
from nanopod.model.errors import Invalid

Kind = Literal["async", "sync", "generator", "async_generator"]
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(source: bytes, file: str) -> list[FunctionSpec]:
    """The functions decorated with `<name>.remote`, bare or called. Raises `Invalid` for code that does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise Invalid(f"{file} is no Python that can be read: {error}", field="file") from None
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            options = _remote_options(node)
            if options is not None:
                found.append(_spec(node, options))
    return found


def _remote_options(node: _Function) -> dict[str, Any] | None:
    """The options of the decorator `x.remote(...)` that are plain values; None where there is no such decorator."""
    for decorator in node.decorator_list:
        call = decorator if isinstance(decorator, ast.Call) else None
        target = call.func if call is not None else decorator
        if isinstance(target, ast.Attribute) and target.attr == "remote":
            given: dict[str, Any] = {}
            for keyword in call.keywords if call is not None else ():
                if keyword.arg is not None:
                    given[keyword.arg] = keyword.value.value if isinstance(keyword.value, ast.Constant) else ...
            return given
    return None


def _spec(node: _Function, options: dict[str, Any]) -> FunctionSpec:
    queue_s = options.get("max_queue_time")
    return FunctionSpec(
        name=node.name,
        kind=_kind(node),
        concurrency=PARALLEL_REQUESTS if options.get("allow_parallel_requests") is True else 1,
        max_queue_time_s=float(queue_s) if isinstance(queue_s, int | float) and queue_s > 0 else 30.0,
        benchmark=any(options.get(f"benchmark_{word}") is not None for word in ("dataset", "generator")),
    )


def _kind(node: _Function) -> Kind:
    yields = any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in _own(node))
    if isinstance(node, ast.AsyncFunctionDef):
        return "async_generator" if yields else "async"
    return "generator" if yields else "sync"


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function's body, without those of functions and classes defined in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield child
            yield from _own(child)
