"""What a model costs where it is used: time, memory, ONNX, 8-bit weights.

    python tests/benchmarks/deployment.py MODEL FOLDER [--table manifest.tsv]

MODEL is a model folder, FOLDER holds audio; the table has columns "file" and
"emotion", for the change of the unweighted accuracy by 8-bit weights. Before
anything is timed, ONNX is held to torch.
"""

import csv
import json
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnxruntime
import soundfile
import torch
from timing import interleave

from speechbrain_dslstm.audio import load_audio
from speechbrain_dslstm.evaluation import scores
from speechbrain_dslstm.export import export_onnx, quantize_onnx
from speechbrain_dslstm.inference import load_safe

THREADS = 1


def open_session(path):
    """An ONNX session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options)

    def run(wav):
        """Log-posteriors of one clip."""
        inputs = {"wavs": wav.unsqueeze(0).numpy()}
        inputs["counts"] = np.array([len(wav)])
        return torch.from_numpy(session.run(None, inputs)[0])

    return run


def resident():
    """Megabytes this process holds, and held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return tuple(int(found[k].split()[0]) / 1024 for k in ("VmRSS", "VmHWM"))


def memory_of_an_hour(classifier, clips):
    """Megabytes above the loaded model for one hour of speech."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "hour.flac")
        with soundfile.SoundFile(path, "w", 16000, 1) as file:
            written = 0
            while written < 3600 * 16000:
                clip = clips[written % len(clips)]
                file.write(clip.numpy())
                written += len(clip)
        before = resident()[0]
        started = time.perf_counter()
        segments = sum(1 for _ in classifier.classify_long(path))
        seconds = time.perf_counter() - started
    return {
        "segments": segments,
        "real_time_factor": seconds / 3600,
        "peak_mb_above_model": resident()[1] - before,
    }


def accuracy(run, clips, targets, labels):
    """Unweighted accuracy of a function of one clip."""
    predicted = [int(run(clip).argmax()) for clip in clips]
    return scores(targets, predicted, labels)["ua"]


@click.command()
@click.argument("model")
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--table", type=click.Path(exists=True))
@click.option("--clips", "number", default=24, show_default=True)
@click.option("--hour", is_flag=True, help="Also an hour of audio.")
def main(model, folder, table, number, hour):
    """Measure and print JSON."""
    torch.set_num_threads(THREADS)
    classifier = load_safe(model)
    files = sorted(folder.glob("*.flac"))
    some = files[:: max(1, len(files) // number)]
    clips = [load_audio(path) for path in some]
    found = {}
    if hour:
        found["hour"] = memory_of_an_hour(classifier, clips)

    path = Path(tempfile.mkdtemp(), "model.onnx")
    started = time.perf_counter()
    export_onnx(classifier, path)
    found["export_seconds"] = time.perf_counter() - started
    small = quantize_onnx(path, path.with_name("int8.onnx"))
    whole, int8 = open_session(path), open_session(small)
    found["bytes"] = {
        "model.ckpt": Path(model, "model.ckpt").stat().st_size,
        "onnx": path.stat().st_size,
        "onnx int8": small.stat().st_size,
    }
    for clip in clips:
        expected = classifier.classify_batch(clip)[0]
        torch.testing.assert_close(whole(clip), expected, atol=1e-4, rtol=0)

    seconds = sum(map(len, clips)) / 16000
    timed = interleave(
        {
            "classify_file": lambda: [
                classifier.classify_file(p) for p in some
            ],
            "torch": lambda: [classifier.classify_batch(c) for c in clips],
            "onnx": lambda: [whole(c) for c in clips],
            "onnx int8": lambda: [int8(c) for c in clips],
        },
        seconds=20,
    )
    found["real_time_factor"] = {k: t / 1e3 / seconds for k, t in timed.items()}
    stream = classifier.with_normalization("running").stream()
    started = time.perf_counter()
    for clip in clips:
        for chunk in clip.split(1600):
            stream.push(chunk)
    elapsed = time.perf_counter() - started
    found["real_time_factor"]["stream, 100 ms"] = elapsed / seconds

    if table:
        with open(table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        rows = [r for r in rows if r["emotion"] in classifier.labels]
        every = [load_audio(folder / row["file"]) for row in rows]
        targets = [classifier.labels.index(row["emotion"]) for row in rows]
        found["ua"] = {
            name: accuracy(run, every, targets, classifier.labels)
            for name, run in {"onnx": whole, "onnx int8": int8}.items()
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
