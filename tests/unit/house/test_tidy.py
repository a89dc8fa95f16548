"""House style that no linter knows: sizes, docstrings, names of rooms, nothing left to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[3] / "src" / "nanopod"
MODULES = sorted(SRC.rglob("*.py"))
LINES_MAX = 500
FUNCTION_LINES_MAX = 70
DEPTH_MAX = 4
"""room / shelf / file, and one more shelf where an engine is a small package of its own."""
BANNED_ROOMS = {"utils", "core", "common", "services", "helpers", "_internal", "misc"}
LEFT_OVER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError\(\)")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def problems(path: Path, text: str) -> list[str]:
    """What is untidy in one module."""
    found = []
    lines = text.splitlines()
    if len(lines) > LINES_MAX:
        found.append(f"{len(lines)} lines; at most {LINES_MAX}")
    tree = ast.parse(text)
    if lines and not ast.get_docstring(tree):
        found.append("no module docstring")
    for function in functions(tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES_MAX:
            found.append(f"{function.name} has {length} lines; at most {FUNCTION_LINES_MAX}")
    for node in tree.body:
        public = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_"
        if public and not ast.get_docstring(node):
            found.append(f"{node.name} is public and has no docstring")
    for number, line in enumerate(lines, 1):
        if LEFT_OVER.search(line):
            found.append(f"line {number} leaves something to do: {line.strip()[:60]}")
    relative = path.parts
    if len(relative) > DEPTH_MAX:
        found.append(f"{len(relative)} levels deep; at most {DEPTH_MAX}")
    if banned := BANNED_ROOMS & set(relative[:-1]):
        found.append(f"a room called {banned} says nothing about what is in it")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_module_is_tidy(module: Path) -> None:
    assert problems(module.relative_to(SRC), module.read_text()) == []


def test_no_room_is_empty() -> None:
    for room in {path.parent for path in MODULES}:
        content = [path for path in room.iterdir() if path.name not in {"__init__.py", "__pycache__"}]
        assert content, f"{room.relative_to(SRC)} is an empty shell: remove it until it has content"


def test_the_rules_bite() -> None:
    long = '"""Doc."""\n' + "def f():\n" + "    pass\n" * FUNCTION_LINES_MAX + "# TODO\n"
    said = " ".join(problems(Path("utils/x.py"), long))
    assert "at most 70" in said
    assert "no docstring" in said
    assert "leaves something to do" in said
    assert "says nothing" in said
    assert "no module docstring" in " ".join(problems(Path("a.py"), "x = 1\n"))
    assert "at most 500" in " ".join(problems(Path("a.py"), '"""Doc."""\n' + "x = 1\n" * 500))
