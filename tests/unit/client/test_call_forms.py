"""The forms of a call before any server is asked: options, headers, what hangs on functions inside a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import nanopod
from nanopod import BlockingCallInLoop, Call, Deployment, Retries, gather
from nanopod.client import gpus
from nanopod.client.calling import header_of
from nanopod.client.function import RemoteFunction
from nanopod.client.sdk import Route
from nanopod.model import calls, registry
from nanopod.model.endpoint import RetrySpec
from nanopod.model.errors import Invalid, NotReady

ROUTE = Route("http://127.0.0.1:9", "key", "endp_1")


@pytest.fixture
def app() -> Deployment:
    made = Deployment(name="forms")
    made._mode = "deploy"
    return made


@pytest.fixture
def square(app: Deployment) -> RemoteFunction[[int], int]:
    @app.remote(timeout=7, priority=1)
    async def square(x: int) -> int:
        return x * x

    return square


def header(function: RemoteFunction[..., Any], *args: Any) -> calls.Call:
    return header_of(function._bound, ROUTE, b"i" * 16, args, {})


def test_a_call_without_options_says_what_its_function_says(square: RemoteFunction[[int], int]) -> None:
    found = header(square, 3)
    assert (found.timeout_s, found.priority, found.deadline_at, found.retries) == (7, 1, 0.0, None)
    assert (found.session, found.route_key, found.parent, found.depth) == ("", "", b"", 0)


def test_options_of_a_call_are_in_its_header_and_leave_the_function_alone(square: RemoteFunction[[int], int]) -> None:
    before = time.time()
    other = square.with_options(
        timeout=5, queue_timeout=6, priority=9, deadline=60, retries=Retries(2, on=("ValueError",)), idempotent=True,
        model="lora-a", session="sess_1", workload=3.5, gpu=[gpus.H100_SXM, gpus.A100_SXM4], region="eu",
    )  # fmt: skip
    found = header(other, 3)
    assert (found.timeout_s, found.queue_timeout_s, found.priority, found.idempotent) == (5, 6, 9, True)
    assert (found.route_key, found.session, found.workload) == ("lora-a", "sess_1", 3.5)
    assert found.retries == RetrySpec(2, on=("ValueError",))
    assert (found.gpus, found.region) == (["H100 SXM", "A100 SXM4"], "eu")
    assert header(square.with_options(gpu="L4")).gpus == ["L4"]
    assert b"gpus" not in calls.encode(header(square, 3)), "what is not asked for is not sent"
    assert before + 60 <= found.deadline_at <= time.time() + 60
    assert header(other.with_options(priority=-1), 3).timeout_s == 5, "options add up"
    assert header(square, 3).priority == 1
    assert other.__name__ == "square" and other.__wrapped__ is square.__wrapped__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"timeout": 0}, "timeout"), ({"priority": "high"}, "priority"), ({"retries": 3}, "retries"),
        ({"webhook": "example.org"}, "webhook"), ({"model": "x" * 300}, "model"), ({"session": 7}, "session"),
        ({"workload": float("nan")}, "workload"), ({"gpu": ["H100 SXM", 4]}, "gpu"), ({"gpu": ["A40"] * 17}, "gpu"), ({"gpu": ""}, "gpu"), ({"region": 5}, "region"),
        ({"concurrency": 4}, "concurrency"),
    ],
)  # fmt: skip
def test_impossible_options_name_the_field(
    square: RemoteFunction[[int], int], options: dict[str, Any], field: str
) -> None:
    with pytest.raises(Invalid) as caught:
        square.with_options(**options)
    assert caught.value.field == field


def test_a_function_known_by_name_has_the_options_of_the_deployed_one() -> None:
    app = Deployment.from_name("elsewhere")
    row = {
        "name": "far",
        "timeout_s": 7.0,
        "queue_timeout_s": 8.0,
        "idempotent": True,
        "priority": 4,
        "concurrency": 16,
    }
    app._endpoint = {"functions": [row]}
    found = header(app.function("far").with_options(timeout=3))
    assert (found.timeout_s, found.queue_timeout_s, found.idempotent, found.priority) == (3, 8, True, 4)
    assert header(app.function("unknown")).timeout_s == 600


def test_an_unknown_option_is_a_type_error_with_the_nearest(square: RemoteFunction[[int], int]) -> None:
    with pytest.raises(TypeError, match="did you mean timeout"):
        square.with_options(timeuot=3)


def test_a_call_inside_a_remote_function_names_its_parent(square: RemoteFunction[[int], int]) -> None:
    context = registry.CallContext("call_" + "ab" * 16, depth=2)
    token = registry.current.set(context)
    try:
        found = header(square, 1)
        assert (found.parent, found.depth) == (b"\xab" * 16, 3)
        context.depth = calls.DEPTH_MAX
        with pytest.raises(Invalid, match="17 calls deep") as caught:
            header(square, 1)
        assert caught.value.field == "depth"
    finally:
        registry.current.reset(token)


def test_a_session_that_is_not_open_cannot_be_used(app: Deployment, square: RemoteFunction[[int], int]) -> None:
    with pytest.raises(Invalid, match="is not open"):
        header(square.with_options(session=app.session()), 1)
    with pytest.raises(Invalid, match="lifetime is a number of seconds"):
        app.session(lifetime=-1)
    with pytest.raises(Invalid, match="there are square"):
        app.session(on_close="forget")


def test_blocking_forms_in_a_loop_say_what_to_write(square: RemoteFunction[[int], int]) -> None:
    square._bound.app._route = ROUTE

    async def main() -> list[str]:
        call: Call[int] = Call.from_id("0" * 32, "token", url=ROUTE.url)
        said = []
        for form in (
            lambda: square.remote(1), lambda: square.spawn(1), lambda: square.for_each([1]),
            lambda: square.spawn_map([1]), lambda: next(square.map([1])), call.get, call.status, call.cancel, call.cost,
            call.share, call.logs, square.stats, lambda: square._bound.app.run().__enter__(),
            lambda: square._bound.app.session().__enter__(),
        ):  # fmt: skip
            with pytest.raises(BlockingCallInLoop) as caught:
                form()  # type: ignore[no-untyped-call]
            said.append(str(caught.value))
        return said

    said = asyncio.run(main())
    for words, text in zip(
        ("await square(...)", "await square.spawn.aio(...)", "await square.for_each.aio(...)",
         "await square.spawn_map.aio(...)", "async for", "await call.aget()", "await call.astatus()",
         "await call.acancel()", "await call.astatus()", "await call.ashare()", "to_thread", "to_thread",
         "async with app.run()", "async with"),
        said, strict=True,
    ):  # fmt: skip
        assert words in text, text


def test_no_form_works_before_the_deployment_is_ready(square: RemoteFunction[[int], int]) -> None:
    for form in (
        lambda: square(1),
        lambda: square.spawn(1),
        lambda: next(square.map([1])),
        lambda: square.for_each([1]),
    ):
        with pytest.raises(NotReady):
            form()


def test_an_id_of_a_call_is_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOPOD_URL", ROUTE.url)
    monkeypatch.setenv("NANOPOD_API_KEY", "k")
    for wrong in ("call_1", "call_" + "G" * 32, "x" * 32):
        with pytest.raises(Invalid, match="32 hex digits"):
            Call.from_id(wrong)
    assert Call.from_id("call_" + "0a" * 16) == Call.from_id("0a" * 16)


def test_gathering_nothing_is_an_empty_list() -> None:
    async def main() -> Any:
        return await gather()

    assert gather() == [] and asyncio.run(main()) == []


# --- inside a worker ---


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Deployment:
    monkeypatch.setenv("NANOPOD_MODE", "serve")
    monkeypatch.setenv("NANOPOD_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("NANOPOD_API_KEY", "join-token")
    return Deployment(name="served", tag="blue")


def test_functions_stay_themselves_and_carry_the_forms(served: Deployment) -> None:
    @served.remote
    async def double(x: int) -> int:
        return 2 * x

    @served.remote
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    assert asyncio.run(double(4)) == 8, "a plain call stays in this process"  # type: ignore[arg-type]
    for form in ("remote", "spawn", "map", "starmap", "for_each", "spawn_map", "with_options", "local"):
        assert callable(getattr(double, form))
    for form in ("remote", "stream", "remote_gen", "spawn", "with_options", "local"):
        assert callable(getattr(count, form))
    assert list(count.local(3)) == list(count(3)) == [0, 1, 2]
    assert callable(double.remote.aio) and callable(double.with_options(priority=3).remote.aio)


def test_forms_go_to_the_endpoint_that_this_worker_serves(served: Deployment) -> None:
    @served.remote
    async def double(x: int) -> int:
        return 2 * x

    assert served._route_now() == Route("http://127.0.0.1:9", "join-token", "served:blue")
    served._route = None
    token = registry.current.set(registry.CallContext("0" * 32, endpoint="served:red", function="double"))
    try:
        assert served._route_now().endpoint == "served:red"
    finally:
        registry.current.reset(token)
    served._route, served._app.endpoint = None, "endp_7"
    assert served._route_now().endpoint == "endp_7"


def test_a_worker_without_an_address_says_so(served: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANOPOD_URL")

    @served.remote
    async def double(x: int) -> int:
        return 2 * x

    with pytest.raises(Invalid, match="NANOPOD_URL"):
        double.remote(2)


# --- classes ---


def model(app: Deployment) -> Any:
    @app.cls(concurrency=4, timeout=9)
    class Model:
        """A model."""

        made = 0

        def __init__(self, size: int = 3) -> None:
            type(self).made += 1
            self.log: list[str] = []
            self.size = size

        @nanopod.enter()
        def load(self) -> None:
            self.log.append("loaded")

        @nanopod.enter
        async def warm(self) -> None:
            self.log.append("warm")

        @nanopod.exit()
        def close(self) -> None:
            self.log.append("closed")

        @nanopod.method()
        async def answer(self, x: int, y: int = 1) -> int:
            return self.size * x + y

        @nanopod.method(concurrency=2)
        def state(self) -> list[str]:
            return self.log

        @nanopod.method
        async def items(self, n: int) -> AsyncIterator[int]:
            for i in range(n):
                yield i

    return Model


def test_a_class_becomes_a_context_and_functions(app: Deployment) -> None:
    handle = model(app)
    assert list(app._functions) == ["Model.answer", "Model.state", "Model.items"]
    specs = {name: bound.spec(1) for name, bound in app._functions.items()}
    assert (specs["Model.answer"].concurrency, specs["Model.state"].concurrency) == (4, 2)
    assert {spec.timeout_s for spec in specs.values()} == {9}
    assert specs["Model.items"].kind == "async_generator" and specs["Model.state"].kind == "sync"
    (real,) = app._app.contexts
    assert {row.owner for row in app._app.functions.values()} == {real}
    assert real.made == 0 and handle().__class__.__name__ == "Model" and real.made == 0, "no object is made here"
    assert handle.__doc__ == "A model." and "answer" in repr(handle().answer)
    app._route = ROUTE
    found = header_of(handle().answer._bound, ROUTE, b"i" * 16, *handle().answer._bound.bind((5,), {}))
    assert found.function == "Model.answer"
    with pytest.raises(TypeError, match=r"Model\.answer\(\): missing"):
        handle().answer()
    with pytest.raises(TypeError, match="takes no arguments"):
        handle(3)
    with pytest.raises(AttributeError, match="answer, state, items"):
        _ = handle().size


def test_methods_run_here_on_an_entered_object(app: Deployment) -> None:
    handle = model(app)
    assert asyncio.run(handle().answer.local(2)) == 7
    assert handle().state.local() == ["loaded", "warm"]
    (real,) = app._app.contexts
    entered = app.get_context(handle) if app._app.entered else None
    assert entered is app._app.entered[real] and real.made == 1
    asyncio.run(entered.__aexit__(None, None, None))
    assert entered.log == ["loaded", "warm", "closed"]


def test_in_a_worker_a_class_is_itself(served: Deployment) -> None:
    cls = model(served)
    assert asyncio.run(cls(2).answer(4)) == 9
    assert callable(cls(2).answer.remote.aio) and served._app.functions["Model.answer"].owner is cls


def test_mistakes_with_classes_say_what_to_do(app: Deployment) -> None:
    with pytest.raises(Invalid, match=r"mark at least one with @method\(\)"):
        app.cls(type("Empty", (), {}))

    def answer(self: Any) -> int:
        return 1

    def start(self: Any, path: str) -> None: ...

    with pytest.raises(Invalid, match="takes path"):
        app.cls(type("Needs", (), {"__init__": start, "answer": nanopod.method(answer)}))

    class Bare:
        run = nanopod.method(answer)

    with pytest.raises(Invalid, match=r"lacks @app\.cls"):
        _ = Bare().run
