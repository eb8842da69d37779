"""How the peak memory of a training step grows with T, and that of ``paper``.

Two layers at the paper's sizes, batch 32; each T in a process of its own, less
what the process holds before that step. Then a whole process that trains
``paper`` on clips of 4 s: from waveforms to the optimiser's step, twice; and one
that classifies a file, beside one that only imports torch. Linux only: the peak
that getrusage gives starts with that of the parent process.
"""

import os
import subprocess
import sys
from pathlib import Path

from corpus import emodb_clips
from layer import HIDDEN, PARITY, SIZE_X, SIZE_Y
from scaling import slope
from timing import Row

__all__ = ["PARITY", "rows"]

STEPS = [50, 100, 200, 400, 800]
BATCH = 32
# Batch -> GB that a process may take
LIMITS = {32: 3.0, 128: 12.0}
# MiB of a process that classifies a file with the default model
CLASSIFIER = 700
REPOSITORY = Path(__file__).resolve().parents[2]
MEMORY = r"""
import re, sys
from pathlib import Path
import torch
torch.set_num_threads(1)

def memory(kind):
    text = Path("/proc/self/status").read_text()
    return int(re.search(kind + r":\s+(\d+) kB", text)[1]) / 1024
"""
LAYER = f"""
from speechbrain_dslstm import DSLSTM

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
SYSTEM = """
from speechbrain_dslstm.hparams import load_hparams
from speechbrain_dslstm.models import fusion_loss

hparams = load_hparams("hparams/paper.yaml", "corpus: iemocap")
model = hparams["model"].train()
optimizer = hparams["opt_class"](model.parameters())
batch = int(sys.argv[1])
wavs, targets = torch.randn(batch, 64000), torch.randint(4, (batch,))
for _ in range(2):
    _, outputs = model(0.1 * wavs, return_branches=True)
    optimizer.zero_grad()
    fusion_loss(outputs, targets, model.branch_weights).backward()
    optimizer.step()
print(memory("VmHWM"))
"""
FILE = """
from speechbrain_dslstm import EmotionClassifier

classifier = EmotionClassifier.from_hparams("pretrained/emotion-dslstm-whisper")
classifier.classify_file(sys.argv[1])
print(memory("VmHWM"))
"""


def peak_memory(code, *arguments):
    """Peak memory in a process of its own.

    Arguments
    ---------
    code : str
        What it does after ``MEMORY``; prints MiB.
    *arguments : str or int
        Of its command line.

    Returns
    -------
    float
        MiB.
    """
    command = [sys.executable, "-c", MEMORY + code, *map(str, arguments)]
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        # As train.py does
        env={**os.environ, "THP_MEM_ALLOC_ENABLE": "1"},
    )
    return float(done.stdout.split()[-1])


def rows(options):
    """Measure every T, fit the slope, and measure whole processes.

    Arguments
    ---------
    options : argparse.Namespace
        Not used: one step is enough.

    Yields
    ------
    Row
        One for each side, for each batch of ``paper``, and for a file;
        ``medians`` holds MiB instead of milliseconds.
    """
    for side in ("DS-LSTM", "nn.LSTM"):
        peaks = [peak_memory(LAYER, side, steps) for steps in STEPS]
        yield Row(
            "memory",
            f"slope in T of MiB, {side}, batch {BATCH}",
            slope(STEPS, peaks),
            1.05 if side == "DS-LSTM" else None,
            {f"T {t}:": p for t, p in zip(STEPS, peaks, strict=True)},
        )
    for batch, limit in LIMITS.items():
        peak = peak_memory(SYSTEM, batch)
        yield Row(
            "memory",
            f"GB of a process that trains paper, batch {batch}",
            peak * 2**20 / 1e9,
            limit,
            {"MiB": peak},
        )
    peaks = {
        "whole": peak_memory(FILE, emodb_clips()[0]),
        "import torch": peak_memory('print(memory("VmHWM"))'),
    }
    name = "MiB of a process that classifies a file"
    yield Row("memory", name, peaks["whole"], CLASSIFIER, peaks)
