"""Whole systems on a GPU: epochs, mixed precision, classifying files, graphs."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

__all__ = ["PARTS"]

REPOSITORY = Path(__file__).resolve().parents[2]
# Runs the same tests again, without the GPU
NOT_HERE = "not under_the_interpreter"
RECIPE = REPOSITORY / "recipes" / "emotion_recognition" / "train.py"


def timed(call, device, turns=3):
    """Median seconds of a call, and its peak of the GPU's memory in MiB."""
    from gpu_kernels import synchronize

    call()
    taken, peak = [], float("nan")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(turns):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return statistics.median(taken), peak


def epochs(options):
    """An epoch of the models over EMO-DB against plain torch parts."""
    from epoch import Epoch

    with tempfile.TemporaryDirectory() as cache:
        for system in ("dual_level", "paper"):
            epoch = Epoch(system, options.data, cache, options.device)
            epoch.by_length = epoch.by_length[: 2 if options.quick else None]
            batches = [
                (epoch.load(batch), epoch.targets(batch))
                for batch in epoch.by_length
            ]

            def ours(epoch=epoch, batches=batches):
                for extracted, targets in batches:
                    epoch.learn(extracted, targets)

            def plain(epoch=epoch, batches=batches):
                for extracted, targets in batches:
                    streams = epoch.model.normalize(extracted)
                    epoch.learn_plain(streams, targets)

            ways = {
                "ours, features in memory": ours,
                "plain, features in memory": plain,
                "ours, cached features": epoch.ours,
            }
            if not options.quick:
                ways["plain, features anew"] = epoch.by_hand
            for name, call in ways.items():
                turns = 1 if "anew" in name or options.quick else 3
                seconds, peak = timed(call, options.device, turns)
                yield {
                    "system": system,
                    "epoch": name,
                    "s": seconds,
                    "peak, MiB": peak,
                }


def start_recipe(options, system, precision, root, epochs_wanted):
    """Start the recipe; returns the process and its folder."""
    folder = Path(root, f"{system}_{precision}")
    command = [
        *(sys.executable, str(RECIPE)),
        str(REPOSITORY / "hparams" / f"{system}.yaml"),
        f"--device={options.device}",
        f"--precision={precision}",
        "--corpus=emodb",
        f"--data_folder={options.data}",
        f"--output_folder={folder}",
        f"--feature_cache={root}/features_{system}",
        f"--number_of_epochs={epochs_wanted}",
        "--test_every_epoch=False",
    ]
    log = open(Path(root, f"{folder.name}.log"), "w", encoding="utf-8")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    return process, folder


def follow(runs):
    """Wait for recipes; the seconds at which each epoch of each ended."""
    start, seen = time.perf_counter(), {folder: [] for _, folder in runs}
    while True:
        running = [process.poll() is None for process, _ in runs]
        for folder, stamps in seen.items():
            path = folder / "save" / "epochs.jsonl"
            rows = path.read_text("utf-8").count("\n") if path.exists() else 0
            while len(stamps) < rows:
                stamps.append(time.perf_counter() - start)
        if not any(running):
            return seen, time.perf_counter() - start
        time.sleep(0.05)


def recipe(options):
    """The recipe itself, also with fp16's GradScaler and with bf16."""
    plans = [
        [("dual_level", "fp32", 5)],
        [
            ("dual_level", "fp16", 5),
            ("dual_level", "bf16", 5),
            ("paper", "fp32", 3),
            ("paper", "fp16", 3),
            ("cnn_lstm_xy", "fp32", 3),
        ],
    ]
    if options.quick:
        plans = [[("dual_level", "bf16", 2)]]
    elif (REPOSITORY / "hparams" / "encoder_ds_lstm.yaml").exists():
        print("encoder_ds_lstm is in the tree; its encoder's weights are not")
    with tempfile.TemporaryDirectory() as root:
        for plan in plans:
            runs = [
                start_recipe(options, system, precision, root, number)
                for system, precision, number in plan
            ]
            seen, total = follow(runs)
            for (process, folder), (system, precision, _) in zip(
                runs, plan, strict=True
            ):
                log = Path(root, f"{folder.name}.log").read_text("utf-8")
                row = {
                    "recipe": system,
                    "precision": precision,
                    "beside": len(plan) - 1,
                    "exit": process.returncode,
                }
                if process.returncode:
                    print(f"## {system} {precision}\n{log[-6000:]}", flush=True)
                    yield row
                    continue
                if options.output:
                    shutil.copy(
                        Path(root, f"{folder.name}.log"),
                        options.output / "run.log",
                    )
                stamps = seen[folder]
                path = folder / "save" / "epochs.jsonl"
                lines = path.read_text("utf-8").splitlines()
                losses = [json.loads(line)["train_loss"] for line in lines]
                results = json.loads((folder / "results.json").read_text())
                backend = [x for x in log.splitlines() if "backend" in x]
                path = folder / "log.txt"
                if path.exists():
                    backend += [
                        x
                        for x in path.read_text().splitlines()
                        if "backend" in x
                    ]
                yield {
                    **row,
                    "epoch 1 after, s": stamps[0],
                    "later epochs, s": statistics.median(
                        b - a for a, b in zip(stamps, stamps[1:], strict=False)
                    ),
                    "whole, s": total,
                    "losses": " ".join(f"{loss:.3f}" for loss in losses),
                    "test UA": str(results.get("test", results))[:80],
                    "backend": backend[0][-60:] if backend else "?",
                }


def classify(options):
    """The shipped model over EMO-DB's files; the same answers as on the CPU."""
    from speechbrain_dslstm.inference import EmotionClassifier, classify_files
    from speechbrain_dslstm.inference.folders import find_audio

    files = find_audio(options.data)
    files = files[: 16 if options.quick else None]
    found = {}
    for device in dict.fromkeys(("cpu", options.device)):
        classifier = EmotionClassifier.from_hparams(
            "pretrained/emotion-dslstm-emodb", run_opts={"device": device}
        )
        classify_files(classifier, files[:32])
        start = time.perf_counter()
        found[device] = classify_files(classifier, files)
        seconds = time.perf_counter() - start
        row = {"device": device, "files/s": len(files) / seconds}
        if device == "cuda":
            row["largest difference"] = max(
                float((a.log_posteriors.cpu() - b.log_posteriors).abs().max())
                for a, b in zip(found[device], found["cpu"], strict=True)
                if b.log_posteriors is not None
            )
            row["same labels"] = all(
                a.label == b.label
                for a, b in zip(found[device], found["cpu"], strict=True)
            )
            row["peak, MiB"] = torch.cuda.max_memory_allocated() / 2**20
        yield row


def model_ways(model, wavs, streams):
    """The model on features and on waveforms."""
    lens = torch.ones(len(wavs), device=wavs.device)
    return {
        "from features": lambda: model(streams=streams),
        "from waveforms": lambda: model(wavs, lens),
    }


def model_graphs(options):
    """Capture the classifier's model, from waveforms and from features."""
    if options.device == "cpu":
        return
    from gpu_kernels import captured, milliseconds

    from speechbrain_dslstm.inference import EmotionClassifier

    classifier = EmotionClassifier.from_hparams(
        "pretrained/emotion-dslstm-emodb", run_opts={"device": "cuda"}
    )
    model = classifier.mods.embedding_model
    for batch in (1, 16, 128):
        wavs = 0.1 * torch.randn(batch, 48000, device="cuda")
        with torch.no_grad():
            streams = model.features(wavs)
            for name, call in model_ways(model, wavs, streams).items():
                row = {"model": name, "batch": batch}
                try:
                    graph = captured(call)
                except Exception as error:
                    traceback.print_exc()
                    yield {**row, "error": repr(error)[:200]}
                    return
                wavs.mul_(0.5)
                for feats, _ in streams.values():
                    feats.mul_(0.9)
                graph.replay()
                error = float((graph.found - call()).abs().max())
                taken = milliseconds(
                    {"graph": graph.replay, "plain": call}, 0.3, "cuda"
                )
                yield {
                    **row,
                    "error": error,
                    "replay, ms": taken["graph"],
                    "eager, ms": taken["plain"],
                }


def suite(options):
    """The tests that a GPU changes."""
    tests = REPOSITORY / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=12"]
    command += ["-p", "no:cacheprovider", "--durations=5", "--tb=short"]
    command += ["-k", "host_syncs or cpu" if options.quick else NOT_HERE]
    command += [
        str(tests / "unittests" / "ds_lstm" / "test_kernel_triton.py"),
        str(tests / "unittests" / "test_host_syncs.py"),
    ]
    found = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "DSLSTM_BACKEND": ""},
        capture_output=True,
        text=True,
    )
    print(found.stdout[-7000:], found.stderr[-1500:], flush=True)
    yield {
        "suite": found.stdout.strip().splitlines()[-1],
        "exit": found.returncode,
    }


PARTS = {
    "suite": (suite, 80),
    "classify": (classify, 40),
    "epochs": (epochs, 60),
    "model_graphs": (model_graphs, 30),
    "recipe": (recipe, 100),
}
