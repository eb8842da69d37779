"""Whole systems on a GPU: epochs, mixed precision, classifying files, graphs."""

import functools
import importlib.util
import json
import os
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
    """An epoch of the models over EMO-DB against plain torch parts.

    The audio is in memory: what differs is the GPU's work. The encoder's system
    has one plain part, the recurrence.
    """
    from epoch import Epoch

    from speechbrain_dslstm.audio import load_audio

    systems = {
        "dual_level": {},
        "encoder_ds_lstm": {"encoder_source": options.encoder},
        "paper": {},
    }
    read = functools.cache(load_audio)
    for system, overrides in systems.items():
        with tempfile.TemporaryDirectory() as cache:
            epoch = Epoch(
                system, options.data, cache, options.device, **overrides
            )
        by_length = epoch.by_length[: 2 if options.quick else None]
        batches = []
        for batch in by_length:
            wavs = [read(epoch.clips[k][0]) for k in batch.tolist()]
            padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
            counts = torch.tensor([len(wav) for wav in wavs])
            wavs = padded.to(options.device), counts.to(options.device)
            with torch.no_grad():
                batches.append(
                    (wavs, epoch.model.extract(*wavs), epoch.targets(batch))
                )
        for name, call in epoch_ways(epoch, batches).items():
            slow = system == "paper" and "plain" in name
            turns = 1 if slow or options.quick else 3
            seconds, peak = timed(call, options.device, turns)
            yield {
                "system": system,
                "epoch": name,
                "s": seconds,
                "peak, MiB": peak,
            }


def epoch_ways(epoch, batches):
    """Epochs over batches of waveforms, features and targets."""

    def ours():
        for _, extracted, targets in batches:
            epoch.learn(extracted, targets)

    def audio():
        for wavs, _, targets in batches:
            with torch.no_grad():
                extracted = epoch.model.extract(*wavs)
            epoch.learn(extracted, targets)

    def plain():
        if isinstance(epoch.plain, torch.nn.Identity):
            usual = os.environ.get("DSLSTM_BACKEND", "")
            os.environ["DSLSTM_BACKEND"] = "naive"
            ours()
            os.environ["DSLSTM_BACKEND"] = usual
            return
        for _, extracted, targets in batches:
            epoch.learn_plain(epoch.model.normalize(extracted), targets)

    return {
        "ours, from features": ours,
        "plain, from features": plain,
        "ours, from audio": audio,
    }


def start_recipe(options, system, precision, root, epochs_wanted):
    """Start the recipe; returns the process and its folder."""
    folder = Path(root, f"{system}_{precision}")
    encoder = []
    if system.startswith("encoder"):
        encoder = [f"--encoder_source={options.encoder or 'null'}"]
    command = [
        *(sys.executable, str(RECIPE)),
        str(REPOSITORY / "hparams" / f"{system}.yaml"),
        f"--device={options.device}",
        f"--precision={precision}",
        "--corpus=emodb",
        f"--data_folder={options.data}",
        f"--output_folder={folder}",
        *encoder,
        f"--number_of_epochs={epochs_wanted}",
        "--test_every_epoch=False",
    ]
    log = open(Path(root, f"{folder.name}.log"), "w", encoding="utf-8")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    return process, folder


def recipe(options):
    """The recipe itself, with fp16's GradScaler and with bf16, side by side."""
    plan = [
        ("dual_level", "fp32", 4),
        ("dual_level", "fp16", 4),
        ("dual_level", "bf16", 4),
        ("paper", "fp16", 2),
        ("encoder_ds_lstm", "fp32", 4),
        ("encoder_ds_lstm", "fp16", 4),
    ]
    yield from run_recipes(
        options, [("dual_level", "bf16", 2)] if options.quick else plan
    )


def recipe_alone(options):
    """The recipe with the machine for itself."""
    yield from run_recipes(options, [("dual_level", "fp32", 5)])


def run_recipes(options, plan):
    """Run some systems at once: system, precision, epochs; rows as each ends."""
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        running = {
            (system, precision): start_recipe(
                options, system, precision, root, epochs_wanted
            )
            for system, precision, epochs_wanted in plan
        }
        stamps = {key: [] for key in running}
        while running:
            time.sleep(0.05)
            for key, (process, folder) in list(running.items()):
                path = folder / "save" / "epochs.jsonl"
                lines = path.read_bytes().count(b"\n") if path.exists() else 0
                while len(stamps[key]) < lines:
                    stamps[key].append(time.perf_counter() - start)
                if process.poll() is None:
                    continue
                del running[key]
                log = Path(root, f"{folder.name}.log").read_text("utf-8")
                print(f"## {folder.name}\n{log[-1500:]}", flush=True)
                yield {
                    "recipe": key[0],
                    "precision": key[1],
                    "beside": len(plan) - 1,
                    "exit": process.returncode,
                    "whole, s": time.perf_counter() - start,
                    **(
                        {}
                        if process.returncode
                        else outcome(folder, stamps[key])
                    ),
                }


def outcome(folder, stamps):
    """Seconds, losses and scores of a run that ended well."""
    lines = (folder / "save" / "epochs.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    pauses = [b - a for a, b in zip(stamps, stamps[1:], strict=False)]
    return {
        "epoch 1 after, s": stamps[0],
        "later epochs, s": statistics.median(pauses),
        "training losses": " ".join(f"{row['train_loss']:.3f}" for row in rows),
        "validation UA": " ".join(f"{row['valid']['ua']:.3f}" for row in rows),
    }


def classify(options):
    """Shipped models over EMO-DB's files; the same answers as on the CPU."""
    from speechbrain_dslstm.inference import EmotionClassifier, classify_files
    from speechbrain_dslstm.inference.folders import find_audio

    files = find_audio(options.data)
    files = files[: 16 if options.quick else None]
    for model in ("emotion-dslstm-whisper", "emotion-dslstm-emodb"):
        found = {}
        for device in dict.fromkeys(("cpu", options.device)):
            classifier = EmotionClassifier.from_hparams(
                f"pretrained/{model}", run_opts={"device": device}
            )
            classify_files(classifier, files[:32])
            start = time.perf_counter()
            found[device] = classify_files(classifier, files)
            seconds = time.perf_counter() - start
            row = {"model": model, "device": device}
            row["files/s"] = len(files) / seconds
            if device == "cuda":
                row |= differences(found[device], found["cpu"])
                row["peak, MiB"] = torch.cuda.max_memory_allocated() / 2**20
            yield row


def differences(found, expected):
    """Whether labels are equal, and the largest difference of log posteriors."""
    pairs = [
        (a, b)
        for a, b in zip(found, expected, strict=True)
        if b.log_posteriors is not None
    ]
    return {
        "largest difference": max(
            float((a.log_posteriors.cpu() - b.log_posteriors).abs().max())
            for a, b in pairs
        ),
        "same labels": all(a.label == b.label for a, b in pairs),
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
            # The search for active speech, on the CPU, cannot be captured
            streams = model.features(wavs)
            calls = {"from features": functools.partial(model, streams=streams)}
            for name, call in calls.items():
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
    if importlib.util.find_spec("xdist"):
        command += ["-n", "6"]
    found = subprocess.run(command, cwd=REPOSITORY, check=False)
    yield {"suite": " ".join(command[-2:]), "exit": found.returncode}


PARTS = {
    "suite": (suite, 95),
    "classify": (classify, 90),
    "epochs": (epochs, 70),
    "model_graphs": (model_graphs, 40),
    "recipe": (recipe, 200),
    "recipe_alone": (recipe_alone, 90),
}
