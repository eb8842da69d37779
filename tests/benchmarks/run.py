#!/usr/bin/env python3
"""Time the DS-LSTM layer against torch.nn.LSTM; refuses when parity fails.

> python tests/benchmarks/run.py

Both sides of a ratio are timed in turns in one run, on one thread, and the
ratio is that of the medians. nn.LSTM reads x and y concatenated, with the
same hidden size; its arithmetic is 4/5 of the DS-LSTM's for the inputs and
4/6 for the recurrence. T 50, x 496, y 1008, hidden 200: the paper's sizes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from speechbrain_dslstm import DSLSTM
from speechbrain_dslstm.ds_lstm.dispatch import choose_backend

TESTS = Path(__file__).resolve().parents[1]
SIZE_X, SIZE_Y, HIDDEN = 496, 1008, 200
# batch -> largest ratio that is wanted, of training and of inference
TARGETS = {1: (1.05, 1.10), 16: (1.30, 1.40), 128: (1.30, 1.40)}


def interleave(calls, seconds):
    """Median time of each call, in seconds, timed in turns.

    Arguments
    ---------
    calls : dict of str to callable
        What is timed.
    seconds : float
        How long altogether.

    Returns
    -------
    dict of str to float
        Medians.
    """
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def layer_calls(batch, steps, training, backends):
    """What is compared at one size.

    Arguments
    ---------
    batch : int
        Utterances.
    steps : int
        Time steps T.
    training : bool
        Forward and backward, or inference.
    backends : list of str
        Backends of the DS-LSTM.

    Returns
    -------
    dict of str to callable
        "nn.LSTM" and one for each backend.
    """
    x = torch.randn(batch, steps, SIZE_X, requires_grad=training)
    y = torch.randn(batch, steps, SIZE_Y, requires_grad=training)
    lstm = torch.nn.LSTM(SIZE_X + SIZE_Y, HIDDEN, batch_first=True)
    layers = {
        name: DSLSTM(SIZE_X, SIZE_Y, HIDDEN, backend=name) for name in backends
    }

    def call(run):
        def once():
            with torch.set_grad_enabled(training):
                out = run()
                if training:
                    out.sum().backward()

        return once

    calls = {"nn.LSTM": call(lambda: lstm(torch.cat([x, y], -1))[0])}
    for name, layer in layers.items():
        calls[name] = call(lambda layer=layer: layer(x, y)[0])
    return calls


def main():
    """Check parity, time, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="each row")
    parser.add_argument("--steps", type=int, nargs="+", default=[50])
    parser.add_argument("--batch", type=int, nargs="+", default=[*TARGETS])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    parity = TESTS / "unittests" / "test_ds_lstm.py"
    command = [sys.executable, "-m", "pytest", "-q", str(parity)]
    if subprocess.run(command, cwd=TESTS.parent, check=False).returncode:
        sys.exit("no timings: the backends do not agree with the equations")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fastest = choose_backend().name
    backends = list(dict.fromkeys([fastest, "eager"]))
    rows = []
    print("mode       T  batch  nn.LSTM ms   backend  ms      ratio  target")
    for steps in options.steps:
        for batch in options.batch:
            for training in (True, False):
                calls = layer_calls(batch, steps, training, backends)
                medians = interleave(calls, options.seconds)
                lstm = medians.pop("nn.LSTM")
                target = TARGETS.get(batch, (None, None))[not training]
                for name, taken in medians.items():
                    row = {
                        "mode": "training" if training else "inference",
                        "steps": steps,
                        "batch": batch,
                        "lstm_ms": 1e3 * lstm,
                        "backend": name,
                        "ms": 1e3 * taken,
                        "ratio": taken / lstm,
                        "target": target,
                    }
                    rows.append(row)
                    print(
                        f"{row['mode']:9} {steps:3} {batch:6} "
                        f"{row['lstm_ms']:11.2f}   {name:7} {row['ms']:7.2f} "
                        f"{row['ratio']:6.2f}  {target}",
                        flush=True,
                    )
    if options.json is not None:
        text = json.dumps({"torch": torch.__version__, "rows": rows}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
