"""A full disk gives a clear error, nothing is lost, and the same command resumes.

A file that may not grow (RLIMIT_FSIZE) and a device that is full (/dev/full)
fail as a full disk does, in the middle of a write.
"""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import saving
import torch
from resumed_runs import differences, run, states

from speechbrain_dslstm.corpora.manifest import read_manifest, write_manifest
from speechbrain_dslstm.evaluation.results import append_row, read_rows
from speechbrain_dslstm.training import CheckpointError


@pytest.mark.parametrize("limit", [0, 50, 1000, 100_000, 300_000, 500_000])
def test_checkpoint(tmp_path, limit):
    """The earlier checkpoint stays intact, and a later save with room succeeds."""
    answer = tmp_path / "answer"
    log = tmp_path / "log"
    process = processes.start(
        saving.save_on_a_full_disk, tmp_path / "save", answer, limit, log=log
    )
    assert processes.finish(process) == 0, log.read_text()
    found = json.loads(answer.read_text())
    assert (
        f"could not save a checkpoint in {tmp_path / 'save'}" in found["said"]
    )
    assert "MB are free" in found["said"] and "make room" in found["said"]
    assert len(found["left"]) == 1 and found["left"][0].startswith("CKPT+")
    assert (found["loaded"], found["then"]) == (1, 3)


def write_to_full(obj, path):
    """A saver whose disk is full."""
    with open("/dev/full", "wb") as file:
        file.write(bytes(10**6))


def test_checkpoint_on_a_full_device(tmp_path):
    """The message contains the error of the system."""
    state = saving.State(tmp_path)
    state.save(1)
    state.checkpointer.add_recoverable(
        "big", torch.nn.Linear(1, 1), custom_save_hook=write_to_full
    )
    with pytest.raises(CheckpointError, match="No space left on device"):
        state.save(2)
    again = saving.State(tmp_path)
    again.checkpointer.recover_if_possible()
    assert again.get() == 1


def limited(function, limit, answer):
    """Run where no file can grow beyond a size; write down the error."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    said = ""
    try:
        function()
    except OSError as error:
        said = f"{type(error).__name__} {error}"
    # The answer needs room, too
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    Path(answer).write_text(said)


def fork(function, limit, answer):
    """Run ``limited`` in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            limited(function, limit, answer)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return Path(answer).read_text()


ENTRY = {
    "wav": "{data_root}/a.wav",
    "duration": 1.0,
    "emotion": "anger",
    "speaker": "1",
    "gender": "F",
    "session": "1",
    "dialogue": "",
    "text_id": "s",
    "text": "",
    "audio_hash": "0",
}


@pytest.mark.parametrize("limit", [0, 100, 5000])
def test_manifest(tmp_path, limit):
    """The error names the file, whose content stays as it was."""
    path = tmp_path / "save" / "train.json"
    write_manifest(path, {"a": ENTRY})
    many = {f"a{n}": ENTRY for n in range(100)}
    said = fork(lambda: write_manifest(path, many), limit, tmp_path / "answer")
    assert "File too large; make room and run the same" in said
    assert str(path) in said
    assert read_manifest(path) == {"a": ENTRY}
    assert [file.name for file in path.parent.iterdir()] == ["train.json"]
    write_manifest(path, many)
    assert read_manifest(path) == many


@pytest.mark.parametrize("room", [0, 1, 40, 79])
def test_log(tmp_path, room):
    """A row is written whole or not at all, and the next one is readable."""
    path = tmp_path / "epochs.jsonl"
    append_row(path, {"epoch": 1, "text": "x" * 50})
    before = path.read_bytes()
    row = {"epoch": 2, "text": "y" * 60}
    said = fork(
        lambda: append_row(path, row),
        len(before) + room,
        tmp_path / "answer",
    )
    assert "make room" in said and str(path) in said
    assert path.read_bytes() == before
    append_row(path, row)
    assert [one["epoch"] for one in read_rows(path)] == [1, 2]


def test_log_on_a_full_device(tmp_path):
    path = tmp_path / "epochs.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device; make") as info:
        append_row(path, {"epoch": 1})
    assert info.value.filename == str(path)


COMPILE = """
import resource
from speechbrain_dslstm.utils.compiled import compiled
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))

@compiled()
def double(x):
    return 2 * x

print(double(3.0))
"""


@pytest.mark.parametrize("limit", [0, 100])
def test_compiled_code(tmp_path, limit):
    """Code that numba cannot store runs all the same."""
    script = tmp_path / "script.py"
    script.write_text(COMPILE.format(limit=limit))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert (done.returncode, done.stdout) == (0, "6.0\n"), done.stderr
    assert "cannot keep the compiled code, so every process" in done.stderr
    assert "NUMBA_CACHE_DIR" in done.stderr


def test_cut_line_of_a_log(tmp_path, caplog):
    """After a power failure an incomplete line is named and left out."""
    path = tmp_path / "epochs.jsonl"
    append_row(path, {"epoch": 1})
    with open(path, "ab") as file:
        file.write(b'{"epoch": 2, "los')
    append_row(path, {"epoch": 3})
    assert [row["epoch"] for row in read_rows(path)] == [1, 3]
    assert f"{path}:2 is incomplete" in caplog.text


def run_limited(corpus, output, options, limit):
    """Run the recipe with a limit on the size of files."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    processes.run_recipe(corpus, output, options)


def test_recipe(tmp_path):
    """A run stops with an error; with room, the same command completes it."""
    corpus, options = tmp_path / "corpus", ["--ckpt_interval_steps=0"]
    run(corpus, tmp_path / "whole", options)
    checkpoint = next((tmp_path / "whole" / "save").glob("CKPT*"))
    largest = max(file.stat().st_size for file in checkpoint.iterdir())
    output, log = tmp_path / "full", tmp_path / "log"
    # The first epoch's checkpoint is saved before the disk fills up
    run(corpus, output, options, ("boundary", 1))
    saved = [path.name for path in (output / "save").glob("CKPT*")]
    process = processes.start(
        run_limited, corpus, output, options, largest - 1, log=log
    )
    assert processes.finish(process) == 1
    assert re.search("CheckpointError: could not save", log.read_text())
    assert [path.name for path in (output / "save").glob("CKPT*")] == saved
    run(corpus, output, options)
    assert differences(states(tmp_path / "whole"), states(output)) == []
