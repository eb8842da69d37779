"""A run that is killed and resumed ends as the one that was not, bit by bit."""

import os
import sys
from pathlib import Path

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_dslstm.evaluation import read_rows

sys.path.append(str(Path(__file__).parent))

import processes  # noqa: E402

FULL = not os.environ.get("CI")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder that the first run fills."""
    return tmp_path_factory.mktemp("corpus")


def run(corpus, output, options, kill_at=None, ranks=None):
    """Run the recipe, in one process or in several; the exit codes."""
    output.mkdir(parents=True, exist_ok=True)
    log = output.parent / f"{output.name}.console"
    if ranks is None:
        one = processes.start(
            processes.run_recipe, corpus, output, options, kill_at, log=log
        )
        started = [one]
    else:
        meeting = output.parent / f"meeting-{os.urandom(8).hex()}"
        started = [
            processes.start(
                processes.run_recipe,
                corpus,
                output,
                options,
                kill_at,
                meeting,
                log=log,
                rank=rank,
                ranks=ranks,
            )
            for rank in range(ranks)
        ]
    codes = [processes.finish(one) for one in started]
    expected = 0 if kill_at is None else -9
    assert codes == [expected] * len(codes), log.read_text()


def states(output):
    """All that the newest checkpoint holds, and what the run has logged."""
    checkpointer = Checkpointer(output / "save")
    newest = checkpointer.find_checkpoint().path
    found = {}
    for path in sorted(newest.glob("*.ckpt")):
        if path.name == "dataloader-TRAIN.ckpt":
            continue
        try:
            found[path.stem] = torch.load(path)
        except Exception:
            found[path.stem] = path.read_text()
    rows = read_rows(output / "save" / "epochs.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    found["epochs"] = rows
    return found


def differences(one, other, where=""):
    """Places where two nested states are not equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        pairs = [(f"{where}/{key}", one[key], other[key]) for key in one]
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        pairs = [
            (f"{where}/{n}", a, b)
            for n, (a, b) in enumerate(zip(one, other, strict=True))
        ]
    else:
        return [] if one == other else [where]
    return [place for name, a, b in pairs for place in differences(a, b, name)]


CASES = {
    # Dropout 0.3, SpecAugment and five speeds are what the recipe does anyway
    "plain": ([], None),
    "accumulation, mixup": (
        [
            "--grad_accumulation_factor=2",
            "--mixup=0.4",
            # Due in the middle of an accumulation, too
            "--ckpt_interval_steps=1",
        ],
        None,
    ),
    "2 workers": (["--num_workers=2", "--grad_accumulation_factor=2"], None),
    "2 ranks": (["--batch_size=1"], 2),
    "2 ranks, 2 workers": (
        [
            "--batch_size=1",
            "--num_workers=2",
            "--grad_accumulation_factor=2",
        ],
        2,
    ),
    "balanced, schedule by epoch": (
        [
            "--balanced_sampling=True",
            "--num_workers=2",
            "--average_decay=null",
        ],
        None,
    ),
}


# What the others have together
LESS = ("2 ranks", "balanced, schedule by epoch")


@pytest.mark.parametrize("case", [c for c in CASES if FULL or c not in LESS])
def test_exact(corpus, tmp_path, case):
    """Killed inside the first epoch, after the second, inside the third."""
    options, ranks = CASES[case]
    run(corpus, tmp_path / "whole", options, ranks=ranks)
    killed = tmp_path / "killed"
    for moment in (("step", 1, 3), ("boundary", 2), ("step", 3, 2)):
        run(corpus, killed, options, moment, ranks=ranks)
    run(corpus, killed, options, ranks=ranks)
    expected = states(tmp_path / "whole")
    assert len(expected) > 5
    assert differences(expected, states(killed)) == []
