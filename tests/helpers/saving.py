"""Functions that test_checkpoints.py and test_disk_full.py run in processes."""

import json
import os
import resource
import time
from pathlib import Path

import torch
from processes import join_group
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_dslstm.training import (
    AtomicCheckpointer,
    CheckpointError,
    RandomStates,
)


class State:
    """A model, an optimiser and a counter that all hold one number."""

    def __init__(self, folder, size=256):
        self.model = torch.nn.Linear(size, size)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.model(torch.ones(1, size)).sum().backward()
        self.optimizer.step()
        self.counter = EpochCounter(10**9)
        self.checkpointer = AtomicCheckpointer(
            folder,
            {
                "model": self.model,
                "optimizer": self.optimizer,
                "counter": self.counter,
                "random_states": RandomStates(),
            },
        )

    def set(self, number):
        """Fill everything with a number."""
        for tensor in self.tensors():
            tensor.data.fill_(number)
        self.counter.current = number

    def tensors(self):
        """Tensors that hold the number."""
        moments = [
            value
            for state in self.optimizer.state.values()
            for value in (state["exp_avg"], state["exp_avg_sq"])
        ]
        return [*self.model.parameters(), *moments]

    def get(self):
        """Return the number, and check that all objects hold the same."""
        found = {self.counter.current}
        for tensor in self.tensors():
            found |= set(tensor.unique().tolist())
        assert len(found) == 1, f"half loaded: {sorted(found)}"
        return int(found.pop())

    def save(self, number, keep=2):
        """Save a checkpoint of a number."""
        self.set(number)
        self.checkpointer.save_and_keep_only(
            meta={"number": number}, num_to_keep=keep
        )


def save_until_killed(folder, notes, meeting=None):
    """Resume from the newest checkpoint and save again and again.

    What has been loaded, and each number once it is saved, is noted in a
    file: the parent knows what must not be lost.
    """
    join_group(meeting)
    rank = os.environ.get("RANK", "0")
    state = State(folder)
    state.set(0)
    state.checkpointer.recover_if_possible()
    number = state.get()
    notes = Path(f"{notes}.{rank}")
    notes.write_text(f"{number}\n")
    while True:
        number += 1
        state.save(number)
        with open(notes, "a", buffering=1) as file:
            file.write(f"{number}\n")


def recover(folder, answer, meeting=None):
    """Write down which number the newest checkpoint holds."""
    join_group(meeting)
    state = State(folder)
    state.set(0)
    state.checkpointer.recover_if_possible()
    rank = os.environ.get("RANK", "0")
    Path(f"{answer}.{rank}").write_text(json.dumps(state.get()))
    if meeting is not None:
        torch.distributed.barrier()


def save_on_a_full_disk(folder, answer, limit):
    """Save with a limit on the size of files, then without."""
    state = State(folder)
    state.save(1)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        state.save(2)
        said = None
    except CheckpointError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    left = sorted(path.name for path in Path(folder).iterdir())
    state.checkpointer.recover_if_possible()
    loaded = state.get()
    state.save(3)
    state.set(0)
    state.checkpointer.recover_if_possible()
    found = {"said": said, "left": left, "loaded": loaded, "then": state.get()}
    Path(answer).write_text(json.dumps(found))


def time_saves(folder, answer, saves, keep):
    """Measure the seconds of many saves in one process."""
    state = State(folder, size=8)
    seconds = []
    for number in range(saves):
        begun = time.perf_counter()
        state.save(number, keep)
        seconds.append(time.perf_counter() - begun)
    Path(answer).write_text(json.dumps(seconds))
