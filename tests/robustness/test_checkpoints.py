"""A run resumes from an intact checkpoint after kills, damage and a wrong clock."""

import json
import logging
import os
import random
import shutil
import signal
import statistics
import time
from pathlib import Path

import processes
import pytest
import saving
from nightly import NIGHT, at_night
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_dslstm.training import CheckpointError

# Kills of each kind
KILLS = 300 if NIGHT else 30
# Each save waits for the disk eight times
SAVES = 1000 if NIGHT else 200


def noted(path):
    """The last number that a process has recorded as loaded or saved."""
    lines = path.read_text().split("\n") if path.exists() else []
    return int(lines[-2]) if len(lines) > 1 else None


@pytest.mark.parametrize("ranks", [at_night(1), 2])
def test_killed_while_saving(tmp_path, ranks):
    """The next start goes on from a complete checkpoint, every time.

    Which is the newest that was saved, or one whose save was not yet noted.
    """
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    folder = tmp_path / "save"
    log = tmp_path / "log"
    last, inside = 0, 0
    for number in range(KILLS):
        notes = tmp_path / f"notes{number}"
        meeting = tmp_path / f"meeting{number}" if ranks > 1 else None
        started = [
            processes.start(
                saving.save_until_killed,
                folder,
                notes,
                meeting,
                log=log,
                rank=rank if ranks > 1 else None,
                ranks=ranks,
            )
            for rank in range(ranks)
        ]
        files = [Path(f"{notes}.{rank}") for rank in range(ranks)]
        processes.wait_for(
            lambda files=files: all(noted(file) is not None for file in files),
            started[0],
        )
        resumed = {int(file.read_text().split("\n")[0]) for file in files}
        assert len(resumed) == 1, "the ranks differ"
        assert resumed.pop() in (last, last + 1), f"kill {number}, seed {seed}"
        time.sleep(draw.uniform(0, 0.1))
        # In random order: the writing rank or a waiting one dies first
        for process in draw.sample(started, ranks):
            os.kill(process.pid, signal.SIGKILL)
        assert [processes.finish(one) for one in started] == [-9] * ranks
        inside += any(folder.glob("SAVING+*"))
        last = noted(files[0])
    print(f"{inside} of {KILLS} kills left a part of a checkpoint behind")
    assert inside >= KILLS // 4, "too few kills hit a save"
    assert "Error" not in log.read_text()
    state = saving.State(folder)
    state.checkpointer.recover_if_possible()
    assert state.get() in (last, last + 1)
    state.save(last + 2)
    names = {path.name[:5] for path in folder.iterdir()}
    assert names == {"CKPT+"}, "parts are cleaned up"


def cut(path):
    """Lose the second half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path):
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    """Lose all bytes of a file."""
    path.write_bytes(b"")


def scribble(path):
    """Overwrite a file with bytes that are not text."""
    path.write_bytes(b"\xff\x00" * 40)


DAMAGE = {
    "model cut": (cut, "model.ckpt"),
    "model empty": (empty, "model.ckpt"),
    "model missing": (Path.unlink, "model.ckpt"),
    "model bit": (flip, "model.ckpt"),
    "optimizer bit": (flip, "optimizer.ckpt"),
    "counter bit": (flip, "counter.ckpt"),
    "counter empty": (empty, "counter.ckpt"),
    "meta empty": (empty, "CKPT.yaml"),
    "meta cut": (cut, "CKPT.yaml"),
    "meta bit": (flip, "CKPT.yaml"),
    "meta missing": (Path.unlink, "CKPT.yaml"),
    "meta no text": (scribble, "CKPT.yaml"),
    "hashes missing": (Path.unlink, "SHA256SUMS"),
    "hashes cut": (cut, "SHA256SUMS"),
    "folder empty": (lambda p: [f.unlink() for f in p.parent.iterdir()], "x"),
}
# Without hashes, a changed digit cannot be detected
STOCK = [
    name
    for name in DAMAGE
    if "hashes" not in name and name not in ("counter bit", "meta bit")
]


def newest(folder):
    """Folder of the checkpoint that was saved last."""
    return max(folder.glob("CKPT*"), key=lambda path: path.stat().st_mtime_ns)


def warnings(caplog):
    """The messages of warnings."""
    records = [r for r in caplog.records if r.levelno >= logging.WARNING]
    return [record.getMessage() for record in records]


@pytest.mark.parametrize("damage", DAMAGE)
def test_newest_is_damaged(tmp_path, damage, caplog):
    """One warning names the damaged checkpoint, and the one before is loaded."""
    state = saving.State(tmp_path)
    for number in (1, 2, 3):
        state.save(number, keep=3)
    victim = newest(tmp_path)
    break_it, file = DAMAGE[damage]
    break_it(victim / file)
    again = saving.State(tmp_path)
    again.set(0)
    caplog.clear()
    found = again.checkpointer.recover_if_possible()
    assert again.get() == 2 and found.meta["number"] == 2
    # The warning is not repeated in this process
    again.checkpointer.find_checkpoint(max_key="number")
    again.save(4)
    assert again.checkpointer.recover_if_possible().meta["number"] == 4
    said = warnings(caplog)
    assert len(said) == 1 and str(victim) in said[0], said
    assert victim.exists()


@pytest.mark.parametrize("damage", STOCK)
def test_newest_of_speechbrains_own_is_damaged(tmp_path, damage, caplog):
    """Without hashes, files that are cut, missing or no zip are still noticed."""
    state = saving.State(tmp_path)
    stock = Checkpointer(tmp_path, state.checkpointer.recoverables)
    for number in (1, 2):
        state.set(number)
        stock.save_checkpoint(meta={"number": number})
    assert saving.State(tmp_path).checkpointer.find_checkpoint()
    victim = newest(tmp_path)
    break_it, file = DAMAGE[damage]
    break_it(victim / file)
    again = saving.State(tmp_path)
    again.set(0)
    caplog.clear()
    again.checkpointer.recover_if_possible()
    assert again.get() == 1
    said = warnings(caplog)
    assert len(said) == 1 and str(victim) in said[0], said


def test_two_ranks_use_the_same_one(tmp_path):
    """Both ranks load the checkpoint that the first one has chosen."""
    state = saving.State(tmp_path / "save")
    for number in (1, 2):
        state.save(number)
    flip(newest(tmp_path / "save") / "model.ckpt")
    log = tmp_path / "log"
    started = [
        processes.start(
            saving.recover,
            tmp_path / "save",
            tmp_path / "answer",
            tmp_path / "meeting",
            log=log,
            rank=rank,
            ranks=2,
        )
        for rank in range(2)
    ]
    codes = [processes.finish(one) for one in started]
    assert codes == [0, 0], log.read_text()
    answers = [Path(tmp_path, f"answer.{rank}") for rank in range(2)]
    assert [json.loads(one.read_text()) for one in answers] == [1, 1]
    assert log.read_text().count("is damaged") == 1


def test_all_are_damaged(tmp_path):
    """An error is raised; the run does not start anew silently."""
    state = saving.State(tmp_path)
    for number in (1, 2):
        state.save(number)
    for folder in tmp_path.glob("CKPT*"):
        flip(folder / "model.ckpt")
    again = saving.State(tmp_path)
    again.set(0)
    with pytest.raises(CheckpointError, match="every checkpoint .* damaged"):
        again.checkpointer.recover_if_possible()
    assert again.get() == 0
    with pytest.raises(CheckpointError, match="model.ckpt differs"):
        found = again.checkpointer.find_checkpoints()
        again.checkpointer.load_checkpoint(found[0])
    assert again.get() == 0


def test_the_last_intact_one_is_not_deleted(tmp_path):
    """Even if fewer are to be kept."""
    state = saving.State(tmp_path)
    for number in (1, 2, 3):
        state.save(number, keep=3)
    flip(newest(tmp_path) / "model.ckpt")
    state.checkpointer.delete_checkpoints(num_to_keep=1)
    again = saving.State(tmp_path)
    again.checkpointer.recover_if_possible()
    assert again.get() == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_killed_while_one_is_replaced(tmp_path):
    """While a checkpoint is replaced, one of the two is always there."""
    state = saving.State(tmp_path)
    state.set(1)
    state.checkpointer.save_checkpoint(name="best")
    # The state between the two renames
    os.rename(tmp_path / "CKPT+best", tmp_path / "REPLACED+best")
    shutil.copytree(tmp_path / "REPLACED+best", tmp_path / "SAVING+best")
    again = saving.State(tmp_path)
    again.checkpointer.recover_if_possible()
    assert again.get() == 1


@pytest.mark.parametrize("back", [1, 3600, 10 * 365 * 86400])
def test_clock_steps_back(tmp_path, monkeypatch, back):
    """The checkpoint saved last is the newest, whatever the clock says."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    state = saving.State(tmp_path)
    state.save(1)
    now -= back
    for number in (2, 3):
        state.save(number)
    # Another process with the same wrong clock
    again = saving.State(tmp_path)
    again.checkpointer.recover_if_possible()
    assert again.get() == 3
    again.save(4, keep=1)
    assert [
        c.meta["number"] for c in again.checkpointer.list_checkpoints()
    ] == [4]
    # SpeechBrain's own checkpointer finds the same order
    stock = Checkpointer(tmp_path, again.checkpointer.recoverables)
    again.set(0)
    stock.recover_if_possible()
    assert again.get() == 4


@pytest.mark.parametrize("keep", [2, 1000])
def test_save_1000_costs_as_save_1(tmp_path, keep):
    """This holds if two checkpoints are kept, and if all are."""
    answer = tmp_path / "seconds"
    process = processes.start(
        saving.time_saves, tmp_path / "save", answer, SAVES, keep
    )
    assert processes.finish(process, 600) == 0
    seconds = json.loads(answer.read_text())
    first, last = (
        statistics.median(part) for part in (seconds[:50], seconds[-50:])
    )
    print(f"first {first * 1e3:.1f} ms, last {last * 1e3:.1f} ms")
    assert last <= 2 * first
