"""Functions that start by themselves: one every second, one on working days at half past six."""

from __future__ import annotations

import time

from nanopod import Cron, Deployment, Dict, Period

app = Deployment(name="cron-job")
app.image("python")
app.configure_autoscaling(cold_workers=1, max_workers=1)
ticks = Dict.from_name("cron-job-ticks")


@app.remote(schedule=Period(1))
def tick() -> int:
    """Count up in a dictionary that everybody can look into."""
    ticks["count"] = ticks.get("count", 0) + 1
    return int(ticks["count"])


@app.remote(schedule=Cron("30 6 * * mon-fri", tz="Europe/Berlin"))
def report() -> str:
    """What somebody wants to read at breakfast."""
    return f"{ticks.get('count', 0)} ticks so far"


def main(wanted: int = 2, wait_s_max: float = 60.0) -> None:
    """Deploy, then only watch: the server starts the calls. `nanopod schedules list` shows them, too."""
    app.ensure_ready()
    limit = time.monotonic() + wait_s_max
    while ticks.get("count", 0) < wanted and time.monotonic() < limit:
        time.sleep(0.1)
    print("ticked at least", wanted, "times:", ticks.get("count", 0) >= wanted)
    print(report.remote().split()[1:])


if __name__ == "__main__":
    main()
