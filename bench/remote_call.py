"""A trivial remote call through the whole product against a plain aiohttp JSON echo, interleaved in one run.

Auth, queueing and metering are on. The echo server and the load are processes of their own, as the cloud's are.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.cloud import Cloud
from bench.driver import driver, echo, free_port
from bench.figures import Figure, median, say


def run(*, quick: bool = False) -> Iterator[Figure]:
    """Figures of this cell."""
    repeats, seconds = (2, 1.0) if quick else (5, 2.0)
    yardstick = "plain aiohttp JSON echo, same run"
    with Cloud() as cloud, echo(free_port()) as theirs, driver("product", env=cloud.client_env()) as ours:
        for callers in (1, 32):
            rows = []
            for load in (theirs, ours):
                load.ask(callers=callers, seconds=0.5)
            for _ in range(repeats):
                echo_p50, echo_rate = theirs.ask(callers=callers, seconds=seconds)
                p50, rate = ours.ask(callers=callers, seconds=seconds)
                rows.append({"p50": p50, "rate": rate, "echo_p50": echo_p50, "echo_rate": echo_rate})
            detail = {key: round(median([row[key] for row in rows]), 6) for key in rows[0]}
            say(f"c={callers}: {detail}")
            bar_p50, bar_rate = ("<= 1.5", "") if callers == 1 else ("", ">= 1.0")
            p50 = median([row["p50"] / row["echo_p50"] for row in rows])
            yield Figure(f"remote_call_p50_vs_echo_c{callers}", p50, "ratio", yardstick, bar_p50, detail)
            rate = median([row["rate"] / row["echo_rate"] for row in rows])
            yield Figure(f"remote_call_rate_vs_echo_c{callers}", rate, "ratio", yardstick, bar_rate, detail)
