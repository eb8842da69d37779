"""Two ranks compute the numbers of one process, and end when one is lost."""

import os
import re
import time

import pytest
import step_faults
from nightly import at_night

# Seconds that torchrun gives a process before it kills it
LAUNCHER_SECONDS = 30
TIMEOUT = 10


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder that the first run fills with the synthetic corpus."""
    return tmp_path_factory.mktemp("corpus")


@pytest.mark.parametrize(
    "sizes, options",
    [
        at_night([4, 4], []),
        ([5, 2], []),
        ([5, 2], ["--class_weights=balanced", "--label_smoothing=0.1"]),
    ],
    ids=["even", "uneven", "weights"],
)
def test_two_ranks_are_one_process(corpus, tmp_path, sizes, options):
    """Same global batches, with padding, and batch norm over both ranks."""
    fault = {"kind": "global batch", "sizes": sizes}
    options = [*options, "--number_of_epochs=3", "--eval_batch_size=3"]
    found = [
        step_faults.train(
            corpus, tmp_path / str(ranks), *options, ranks=ranks, faults=[fault]
        )
        for ranks in (1, 2)
    ]
    for result in found:
        assert result.code == 0, result.console
    one, two = (result.epochs for result in found)
    assert len(one) == len(two) == 3
    for expected, row in zip(one, two, strict=True):
        assert row["train_loss"] == pytest.approx(
            expected["train_loss"], abs=1e-5
        )
        assert row["valid"] == pytest.approx(expected["valid"], abs=1e-5)
    # The training changed something
    assert abs(one[0]["train_loss"] - one[2]["train_loss"]) > 1e-3
    assert found[1].hashes(0) == found[1].hashes(1)


@pytest.mark.parametrize("how", ["kill", at_night("raise"), at_night("hang")])
def test_a_lost_rank_ends_the_job(corpus, tmp_path, how):
    """The job fails within the timeout, keeps its checkpoint, leaves no process."""
    fault = {"kind": "process", "step": 5, "rank": 1, "how": how}
    options = [f"--ddp_timeout={TIMEOUT}"]
    process = step_faults.start(
        corpus, tmp_path, *options, faults=[fault], ranks=2, launcher=True
    )
    pids = [
        step_faults.at_step(process, tmp_path, 5, rank) for rank in range(2)
    ]
    started = time.monotonic()
    result = step_faults.finish(process, tmp_path)
    seconds = time.monotonic() - started
    assert result.code != 0, result.console
    limit = LAUNCHER_SECONDS + (TIMEOUT if how == "hang" else 0)
    assert seconds < limit + 20, result.console
    said = {
        "kill": "Signal 9",
        "raise": "ZeroDivisionError",
        # The wording depends on what gloo finds first
        "hang": "timed out|timeout|closed by peer",
    }
    assert re.search(said[how], result.console, re.IGNORECASE)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    # Epoch 1, of four batches for each rank, is safe
    assert len(result.checkpoints) == 1
    assert [row["epoch"] for row in result.epochs] == [1]


def test_bad_timeout(corpus, tmp_path):
    result = step_faults.train(corpus, tmp_path, "--ddp_timeout=0")
    assert result.code == 1
    assert "ddp_timeout must be positive, got 0" in result.console
