"""Values come back exactly as they were, types included; what cannot travel says which part of it."""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import math
import sys
import threading
import types
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from nanopod.model import codec
from nanopod.model.errors import RemoteError, SerializationError, WorkerLost


class Colour(enum.Enum):
    RED = 1
    PAIR = (1, [2])


class Access(enum.IntFlag):
    READ = 4
    WRITE = 2


class Level(str, enum.Enum):  # noqa: UP042 - the older form is what is tested
    LOW = "low"


@dataclass
class Point:
    x: int
    y: Any = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    b: tuple[int, ...] = ()


class Plain:
    class Nested:
        def __init__(self, value: object) -> None:
            self.value = value

        def __eq__(self, other: object) -> bool:
            return type(other) is Plain.Nested and other.value == self.value

        __hash__ = None


class Slotted:
    __slots__ = ("one", "two")

    def __init__(self) -> None:
        self.one = 1


class Stateful:
    def __init__(self) -> None:
        self.value, self.lock = 3, threading.Lock()

    def __getstate__(self) -> dict[str, int]:
        return {"value": self.value}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__()
        self.value = state["value"] + 100


class MyList(list):
    pass


class MyInt(int):
    pass


class MyDict(dict):
    pass


Pair = namedtuple("Pair", "left right")


class Model(BaseModel):
    name: str
    tags: set[str] = set()
    inner: Model | None = None


class OwnError(ValueError):
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


def same(a: object, b: object) -> bool:
    """Equal, with equal types at every level, and NaN equal to NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(map(type, a)) == list(map(type, b)) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (Point, Plain.Nested)):
        return same(vars(a), vars(b))
    return a == b


def round_trip(value: object) -> Any:
    return codec.decode(codec.encode(value), module=__name__)


keys = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.dates(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
atoms = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.binary()
    | st.text(st.characters(codec="utf-8")) | st.text(st.characters(categories=["Cs", "L"])) | st.decimals(allow_nan=False)
    | st.uuids() | st.datetimes(timezones=st.none() | st.sampled_from([UTC, ZoneInfo("Asia/Tokyo"), timezone(timedelta(minutes=-90))])) | st.dates() | st.times()
    | st.timedeltas() | st.sampled_from([*Colour, *Access, Access(6), *Level]) | st.binary().map(bytearray)
    | st.builds(range, st.integers(-9, 9), st.integers(), st.integers(1, 9))
)  # fmt: skip
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4) | st.frozensets(keys, max_size=4) | st.builds(Point, st.integers(), inner)
        | st.builds(Pair, inner, inner) | st.lists(inner, max_size=4).map(lambda items: deque(items, maxlen=9))
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict) | st.lists(inner, max_size=3).map(MyList)
        | st.dictionaries(keys, inner, max_size=3).map(lambda d: defaultdict(list, d)) | st.builds(Plain.Nested, inner)
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(values)
def test_any_value_comes_back_as_it_was(value: object) -> None:
    assert same(round_trip(value), value)


@settings(max_examples=150, deadline=None)
@given(st.lists(values, max_size=3).map(tuple), st.dictionaries(st.text(max_size=3), values, max_size=3))
def test_arguments_come_back_as_they_were(args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    assert same(round_trip((args, kwargs)), (args, kwargs))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_rubbish_is_a_value_or_a_clear_refusal(data: bytes) -> None:
    with contextlib.suppress(SerializationError):  # anything else that is raised fails the test
        codec.decode(data)


@pytest.mark.parametrize(
    "value",
    [
        Frozen(1, (2, 3)),
        Colour.PAIR,
        Level.LOW,
        Access(6),
        MyInt(7),
        MyInt(1 << 80),
        MyDict({(1, 2): [3]}),
        Counter("abca"),
        Pair([1], (2,)),
        Path("/tmp/x"),
        PureWindowsPath("C:/x"),
        Fraction(3, 4),
        ipaddress.ip_address("10.0.0.1"),
        datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2), "here")),
        time(1, 2, 3, tzinfo=UTC),
        date(1, 1, 1),
        Decimal("-0.10"),
        UUID(int=5),
        range(1 << 70),
        deque([1, 2], maxlen=2),
        [int, Point, dict],
        Model(name="a", tags={"b"}, inner=Model(name="c")),
        {1: "int", True and 2: "other", None: 0, b"k": 1, (1, (2,)): 3},
        -(1 << 63),
        (1 << 64) - 1,
        1 << 64,
        ((1,), {}),
        ((1,), {2: 3}),
        ([1], {}),
        ((), {}),
    ],
    ids=repr,
)
def test_each_kind(value: object) -> None:
    back = round_trip(value)
    assert same(back, value)


def test_state_hooks_slots_and_nested_classes() -> None:
    assert round_trip(Stateful()).value == 103
    slotted = round_trip(Slotted())
    assert slotted.one == 1
    assert not hasattr(slotted, "two")
    assert type(round_trip(Plain.Nested(Plain.Nested(1))).value) is Plain.Nested
    back = round_trip(defaultdict(Point, {1: 2}))
    assert back.default_factory is Point


def test_pydantic_keeps_which_fields_were_set() -> None:
    back = round_trip(Model(name="a"))
    assert back.model_fields_set == {"name"}


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "f2", "f8", "c16", "?", "<U5", "S3", "M8[ns]", "m8[s]"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3)])
def test_arrays(dtype: str, shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    array = np.arange(count).astype("i8").astype(dtype).reshape(shape) if dtype != "?" else np.ones(shape, "?")
    back = round_trip({"a": array})["a"]
    assert back.dtype == array.dtype and back.shape == array.shape and np.array_equal(back, array)
    assert back.flags.writeable and back.flags.owndata is not None


def test_arrays_of_other_layouts() -> None:
    base = np.arange(24.0).reshape(4, 6)
    for array in (base.T, base[::2, ::-1], np.asfortranarray(base), np.broadcast_to(base, (2, 4, 6))):
        assert np.array_equal(round_trip(array), array)
    assert round_trip(np.asfortranarray(base)).flags.f_contiguous
    mixed = np.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8", (1,))])
    assert round_trip(mixed).dtype == mixed.dtype
    objects = np.array([[1, "x"], [None, (2,)]], dtype=object)
    assert round_trip(objects).tolist() == objects.tolist()


@pytest.mark.parametrize("scalar", [np.float32(1.5), np.float64("nan"), np.int64(-3), np.bool_(True), np.str_("é")])
def test_numpy_scalars_stay_numpy(scalar: Any) -> None:
    back = round_trip([scalar])[0]
    assert type(back) is type(scalar)
    assert back == scalar or np.isnan(scalar)


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    assert torch.equal(round_trip(tensor), tensor)


# --- refusals ---


class Holder:
    def __init__(self) -> None:
        self.model = threading.Lock()


@pytest.mark.parametrize(
    ("value", "path", "where"),
    [
        ([1, 2, {"x": [0, 0, 0, Holder()]}], "args", "args[2].x[3].model: "),
        (threading.Lock(), "", "the value: "),
        ({"a b": len}, "result", "result['a b']: "),
        (((1, sys), {}), "", "[0][1]: "),
        (((), {"x": Holder()}), "", "[1].x.model: "),
        (defaultdict(lambda: 1), "value", "value.default_factory: "),
        ((i for i in "ab"), "x", "x: "),
        (OrderedDict(a=open), "x", "x.a: "),
    ],
)
def test_a_refusal_names_the_part(value: object, path: str, where: str) -> None:
    with pytest.raises(SerializationError) as caught:
        codec.encode(value, path=path)
    assert caught.value.message.startswith(where)


def test_a_class_inside_a_function_is_refused_with_advice() -> None:
    class Local:
        pass

    with pytest.raises(SerializationError, match="top level of a module"):
        codec.encode(Local())


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(SerializationError, match="contains itself"):
        codec.encode((loop,), path="x")


def test_decoding_never_imports_and_never_runs_a_module_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lured")
    module.__getattr__ = lambda name: pytest.fail("the module's hook ran")  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lured", module)
    for name in ("lured", "antigravity"):
        data = codec.ext(23, [[name, "Thing"], {}])
        with pytest.raises(SerializationError, match="not known here"):
            codec.decode(codec._encode(data))
    assert "antigravity" not in sys.modules


def test_classes_of_main_are_found_in_the_users_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Point, "__module__", "__main__")
    monkeypatch.setitem(sys.modules["__main__"].__dict__, "Point", Point)
    data = codec.encode(Point(1))
    monkeypatch.delitem(sys.modules["__main__"].__dict__, "Point")
    assert codec.decode(data, module=sys.modules[__name__]) == Point(1)


def test_classes_of_a_module_known_by_another_name_there() -> None:
    data = codec.encode(Frozen(1)).replace(__name__.encode(), b"x" * len(__name__))
    assert codec.decode(data, module=__name__) == Frozen(1)


# --- exceptions ---


def caught(make: Any) -> BaseException:
    try:
        make()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def sent(error: BaseException, **options: Any) -> BaseException:
    return codec.decode_exception(codec.encode_exception(error, **options), module=__name__)


def fail() -> None:
    try:
        Path("/nonexistent/file").read_bytes()
    except OSError as error:
        problem = OwnError(7)
        problem.add_note("look at the file")
        raise problem from error


def test_an_exception_keeps_class_args_attributes_notes_and_cause() -> None:
    back = sent(caught(fail), log_tail="one\ntwo")
    assert type(back) is OwnError and back.args == ("code 7",) and back.code == 7
    cause = back.__cause__
    assert type(cause) is FileNotFoundError and cause.errno == 2 and cause.filename == "/nonexistent/file"
    assert back.__suppress_context__
    notes = "\n".join(back.__notes__)
    assert notes.startswith("look at the file") and "in fail" in notes and "raise problem from error" in notes
    assert notes.endswith("one\ntwo")


@pytest.mark.parametrize(
    "make",
    [
        lambda: {}["k"],
        lambda: int("x"),
        lambda: b"\xff".decode(),
        lambda: __import__("no_such_module_at_all"),
        lambda: compile("(", "f", "exec"),
        lambda: (_ for _ in ()).throw(ExceptionGroup("g", [ValueError(1), KeyError(2)])),
        lambda: (_ for _ in ()).throw(WorkerLost("gone", started=True)),
        lambda: sys.exit(3),
    ],
)
def test_builtin_exceptions_read_the_same(make: Any) -> None:
    error = caught(make)
    back = sent(error)
    assert type(back) is type(error) and str(back) == str(error)
    for name in ("name", "path", "code", "lineno", "reason", "object", "started"):
        assert getattr(back, name, None) == getattr(error, name, None)


def test_context_without_cause_is_kept() -> None:
    def chained() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904 - the implicit context is what is tested

    back = sent(caught(chained))
    assert back.__cause__ is None and type(back.__context__) is KeyError and not back.__suppress_context__


def test_an_unknown_class_becomes_a_remote_error() -> None:
    class Unknown(Exception):
        pass

    def raise_it() -> None:
        raise Unknown("what happened")

    back = sent(caught(raise_it))
    assert type(back) is RemoteError and back.type_name.endswith("Unknown") and "raise_it" in back.traceback
    assert "what happened" in str(back)


def test_parts_that_cannot_travel_become_text() -> None:
    error = ValueError("x", threading.Lock())
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    back = sent(error)
    assert back.args[0] == "x" and "lock" in back.args[1] and "lock" in back.lock  # type: ignore[attr-defined]


def test_a_hostile_exception_and_a_cycle_of_causes() -> None:
    class Awkward(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    first, second = ValueError("a"), Awkward("b")
    first.__cause__, second.__cause__ = second, first
    back = sent(first)
    assert type(back) is ValueError and isinstance(back.__cause__, RemoteError)


def test_an_exception_is_also_a_value() -> None:
    back = round_trip({"errors": [ValueError("x")]})
    assert type(back["errors"][0]) is ValueError and back["errors"][0].args == ("x",)
