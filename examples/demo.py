"""The whole story in under three minutes, on real input: `make demo`.

1. a cloud on this machine;  2. a semantic-search app over the documentation that ships with Python;  3. a model
that streams through the official openai client;  4. its worker killed in mid-stream, and still the same text;
5. asleep at zero, awake on the first request;  6. latencies and the bill.

`--keep` leaves the cloud up afterwards, `--data-dir` says where it lives.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).parent
WAIT_S_MAX = 120.0
QUESTIONS = [
    "How do I compress a file?",
    "read rows of comma separated values",
    "run something in another process and get its output",
    "What is the safest way to make a random password?",
]
PROMPT = "Tell me a story about a fox."
MODEL = "nanopod-tiny"

console = Console(highlight=False)
latencies: list[tuple[str, float]] = []


class Cloud:
    """The running cloud, as its users see it: a URL and a key."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.url: str = facts["url"]
        self.key = Path(facts["key_file"]).read_text().strip()
        self.data_dir = Path(facts["data_dir"])

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """One management call."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def worker_pids(self) -> list[int]:
        """Worker processes of this cloud."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    argv = (entry / "cmdline").read_bytes().decode().split("\0")
                except OSError:
                    continue
                if "nanopod.node.worker" in argv and any(word.startswith(str(self.data_dir)) for word in argv):
                    found.append(int(entry.name))
        return found


def chapter(number: int, title: str) -> None:
    """A heading."""
    console.print()
    console.rule(f"[bold cyan]{number}[/]  [bold]{title}[/]", align="left")


def waiting(text: str, test: Callable[[], Any]) -> Any:
    """A spinner until `test` is true; its value."""
    limit = time.monotonic() + WAIT_S_MAX
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        bar.add_task(text)
        while not (found := test()):
            if time.monotonic() > limit:
                raise SystemExit(f"gave up after {WAIT_S_MAX:.0f} s: {text}; see: nanopod logs")
            time.sleep(0.05)
    return found


def start(data_dir: str) -> Cloud:
    """Chapter 1."""
    chapter(1, "A cloud on this machine")
    begin = time.perf_counter()
    with console.status("nanopod up --detach"):
        done = subprocess.run(
            [sys.executable, "-m", "nanopod", "up", "--detach", "--json", "--port", "0", "--data-dir", data_dir],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    cloud = Cloud(json.loads(done.stdout))
    latencies.append(("nanopod up, from nothing to ready", time.perf_counter() - begin))
    console.print(f"API server, gateway and node agent are up at [bold]{cloud.url}[/]")
    os.environ.update(NANOPOD_URL=cloud.url, NANOPOD_API_KEY=cloud.key)
    return cloud


async def search() -> None:
    """Chapter 2."""
    chapter(2, "A Python file becomes a search service")
    sys.path.insert(0, str(HERE))
    import semantic_search

    begin = time.perf_counter()
    with console.status("deploying examples/semantic_search.py; its context loads all-MiniLM-L6-v2 once"):
        await semantic_search.app.async_ensure_ready(wait=True, timeout=WAIT_S_MAX)
    latencies.append(("deploy the search app until a worker is ready", time.perf_counter() - begin))

    documents = semantic_search.documents()
    begin = time.perf_counter()
    with Progress(
        TextColumn("indexing"), BarColumn(), TextColumn("{task.completed}/{task.total} documents"), console=console
    ) as bar:
        task = bar.add_task("", total=len(documents))
        for at in range(0, len(documents), 16):
            await semantic_search.index(documents[at : at + 16])
            bar.update(task, completed=min(at + 16, len(documents)))
    latencies.append((f"embed and index {len(documents)} documents", time.perf_counter() - begin))

    for question in QUESTIONS:
        begin = time.perf_counter()
        hits = await semantic_search.ask(question, 1)
        latencies.append(("one question to the search app", time.perf_counter() - begin))
        score, title, text = hits[0]
        console.print(Text.assemble(("? ", "bold yellow"), question))
        console.print(Text.assemble("  ", (title, "bold green"), f"  {score:.2f}  ", (text[:90], "dim")))


def stream(cloud: Cloud, on_chunk: Callable[[int], None] = lambda _: None) -> Iterator[str]:
    """Text pieces of one seeded chat stream."""
    import openai

    client = openai.OpenAI(base_url=f"{cloud.url}/v1", api_key=cloud.key, max_retries=0, timeout=WAIT_S_MAX)
    begin = time.perf_counter()
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        stream=True,
        seed=7,
        temperature=0.8,
        max_tokens=200,
    )
    for number, chunk in enumerate(chunks):
        if number == 0:
            latencies.append(("first token of the model", time.perf_counter() - begin))
        on_chunk(number)
        yield chunk.choices[0].delta.content or ""


def tell(pieces: Iterator[str]) -> str:
    """Print a stream as it comes; the whole text."""
    text = ""
    for piece in pieces:
        text += piece
        console.print(piece, end="", style="italic", markup=False, soft_wrap=True)
    console.print()
    return text


def ready(cloud: Cloud) -> bool:
    """Is a worker of the model ready?"""
    return bool(cloud.api("GET", f"/v1/endpoints/{MODEL}")["ready_instance_count"])


def serve(cloud: Cloud) -> str:
    """Chapter 3."""
    chapter(3, "A language model, through the official openai client")
    model = {"model_id": MODEL, "engine": "reference", "source": MODEL, "slots": 4}
    scale = {"cold_workers": 1, "max_workers": 1}
    begin = time.perf_counter()
    cloud.api("POST", "/v1/endpoints", {"name": MODEL, "kind": "model", "model": model, "scale": scale})
    waiting(f"nanopod serve {MODEL}", lambda: ready(cloud))
    latencies.append(("serve the model until a worker is ready", time.perf_counter() - begin))
    console.print(Text.assemble(("? ", "bold yellow"), PROMPT))
    return tell(stream(cloud))


def kill(cloud: Cloud, undisturbed: str) -> None:
    """Chapter 4."""
    chapter(4, "The same again, and this time its worker dies at the 12th piece")
    before = {instance["id"] for instance in cloud.api("GET", f"/v1/endpoints/{MODEL}")["instances"]}
    last = time.perf_counter()
    gap_s = 0.0

    def strike(number: int) -> None:
        nonlocal last, gap_s
        now = time.perf_counter()
        if number > 12:
            gap_s = max(gap_s, now - last)
        last = now
        if number == 12:
            workers = [pid for pid in cloud.worker_pids() if any(name in command(pid) for name in before)]
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            console.print(f" [bold white on red] kill -9 {workers[0]} [/] ", end="")

    text = tell(stream(cloud, strike))
    latencies.append(("gap in the stream while a new worker woke", gap_s))
    if text != undisturbed:
        raise SystemExit("the streams differ: that is a bug, please report it")
    console.print(f"[bold green]identical[/]: {len(text.encode())} bytes, one response, the caller noticed a pause")


def command(pid: int) -> str:
    """A process's command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def sleep_and_wake(cloud: Cloud) -> None:
    """Chapter 5."""
    chapter(5, "Asleep at zero, awake on the first request")
    model = {"model_id": MODEL, "engine": "reference", "source": MODEL, "slots": 4}
    scale = {"cold_workers": 0, "min_load": 0, "inactivity_timeout": 1, "max_workers": 1}
    done = cloud.api("POST", "/v1/endpoints", {"name": MODEL, "kind": "model", "model": model, "scale": scale})
    console.print(f"new settings: [bold]{done['action']}[/] (tier {done['tier']}: no worker was restarted)")
    asleep = lambda: cloud.api("GET", f"/v1/endpoints/{MODEL}")["status"] == "asleep"  # noqa: E731
    waiting("idle; waiting until it sleeps", asleep)
    console.print("no worker is left; it costs nothing now")
    begin = time.perf_counter()
    first = next(piece for piece in stream(cloud) if piece)
    latencies.pop()
    latencies.append(("wake from zero to the first token", time.perf_counter() - begin))
    console.print(f"a request woke it: first piece {first!r} after [bold]{latencies[-1][1]:.2f} s[/]")


def bill(cloud: Cloud) -> None:
    """Chapter 6."""
    chapter(6, "What it took, and the bill")
    times = Table("step", "seconds", box=None, padding=(0, 2))
    merged: dict[str, list[float]] = {}
    for name, took in latencies:
        merged.setdefault(name, []).append(took)
    for name, values in merged.items():
        best = f"{min(values):.3f}" + (f"  (best of {len(values)})" if len(values) > 1 else "")
        times.add_row(name, best)
    console.print(times)
    time.sleep(1.0)
    usage = cloud.api("GET", "/v1/usage?group_by=endpoint")
    table = Table("endpoint", "requests", "prompt tokens", "completion tokens", "compute s", box=None, padding=(0, 2))
    for row in [*usage["data"], {"endpoint": "total", **usage["total"]}]:
        numbers = (str(row[name]) for name in ("requests", "prompt_tokens", "completion_tokens"))
        table.add_row(str(row.get("endpoint_name") or row.get("endpoint")), *numbers, f"{row['compute_us'] / 1e6:.2f}")
    console.print(table)


def main() -> None:
    """Run all chapters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the cloud up afterwards")
    parser.add_argument("--data-dir", help="where the cloud lives (default: a temporary directory)")
    args = parser.parse_args()
    begin = time.perf_counter()
    data_dir = args.data_dir or os.path.join(tempfile.mkdtemp(prefix="nanopod-demo-"), "data")
    console.print(Panel("[bold]nanopod[/]: spare capacity as one dependable inference cloud", expand=False))
    cloud = start(data_dir)
    try:
        asyncio.run(search())
        undisturbed = serve(cloud)
        kill(cloud, undisturbed)
        sleep_and_wake(cloud)
        bill(cloud)
    finally:
        if not args.keep:
            subprocess.run([sys.executable, "-m", "nanopod", "down", "--data-dir", data_dir], stdout=subprocess.DEVNULL)
    console.print(f"\nall of it in [bold]{time.perf_counter() - begin:.0f} s[/]")
    if args.keep:
        console.print(
            f"the cloud stays up at {cloud.url}; key: {data_dir}/admin.key; end it: nanopod down --data-dir {data_dir}"
        )
    else:
        console.print("the cloud is down again; [bold]make demo ARGS=--keep[/] leaves it up")


if __name__ == "__main__":
    main()
