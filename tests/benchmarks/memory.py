"""How the peak memory of a training step grows with T.

Two layers at the paper's sizes, batch 32; each T in a process of its own, less
what the process holds before that step. Linux only: the peak that getrusage
gives starts with that of the parent process.
"""

import subprocess
import sys
from pathlib import Path

from layer import HIDDEN, PARITY, SIZE_X, SIZE_Y
from scaling import slope
from timing import Row

__all__ = ["PARITY", "rows"]

STEPS = [50, 100, 200, 400, 800]
BATCH = 32
CHILD = rf"""
import re, sys
from pathlib import Path
import torch
from speechbrain_dslstm import DSLSTM
torch.set_num_threads(1)

def memory(kind):
    text = Path("/proc/self/status").read_text()
    return int(re.search(kind + r":\s+(\d+) kB", text)[1]) / 1024

def step(batch, steps):
    x = torch.randn(batch, steps, {SIZE_X}, requires_grad=True)
    y = torch.randn(batch, steps, {SIZE_Y}, requires_grad=True)
    if sys.argv[1] == "nn.LSTM":
        net(torch.cat([x, y], -1))[0].sum().backward()
    else:
        net(x, y)[0].sum().backward()

if sys.argv[1] == "nn.LSTM":
    net = torch.nn.LSTM({SIZE_X + SIZE_Y}, {HIDDEN}, 2, batch_first=True)
else:
    net = DSLSTM({SIZE_X}, {SIZE_Y}, {HIDDEN}, num_layers=2)
step(1, 1)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = memory("VmRSS")
step({BATCH}, int(sys.argv[2]))
print(memory("VmHWM") - before)
"""


def peak_memory(side, steps):
    """Peak memory of one training step.

    Arguments
    ---------
    side : str
        "DS-LSTM" or "nn.LSTM".
    steps : int
        Time steps T.

    Returns
    -------
    float
        MiB, inputs and gradients included.
    """
    command = [sys.executable, "-c", CHILD, side, str(steps)]
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=repository
    )
    return float(done.stdout)


def rows(options):
    """Measure every T and fit the slope.

    Arguments
    ---------
    options : argparse.Namespace
        Not used: one step is enough.

    Yields
    ------
    Row
        One for each side; ``medians`` holds MiB instead of milliseconds.
    """
    for side in ("DS-LSTM", "nn.LSTM"):
        peaks = [peak_memory(side, steps) for steps in STEPS]
        yield Row(
            "memory",
            f"slope in T of MiB, {side}, batch {BATCH}",
            slope(STEPS, peaks),
            1.05 if side == "DS-LSTM" else None,
            {f"T {t}:": p for t, p in zip(STEPS, peaks, strict=True)},
        )
