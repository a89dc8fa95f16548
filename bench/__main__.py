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
    "gateway": "bench.gateway",
    "start": "bench.start",
    "market": "bench.market",
}


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
        for figure in importlib.import_module(CELLS[name]).run(quick=args.quick):
            if not args.only or args.only in CELLS or figure.name == args.only:
                figure.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
