"""What calls carry, beside a plain aiohttp echo of the same run: `.map`, 10 MB, 512 callers, spawned calls; and the
same call by other people's software.

Everything takes turns in one run; a figure is the median of the ratios of neighbours, which a busy machine hurts least.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench import peers
from bench.cloud import Cloud
from bench.driver import Driver, driver, echo, free_port, server
from bench.figures import Figure, median, say

ECHO_NAME = "plain aiohttp JSON echo, 32 callers, same run"
RAY = "ray==2.60.0"
LITSERVE = "litserve==0.2.19"
LITSERVE_SERVER = """
import sys
import litserve as ls
class Square(ls.LitAPI):
    def setup(self, device): pass
    def decode_request(self, request): return request["x"]
    def predict(self, x): return x * x
    def encode_response(self, output): return {"result": output}
if __name__ == "__main__":
    server = ls.LitServer(Square(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
"""
COPIER = """
import socket, sys, threading
port, size, onward = map(int, sys.argv[1:])
def exactly(peer, into):
    at = 0
    while at < len(into):
        got = peer.recv_into(into[at:])
        if not got: return False
        at += got
    return True
def pump(source, sink):
    while data := source.recv(1 << 18):
        sink.sendall(data)
def serve(peer):
    with peer:
        if onward:
            with socket.create_connection(("127.0.0.1", onward)) as next_one:
                threading.Thread(target=pump, args=(peer, next_one), daemon=True).start()
                try: pump(next_one, peer)
                except OSError: pass
            return
        into = memoryview(bytearray(size))
        while exactly(peer, into):
            peer.sendall(into)
listener = socket.create_server(("127.0.0.1", port))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
SIZE = 10_000_000 // 256 * 256


def ratios(rows: Sequence[tuple[float, float]]) -> float:
    """The median of the ratios of pairs."""
    return median([ours / theirs for ours, theirs in rows])


def map_rate(*, quick: bool = False) -> Iterator[Figure]:
    """Items per second of `.map` over 10,000 trivial items."""
    items, repeats = (2_000, 2) if quick else (10_000, 5)
    with Cloud() as cloud, echo(free_port()) as yardstick, driver("product", env=cloud.client_env()) as ours:
        ours.ask(form="mapped", items=1_000)
        yardstick.ask(callers=32, seconds=0.3)
        rows: dict[str, list[tuple[float, float]]] = {"mapped": [], "mapped_in_thread": []}
        for _ in range(repeats):
            for form, cell in rows.items():
                rate = yardstick.ask(callers=32, seconds=1.0)[1]
                cell.append((ours.ask(form=form, items=items), rate))
    for name, form in (("map_rate_vs_echo", "mapped"), ("map_rate_vs_echo_thread", "mapped_in_thread")):
        cell = rows[form]
        detail = {"items_per_s": round(median([a for a, _ in cell])), "echo_per_s": round(median([b for _, b in cell]))}
        yield Figure(name, ratios(cell), "ratio", ECHO_NAME, ">= 0.6, or >= 3000 items/s", detail)


def large_bytes(*, quick: bool = False) -> Iterator[Figure]:
    """10 MB there and back as an argument and a result, against plain sockets."""
    end, relay = free_port(), free_port()
    argv = [sys.executable, "-c", COPIER]
    with (
        Cloud() as cloud,
        server([*argv, str(end), str(SIZE), "0"], end),
        server([*argv, str(relay), str(SIZE), str(end)], relay),
        driver("product", env=cloud.client_env()) as ours,
    ):
        ours.ask(form="large", size=SIZE, port=end, relay=relay, repeats=2)
        found = ours.ask(form="large", size=SIZE, port=end, relay=relay, repeats=5 if quick else 25)
    detail = {f"{name}_ms": round(found[name] * 1000, 2) for name in ("call", "socket", "relayed")}
    text = "the same bytes over plain loopback sockets, there and back"
    yield Figure("bytes_10mb_vs_socket", found["vs_relayed"], "ratio", f"{text}, by a relay", "<= 3", detail)
    yield Figure("bytes_10mb_vs_socket_direct", found["vs_socket"], "ratio", f"{text}, without a relay", "", detail)


def many_callers(*, quick: bool = False) -> Iterator[Figure]:
    """What a call costs when 512 callers call at once, in units of its cost with 32."""
    seconds, repeats = (1.0, 3) if quick else (2.0, 7)
    with Cloud() as cloud, driver("product", env=cloud.client_env()) as ours:
        ours.ask(callers=512, seconds=0.5)
        rows = []
        for _ in range(repeats):
            few, many = (ours.ask(callers=callers, seconds=seconds)[1] for callers in (32, 512))
            rows.append((few, many))
    detail = {"c32_per_s": round(median([a for a, _ in rows])), "c512_per_s": round(median([b for _, b in rows]))}
    yield Figure("calls_c512_vs_c32", ratios(rows), "ratio", "cost of a call with 32 callers", "<= 1.3", detail)


def spawn_rate(*, quick: bool = False) -> Iterator[Figure]:
    """Calls that outlive their caller: each is on disk before its `spawn` returns."""
    seconds, repeats = (1.0, 2) if quick else (2.0, 3)
    with Cloud() as cloud, echo(free_port()) as yardstick, driver("product", env=cloud.client_env()) as ours:
        ours.ask(form="spawned", callers=4, seconds=0.2)
        rows: dict[str, list[tuple[dict[str, float], float]]] = {"spawn_rate": [], "spawn_rate_map": []}
        for _ in range(repeats):
            rate = yardstick.ask(callers=32, seconds=1.0)[1]
            rows["spawn_rate"].append((ours.ask(form="spawned", callers=32, seconds=seconds), rate))
            rows["spawn_rate_map"].append((ours.ask(form="spawned_together", items=1_000), rate))
    for name, cell in rows.items():
        detail = {f"{key}_per_s": round(median([row[key] for row, _ in cell])) for key in ("rate", "done_rate")}
        detail["echo_per_s"] = round(median([rate for _, rate in cell]))
        value = ratios([(row["rate"], rate) for row, rate in cell])
        yield Figure(name, value, "ratio", ECHO_NAME, "", detail)


def others(*, quick: bool = False) -> Iterator[Figure]:
    """The same call by Ray (an asynchronous actor) and LitServe (HTTP), and by the product, in turns."""
    seconds, repeats = (1.0, 2) if quick else (2.0, 5)
    with Cloud() as cloud, driver("product", env=cloud.client_env()) as ours:

        def compare(name: str, text: str, theirs: Driver) -> Iterator[Figure]:
            for callers in (1, 32):
                rows = []
                for load in (theirs, ours):
                    load.ask(callers=callers, seconds=0.5)
                for _ in range(repeats):
                    rows.append(
                        (ours.ask(callers=callers, seconds=seconds), theirs.ask(callers=callers, seconds=seconds))
                    )
                yield _compared(name, text, callers, rows)

        for peer in (_litserve, _ray):
            try:
                yield from peer(compare)
            except peers.Unavailable as missing:
                say(f"left out: {missing}")


Compare = Callable[[str, str, Driver], Iterator[Figure]]


def _compared(name: str, text: str, callers: int, rows: Sequence[tuple[Any, Any]]) -> Figure:
    """p50 at one caller, calls per second at several; both as ours over theirs."""
    at = 0 if callers == 1 else 1
    detail = {
        "p50_ms": round(median([ours[0] for ours, _ in rows]) * 1000, 3),
        "their_p50_ms": round(median([theirs[0] for _, theirs in rows]) * 1000, 3),
        "per_s": round(median([ours[1] for ours, _ in rows])),
        "their_per_s": round(median([theirs[1] for _, theirs in rows])),
    }
    value = ratios([(ours[at], theirs[at]) for ours, theirs in rows])
    what, bar = ("p50", "< 1") if callers == 1 else ("rate", "> 1")
    return Figure(f"call_vs_{name}_{what}_c{callers}", value, "ratio", text, bar, detail)


def _litserve(compare: Compare) -> Iterator[Figure]:
    python = peers.python_with("litserve-" + LITSERVE.partition("==")[2], [LITSERVE])
    port = free_port()
    script = peers.PEERS / "litserve_square.py"  # its workers are started anew from a file
    script.write_text(LITSERVE_SERVER)
    with server([python, script, str(port)], port), driver("http", port) as load:
        yield from compare("litserve", f"{LITSERVE} over HTTP, same run", load)


def _ray(compare: Compare) -> Iterator[Figure]:
    python = peers.python_with("ray-" + RAY.partition("==")[2], [RAY])
    env = {**Cloud().env, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    with driver("ray", env=env, python=python) as load:
        yield from compare("ray", f"{RAY}, a call of an asynchronous actor, same run", load)
