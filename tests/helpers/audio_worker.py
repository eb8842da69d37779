"""Runs every hostile file through every entry point; a line of JSON for each.

A process of its own, so that its memory is its own: before each call the peak
of the kernel is set back to what is held.

Usage: audio_worker.py JOB, a JSON file with "files", "good", "entries",
"onnx".
"""

import csv
import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)

from click.testing import CliRunner  # noqa: E402

from speechbrain_dslstm.audio import (  # noqa: E402
    LONGEST_CLIP,
    AudioError,
    load_audio,
)
from speechbrain_dslstm.cli import classify  # noqa: E402
from speechbrain_dslstm.cli.app import dslstm  # noqa: E402
from speechbrain_dslstm.corpora.manifest import build_manifest  # noqa: E402
from speechbrain_dslstm.export import load_onnx  # noqa: E402
from speechbrain_dslstm.inference import load_safe  # noqa: E402

MODEL = "pretrained/emotion-dslstm-emodb"
SECONDS = 60  # after which a call is taken to hang


def memory(name):
    """A size of this process in MB: VmRSS now, VmHWM at its peak."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) / 1024


def answer(found):
    """Label and posteriors of a classifier's output."""
    return {"label": found[3][0], "posteriors": found[0][0].tolist()}


def classify_file(path):
    """Classify one file."""
    return answer(classifier.classify_file(path))


def classify_onnx(path):
    """Classify one file with the exported model."""
    return answer(exported.classify_file(path))


def classify_long(path):
    """Classify all windows; the first answer, if there is one."""
    found = list(classifier.classify_long(path))
    best = next((item for item in found if item.label), None)
    if best is None:
        return {"error": f"{path}: {found[0].reason}", "segments": len(found)}
    return {"label": best.label, "posteriors": best.log_posteriors.tolist()}


def many(results, path, others):
    """The answer for a file, and the posteriors of the other files."""
    found = {str(result.path): result for result in results}
    one = found.get(str(path))
    bits = [found[str(other)].log_posteriors.tolist() for other in others]
    if one is None or one.answer is None:
        return {"error": one and one.error, "others": bits}
    return {**answer(one.answer), "others": bits}


def classify_list(path):
    """A list of files with a good one on either side."""
    files = [good[0], path, *good[1:]]
    return many(classifier.classify_files(files), path, good)


def classify_folder(path):
    """The file's folder, with good ones linked into it."""
    links = []
    for number, other in enumerate(good):
        link = path.parent / f"good{number}.flac"
        if not link.is_symlink():
            link.symlink_to(other)
        links.append(link)
    return many(classifier.classify_files(path.parent), path, links)


def command(path):
    """``dslstm classify FILE --csv``."""
    classify.load_classifier = lambda *ignored: classifier
    done = CliRunner().invoke(dslstm, ["classify", "--csv", "--", str(path)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    row = next(csv.DictReader(io.StringIO(done.stdout)))
    if not row["label"]:
        if not row["reason"] and done.exit_code != 1:
            raise RuntimeError(f"status {done.exit_code} for {row}")
        return {"error": row["error"]}
    labels = classifier.labels
    numbers = torch.tensor([float(row[label]) for label in labels]).log()
    return {"label": row["label"], "posteriors": numbers.tolist()}


def prepare(path):
    """Make the recipe's manifest: an entry, or the kind of fault."""
    fields = {"speaker": "1", "gender": "F", "session": "1", "dialogue": ""}
    record = {"id": "a", "path": path, "emotion": "anger", **fields}
    record |= {"text_id": "t", "text": ""}
    try:
        build_manifest([record], path.parent, ["anger"])
    except ValueError as error:
        return {"error": str(error)}
    return {"label": "entry"}


def load(path):
    """Load the waveform as the recipe does."""
    load_audio(path, 16000, LONGEST_CLIP)
    return {"label": "waveform"}


def measured(call, path):
    """Run a call; its result, its seconds, and the MB it took at its peak."""
    # 5: set the peak back
    Path("/proc/self/clear_refs").write_text("5")
    before, started = memory("VmRSS"), time.perf_counter()
    signal.alarm(SECONDS)
    try:
        found = call(path)
    except AudioError as error:
        found = {"error": str(error), "kind": error.kind}
    except FileNotFoundError as error:
        # Of a folder; of a file that is not there it would be the wrong one
        found = {"error" if path.is_dir() else "crash": str(error)}
    except BaseException as error:
        found = {"crash": f"{type(error).__name__}: {error}"}
    finally:
        signal.alarm(0)
    seconds = time.perf_counter() - started
    return {**found, "seconds": seconds, "mb": memory("VmHWM") - before}


def hang(*_):
    """Stop a call that takes too long."""
    raise TimeoutError(f"more than {SECONDS} s")


ENTRIES = {
    "file": classify_file,
    "onnx": classify_onnx,
    "list": classify_list,
    "folder": classify_folder,
    "command": command,
    "manifest": prepare,
    "loader": load,
    "long": classify_long,
}

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    good = [Path(path) for path in job["good"]]
    classifier = load_safe(MODEL)
    exported = load_onnx(job["onnx"])
    # The good files by themselves
    nothing = Path(sys.argv[1]).with_name("alone") / "nothing.wav"
    nothing.parent.mkdir()
    signal.signal(signal.SIGALRM, hang)
    for entry in job["entries"]:
        call = ENTRIES[entry]
        if entry != "folder":
            measured(call, good[0])  # warm
        print(json.dumps([entry, None, measured(call, nothing)]), flush=True)
        for name, path in job["files"].items():
            path = Path(os.fsdecode(bytes.fromhex(path)))
            found = measured(call, path)
            print(json.dumps([entry, name, found]), flush=True)
