"""Whether two versions of a Python file differ in function bodies only, so that a running worker can take the new one.

A pure comparison of syntax trees. What may differ: the body, parameters and annotations of functions at the top level
of the file, its comments and docstring, and what is below `if __name__ == "__main__"`. Everything else (imports,
classes, other statements, decorators, the names and order of functions) must be equal.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(tree: ast.Module) -> dict[str, Function]:
    """Functions at the top level by name. Raises ValueError for one that is defined twice."""
    found: dict[str, Function] = {}
    for node in tree.body:
        if isinstance(node, Function):
            if node.name in found:
                raise ValueError(f"line {node.lineno}: {node.name} is defined twice")
            found[node.name] = node
    return found


def statements_of(tree: ast.Module) -> list[ast.stmt]:
    """What a worker runs of a file: without its docstring and its `__main__` part."""
    body = tree.body
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return [node for node in body if not _is_main(node)]


def obstacle(old: bytes, new: bytes) -> str:
    """Why the new version cannot take the old one's place in a running program; "" when it can.

    Raises SyntaxError (or ValueError) for a file that does not parse.
    """
    before, after = ast.parse(old), ast.parse(new)
    try:
        functions_of(before)
        functions_of(after)
    except ValueError as error:
        return str(error)
    olds, news = statements_of(before), statements_of(after)
    for one, other in zip(olds, news, strict=False):
        if isinstance(one, Function) and isinstance(other, Function):
            if why := _differing(one, other):
                return f"line {other.lineno}: {why}"
        elif ast.dump(one) != ast.dump(other):
            return f"line {other.lineno}: {_what(other)} changed"
    if len(olds) != len(news):
        node = (news if len(news) > len(olds) else olds)[min(len(olds), len(news))]
        verb = "was added" if len(news) > len(olds) else "was removed"
        return f"line {node.lineno}: {_what(node)} {verb}"
    return ""


def obstacle_in(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> str:
    """The same for whole bundles, by path; other files than Python's must be equal. Raises SyntaxError."""
    for path in sorted({*old, *new}):
        if path not in old or path not in new:
            return f"{path} was {'added' if path in new else 'removed'}"
        if old[path] == new[path]:
            continue
        if not path.endswith(".py"):
            return f"{path} changed"
        if why := obstacle(old[path], new[path]):
            return f"{path}, {why}"
    return ""


def _differing(one: Function, other: Function) -> str:
    if type(one) is not type(other) or one.name != other.name:
        return f"{_what(one)} became {_what(other)}"
    if [ast.dump(node) for node in one.decorator_list] != [ast.dump(node) for node in other.decorator_list]:
        return f"the decorators of {other.name} changed"
    if _makes_application(other) and ast.dump(one) != ast.dump(other):
        return f"{other.name} makes a web application, which was made when the worker started"
    if _yields(one) != _yields(other):
        return f"{other.name} {'became' if _yields(other) else 'is no longer'} a generator"
    return ""


def _makes_application(function: Function) -> bool:
    """Whether it is decorated with `@app.asgi`, bare or called."""
    heads = [node.func if isinstance(node, ast.Call) else node for node in function.decorator_list]
    return any(isinstance(head, ast.Attribute) and head.attr == "asgi" for head in heads)


def _yields(function: Function) -> bool:
    """Whether the function itself (none inside it) is a generator."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            todo.extend(ast.iter_child_nodes(node))
    return False


def _is_main(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Compare)
        and isinstance(node.test.left, ast.Name)
        and node.test.left.id == "__name__"
    )


def _what(node: ast.stmt) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    if isinstance(node, Function):
        return f"function {node.name}"
    if isinstance(node, ast.Import | ast.ImportFrom):
        return "an import"
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return "a statement"
