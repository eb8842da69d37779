"""A killed and resumed run equals an undisturbed one, bit for bit."""

import pytest
from nightly import nightly
from resumed_runs import differences, run, states


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder that the first run fills."""
    return tmp_path_factory.mktemp("corpus")


CASES = {
    # The recipe's defaults: dropout 0.3, SpecAugment, five speeds
    "plain": ([], None),
    "accumulation, mixup": (
        [
            "--grad_accumulation_factor=2",
            "--mixup=0.4",
            # A checkpoint is due in the middle of an accumulation, too
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


# At night: the other cases cover the same options together
LESS = ("plain", "2 workers", "2 ranks", "balanced, schedule by epoch")


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[nightly] if c in LESS else []) for c in CASES],
)
def test_exact(corpus, tmp_path, case):
    """Kill the run inside epoch 1, after epoch 2 and inside epoch 3."""
    options, ranks = CASES[case]
    run(corpus, tmp_path / "whole", options, ranks=ranks)
    killed = tmp_path / "killed"
    for moment in (("step", 1, 3), ("boundary", 2), ("step", 3, 2)):
        run(corpus, killed, options, moment, ranks=ranks)
    run(corpus, killed, options, ranks=ranks)
    expected = states(tmp_path / "whole")
    assert len(expected) > 5
    assert differences(expected, states(killed)) == []
