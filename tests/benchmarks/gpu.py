#!/usr/bin/env python3
"""Measure everything that depends on a GPU: kernels, systems, precision, graphs.

> python tests/benchmarks/gpu.py --output FOLDER --budget 420

Each part has a process and a time of its own; whatever a part has found by then
is kept. The folder receives gpu.jsonl, a row for each line of the tables, and
gpu.md, the tables. Types: "fp32" is exact; with "tf32" torch, cuDNN and the
kernels may use it for float32, which SpeechBrain allows. ``rows`` is the short
form for ``run.py``.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    # The checkout's own package, installed or not
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(REPOSITORY)]

import torch  # noqa: E402
from timing import Row  # noqa: E402

PARITY = ["ds_lstm/test_layer.py", "ds_lstm/test_kernel_triton.py"]
# The most important first; what is timed has the GPU for itself
STAGES = [
    ["parity_fp32", "parity_bf16"],
    ["times"],
    ["variants"],
    ["graphs"],
    ["model_graphs"],
    ["classify"],
    ["epochs"],
    ["suite", "recipe"],
    ["recipe_alone"],
    ["profile"],
]
ORDER = [name for stage in STAGES for name in stage]


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
    parser.add_argument(
        "--data",
        type=Path,
        default=REPOSITORY / "data" / "emodb",
        help="folder of EMO-DB",
    )
    parser.add_argument(
        "--encoder", help="Whisper's weights; random ones if left out"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=420, help="seconds")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def find_parts():
    """Every part: its function and its seconds.

    Returns
    -------
    dict of str to tuple
        By name.
    """
    import gpu_kernels
    import gpu_systems

    return {**gpu_kernels.PARTS, **gpu_systems.PARTS}


def run_part(options):
    """Run a part in this process; write and print each row at once.

    Arguments
    ---------
    options : argparse.Namespace
        The command line, with ``part``.
    """
    function, _ = find_parts()[options.part]
    torch.manual_seed(0)
    with open(options.output / "gpu.jsonl", "a", encoding="utf-8") as file:
        for row in function(options):
            row = {
                key: float(f"{value:.4g}") if type(value) is float else value
                for key, value in row.items()
            }
            file.write(json.dumps({"part": options.part, **row}) + "\n")
            file.flush()
            shown = (value for value in row.values())
            print(f"{options.part}:", *shown, flush=True)


def write_tables(folder):
    """Write gpu.md from gpu.jsonl.

    Arguments
    ---------
    folder : pathlib.Path
        Holds both.
    """
    parts = {}
    for line in (folder / "gpu.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        parts.setdefault(row.pop("part"), []).append(row)
    lines = []
    for part, rows in parts.items():
        keys = list(dict.fromkeys(key for row in rows for key in row))
        lines += [f"## {part}", "", "| " + " | ".join(keys) + " |"]
        lines += ["|" + " --- |" * len(keys)]
        for row in rows:
            cells = [str(row.get(key, "")).replace("|", "/") for key in keys]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    (folder / "gpu.md").write_text("\n".join(lines), encoding="utf-8")


def main():
    """Run the parts in turn, each in its own process, within the budget."""
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.part:
        try:
            run_part(options)
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        return
    started = time.perf_counter()
    device = "the CPU"
    if options.device == "cuda":
        device = torch.cuda.get_device_name()
    with open(options.output / "gpu.jsonl", "w", encoding="utf-8") as file:
        row = {"part": "machine", "device": device, "torch": torch.__version__}
        file.write(json.dumps(row) + "\n")
    print(f"# {device}, torch {torch.__version__}", flush=True)
    parts = find_parts()
    for stage in STAGES:
        names = [name for name in stage if name in options.only]
        left = options.budget - (time.perf_counter() - started)
        if names and left < 5:
            print(f"# {names}: no time left", flush=True)
            continue
        before = time.perf_counter()
        running = {
            name: subprocess.Popen(
                [sys.executable, __file__, *sys.argv[1:], "--part", name],
                start_new_session=True,
            )
            for name in names
        }
        for name, process in running.items():
            limit = before + min(parts[name][1], left)
            try:
                state = process.wait(max(0.1, limit - time.perf_counter()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                state = "out of time"
            taken = time.perf_counter() - before
            print(f"# {name}: exit {state}, {taken:.1f} s", flush=True)
            with open(
                options.output / "gpu.jsonl", "a", encoding="utf-8"
            ) as file:
                row = {"part": "parts", "name": name, "exit": str(state)}
                row["s"] = round(taken, 1)
                file.write(json.dumps(row) + "\n")
        write_tables(options.output)


def rows(options):
    """Time the layer against cuDNN's nn.LSTM, where there is a GPU.

    Arguments
    ---------
    options : argparse.Namespace
        ``seconds`` for each row.

    Yields
    ------
    Row
        One for each type, mode and number of steps, at batch 128.
    """
    if not torch.cuda.is_available():
        print("# gpu: not measured, no GPU here")
        return
    from gpu_kernels import KINDS, layer_calls, milliseconds, products

    from speechbrain_dslstm.ds_lstm.backends import BACKENDS

    print(f"# gpu: {torch.cuda.get_device_name()}")
    runs = {"triton": BACKENDS["triton"]}
    for kind, dtype in KINDS.items():
        for steps in (50, 200):
            for training in (True, False):
                calls = layer_calls(
                    128, steps, 200, dtype, training, runs, "cuda"
                )
                with products(kind):
                    found = milliseconds(calls, options.seconds, "cuda")
                mode = "training" if training else "inference"
                yield Row(
                    "gpu",
                    f"{mode}, T {steps}, batch 128, {kind}",
                    found["triton"] / found["nn.LSTM"],
                    1.5,
                    found,
                )


if __name__ == "__main__":
    main()
