#!/usr/bin/env python3
"""Time the package against its targets; first, its parity tests must pass.

> python tests/benchmarks/run.py
> python tests/benchmarks/run.py --only layer scaling --seconds 3

Both terms of a ratio are timed in turns in one run, on one thread, and the
ratio is that of the medians. A part is a module beside this file with
``PARITY``, the unit tests that must pass first, ``rows(options)``, which
yields lines of the table, and sometimes ``plot(rows, folder)``. Each part has
a process of its own, because page faults can take half of the time of plain
torch, and their number depends on what the process did before.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
# The checkout's own package, installed or not
sys.path[:0] = [str(HERE), str(REPOSITORY)]
PARTS = [
    "layer",
    "cnn",
    "features",
    "epoch",
    "inference",
    "encoder",
    "scaling",
    "memory",
    "mfcc_lstm",
    "shared_machine",
    "gpu",
]


def parse(argv=None):
    """Read the command line.

    Arguments
    ---------
    argv : list of str, optional
        Instead of the process's own.

    Returns
    -------
    argparse.Namespace
        The options.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=10, help="each row")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time instead of the clock's: for a busy machine",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=REPOSITORY / "runs" / "benchmarks",
        help="folder of benchmarks.json and the plots",
    )
    return parser.parse_args(argv)


def check_parity(parts):
    """Stop unless the unit tests of all parts pass.

    Arguments
    ---------
    parts : list of module
        The parts that are to be timed.
    """
    names = dict.fromkeys(name for part in parts for name in part.PARITY)
    tests = [str(HERE.parent / "unittests" / name) for name in names]
    command = [sys.executable, "-m", "pytest", "-q", *tests]
    if subprocess.run(command, cwd=REPOSITORY, check=False).returncode:
        sys.exit("nothing is timed: the fast paths do not agree with the slow")


def time_part(name, options):
    """Time one part and print its rows.

    Arguments
    ---------
    name : str
        One of ``PARTS``.
    options : argparse.Namespace
        The command line.

    Returns
    -------
    list of Row
        Lines of the table.
    """
    part = importlib.import_module(name)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.cpu_time:
        importlib.import_module("timing").clock = time.process_time
    rows = []
    for row in part.rows(options):
        rows.append(row)
        print(row, flush=True)
    if rows and hasattr(part, "plot"):
        part.plot(rows, options.output)
    return rows


def main():
    """Check parity, time, print the table, write JSON and plots."""
    options = parse()
    parts = [importlib.import_module(name) for name in options.only]
    check_parity(parts)
    options.output.mkdir(parents=True, exist_ok=True)
    found = []
    print(f"{'part':10} {'row':40} {'ratio':>6} {'target':>6}        ms")
    context = multiprocessing.get_context("spawn")
    for name in options.only:
        with ProcessPoolExecutor(1, mp_context=context) as process:
            found += process.submit(time_part, name, options).result()
    missed = sum(row.ok is False for row in found)
    print(f"{missed} of {sum(row.ok is not None for row in found)} missed")
    result = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "clock": "processor" if options.cpu_time else "wall",
        "load": os.getloadavg()[0],
        "rows": [{**row._asdict(), "ok": row.ok} for row in found],
    }
    path = options.output / "benchmarks.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{path}, {', '.join(p.name for p in options.output.glob('*.png'))}")


if __name__ == "__main__":
    main()
