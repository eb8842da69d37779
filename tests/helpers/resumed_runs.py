"""Runs of the recipe that are killed and resumed, and comparisons of them."""

import os

import processes
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_dslstm.evaluation.results import read_rows


def run(corpus, output, options, kill_at=None, ranks=None):
    """Run the recipe in one process or several, and check the exit codes."""
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
    """Contents of the newest checkpoint, and the log of epochs."""
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
    """List the places where two nested states differ in a bit."""
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
