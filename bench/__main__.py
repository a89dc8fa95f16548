"""`python -m bench [--only NAME]`: run the benchmarks, one JSON line per figure on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys

from bench.figures import say

CELLS = {
    "remote_call": "bench.remote_call",
    "map_rate_vs_echo": "bench.rates:map_rate",
    "bytes_10mb_vs_socket": "bench.rates:large_bytes",
    "calls_c512_vs_c32": "bench.rates:many_callers",
    "spawn_rate": "bench.rates:spawn_rate",
    "call_vs": "bench.rates:others",
    "codec_vs_msgpack": "bench.codec",
    "import_time": "bench.start:import_time",
    "reload_vs_spawn": "bench.reloading:reload_vs_spawn",
    "dev_reload_ms": "bench.reloading:dev_reload",
    "gateway": "bench.gateway",
    "start": "bench.start",
    "market": "bench.market",
    "scale_idle": "bench.scaling:idle_services",
    "scale_added_p50_ms_500rps": "bench.scaling:added_at_rate",
    "scale_from_zero_s": "bench.scaling:from_zero",
}
"""Module (and function, else `run`) of each cell. The names of its figures begin with its own."""


def main() -> int:
    """Run the chosen cells. Exit 1 when a cell could not run."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", help=f"a cell ({', '.join(CELLS)}) or a figure's name, which starts with its cell's")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, for a look")
    args = parser.parse_args()
    chosen = [name for name in CELLS if not args.only or args.only.startswith(name)]
    if not chosen:
        parser.error(f"no cell is named {args.only!r}; there are: {', '.join(CELLS)}")
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    noise = " (noisy)" if load > 2 * cores else ""
    say(f"python {platform.python_version()}, {cores} cores, load {load:.1f}{noise}")
    for name in chosen:
        say(f"--- {name}")
        module, _, function = CELLS[name].partition(":")
        for figure in getattr(importlib.import_module(module), function or "run")(quick=args.quick):
            if not args.only or args.only in CELLS or figure.name == args.only:
                figure.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
