"""Workers that host a model: the built-in engine, and a command that speaks the OpenAI API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_gateway import Answer, FakeGateway, Worker
from node_instances import Instance, eventually, model_app

from nanopod.model import frames
from nanopod.model.endpoint import EndpointSpec, ModelSpec
from nanopod.node import procs, records

pytestmark = pytest.mark.integration
SERVER = Path(__file__).with_name("openai_server.py")


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="npm-", dir="/tmp") as path:
        yield Path(path)


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(limited())


def chat(text: str = "Hello", **fields: Any) -> bytes:
    body = {"model": "test-model", "messages": [{"role": "user", "content": text}], "max_tokens": 5, **fields}
    return json.dumps(body).encode()


def ask(worker: Worker, body: bytes, path: str = "/v1/chat/completions", **attempt: Any) -> Answer:
    """Send a request as the gateway does, the body in two frames."""
    given = {"request_id": "req_1", "epoch": 1, "response_id": "chatcmpl-1", "created": 5, "seed": 3, **attempt}
    headers = {"content-type": "application/json"}
    head = {"k": "http", "method": "POST", "path": path, "headers": headers, "timeout_s": 30.0, "attempt": given}
    answer = worker.open(head, body[:10], end=False, epoch=given["epoch"])
    worker.send(frames.pack(frames.DATA, answer.stream, body[10:], frames.FLAG_END))
    return answer


def body_of(answer: Answer) -> bytes:
    """Everything the caller would see."""
    shown = b""
    for kind, _, payload in answer.frames:
        if kind == frames.DATA:
            shown += payload
        elif kind == frames.TOKENS:
            shown += frames.unpack_tokens(payload)[3]
    return shown


def ids_of(answer: Answer) -> list[int]:
    found: list[int] = []
    for payload in answer.of(frames.TOKENS):
        _, first, ids, _ = frames.unpack_tokens(payload)
        assert first == len(found)
        found += ids
    return found


def head_of(answer: Answer) -> dict[str, Any]:
    return dict(json.loads(answer.of(frames.HEAD)[0]))


def reference(source: str = "nanopod-tiny") -> EndpointSpec:
    return model_app(ModelSpec("test-model", "reference", source, slots=4))


def test_the_built_in_engine_answers_and_continues(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, reference(), slots=4) as instance:
                worker = await gateway.ready()
                assert worker.hello["ready"] is True, "it dials when it knows what it can promise"
                assert worker.hello["capability"] == {"continuation": "exact", "seed": True, "token_ids": True}
                assert (worker.hello["engine"], worker.hello["model_id"]) == ("reference", "test-model")
                whole = ask(worker, chat(max_tokens=12, stream=True))
                await worker.over(whole)
                assert head_of(whole)["status"] == 200
                assert whole.end["usage"]["completion_tokens"] == len(ids_of(whole)) == 12
                assert body_of(whole).endswith(b"data: [DONE]\n\n")
                prompt_ids = head_of(whole)["prompt_ids"]
                # The same again from the fifth token: what is shown continues byte for byte.
                rest = ask(
                    worker,
                    chat(max_tokens=12, stream=True),
                    epoch=2,
                    prompt_ids=prompt_ids,
                    choices=[ids_of(whole)[:5]],
                )
                await worker.over(rest)
                _, first, ids, _ = frames.unpack_tokens(rest.of(frames.TOKENS)[0])
                assert first == 5
                assert list(ids) == ids_of(whole)[5 : 5 + len(ids)]
                assert body_of(whole).endswith(body_of(rest))
                plain = ask(worker, chat(max_tokens=3))
                await worker.over(plain)
                assert json.loads(body_of(plain))["usage"]["completion_tokens"] == 3
                bad = ask(worker, b'{"model": "test-model"}')
                await worker.over(bad)
                assert head_of(bad)["status"] == 400
                call = worker.open({"k": "call"}, b"")
                await worker.over(call)
                assert call.reset() is not None
                instance.terminate()
                assert (await instance.verdict()).exit_code == 0

    run(story())


def test_callers_that_leave_and_drains_end_generations(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, reference(), slots=4, grace_s=3.0) as instance:
                worker = await gateway.ready()
                long = ask(worker, chat("Tell me a story about a fox.", max_tokens=200, stream=True))
                await long.until(lambda a: bool(a.of(frames.TOKENS)))
                worker.send(frames.pack_reset(long.stream, frames.CANCELLED, "the caller left"))
                await asyncio.sleep(0.2)
                count = len(long.frames)
                await asyncio.sleep(0.3)
                assert len(long.frames) == count, "nothing comes after a reset"
                running = ask(worker, chat("Tell me a story about a fox.", max_tokens=20, stream=True))
                await running.until(lambda a: bool(a.of(frames.TOKENS)))
                instance.terminate()
                await worker.until(lambda w: bool(w.states) and w.states[-1]["draining"])
                late = ask(worker, chat())
                await worker.over(late)
                assert late.reset() == ("refused", "draining")
                await worker.over(running)
                assert len(ids_of(running)) == 20
                assert (await instance.verdict()).exit_code == 0

    run(story())


def test_a_model_that_is_nowhere_fails_the_start(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            spec = reference(str(root / "no-model-here"))
            with Instance(root, gateway.path, spec, env={"NANOPOD_OFFLINE": "1"}) as instance:
                assert (await instance.verdict()).exit_code == 1
                failure = records.read_failure(instance.directory)
                assert failure is not None
                assert failure.stage == "engine"
                assert "no-model-here" in failure.message
                assert not gateway.dials

    run(story())


def command(*options: str, start_s_max: float = 30.0) -> EndpointSpec:
    argv = (sys.executable, str(SERVER), "{port}", *options)
    return model_app(ModelSpec("test-model", "command", argv=argv, slots=4, start_s_max=start_s_max))


def test_a_command_is_ready_once_a_token_came_out(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            app = command("--name", "{model}", "--load", "0.6", "--child")
            with Instance(root, gateway.path, app) as instance:
                worker = await gateway.ready()
                assert worker.hello["capability"]["continuation"] == "best_effort"
                assert worker.hello["engine"] == "command"
                stream = ask(worker, chat(stream=True))
                await worker.over(stream)
                assert [flags for kind, flags, _ in stream.frames if kind == frames.HEAD] == [frames.FLAG_END]
                assert head_of(stream)["headers"]["content-type"] == "text/event-stream"
                events = [json.loads(line[6:]) for line in body_of(stream).split(b"\n\n")[:-2]]
                text = "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"])
                assert text == "Hello there, it is raining"
                assert stream.end["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "cached_tokens": 3}
                assert stream.end["finish"] == ["stop"]
                assert len(stream.writes) > 2, "passed on as it came"
                plain = ask(worker, chat(max_tokens=2))
                await worker.over(plain)
                assert plain.end["usage"]["completion_tokens"] == 2
                assert plain.end["finish"] == ["length"]
                bad = ask(worker, chat("fail"))
                await worker.over(bad)
                assert head_of(bad)["status"] == 400
                # A caller that leaves hangs up on the command.
                slow = ask(worker, chat(stream=True, user="0.3"))
                await slow.until(lambda a: bool(a.of(frames.DATA)))
                worker.send(frames.pack_reset(slow.stream, frames.CANCELLED, "left"))
                head = {"k": "http", "method": "GET", "path": "/hung-up", "headers": {}, "timeout_s": 5.0}
                for _ in range(20):
                    count = worker.open(head)
                    await worker.over(count)
                    if body_of(count) == b"1":
                        break
                    await asyncio.sleep(0.1)
                assert body_of(count) == b"1"
                assert len(instance.processes()) == 4, "shim, worker, command and its child"
                instance.terminate()
                assert (await instance.verdict()).exit_code == 0
                assert not instance.processes()

    run(story())


def test_a_command_that_knows_its_model_by_another_name(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, command("--name", "other/model", "--embeddings")):
                worker = await gateway.ready()
                body = json.dumps({"model": "test-model", "input": "Hi"}).encode()
                answer = ask(worker, body, "/v1/embeddings")
                await worker.over(answer)
                assert json.loads(body_of(answer))["data"][0]["embedding"] == [0.5, 0.25]
                assert answer.end["usage"]["prompt_tokens"] == 2

    run(story())


@pytest.mark.parametrize(
    ("app", "text"),
    [
        (command("--die", "0.2"), "exit status 3"),
        (command("--load", "60", "--name", "{model}", start_s_max=1.0), "start_s_max"),
        (model_app(ModelSpec("test-model", "command", argv=("/no/such/engine",))), "cannot start /no/such/engine"),
        (model_app(ModelSpec("test-model", "command")), "model.argv"),
    ],
    ids=["dies", "late", "absent", "unnamed"],
)
def test_a_command_that_does_not_become_an_engine(root: Path, app: EndpointSpec, text: str) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, app) as instance:
                verdict = await instance.verdict(10)
                assert verdict.exit_code == 1
                failure = records.read_failure(instance.directory)
                assert failure is not None
                assert failure.stage == "engine"
                assert text in failure.message
                if "exit status" in text:
                    assert "out of imaginary memory" in failure.message
                assert not instance.processes()

    run(story())


def test_a_command_that_dies_takes_its_worker_along_and_its_streams_are_told(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, command("--name", "{model}")) as instance:
                worker = await gateway.ready()
                stream = ask(worker, chat(stream=True, user="0.5"))
                await stream.until(lambda a: bool(a.of(frames.DATA)))
                (child,) = procs.children_of(instance.worker_pid)
                os.kill(child, signal.SIGKILL)
                await worker.over(stream, 5)
                reset = stream.reset()
                assert reset is not None
                assert reset[0] == "engine_lost"
                verdict = await instance.verdict(10)
                assert verdict.exit_code == 1
                failure = records.read_failure(instance.directory)
                assert failure is not None
                assert failure.stage == "run"
                assert "signal 9" in failure.message

    run(story())


def test_a_command_dies_with_its_worker(root: Path) -> None:
    async def story() -> None:
        async with FakeGateway(root / "gw") as gateway:
            with Instance(root, gateway.path, command("--name", "{model}")) as instance:
                await gateway.ready()
                os.kill(instance.worker_pid, signal.SIGKILL)
                await instance.verdict()
                await eventually(lambda: not instance.processes(), 3)

    run(story())
