"""New function bodies in loaded modules: the same function objects, other code, right line numbers."""

from __future__ import annotations

import functools
import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from nanopod.node.runtime import swapping

OLD = """from __future__ import annotations
import functools
COUNT = [0]

class Model:
    def broken(self):
        raise RuntimeError("broken")

def helper(x, factor=2):
    return x * factor

@functools.lru_cache(maxsize=None)
def kept(x):
    return x + 1

def wrapping(f):
    @functools.wraps(f)
    def inner(*args):
        COUNT[0] += 1
        return f(*args)
    return inner

@wrapping
def square(x):
    return helper(x) * x
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "swapped_module.py").write_text(OLD)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module("swapped_module")
    sys.modules.pop("swapped_module", None)


def root_of(module: ModuleType) -> Path:
    assert module.__file__ is not None
    return Path(module.__file__).parent


def take(module: ModuleType, text: str) -> list[str]:
    return swapping.swap(root_of(module), {"swapped_module.py": text.encode()})


def test_references_and_state_stay_and_code_is_new(module: ModuleType) -> None:
    square, helper = module.square, module.helper
    assert square(3) == 18
    new = (
        OLD.replace("x * factor", "x + factor").replace("factor=2", "factor=10").replace("helper(x) * x", "-helper(x)")
    )
    assert take(module, new) == ["helper", "square"]
    assert square is module.square
    assert helper is module.helper
    assert (square(3), helper(1, factor=1), module.COUNT) == (-13, 2, [2])
    assert (root_of(module) / "swapped_module.py").read_text() == new


def test_a_function_below_two_decorators_is_found(module: ModuleType) -> None:
    assert module.kept(1) == 2
    assert take(module, OLD.replace("x + 1", "x + 5")) == ["kept"]
    assert module.kept(2) == 7
    assert isinstance(module.kept, functools._lru_cache_wrapper)


def test_tracebacks_of_what_did_not_change_show_the_new_lines(module: ModuleType) -> None:
    model = module.Model()
    take(module, OLD.replace("COUNT = [0]", "# one\n# two\nCOUNT = [0]").replace("x + 1", "x + 2"))
    with pytest.raises(RuntimeError) as caught:
        model.broken()
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.lineno, last.line) == (9, 'raise RuntimeError("broken")')


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("COUNT = [0]", "COUNT = [1]", "COUNT changed"),
        ("factor=2", "factor=unknown", "NameError"),
        ("return helper(x) * x", "return (", "never closed"),
    ],
)
def test_what_cannot_be_swapped_changes_nothing(module: ModuleType, old: str, new: str, told: str) -> None:
    with pytest.raises(swapping.Refused, match=told):
        take(module, OLD.replace("x + 1", "x + 100").replace(old, new))
    assert (module.square(3), module.kept(1)) == (18, 2)
    assert (root_of(module) / "swapped_module.py").read_text() == OLD


def test_a_function_that_its_decorator_hides_is_refused(module: ModuleType) -> None:
    module.square = lambda x: x
    with pytest.raises(swapping.Refused, match="square is hidden"):
        take(module, OLD.replace("helper(x) * x", "0"))
