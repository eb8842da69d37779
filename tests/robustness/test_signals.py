"""A scheduler's signal leads to a checkpoint after the step, code 143 and a resume."""

import os
import signal
import time

import pytest
import step_faults
from nightly import at_night, nightly

from speechbrain_dslstm.training import StopSignals

train = step_faults.train

# Options with random numbers: dropout, speeds and masks
RANDOM = ("--dropout=0.3", "--speeds=[90, 110]")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder that the first run fills with the synthetic corpus."""
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """A run that nothing interrupts."""
    result = train(corpus, tmp_path_factory.mktemp("whole"))
    assert result.code == 0, result.console
    return result


def check_stopped(result, epoch):
    """Check exit code and log of a run that received a signal."""
    assert result.code == 143, result.console
    assert result.log.count("stopped by a signal") == 1
    assert [row["epoch"] for row in result.epochs] == list(range(1, epoch + 1))
    assert not (result.output / "final0.json").exists()
    assert "Traceback" not in result.console


def check_same(again, whole):
    """Check that checkpoints and scores are equal, bit for bit."""
    assert again.code == 0, again.console
    assert "Loading a checkpoint from" in again.log
    assert again.hashes() == whole.hashes()
    assert again.epochs == whole.epochs


@pytest.mark.parametrize(
    ("name", "options", "last"),
    [
        ("SIGTERM", RANDOM, 11),
        # In the middle of a step, which ends with the batch after
        at_night("SIGUSR1", ["--grad_accumulation_factor=2"], 12),
    ],
)
def test_stop_and_resume(corpus, tmp_path, name, options, last):
    """The signal comes in the third of eight batches of the second epoch."""
    whole = step_faults.start(corpus, tmp_path / "whole", *options)
    fault = {"kind": "signal", "step": 11, "name": name}
    output = tmp_path / "stopped"
    # The corpus is generated once
    step_faults.at_step(whole, tmp_path / "whole", 1)
    stopped = train(corpus, output, *options, faults=[fault])
    check_stopped(stopped, 1)
    # It stopped at the first possible step
    assert (output / "step0").read_text().split()[0] == str(last)
    whole = step_faults.finish(whole, tmp_path / "whole")
    check_same(train(corpus, output, *options), whole)


def test_more_signals_during_the_save(corpus, whole, tmp_path):
    """Signals from inside and outside the process, until it has ended."""
    faults = [
        {"kind": "signal", "step": 11, "name": "SIGUSR1"},
        {"kind": "signal in save", "step": 11, "last": 11},
    ]
    process = step_faults.start(corpus, tmp_path, faults=faults)
    step_faults.at_step(process, tmp_path, 11)
    sent = 0
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal([signal.SIGTERM, signal.SIGUSR1][sent % 2])
        sent += 1
        time.sleep(0.002)
    check_stopped(step_faults.finish(process, tmp_path), 1)
    assert sent > 3
    check_same(train(corpus, tmp_path), whole)


def test_signal_in_validation(corpus, whole, tmp_path):
    """The checkpoint of the epoch is saved, and no other."""
    fault = {"kind": "signal in validation", "step": 8}
    check_stopped(train(corpus, tmp_path, faults=[fault]), 1)
    check_same(train(corpus, tmp_path), whole)


def test_signal_to_the_group_with_workers(corpus, tmp_path):
    """The loader's workers survive the signal; else nothing would be saved."""
    options = ["--num_workers=2"]
    process = step_faults.start(corpus, tmp_path, *options, group=True)
    step_faults.at_step(process, tmp_path, 10)
    os.killpg(process.pid, signal.SIGTERM)
    check_stopped(step_faults.finish(process, tmp_path, 120), 1)
    again = train(corpus, tmp_path, *options)
    assert again.code == 0, again.console
    assert [row["epoch"] for row in again.epochs] == [1, 2]


def test_signal_before_the_training(corpus, whole, tmp_path):
    """With nothing to save, the process ends at once, with the same code."""
    result = train(corpus, tmp_path, faults=[{"kind": "signal before"}])
    assert result.code == 143, result.console
    assert not result.checkpoints and not result.epochs


@nightly
def test_one_rank_gets_the_signal(corpus, whole, tmp_path):
    """Both ranks save at the same step; torchrun prints their exit code."""
    fault = {"kind": "signal", "step": 6, "name": "SIGTERM", "rank": 1}
    stopped = train(
        corpus, tmp_path / "two", faults=[fault], ranks=2, launcher=True
    )
    assert stopped.code != 0
    assert "exitcode  : 143" in stopped.console
    assert stopped.log.count("stopped by a signal") == 1
    for rank in range(2):
        step = (stopped.output / f"step{rank}").read_text().split()[0]
        assert step == "6"
    again = train(corpus, tmp_path / "two", ranks=2)
    assert again.code == 0, again.console
    never = train(corpus, tmp_path / "never", ranks=2)
    for rank in range(2):
        assert again.hashes(rank) == never.hashes(rank)
    # The mean loss of all ranks is summed in another order
    for row, expected in zip(again.epochs, never.epochs, strict=True):
        loss = expected.pop("train_loss")
        assert row.pop("train_loss") == pytest.approx(loss, abs=1e-12)
        assert row == expected


def test_handlers_come_back():
    before = [signal.getsignal(getattr(signal, n)) for n in StopSignals.NAMES]
    with StopSignals() as signals:
        with signals.deferred():
            assert signal.getsignal(signal.SIGTERM) != before[0]
    after = [signal.getsignal(getattr(signal, n)) for n in StopSignals.NAMES]
    assert after == before and not signals.requested
