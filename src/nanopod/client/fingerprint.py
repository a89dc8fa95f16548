"""Whether code changed in a way that matters: digests of a canonical syntax tree, equal on every Python version.

The tree is written out by node types and fields in sorted order, without positions, comments, `type_comment`, `kind`
and `ctx`; docstrings go unless the file reads them; calls that only set scaling go, as do lines marked with
`# nanopod: ignore-change`. So a new comment or another `min_load` restarts nothing.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import tokenize
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

MARKS = ("#!VAST_IGNORE_CHANGES", "# nanopod: ignore-change")
SCALE_CALLS = frozenset({"configure_autoscaling", "configure_rollout"})
HARDWARE_CALLS = frozenset({"require", "prefer"})
SCALE_KEYWORDS = frozenset({"ttl", "version_label"})
_UNSEEN = frozenset({"ctx", "kind", "type_comment", "lineno", "col_offset", "end_lineno", "end_col_offset"})
_READS_DOCS = re.compile(r"__doc__|\bgetdoc\b")


def digest_of(parts: Iterable[str | bytes]) -> str:
    """SHA-256 (hex) of parts, each with its length, so that moving a border between them changes it."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "big"))
        found.update(data)
    return found.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no optional spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def of_python(source: bytes) -> str:
    """The fingerprint of a Python file. One that does not parse is taken as bytes, without its marked lines."""
    filtered = without_marked_lines(source)
    try:
        tree = ast.parse(filtered)
    except (SyntaxError, ValueError):
        return digest_of([b"bytes", filtered])
    keep_docs = _READS_DOCS.search(filtered.decode("utf-8", "replace")) is not None
    written: list[str] = []
    _write(_Pruned(keep_docs=keep_docs, images=_images(tree)).visit(tree), written)
    return digest_of(["tree", "".join(written)])


def of_files(files: Mapping[str, bytes], *, python: Iterable[str], extra: Any = None) -> str:
    """The code part of a deployment's fingerprint: `python` names those of `files` that are compared as trees."""
    trees = set(python)
    parts: list[str | bytes] = [canonical_json(extra)]
    for name in sorted(files):
        parts += [name, of_python(files[name]) if name in trees else hashlib.sha256(files[name]).hexdigest()]
    return digest_of(parts)


def of_each(files: Mapping[str, bytes], *, python: Iterable[str]) -> dict[str, str]:
    """The fingerprint of each file by its name, so that a plan can say which of them differ."""
    trees = set(python)
    return {
        name: of_python(data) if name in trees else hashlib.sha256(data).hexdigest()
        for name, data in sorted(files.items())
    }


def without_marked_lines(source: bytes) -> bytes:
    """`source` without the lines whose comment is exactly a mark (a mark inside a string is no comment)."""
    if not any(mark.encode() in source for mark in MARKS):
        return source
    try:
        marked = {
            token.start[0]
            for token in tokenize.tokenize(io.BytesIO(source).readline)
            if token.type == tokenize.COMMENT and token.string.strip() in MARKS
        }
    except (tokenize.TokenError, SyntaxError):
        return source
    return b"".join(line for number, line in enumerate(source.splitlines(keepends=True), 1) if number not in marked)


def _images(tree: ast.Module) -> frozenset[str]:
    """Names that a module assigns an image builder to: `image = app.image(...)`, with methods behind it or not."""
    found: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and _is_image(statement.value, found):
            found |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return frozenset(found)


def _is_image(node: ast.AST, names: Collection[str]) -> bool:
    """True for `app.image(...)`, `Image(...)`, one of `names`, and calls of methods on those."""
    while isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name):
            return node.func.id == "Image"
        if not isinstance(node.func, ast.Attribute):
            return False
        if node.func.attr == "image":
            return True
        node = node.func.value
    return isinstance(node, ast.Name) and node.id in names


class _Pruned(ast.NodeTransformer):
    """Takes out of a tree what does not change what the code does on a worker."""

    def __init__(self, *, keep_docs: bool, images: frozenset[str] = frozenset()) -> None:
        self._keep_docs = keep_docs
        self._images = images
        """Module-level names that hold an image builder."""

    def _body(self, node: Any) -> Any:
        body = node.body
        first = body[0].value if body and isinstance(body[0], ast.Expr) else None
        if not self._keep_docs and isinstance(first, ast.Constant) and isinstance(first.value, str):
            node.body = body[1:]
        return self.generic_visit(node)

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _body

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in SCALE_CALLS:
            return None
        self.generic_visit(node)
        # What is left of `image.require(...)`, once its requirements are taken out, does nothing.
        return None if isinstance(node.value, ast.Name) and node.value.id in self._images else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        # The names of columns and GPUs: where they are used in the code, that use itself counts.
        return None if node.module == "nanopod.data.query" else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        func = node.func
        if isinstance(func, ast.Attribute) and func.attr in HARDWARE_CALLS and _is_image(func.value, self._images):
            return cast(ast.AST, self.visit(func.value))  # what hardware is wanted is the image's part, not the code's
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("Deployment", "from_name"):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in SCALE_KEYWORDS]
        self.generic_visit(node)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.JoinedStr:
        self.generic_visit(node)
        merged: list[ast.expr] = []
        for part in node.values:
            last = merged[-1] if merged else None
            if isinstance(part, ast.Constant) and isinstance(last, ast.Constant):
                merged[-1] = ast.Constant(str(last.value) + str(part.value))
            else:
                merged.append(part)
        node.values = merged
        return node


def _write(node: Any, out: list[str]) -> None:
    """The canonical text of a node. Empty fields are left out: new Python versions add optional ones."""
    if isinstance(node, ast.AST):
        out.append(f"({type(node).__name__}")
        for name in sorted(set(node._fields) - _UNSEEN):
            value = getattr(node, name, None)
            if (value is None or value == []) and not isinstance(node, ast.Constant):
                continue
            out.append(f" {name}=")
            _write(value, out)
        out.append(")")
    elif isinstance(node, list):
        out.append("[")
        for item in node:
            _write(item, out)
            out.append(",")
        out.append("]")
    else:
        out.append(f"{type(node).__name__}:{node!r}")
