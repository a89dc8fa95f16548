"""What changes a fingerprint and what does not; the bundle is the same bytes every time."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

from nanopod.client import fingerprint
from nanopod.client.bundle import destination, make_bundle, pack
from nanopod.client.source import MODULE_FALLBACK, check_same, source_at
from nanopod.model.errors import Invalid

BASE = '''
"""Module text."""
import os
app = Deployment(name="a", ttl=5)
app.configure_autoscaling(min_load=1)

class C:
    """Text."""
    size = 1

async def f(x):
    """Text."""
    return f"a{x}b" + "c"
'''


def of(text: str) -> str:
    return fingerprint.of_python(text.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import os", "import os  # a comment"),
        ('"""Text."""', '"""Another text."""'),
        ('"""Module text."""', ""),
        ("min_load=1", "min_load=2, max_workers=9"),
        ("app.configure_autoscaling(min_load=1)", ""),
        ("ttl=5", "ttl=6, version_label='x'"),
        ("import os", "import os\nBUILD = 7  # nanopod: ignore-change"),
        ("import os", "import os\nBUILD = 7  #!VAST_IGNORE_CHANGES"),
        ("size = 1", "size = (1)"),
        ('"c"', "'c'"),
        ("    size = 1", "\n\n    size = 1\n"),
    ],
)
def test_what_does_not_matter_changes_nothing(old: str, new: str) -> None:
    assert old in BASE
    assert of(BASE.replace(old, new)) == of(BASE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("size = 1", "size = 2"),
        ("size = 1", "size = 1.0"),
        ("size = 1", "size = True"),
        ("async def", "def"),
        ("import os", "import sys"),
        ('name="a"', 'name="b"'),
        ("a{x}b", "a{x!r}b"),
        ('"c"', 'b"c".decode()'),
        ("import os", "import os\nBUILD = '# nanopod: ignore-change'"),
        ("import os", "import os\nNONE = None"),
    ],
)
def test_what_matters_changes_it(old: str, new: str) -> None:
    assert old in BASE
    assert of(BASE.replace(old, new)) != of(BASE)


def test_docstrings_count_where_the_file_reads_them() -> None:
    reads = BASE + "print(f.__doc__)\n"
    assert of(reads) != of(reads.replace('"""Text."""', '"""Other."""'))


def test_neighbouring_constants_of_an_f_string_are_one() -> None:
    tree = ast.parse('f"ab{x}"')
    joined = next(node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr))
    joined.values[:1] = [ast.Constant("a"), ast.Constant("b")]
    written: list[str] = []
    fingerprint._write(fingerprint._Pruned(keep_docs=False).visit(tree), written)
    plain: list[str] = []
    fingerprint._write(ast.parse('f"ab{x}"'), plain)
    assert written == plain


def test_a_file_that_does_not_parse_is_taken_as_bytes_without_marked_lines() -> None:
    broken = "def (:\n x = 1  # nanopod: ignore-change\n"
    assert of(broken) == of(broken)
    assert of(broken) != of(broken.replace("def", "deff"))
    assert of("x = 1 +  # nanopod: ignore-change\n") == of("")


def test_the_bundle_is_the_same_bytes_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "app.py"
    path.write_text("x = 1\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "w.bin").write_bytes(b"\0\1")
    copies = [("models", "/opt/models"), ("app.py", "extra/")]

    def make() -> tuple[str, bytes]:
        bundle = make_bundle(source_at(path), name="n", config={"runs": []}, copies=copies)
        assert set(bundle.files) == {"app.py", "opt/models/w.bin", "extra/app.py"} and bundle.python == ("app.py",)
        return bundle.digest, bundle.data

    first = make()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    path.touch()
    path.chmod(0o600)
    assert make() == first
    path.write_text("x = 2\n")
    assert make()[0] != first[0]


@pytest.mark.parametrize("bad", ["../x", "a/../../x", "", "/", "config.json", "x\0y"])
def test_destinations_stay_inside(bad: str) -> None:
    with pytest.raises(Invalid):
        destination(bad)


def test_missing_copies_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    with pytest.raises(Invalid, match="no such file"):
        make_bundle(source_at(tmp_path / "a.py"), name="n", config={}, copies=[("nope", "x")])
    assert pack({"a": b"1"}) == pack({"a": b"1"})


def test_where_functions_live(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("")
    assert source_at(tmp_path / "random.py").module == MODULE_FALLBACK
    (tmp_path / "my file.py").write_text("")
    assert source_at(tmp_path / "my file.py").name == "my-file"
    deep = tmp_path / "pkg" / "sub"
    deep.mkdir(parents=True)
    for directory in (deep, deep.parent):
        (directory / "__init__.py").write_text("")
    (deep / "m.py").write_text("")
    source = source_at(deep / "m.py")
    assert source.module == "pkg.sub.m" and source.root == tmp_path / "pkg" and source.directory == tmp_path
    check_same(source, source_at(deep / "__init__.py"), "f")
    with pytest.raises(Invalid, match=r"Using a single-file deployment object .* multiple \.py files"):
        check_same(source_at(tmp_path / "random.py"), source, "f")
