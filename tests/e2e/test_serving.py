"""Models and functions as people bring them: the command line, another engine, embeddings, scaling out."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from bench.cloud import Cloud

pytestmark = pytest.mark.e2e

FOREIGN = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def answer(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(json.dumps({"object": "list", "data": [{"id": "parrot", "object": "model"}]}).encode())
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = asked["messages"][-1]["content"].split()
        usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
        base = {"id": "c", "created": 1, "model": asked["model"]}
        if not asked.get("stream"):
            message = {"role": "assistant", "content": " ".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return self.answer(json.dumps({**base, "object": "chat.completion", "choices": [choice], "usage": usage}).encode())
        events = [
            {**base, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}]}
            for word in words
        ]
        if asked.get("stream_options", {}).get("include_usage"):
            events.append({**base, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        text = "".join(f"data: {json.dumps(event)}\\n\\n" for event in events) + "data: [DONE]\\n\\n"
        self.answer(text.encode(), "text/event-stream")

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Engine).serve_forever()
"""


@pytest.fixture(scope="module")
def own() -> Iterator[Cloud]:
    with Cloud() as cloud:
        yield cloud


def nanopod(cloud: Cloud, *words: str, wait_s_max: float = 100) -> subprocess.CompletedProcess[str]:
    """The command line, talking to this cloud."""
    return subprocess.run(
        [sys.executable, "-m", "nanopod", *words],
        capture_output=True,
        text=True,
        timeout=wait_s_max,
        env=cloud.client_env(),
    )


def test_serve_chat_and_bill_from_the_command_line(own: Cloud) -> None:
    served = nanopod(own, "serve", "nanopod-tiny", "--max", "1", "--json")
    assert served.returncode == 0, served.stderr
    said = nanopod(own, "chat", "nanopod-tiny", "What is a nanopod?")
    assert said.returncode == 0, said.stderr
    assert len(said.stdout) > 20
    models = json.loads(nanopod(own, "models", "list", "--json").stdout)
    assert "nanopod-tiny" in json.dumps(models)
    shown = nanopod(own, "endpoints", "get", "nanopod-tiny")
    assert "cold_workers" in shown.stdout, "the reasons for the present scale are shown"

    def billed() -> bool:
        usage = json.loads(nanopod(own, "billing", "usage", "--json").stdout)
        return int(usage["total"]["completion_tokens"]) > 0

    assert own.wait_for(billed, 10, "the bill")
    for noun in ("endpoints", "deployments", "instances", "nodes", "capacities", "instance-skus", "keys"):
        listed = nanopod(own, noun, "list")
        assert listed.returncode == 0, listed.stderr
        assert json.loads(nanopod(own, noun, "list", "--json").stdout)


def test_any_openai_server_command_is_an_engine(own: Cloud, tmp_path: Path) -> None:
    script = tmp_path / "parrot.py"
    script.write_text(FOREIGN)
    served = nanopod(own, "serve", "parrot", "--max", "1", "--json", "--", sys.executable, str(script), "{port}")
    assert served.returncode == 0, served.stderr
    client = openai.OpenAI(base_url=f"{own.url}/v1", api_key=own.key, max_retries=0, timeout=30)
    messages = [{"role": "user", "content": "say this again"}]
    whole = client.chat.completions.create(model="parrot", messages=messages)  # type: ignore[arg-type]
    assert whole.choices[0].message.content == "say this again"
    chunks = list(client.chat.completions.create(model="parrot", messages=messages, stream=True))  # type: ignore[arg-type]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "say this again "
    assert all(chunk.usage is None for chunk in chunks), "usage was not asked for"
    raw = client.chat.completions.with_raw_response.create(model="parrot", messages=messages, stream=True)  # type: ignore[arg-type]
    assert raw.headers["x-nanopod-continuation"] == "best_effort"

    def counted() -> bool:
        records = [r for r in own.usage_records() if r["kind"] == "chat" and r["prompt_tokens"] == 3]
        return len(records) >= 2 and all(r["completion_tokens"] == 3 for r in records)

    assert own.wait_for(counted, 10, "usage of a streamed and of a whole answer")


def test_an_engine_that_cannot_start_is_reported_in_its_own_words(own: Cloud) -> None:
    broken = "import sys; print('no such GPU here', file=sys.stderr); sys.exit(7)"
    served = nanopod(own, "serve", "broken", "--max", "1", "--", sys.executable, "-c", broken)
    assert served.returncode == 3
    assert "no such GPU here" in served.stderr
    client = openai.OpenAI(base_url=f"{own.url}/v1", api_key=own.key, max_retries=0, timeout=30)
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="broken", messages=[{"role": "user", "content": "hi"}])
    assert "no such GPU here" in caught.value.message


@pytest.mark.slow
def test_sentence_embeddings_of_the_real_model(own: Cloud) -> None:
    name = "sentence-transformers/all-MiniLM-L6-v2"
    served = nanopod(own, "serve", name, "--max", "1", wait_s_max=300)
    if "no place has" in served.stderr.lower() or "tried" in served.stderr:
        pytest.skip(f"the model cannot be had here: {served.stderr[-200:]}")
    assert served.returncode == 0, served.stderr
    client = openai.OpenAI(base_url=f"{own.url}/v1", api_key=own.key, max_retries=0, timeout=30)
    texts = ["a cat sits on the mat", "a kitten rests on a rug", "interest rates rose again"]
    vectors = [row.embedding for row in client.embeddings.create(model=name, input=texts).data]
    assert all(len(vector) == 384 and math.isclose(sum(x * x for x in vector), 1, abs_tol=1e-4) for vector in vectors)

    def similar(a: int, b: int) -> float:
        return sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True))

    assert similar(0, 1) > 0.5 > similar(0, 2)


def test_load_adds_workers_and_settings_restart_none(own: Cloud, tmp_path: Path) -> None:
    program = tmp_path / "busy.py"
    program.write_text(
        textwrap.dedent("""
        import asyncio, os
        from nanopod import Deployment
        app = Deployment(name="busy")
        app.image("python")
        app.configure_autoscaling(cold_workers=1, max_workers=3, min_load=0)

        @app.remote
        async def work(x):
            await asyncio.sleep(0.2)
            return os.getpid()

        async def main():
            await app.async_ensure_ready(wait=True, timeout=60)
            seen = set()
            for _ in range(30):
                seen |= set(await asyncio.gather(*(work(x) for x in range(9))))
                if len(seen) == 3:
                    break
            print(len(seen))

        if __name__ == "__main__":
            asyncio.run(main())
        """)
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=100, env=own.client_env()
    )
    assert done.stdout.strip() == "3", done.stderr

    before = {i["id"] for i in own.api("GET", "/v1/endpoints/busy")["instances"]}
    changed = program.read_text().replace("max_workers=3", "max_workers=4")
    program.write_text("# a comment\n" + changed)
    plan = nanopod(own, "plan", str(program))
    assert "autoscale_update" in plan.stdout + plan.stderr
    assert plan.returncode == 2, "there are changes"
    deployed = nanopod(own, "deploy", str(program))
    assert deployed.returncode == 0, deployed.stderr
    after = {i["id"] for i in own.api("GET", "/v1/endpoints/busy")["instances"]}
    assert before <= after or after <= before, "no worker was replaced"


def test_a_code_change_rolls_without_a_failed_call(own: Cloud, tmp_path: Path) -> None:
    program = tmp_path / "rolling.py"
    code = textwrap.dedent("""
        from nanopod import Deployment
        app = Deployment(name="rolling")
        app.image("python")
        app.configure_autoscaling(cold_workers=1, max_workers=1)

        @app.remote
        async def version() -> int:
            return 1
        """)
    program.write_text(code)
    caller = "import asyncio, sys\nfrom nanopod import Deployment\n"
    assert nanopod(own, "deploy", str(program)).returncode == 0
    runner = tmp_path / "caller.py"
    runner.write_text(
        caller
        + textwrap.dedent(f"""
        sys.path.insert(0, {str(tmp_path)!r})
        import rolling
        async def main():
            app = Deployment.from_name("rolling")
            got = []
            while not got or got[-1] != 2:
                got.append(await rolling.version())
                await asyncio.sleep(0.02)
                if len(got) == 5:
                    print("go", flush=True)
                assert len(got) < 1500, "the new version never came"
            assert got == sorted(got), "once on the new version, never back"
            print("rolled", len(got))
        asyncio.run(main())
        """)
    )
    env = {**own.client_env(), "NANOPOD_MODE": "client"}
    calling = subprocess.Popen(
        [sys.executable, str(runner)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert calling.stdout is not None
    assert calling.stdout.readline().strip() == "go"
    newer = tmp_path / "new" / "rolling.py"
    newer.parent.mkdir()
    newer.write_text(code.replace("return 1", "return 2"))
    assert nanopod(own, "deploy", str(newer)).returncode == 0
    out, err = calling.communicate(timeout=60)
    assert "rolled" in out, err


def test_every_command_explains_itself() -> None:
    from nanopod.__main__ import table

    async def all_of_them() -> list[tuple[str, int | None, bytes]]:
        async def one(verb: str) -> tuple[str, int | None, bytes]:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nanopod", verb, "--help"), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await process.communicate()
            return verb, process.returncode, out

        return [await one(verb) for verb in table()]

    for verb, code, out in asyncio.run(all_of_them()):
        assert code == 0, verb
        assert b"usage: nanopod" in out
